#include "bindings.h"
#include "debug.h"
#include "errors.h"
#include "objects/cells.h"
#include "objects/pytrees.h"
#include "settings.h"

namespace treadle {

PyTypeObject *object_node_type = nullptr;

namespace {

// As `object.__new__` does: nobody else looks at the arguments where `__init__` is that of `object`.
void refuse_arguments(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
  if (py::tuple_size(args) == 0 && (kwargs == nullptr || py::dict_size(kwargs) == 0)) return;
  if (PyType_GetSlot(type, Py_tp_init) != PyType_GetSlot(&PyBaseObject_Type, Py_tp_init)) return;
  nb::object name = py::checked(PyObject_GetAttrString(py::as_object(type), "__name__"));
  PyErr_Format(PyExc_TypeError, "%S() takes no arguments", name.ptr());
  throw nb::python_error();
}

int node_setattro(PyObject *self, PyObject *name, PyObject *value);

// Its `__init__` sets attributes by `object.__setattr__`, which CPython refuses for what checks each write itself.
void refuse_frozen_dataclass(PyTypeObject *type) {
  if (PyType_GetSlot(type, Py_tp_setattro) == reinterpret_cast<void *>(node_setattro)) return;
  nb::object parameters = nb::getattr(py::as_object(type), "__dataclass_params__", nb::none());
  if (parameters.is_none() || !nb::cast<bool>(parameters.attr("frozen")) || !nb::cast<bool>(parameters.attr("init")))
    return;
  nb::object name = py::checked(PyObject_GetAttrString(py::as_object(type), "__name__"));
  PyErr_Format(PyExc_TypeError,
               "%S is a frozen dataclass, whose attributes cannot be set; a graph node is mutable. Remove frozen=True "
               "from @dataclass.",
               name.ptr());
  throw nb::python_error();
}

PyObject *node_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
  return guarded([&] {
    refuse_abstract(type);
    refuse_arguments(type, args, kwargs);
    refuse_frozen_dataclass(type);
    nb::object trace = current_trace();
    return new_node(type, trace.ptr());
  });
}

int node_traverse(PyObject *self, visitproc visit, void *arg) {
  return py::visit_all(self, visit, arg, as_node(self)->trace, as_node(self)->dict, as_node(self)->places);
}

int node_clear(PyObject *self) {
  Py_CLEAR(as_node(self)->dict);
  Py_CLEAR(as_node(self)->places);
  return 0;
}

void node_dealloc(PyObject *self) {
  PyObject_GC_UnTrack(self);
  Py_CLEAR(as_node(self)->trace);
  Py_CLEAR(as_node(self)->dict);
  Py_CLEAR(as_node(self)->places);
  count(Kept::ObjectNode, -1);
  py::free_instance(self);
}

// Most likely the Variable's value was meant. Without a word the attribute or item would be state of another kind,
// which filters, gradients and optimizers pass over. `format` writes the part's name as its user does behind the owner.
void refuse_array_for_variable(PyObject *self, const char *format, PyObject *part, PyObject *current, PyObject *value) {
  if (PyType_IsSubtype(Py_TYPE(current), variable_cell_type) == 0) return;
  if (!nb::cast<bool>(settings().is_array(nb::handle(value)))) return;
  nb::object place = py::checked(PyUnicode_FromFormat(format, part));
  const std::string owner = py::type_name(Py_TYPE(self)), kind = py::type_name(Py_TYPE(current));
  PyErr_Format(
      PyExc_TypeError,
      "%s%U is a %s, and an array cannot take its place. Set its value, `%U.value = ...`; to hold a bare array "
      "instead, delete what is there first.",
      owner.c_str(), place.ptr(), kind.c_str(), place.ptr());
  throw nb::python_error();
}

// Deleting an attribute takes its marks along.
int delete_attribute(PyObject *self, PyObject *name) {
  const int status = PyObject_GenericSetAttr(self, name, nullptr);
  if (status != 0 || as_node(self)->dict == nullptr) return status;
  for (const char *names : {kDataNames, kStaticNames}) {
    if (PyMapping_HasKeyString(as_node(self)->dict, names) == 0) continue;
    settings().forget_marks(nb::borrow<nb::object>(self), nb::borrow<nb::object>(name));
    break;
  }
  return status;
}

int node_setattro(PyObject *self, PyObject *name, PyObject *value) {
  return guarded([&] {
    check_trace(as_node(self)->trace, self, name);
    if (value == nullptr) return delete_attribute(self, name);
    nb::object plain;
    PyObject *kind = py::as_object(Py_TYPE(value));
    if (kind == settings().mark_type.ptr() || kind == settings().field_type.ptr()) {
      plain = settings().unmarked(nb::borrow<nb::object>(self), nb::borrow<nb::object>(name),
                                  nb::borrow<nb::object>(value));
      value = plain.ptr();
    }
    if (as_node(self)->dict != nullptr) {
      nb::object current = py::dict_get(as_node(self)->dict, name);
      if (current.is_valid()) refuse_array_for_variable(self, ".%U", name, current.ptr(), value);
    }
    return PyObject_GenericSetAttr(self, name, value);
  });
}

PyObject *node_check_mutable(PyObject *self, PyObject *) {
  return guarded([&] {
    check_trace(as_node(self)->trace, self);
    return nb::none();
  });
}

PyObject *node_check_item(PyObject *self, PyObject *args) {
  PyObject *key = nullptr, *current = nullptr, *value = nullptr;
  if (!PyArg_ParseTuple(args, "O|OO:_check_item", &key, &current, &value)) return nullptr;
  return guarded([&] {
    check_trace(as_node(self)->trace, self, key, "item");
    if (value != nullptr) refuse_array_for_variable(self, "[%R]", key, current, value);
    return nb::none();
  });
}

PyMethodDef node_methods[] = {
    {"_check_item", node_check_item, METH_VARARGS,
     "Raise unless a container's item may be set or removed: (key, item there now, new item)."},
    {"_check_mutable", node_check_mutable, METH_NOARGS, "Raise TraceContextError if owned by another trace."},
    {nullptr, nullptr, 0, nullptr}};

PyMemberDef node_members[] = {
    {"__dictoffset__", py::kMemberSsize, offsetof(ObjectNode, dict), py::kMemberReadonly, nullptr},
    {nullptr, 0, 0, 0, nullptr}};

PyGetSetDef node_getset[] = {{"__dict__", PyObject_GenericGetDict, PyObject_GenericSetDict, nullptr, nullptr},
                             {nullptr, nullptr, nullptr, nullptr, nullptr}};

PyType_Slot node_slots[] = {py::slot(Py_tp_new, node_new),
                            py::slot(Py_tp_traverse, node_traverse),
                            py::slot(Py_tp_clear, node_clear),
                            py::slot(Py_tp_members, node_members),
                            py::slot(Py_tp_getset, node_getset),
                            py::slot(Py_tp_dealloc, node_dealloc),
                            py::slot(Py_tp_setattro, node_setattro),
                            py::slot(Py_tp_methods, node_methods),
                            {0, nullptr}};

PyType_Spec node_spec = {"treadle._core.ObjectNode", sizeof(ObjectNode), 0,
                         Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC, node_slots};

}  // namespace

nb::object new_node(PyTypeObject *type, PyObject *trace) {
  ensure_pytree(type);
  PyObject *self = py::allocate(type);
  replace(as_node(self)->trace, trace);
  count(Kept::ObjectNode, 1);
  return nb::steal<nb::object>(self);
}

void bind_object_node(nb::module_ &m) { object_node_type = py::add_type(m, node_spec, "ObjectNode"); }

}  // namespace treadle
