// The canonical order of names, and the one in which somebody put them.
#pragma once

#include <memory>
#include <vector>

#include "objects/layout.h"
#include "structure/graphdef.h"

namespace treadle {

// Attribute names of one insertion order, and how those that are children sort. Invariant: `sorted[rank[i]]` is
// `inserted[i]`, or `rank[i]` is kNone for a name that the layout hides; `children` has those of `sorted`, and is the
// same tuple if they were inserted in that order.
struct KeyOrder {
  std::vector<nb::object> inserted;
  nb::object sorted;                                  // tuple
  nb::object children;                                // tuple: in the order of `inserted`
  std::vector<uint32_t> rank;                         // position among the sorted keys, by insertion position
  uint32_t data_names = kNone, static_names = kNone;  // where the marks are among the sorted keys, of treadle's nodes
  const NodeLayout *layout;                           // compared, never followed
};
std::shared_ptr<const KeyOrder> key_order(PyObject *dict, const NodeLayout *layout = nullptr);

// One that `key_order` found for a dict that began as this one does, or null: looking at all keys tells whether it is
// this one's too. Blocks of a model follow each other with the same names.
std::shared_ptr<const KeyOrder> likely_order(PyObject *dict, const NodeLayout *layout);

}  // namespace treadle
