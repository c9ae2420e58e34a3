// What the package tells the engine once at import: error types, JAX's pytree registry, where to read the trace level.
//
// Invariant: after `configure` every field is set and never changes; the engine holds one reference to each for the
// life of the interpreter.
#pragma once

#include <memory>
#include <string>

#include "python_compat.h"

namespace treadle {

struct Settings {
  nb::object graph_error;        // (reason: str, path: tuple, is_static: bool) -> exception
  nb::object trace_error;        // exception type for cross-trace mutation
  nb::object flatten_one_level;  // pytree registry: (obj) -> (children with keys, aux) | None
  nb::object tree_flatten;       // (obj, is_leaf) -> (leaves, treedef)
  nb::object is_array;           // (obj) -> bool, asked once a type
  nb::object adapt;              // (type) -> what an adapter says about it | None, asked once a type
  nb::object trace_owner;        // object whose attribute `trace_attribute` is JAX's current trace
  nb::object trace_attribute;
  nb::object tracer;          // base type of tracers
  nb::object concrete_array;  // type of arrays that are not tracers
  nb::object top_trace;       // `current_trace()` outside any transform
  nb::object variable_state_repr;
  nb::object same;                   // (a, b) -> bool: equality that looks into arrays
  nb::object value_key;              // JAX's key of the one child of a Variable and of a VariableState
  nb::object register_pytree;        // (type): registers a class of Variables or nodes with JAX
  nb::object mark_type, field_type;  // what marks an attribute that it is assigned to
  nb::object unmarked;               // (node, name, mark or field) -> value to set
  nb::object forget_marks;           // (node, name): of an attribute that was deleted
  nb::object function_type, partial_type, method_type, enum_type;
  nb::object object_new;  // `object.__new__`
};

// The process-wide settings; throws RuntimeError when the package has not configured the engine.
const Settings &settings();
// Types register with nanobind and with JAX once a process; a second set of them could not.
[[noreturn]] void refuse_second_import();

// Which of the package's exceptions says it best.
enum class ErrorKind : uint8_t { Graph, Static };

// Raises the package's GraphError for the object at `path`.
[[noreturn]] void raise_graph_error(const nb::object &path, const std::string &reason,
                                    ErrorKind kind = ErrorKind::Graph);

// Identity of JAX's current trace: the canonical weak reference to it (borrowed trace objects would keep tracers
// alive).
nb::object current_trace();

// "Cannot mutate 'Dict' from different trace level", unless `owner` is the current trace. `attribute` is what was to be
// set, if it was one.
void check_trace(PyObject *owner, PyObject *object, PyObject *part = nullptr, const char *kind = "attribute");

}  // namespace treadle
