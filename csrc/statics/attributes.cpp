#include "statics/attributes.h"

#include "objects/node_types.h"

namespace treadle {
namespace {

void put_attribute(const nb::object &dict, const nb::object &object, nb::handle name) {
  nb::object value = nb::steal<nb::object>(PyObject_GenericGetAttr(object.ptr(), name.ptr()));
  if (value.is_valid()) return py::check_status(PyDict_SetItem(dict.ptr(), name.ptr(), value.ptr()));
  // One that is not set.
  if (!PyErr_ExceptionMatches(PyExc_AttributeError)) throw nb::python_error();
  PyErr_Clear();
}

}  // namespace

nb::object attributes_of(const nb::object &object) {
  const NodeType *info = classify(object.ptr());
  if (info->frozen) {
    // What else is there was derived from them.
    nb::object found = py::checked(PyDict_New());
    nb::object names = py::checked(PyDict_Keys(nb::object(object.attr("__dataclass_fields__")).ptr()));
    for (nb::handle name : names) put_attribute(found, object, name);
    return found;
  }
  nb::object dict = nb::steal<nb::object>(PyObject_GenericGetDict(object.ptr(), nullptr));
  if (dict.is_valid() && !info->slots.is_valid()) return dict;
  if (!dict.is_valid()) {
    if (!PyErr_ExceptionMatches(PyExc_AttributeError)) throw nb::python_error();
    PyErr_Clear();
  }
  nb::object found = py::checked(dict.is_valid() ? PyDict_Copy(dict.ptr()) : PyDict_New());
  if (!info->slots.is_valid()) return found;
  for (nb::handle name : info->slots) put_attribute(found, object, name);
  return found;
}

nb::object typed_items_of(const nb::object &set) {
  nb::object typed = py::checked(PySet_New(nullptr));
  nb::object items = py::checked(PySequence_Tuple(set.ptr()));
  for (Py_ssize_t i = 0; i < py::tuple_size(items.ptr()); ++i) {
    nb::object item = nb::borrow<nb::object>(py::tuple_item(items.ptr(), i));
    const bool by_representation = PyFloat_CheckExact(item.ptr()) || PyComplex_CheckExact(item.ptr());
    nb::object pair = nb::make_tuple(py::type_of(item), by_representation ? nb::object(nb::repr(item)) : item);
    py::check_status(PySet_Add(typed.ptr(), pair.ptr()));
  }
  return py::checked(PyFrozenSet_New(typed.ptr()));
}

}  // namespace treadle
