#include "objects/cells.h"

#include "bindings.h"

namespace treadle {
namespace {

PyObject *g_empty_metadata = nullptr;

}  // namespace

PyObject *metadata_or_empty(PyObject *metadata) {
  PyObject *result = metadata != nullptr ? metadata : g_empty_metadata;
  Py_INCREF(result);
  return result;
}

PyObject *attribute_or_metadata(PyObject *self, PyObject *name, PyObject *const &slot) {
  PyObject *found = PyObject_GenericGetAttr(self, name);
  if (found != nullptr || slot == nullptr || !PyErr_ExceptionMatches(PyExc_AttributeError)) return found;
  return found_instead([&] {
    // Names of the user's own str type compare as they like, and may replace the metadata meanwhile.
    nb::object metadata = nb::borrow<nb::object>(slot);
    PyObject *entry = PyDict_GetItemWithError(metadata.ptr(), name);
    Py_XINCREF(entry);
    return entry;
  });
}

void refuse_abstract(PyTypeObject *type) {
  if ((PyType_GetFlags(type) & Py_TPFLAGS_IS_ABSTRACT) == 0) return;
  auto object_new = py::type_slot<newfunc>(&PyBaseObject_Type, Py_tp_new);
  nb::object no_arguments = py::checked(PyTuple_New(0));
  py::checked(object_new(type, no_arguments.ptr(), nullptr));
}

PyObject *normalized_metadata(PyObject *metadata) {
  return metadata != nullptr && py::dict_size(metadata) > 0 ? metadata : nullptr;
}

void bind_cells(nb::module_ &m) {
  nb::dict empty;
  g_empty_metadata = nb::module_::import_("types").attr("MappingProxyType")(empty).release().ptr();
  bind_variable_cell(m);
  bind_object_node(m);
  bind_variable_state(m);
}

}  // namespace treadle
