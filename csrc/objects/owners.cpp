#include "objects/owners.h"

#include "objects/cells.h"
#include "settings.h"

namespace treadle {

nb::object owner_of(PyObject *object, const NodeType &info) {
  if (const VariableLayout *layout = info.variable_layout()) return layout->owner(object);
  if (const NodeLayout *layout = info.node_layout()) return layout->owner(object);
  PyObject *owner = info.kind == Kind::Variable ? as_cell(object)->trace
                    : info.kind == Kind::Object ? as_node(object)->trace
                                                : nullptr;
  return nb::borrow<nb::object>(owner);
}

void check_owner(const nb::object &object, const nb::object &trace) {
  nb::object owner = owner_of(object.ptr(), *node_type(Py_TYPE(object.ptr())));
  if (owner.is_valid() && !owner.is(trace)) check_trace(owner.ptr(), object.ptr());
}

PyObject *Owner::of_variables(const VariableLayout &layout) {
  if (!made_by_.is(layout.memory.make)) {
    made_ = layout.memory.make();
    made_by_ = layout.memory.make;
  }
  return made_.ptr();
}

nb::object new_variable(PyTypeObject *type, PyObject *value, PyObject *metadata, Owner &owner) {
  const VariableLayout *layout = node_type(type)->variable_layout();
  if (layout == nullptr) return new_variable(type, value, metadata, owner.trace());
  nb::object variable = bare_instance(type);
  layout->trace.set(variable.ptr(), owner.of_variables(*layout));
  layout->metadata.set(variable.ptr(), own_metadata(metadata).ptr());
  layout->value.set(variable.ptr(), value);
  return variable;
}

}  // namespace treadle
