// What the engine knows about each Python type: how it takes part in a graph.
#pragma once

#include <memory>

#include "objects/layout.h"
#include "python_compat.h"

namespace treadle {

enum class Kind : uint8_t {
  None,
  Variable,  // a cell with identity: a VariableCell, or as its layout says
  Object,    // attributes in its __dict__: an ObjectNode, or as its layout says
  Custom,    // user-registered node with functions for reading and writing children
  Tuple,     // from here to Pytree: walked by value, no identity
  List,
  Dict,
  NamedTuple,
  Mapping,  // a class around a dict, as its layout says
  Pytree,   // known to JAX's registry only
  Array,
  Static,
};

// How a static value is hashed and compared, and whether the same pointer means the same value.
enum class StaticKind : uint8_t {
  Simple,    // exact builtin scalars: compared by value, no user code
  Number,    // numpy's numbers: by type and bytes
  Function,  // compared by code, defaults and closure
  Partial,   // functools.partial: compared by parts
  Method,    // bound method: same function and same instance
  Identity,  // no equality of its own
  Frozen,    // equality of its own, immutable
  Fields,    // equality by content, or none that goes with a hash: its fields or attributes
  Object,    // an object of the user's with attributes and no equality of its own: identity, and what it holds
  Mutable,   // equality of its own, possibly changed in place: re-hashed at every check
};

// A callable that may be made of others.
enum class CallableKind : uint8_t { None, Method, Partial, Lifted };

// Invariant: an entry lives as long as its type and changes only when the type is registered as a graph node; the
// callables are set for `Custom` only, the layout, whose alternative goes with the kind, for types of other libraries
// that an adapter described.
struct NodeType {
  Kind kind = Kind::Static;
  StaticKind static_kind = StaticKind::Identity;
  CallableKind callable = CallableKind::None;
  bool has_get_hook = false;
  bool has_set_hook = false;
  bool frozen = false;                  // Fields: a frozen dataclass, which is what its fields are
  nb::object transparent;               // attribute whose container's items appear directly below the node, or null
  nb::object data_names, static_names;  // Object: attributes that the class marks, frozensets, or null
  nb::object flatten, create, set_key, pop_key;
  std::shared_ptr<const Layout> layout;  // shared with guards and effects, which a type may leave behind
  nb::object refusal;                    // why instances cannot be part of a graph, or null
  nb::object slots;                      // Fields, Object: names of what instances hold apart from a dict, or null

  // The layout if it is of such, or null, as for treadle's own.
  const VariableLayout *variable_layout() const { return std::get_if<VariableLayout>(layout.get()); }
  const NodeLayout *node_layout() const { return std::get_if<NodeLayout>(layout.get()); }
  const MappingLayout *mapping_layout() const { return std::get_if<MappingLayout>(layout.get()); }
};

// True for a class that a class statement made, whatever it is below: instances have no C structure of its own.
bool is_made_by_python(PyTypeObject *type);

// Cached by type; `object` is consulted the first time its type is met. The result lives as long as the type.
const NodeType *classify(PyObject *object);
// The entry of a type already met, or null: runs no Python.
const NodeType *known_type(PyTypeObject *type);
// The same for types of graph nodes and Variables, where no instance is needed.
const NodeType *node_type(PyTypeObject *type);

// What can be a leaf without being an array, where a layout marks an attribute as data.
inline bool is_number(PyObject *value) {
  if (py::is_exact(value, &PyLong_Type) || py::is_exact(value, &PyFloat_Type) || py::is_exact(value, &PyBool_Type) ||
      py::is_exact(value, &PyComplex_Type))
    return true;
  const NodeType *type = known_type(Py_TYPE(value));
  return type != nullptr && type->kind == Kind::Static && type->static_kind == StaticKind::Number;
}

inline bool is_reference(Kind kind) { return kind == Kind::Variable || kind == Kind::Object || kind == Kind::Custom; }

}  // namespace treadle
