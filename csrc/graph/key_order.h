// The canonical order of names.
#pragma once

#include <memory>
#include <vector>

#include "objects/layout.h"

namespace treadle {

// Attribute names of one insertion order, and how those that are children sort. Invariant: `sorted[rank[i]]` is
// `inserted[i]`, or `rank[i]` is kNone for a name that the layout hides.
struct KeyOrder {
  std::vector<nb::object> inserted;
  nb::object sorted;           // tuple
  std::vector<uint32_t> rank;  // position among the sorted keys, by insertion position
  const NodeLayout *layout;    // compared, never followed
};
std::shared_ptr<const KeyOrder> key_order(PyObject *dict, const NodeLayout *layout = nullptr);

}  // namespace treadle
