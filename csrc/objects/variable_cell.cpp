#include "bindings.h"
#include "debug.h"
#include "errors.h"
#include "objects/cells.h"
#include "objects/node_types.h"
#include "objects/pytrees.h"
#include "settings.h"

namespace treadle {

PyTypeObject *variable_cell_type = nullptr;

namespace {

PyObject *g_value_name = nullptr;

// What runs when a value is read or written: our name in the metadata and flax's, which is also that of the method.
struct HookNames {
  PyObject *metadata = nullptr;
  PyObject *method = nullptr;
};
HookNames g_get_hooks, g_set_hooks;

PyObject *cell_new(PyTypeObject *type, PyObject *, PyObject *) {
  return guarded([&] {
    refuse_abstract(type);
    nb::object trace = current_trace();
    return new_variable(type, Py_None, nullptr, trace.ptr());
  });
}

int cell_traverse(PyObject *self, visitproc visit, void *arg) {
  return py::visit_all(self, visit, arg, as_cell(self)->value, as_cell(self)->metadata, as_cell(self)->trace);
}

int cell_clear(PyObject *self) {
  VariableCell *cell = as_cell(self);
  Py_CLEAR(cell->metadata);
  // The value stays a valid object so that a half-collected cell can still be read.
  replace(cell->value, Py_None);
  return 0;
}

void cell_dealloc(PyObject *self) {
  PyObject_GC_UnTrack(self);
  VariableCell *cell = as_cell(self);
  Py_CLEAR(cell->value);
  Py_CLEAR(cell->metadata);
  Py_CLEAR(cell->trace);
  count(Kept::VariableCell, -1);
  py::free_instance(self);
}

bool has_hook(PyObject *self, const HookNames &names, bool type_has) {
  if (type_has) return true;
  // Keys of the user's own str type may replace the metadata while they are compared.
  nb::object metadata = nb::borrow<nb::object>(as_cell(self)->metadata);
  if (!metadata.is_valid()) return false;
  for (PyObject *name : {names.metadata, names.method}) {
    if (PyDict_GetItemWithError(metadata.ptr(), name) != nullptr) return true;
    if (PyErr_Occurred()) throw nb::python_error();
  }
  return false;
}

PyObject *cell_get_value(PyObject *self, void *) {
  return guarded([&] {
    bool hooked = has_hook(self, g_get_hooks, node_type(Py_TYPE(self))->has_get_hook);
    nb::object value = nb::borrow<nb::object>(as_cell(self)->value);
    if (!hooked) return value;
    return nb::borrow<nb::object>(self).attr("_get_hooked")(value);
  });
}

int cell_set_value(PyObject *self, PyObject *value, void *) {
  return guarded([&] {
    if (value == nullptr) throw nb::attribute_error("a Variable's value cannot be deleted");
    check_trace(as_cell(self)->trace, self);
    if (has_hook(self, g_set_hooks, node_type(Py_TYPE(self))->has_set_hook)) {
      nb::object hooked = nb::borrow<nb::object>(self).attr("_set_hooked")(nb::borrow<nb::object>(value));
      replace(as_cell(self)->value, hooked.ptr());
    } else {
      replace(as_cell(self)->value, value);
    }
    return 0;
  });
}

PyObject *cell_get_raw(PyObject *self, void *) {
  PyObject *value = as_cell(self)->value;
  Py_INCREF(value);
  return value;
}

int cell_set_raw(PyObject *self, PyObject *value, void *) {
  return guarded([&] {
    if (value == nullptr) throw nb::attribute_error("a Variable's value cannot be deleted");
    check_trace(as_cell(self)->trace, self);
    replace(as_cell(self)->value, value);
    return 0;
  });
}

PyObject *cell_get_metadata(PyObject *self, void *) { return metadata_or_empty(as_cell(self)->metadata); }

int cell_set_metadata(PyObject *self, PyObject *metadata, void *) {
  return guarded([&] {
    if (metadata == nullptr || !PyDict_Check(metadata)) throw nb::type_error("Variable metadata must be a dict");
    check_trace(as_cell(self)->trace, self);
    replace(as_cell(self)->metadata, normalized_metadata(metadata));
    return 0;
  });
}

PyObject *cell_init(PyObject *self, PyObject *args) {
  PyObject *value = nullptr, *metadata = nullptr;
  if (!PyArg_ParseTuple(args, "OO!:_init_cell", &value, &PyDict_Type, &metadata)) return nullptr;
  replace(as_cell(self)->value, value);
  replace(as_cell(self)->metadata, normalized_metadata(metadata));
  Py_RETURN_NONE;
}

PyObject *cell_check_mutable(PyObject *self, PyObject *) {
  return guarded([&] {
    check_trace(as_cell(self)->trace, self);
    return nb::none();
  });
}

PyObject *cell_getattro(PyObject *self, PyObject *name) {
  return attribute_or_metadata(self, name, as_cell(self)->metadata);
}

// True if the type of `self` handles writes to `name` itself (a property, a slot, one of the getset entries). Looks
// into the classes' own dicts, since a descriptor may give another object when it is asked for through the class.
bool has_data_descriptor(PyObject *self, PyObject *name) {
  nb::object type = py::type_of(self);
  for (nb::handle base : nb::object(type.attr("__mro__"))) {
    nb::object attributes = base.attr("__dict__");
    int found = PySequence_Contains(attributes.ptr(), name);
    py::check_status(found);
    if (found == 0) continue;
    nb::object descriptor = py::checked(PyObject_GetItem(attributes.ptr(), name));
    return PyType_GetSlot(Py_TYPE(descriptor.ptr()), Py_tp_descr_set) != nullptr;
  }
  return false;
}

int cell_setattro(PyObject *self, PyObject *name, PyObject *value) {
  return guarded([&] {
    if (name == g_value_name && value != nullptr) return cell_set_value(self, value, nullptr);
    if (has_data_descriptor(self, name)) return PyObject_GenericSetAttr(self, name, value);
    check_trace(as_cell(self)->trace, self);
    nb::object fresh = own_metadata(as_cell(self)->metadata);
    if (value != nullptr) {
      py::check_status(PyDict_SetItem(fresh.ptr(), name, value));
    } else if (PyDict_DelItem(fresh.ptr(), name) < 0) {
      if (!PyErr_ExceptionMatches(PyExc_KeyError)) throw nb::python_error();
      PyErr_Clear();
      PyErr_Format(PyExc_AttributeError, "this Variable has no metadata named %R to delete", name);
      throw nb::python_error();
    }
    replace(as_cell(self)->metadata, normalized_metadata(fresh.ptr()));
    return 0;
  });
}

PyGetSetDef cell_getset[] = {
    {"value", cell_get_value, cell_set_value, "The value, through the get and set hooks.", nullptr},
    {"raw_value", cell_get_raw, cell_set_raw, "The stored value, without hooks.", nullptr},
    {"_metadata", cell_get_metadata, cell_set_metadata, "Metadata, copy-on-write.", nullptr},
    {nullptr, nullptr, nullptr, nullptr, nullptr}};

PyMethodDef cell_methods[] = {
    {"_init_cell", cell_init, METH_VARARGS, "Set value and metadata without hooks or checks."},
    {"_check_mutable", cell_check_mutable, METH_NOARGS, "Raise TraceContextError if owned by another trace."},
    {nullptr, nullptr, 0, nullptr}};

PyType_Slot cell_slots[] = {py::slot(Py_tp_new, cell_new),
                            py::slot(Py_tp_traverse, cell_traverse),
                            py::slot(Py_tp_clear, cell_clear),
                            py::slot(Py_tp_dealloc, cell_dealloc),
                            py::slot(Py_tp_getattro, cell_getattro),
                            py::slot(Py_tp_setattro, cell_setattro),
                            py::slot(Py_tp_getset, cell_getset),
                            py::slot(Py_tp_methods, cell_methods),
                            {0, nullptr}};

PyType_Spec cell_spec = {"treadle._core.VariableCell", sizeof(VariableCell), 0,
                         Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC, cell_slots};

}  // namespace

nb::object new_variable(PyTypeObject *type, PyObject *value, PyObject *metadata, PyObject *trace) {
  ensure_pytree(type);
  PyObject *self = py::allocate(type);
  VariableCell *cell = as_cell(self);
  replace(cell->value, value);
  replace(cell->metadata, metadata);
  replace(cell->trace, trace);
  count(Kept::VariableCell, 1);
  return nb::steal<nb::object>(self);
}

void bind_variable_cell(nb::module_ &m) {
  g_value_name = py::intern("value").release().ptr();
  g_get_hooks = {py::intern("get_value_hooks").release().ptr(), py::intern("on_get_value").release().ptr()};
  g_set_hooks = {py::intern("set_value_hooks").release().ptr(), py::intern("on_set_value").release().ptr()};
  variable_cell_type = py::add_type(m, cell_spec, "VariableCell");
}

}  // namespace treadle
