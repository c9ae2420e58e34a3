// Where a library other than treadle keeps what the engine reads and writes. Its objects stay its own; described once
// per type, they are walked, guarded, rebuilt and updated like treadle's.
#pragma once

#include <memory>
#include <variant>
#include <vector>

#include "objects/metadata.h"

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

// An instance without `__init__`, and without the type's own `__new__`.
nb::object bare_instance(PyTypeObject *type);

// How an object remembers the trace that it was made in. Invariant: `make` makes such a memory of the current trace,
// and the attributes `path` lead from it to the canonical weak reference to the trace.
struct TraceMemory {
  nb::object make;
  std::vector<nb::object> path;

  nb::object owner(nb::object memory) const;
};

// A Variable. Invariant: the slots are bound; `metadata` holds a dict of the Variable's own.
struct VariableLayout {
  Slot value, metadata, trace;
  nb::object counterpart;                  // treadle's type of the same meaning
  nb::object refuse;                       // metadata -> reason or None: why it cannot be walked
  std::vector<nb::object> refused_values;  // types of values that cannot be leaves
  nb::object refused_value_reason;
  TraceMemory memory;

  std::shared_ptr<const DictSnapshot> snapshot(PyObject *variable) const;
  // The canonical weak reference to the trace that the Variable belongs to.
  nb::object owner(PyObject *variable) const { return memory.owner(trace.get(variable)); }
};

// A node: names in its `__dict__` that are bookkeeping instead of children. Invariant: `state_name` is set, and
// interned like `marks_name`, which is null if nothing marks data.
struct NodeLayout {
  nb::object state_name;   // what remembers its trace
  nb::object marks_name;   // which attributes are data: a frozenset of names, or an object around a dict of bools
  nb::object marks_field;  // attribute of that object which is the dict, or null for a frozenset
  nb::object make_marks;   // the object from the dict or set
  bool int_keys = false;   // names made of digits show as indices in paths
  TraceMemory memory;

  bool hides(PyObject *name) const { return name == state_name.ptr() || name == marks_name.ptr(); }
  // Borrowed: what marks the data attributes of a node with the attributes `dict`: a dict or set; null if nothing does.
  PyObject *marks_object(PyObject *dict) const;
  nb::object marks(PyObject *dict) const;
  // The bookkeeping object for what `marks` gave.
  nb::object marks_from(PyObject *marks) const;
  // As that of a Variable; null without a memory of its trace: such an object can be changed anywhere.
  nb::object owner(PyObject *node) const;
};

// A mapping walked by value. Invariant: its dict is in `slot` if that is bound, otherwise in the attribute `name`.
struct MappingLayout {
  Slot slot;
  nb::object name;
  nb::object make;  // one from a dict; null: setting the attribute does

  // The dict of a mapping; null if it has none.
  nb::object items(PyObject *mapping) const;
  // The same, borrowed, running no Python: null as well if its attribute has an equal name that is another object.
  PyObject *peek_items(PyObject *mapping) const;
  nb::object made(PyTypeObject *type, const nb::object &dict) const;
};

using Layout = std::variant<VariableLayout, NodeLayout, MappingLayout>;

// True if `marks`, a dict of bools or a frozenset, says that the attribute `name` is data.
bool is_marked(PyObject *marks, PyObject *name);

// An index for a name made of digits, the name itself otherwise.
nb::object index_or_name(PyObject *name);

// From a description as treadle/_adapters.py has it; null if its kind is none of the three.
std::shared_ptr<const Layout> read_layout(const nb::object &type, const nb::object &description);

}  // namespace treadle
