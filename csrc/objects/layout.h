// Where a library other than treadle keeps what the engine reads and writes. Its objects stay its own; described once
// per type, they are walked, guarded, rebuilt and updated like treadle's.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "python_compat.h"

namespace treadle {

// A `__slots__` member of a class: neither reading nor writing runs Python. Invariant: once bound, `descriptor_` is a
// member descriptor, and instances of its class keep the slot at `offset_`.
class Slot {
 public:
  Slot() = default;
  Slot(const nb::object &type, const nb::object &name);

  // Borrowed from `object`, an instance of the class; null if the slot is empty.
  PyObject *peek(PyObject *object) const {
    return *reinterpret_cast<PyObject **>(reinterpret_cast<char *>(object) + offset_);
  }
  // Owned; an empty slot is an AttributeError.
  nb::object get(PyObject *object) const;
  // What was there before is released at once: hold it where its destructor must not run.
  void set(PyObject *object, PyObject *value) const;
  const nb::object &descriptor() const { return descriptor_; }
  bool is_bound() const { return descriptor_.is_valid(); }

 private:
  size_t find_offset(const nb::object &type) const;

  nb::object descriptor_;
  descrgetfunc get_ = nullptr;
  descrsetfunc set_ = nullptr;
  size_t offset_ = 0;
};

// What a dict holds, in its order, borrowed from it.
using Entries = std::vector<std::pair<PyObject *, PyObject *>>;
Entries entries_of(PyObject *dict);
// True if `dict` holds just these objects in this order: runs no Python.
bool has_entries(PyObject *dict, const Entries &entries);

// The content of a dict that its owner may change in place, as it was. Invariant: `entries` points at what `dict`,
// which nobody changes, holds in this order. Dicts of the same content share one as a rule, which makes comparing
// structures quick; content that may refer to a caller's objects is not kept for it.
struct Snapshot {
  nb::object dict;
  Entries entries;
  nb::object refusal;  // why a Variable with this metadata cannot be walked, or None
  nb::object judge;    // who said so: part of what makes two snapshots the same
};

// Invariant: the fields of what is described are set, those of the other two are not.
struct Layout {
  // A Variable: slots that hold its raw value, its metadata (a dict of its own) and what remembers its trace.
  Slot value, metadata, trace;
  nb::object counterpart;                  // treadle's type of the same meaning
  nb::object refuse;                       // metadata -> reason or None: why it cannot be walked
  std::vector<nb::object> refused_values;  // types of values that cannot be leaves
  nb::object refused_value_reason;

  // A node: names in its `__dict__` that are bookkeeping instead of children.
  nb::object state_name;   // what remembers its trace
  nb::object marks_name;   // which attributes are data: a frozenset of names, or an object around a dict of bools
  nb::object marks_field;  // attribute of that object which is the dict, or null for a frozenset
  nb::object make_marks;   // the object from the dict or set
  bool int_keys = false;   // names made of digits show as indices in paths

  // A Variable or a node: a new memory of the current trace, and the attributes that lead from it to the canonical weak
  // reference to the trace.
  nb::object make_trace;
  std::vector<nb::object> owner_path;

  // A mapping walked by value: the slot or attribute that is its dict, and what makes one from a dict (null: setting
  // the attribute does).
  Slot items_slot;
  nb::object items_name;
  nb::object make_mapping;

  bool hides(PyObject *name) const;
  // Borrowed: what marks the data attributes of a node with the attributes `dict`: a dict or set; null if nothing does.
  PyObject *marks_object(PyObject *dict) const;
  nb::object marks(PyObject *dict) const;
  // The bookkeeping object for what `marks` gave.
  nb::object marks_from(PyObject *marks) const;
  std::shared_ptr<const Snapshot> snapshot(PyObject *variable) const;
  // The canonical weak reference to the trace that `object`, a Variable or a node, belongs to.
  nb::object owner(PyObject *object, bool is_variable) const;
  // The dict of a mapping; null if it has none.
  nb::object items(PyObject *mapping) const;
  // The same, borrowed, running no Python: null as well if its attribute has an equal name that is another object.
  PyObject *peek_items(PyObject *mapping) const;
  nb::object mapping_from(PyTypeObject *type, const nb::object &dict) const;
};

// The snapshot of `dict`; `judge(dict)` is asked about each content once.
std::shared_ptr<const Snapshot> snapshot_of(PyObject *dict, const nb::object &judge);

// True if `marks`, a dict of bools or a frozenset, says that the attribute `name` is data.
bool is_marked(PyObject *marks, PyObject *name);

// A dict of its own for a Variable, from the structure's metadata (null for none).
nb::object own_metadata(PyObject *metadata);

// An index for a name made of digits, the name itself otherwise.
nb::object index_or_name(PyObject *name);

// An instance without `__init__`, and without the type's own `__new__`.
nb::object bare_instance(PyTypeObject *type);

// From a description as treadle/_foreign.py has it.
std::unique_ptr<Layout> read_layout(const nb::object &type, const nb::object &description);

}  // namespace treadle
