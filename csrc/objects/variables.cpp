#include "bindings.h"
#include "objects/cells.h"
#include "objects/owners.h"
#include "objects/transaction.h"
#include "settings.h"

namespace treadle {
namespace {

const NodeType &variable_type(nb::handle object) {
  const NodeType *info = classify(object.ptr());
  if (info->kind != Kind::Variable) throw nb::type_error("expected a Variable");
  return *info;
}

bool is_variable(nb::handle object) { return classify(object.ptr())->kind == Kind::Variable; }

nb::object raw_value(nb::handle variable) {
  const NodeType &info = variable_type(variable);
  const VariableLayout *layout = info.variable_layout();
  return layout != nullptr ? layout->value.get(variable.ptr()) : nb::borrow<nb::object>(as_cell(variable.ptr())->value);
}

void check_mutable(nb::handle object) {
  const NodeType *info = classify(object.ptr());
  if (is_reference(info->kind)) check_owner(nb::borrow<nb::object>(object), current_trace());
}

void set_raw_value(nb::handle variable, nb::handle value) {
  variable_type(variable);
  check_mutable(variable);
  Transaction transaction;
  transaction.set_value(variable.ptr(), value.ptr());
  transaction.commit();
}

nb::object metadata(nb::handle variable) {
  const NodeType &info = variable_type(variable);
  if (const VariableLayout *layout = info.variable_layout()) return layout->snapshot(variable.ptr())->dict;
  PyObject *own = as_cell(variable.ptr())->metadata;
  return own != nullptr ? nb::borrow<nb::object>(own) : nb::object(nb::dict());
}

void set_metadata(nb::handle variable, nb::dict entries) {
  variable_type(variable);
  check_mutable(variable);
  nb::object own = own_metadata(entries.ptr());
  Transaction transaction;
  transaction.set_metadata(variable.ptr(), normalized_metadata(own.ptr()));
  transaction.commit();
}

nb::object new_variable_of(nb::handle type, nb::handle value, nb::dict entries) {
  if (!PyType_Check(type.ptr())) throw nb::type_error("new_variable: expected a Variable type");
  PyTypeObject *kind = py::as_type(type.ptr());
  if (node_type(kind)->kind != Kind::Variable) throw nb::type_error("new_variable: expected a Variable type");
  Owner owner(current_trace());
  nb::object own = own_metadata(entries.ptr());
  return new_variable(kind, value.ptr(), normalized_metadata(own.ptr()), owner);
}

// Treadle's Variable type that a type of another library stands for; other types stand for themselves.
nb::object counterpart(nb::handle type) {
  if (!PyType_Check(type.ptr())) throw nb::type_error("counterpart: expected a type");
  const VariableLayout *layout = node_type(py::as_type(type.ptr()))->variable_layout();
  return layout != nullptr ? layout->counterpart : nb::borrow<nb::object>(type);
}

}  // namespace

void bind_variables(nb::module_ &m) {
  m.def("is_variable", &is_variable, nb::arg("object").none());
  m.def("raw_value", &raw_value, nb::arg("variable"));
  m.def("set_raw_value", &set_raw_value, nb::arg("variable"), nb::arg("value").none());
  m.def("metadata", &metadata, nb::arg("variable"));
  m.def("set_metadata", &set_metadata, nb::arg("variable"), nb::arg("entries"));
  m.def("new_variable", &new_variable_of, nb::arg("type"), nb::arg("value").none(), nb::arg("entries"));
  m.def("check_mutable", &check_mutable, nb::arg("object"));
  m.def("counterpart", &counterpart, nb::arg("type"));
}

}  // namespace treadle
