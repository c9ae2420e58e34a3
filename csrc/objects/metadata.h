// Metadata of Variables: dicts, compared in structures by the objects that they hold.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "python_compat.h"

namespace treadle {

// What a dict holds, in its order, borrowed from it.
using Entries = std::vector<std::pair<PyObject *, PyObject *>>;
Entries entries_of(PyObject *dict);
// True if `dict` holds just these objects in this order: runs no Python.
bool has_entries(PyObject *dict, const Entries &entries);

// The content of a dict that its owner may change in place, as it was. Invariant: `entries` points at what `dict`,
// which nobody changes, holds in this order. Dicts of the same content share one as a rule, which makes comparing
// structures quick; content that may refer to a caller's objects is not kept for it.
struct DictSnapshot {
  nb::object dict;
  Entries entries;
  nb::object refusal;  // why a Variable with this metadata cannot be walked, or None
  nb::object judge;    // who said so: part of what makes two snapshots the same
};

// The snapshot of `dict`; `judge(dict)`, if there is a judge, is asked about each content once.
std::shared_ptr<const DictSnapshot> snapshot_of(PyObject *dict, const nb::object &judge);

// A dict of its own for a Variable, from the structure's metadata (null for none).
nb::object own_metadata(PyObject *metadata);

}  // namespace treadle
