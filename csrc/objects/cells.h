// The three object layouts the engine touches directly: Variables, graph nodes, and detached Variable states.
#pragma once

#include "python_compat.h"

namespace treadle {

// A mutable cell. Invariant: `value` and `trace` are owned and never null once constructed; `metadata` is an owned dict
// that nobody mutates in place, or null when empty, so pointer equality of metadata implies equality.
struct VariableCell {
  PyObject_HEAD PyObject *value;
  PyObject *metadata;
  PyObject *trace;
};

// A graph node: its attributes live in `dict`, its `__dict__`, which the engine reads without asking the interpreter.
// Invariant: `trace` is owned and non-null once constructed; `dict` is owned, null as long as there are no attributes;
// `places` is owned, and null but for what JAX made with other things than Variables and arrays (`graph/pytree.cpp`).
struct ObjectNode {
  PyObject_HEAD PyObject *trace;
  PyObject *dict;
  PyObject *places;
};

// One entry of a State. Invariant: `type` and `value` are owned and non-null; `metadata` as in VariableCell.
struct VariableState {
  PyObject_HEAD PyObject *type;
  PyObject *value;
  PyObject *metadata;
};

// Attributes of a node, or of its class, that are frozensets of names: what is marked as data and as static.
inline constexpr const char *kDataNames = "_data_names_", *kStaticNames = "_static_names_";

extern PyTypeObject *variable_cell_type;
extern PyTypeObject *object_node_type;
extern PyTypeObject *variable_state_type;

inline VariableCell *as_cell(PyObject *object) { return reinterpret_cast<VariableCell *>(object); }
inline ObjectNode *as_node(PyObject *object) { return reinterpret_cast<ObjectNode *>(object); }
inline VariableState *as_state(PyObject *object) { return reinterpret_cast<VariableState *>(object); }

// Fresh instances that skip the user's `__new__` and `__init__`.
nb::object new_variable(PyTypeObject *type, PyObject *value, PyObject *metadata, PyObject *trace);
nb::object new_node(PyTypeObject *type, PyObject *trace);
nb::object new_variable_state(PyObject *type, PyObject *value, PyObject *metadata);

// Null for an absent or empty metadata dict, the dict itself otherwise (borrowed).
PyObject *normalized_metadata(PyObject *metadata);

// ---- What the three share ------------------------------------------------------------------------------------------

// Exchanges an owned reference; what was there goes last, as its destructor may look at the slot.
inline void replace(PyObject *&slot, PyObject *value) {
  PyObject *old = slot;
  Py_XINCREF(value);
  slot = value;
  Py_XDECREF(old);
}

// New reference to the metadata of a Variable or a state; an empty mapping for none.
PyObject *metadata_or_empty(PyObject *metadata);

// What another lookup finds after an attribute was not found. Where it gives null without an error, the one that is set
// already counts.
template <typename Lookup>
PyObject *found_instead(Lookup &&lookup) {
  PyObject *kind = nullptr, *error = nullptr, *traceback = nullptr;
  PyErr_Fetch(&kind, &error, &traceback);
  PyObject *found = lookup();
  if (found == nullptr && PyErr_Occurred() == nullptr) {
    PyErr_Restore(kind, error, traceback);
    return nullptr;
  }
  Py_XDECREF(kind);
  Py_XDECREF(error);
  Py_XDECREF(traceback);
  return found;
}

// Generic lookup first, then the metadata under that name, which `slot` holds.
PyObject *attribute_or_metadata(PyObject *self, PyObject *name, PyObject *const &slot);

// `object.__new__` would have done it, whose place `cell_new` and `node_new` take.
void refuse_abstract(PyTypeObject *type);

}  // namespace treadle
