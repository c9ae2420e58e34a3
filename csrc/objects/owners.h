// The trace that an object was made in, which alone may change it, however its library remembers that.
#pragma once

#include <utility>

#include "objects/node_types.h"

namespace treadle {

// The canonical weak reference to the trace of `object`, a node or Variable; null if anyone may change it.
nb::object owner_of(PyObject *object, const NodeType &info);

// Raises TraceContextError unless `object` (a node or Variable) may be changed at trace level `trace`.
void check_owner(const nb::object &object, const nb::object &trace);

// The trace that new objects belong to, as each library remembers it.
class Owner {
 public:
  explicit Owner(nb::object trace) : trace_(std::move(trace)) {}
  PyObject *trace() const { return trace_.ptr(); }
  // For the Variables of another library, which share one.
  PyObject *of_variables(const VariableLayout &layout);

 private:
  nb::object trace_;
  nb::object made_, made_by_;
};

// A Variable without its `__init__`. `metadata` as in a structure: null for none.
nb::object new_variable(PyTypeObject *type, PyObject *value, PyObject *metadata, Owner &owner);

}  // namespace treadle
