#include <utility>

#include "bindings.h"
#include "debug.h"
#include "deferred_release.h"
#include "errors.h"
#include "objects/cells.h"
#include "objects/node_types.h"
#include "settings.h"

namespace treadle {

PyTypeObject *variable_state_type = nullptr;

namespace {

constexpr int kStatePickleVersion = 1;

// Entries made by hand and those read from a pickle; the walk makes them of types that it has met.
void require_variable_type(PyObject *type) {
  if (PyType_Check(type) && node_type(reinterpret_cast<PyTypeObject *>(type))->kind == Kind::Variable) return;
  PyErr_Format(PyExc_TypeError, "VariableState: the type must be a Variable type such as treadle.Param, got %R", type);
  throw nb::python_error();
}

PyObject *state_new(PyTypeObject *, PyObject *args, PyObject *kwargs) {
  PyObject *type = nullptr, *value = nullptr;
  if (!PyArg_ParseTuple(args, "OO:VariableState", &type, &value)) return nullptr;
  return guarded([&] {
    require_variable_type(type);
    nb::object metadata;
    if (normalized_metadata(kwargs) != nullptr) metadata = py::checked(PyDict_Copy(kwargs));
    return new_variable_state(type, value, metadata.ptr());
  });
}

// `object.__init__` would reject the arguments that `__new__` has taken.
int state_init(PyObject *, PyObject *, PyObject *) { return 0; }

int state_traverse(PyObject *self, visitproc visit, void *arg) {
  return py::visit_all(self, visit, arg, as_state(self)->type, as_state(self)->value, as_state(self)->metadata);
}

int state_clear(PyObject *self) {
  VariableState *state = as_state(self);
  Py_CLEAR(state->metadata);
  replace(state->value, Py_None);
  return 0;
}

void state_dealloc(PyObject *self) {
  PyObject_GC_UnTrack(self);
  VariableState *state = as_state(self);
  PyObject *held[] = {std::exchange(state->type, nullptr), std::exchange(state->value, nullptr),
                      std::exchange(state->metadata, nullptr)};
  count(Kept::VariableState, -1);
  py::free_instance(self);
  for (PyObject *object : held) release_nested(object);
}

PyObject *state_repr(PyObject *self) {
  return guarded([&] { return settings().variable_state_repr(nb::borrow<nb::object>(self)); });
}

PyObject *state_get_type(PyObject *self, void *) {
  PyObject *type = as_state(self)->type;
  Py_INCREF(type);
  return type;
}

// A state passes for a Variable of its type: `isinstance` asks for the class where the type says no.
PyObject *state_get_class(PyObject *self, void *closure) { return state_get_type(self, closure); }

PyObject *state_get_value(PyObject *self, void *) {
  PyObject *value = as_state(self)->value;
  Py_INCREF(value);
  return value;
}

int state_set_value(PyObject *self, PyObject *value, void *) {
  if (value == nullptr) {
    PyErr_SetString(PyExc_AttributeError, "a VariableState's value cannot be deleted");
    return -1;
  }
  replace(as_state(self)->value, value);
  return 0;
}

PyObject *state_get_metadata(PyObject *self, void *) { return metadata_or_empty(as_state(self)->metadata); }

int state_set_metadata(PyObject *self, PyObject *metadata, void *) {
  if (metadata == nullptr || !PyDict_Check(metadata)) {
    PyErr_SetString(PyExc_TypeError, "VariableState metadata must be a dict");
    return -1;
  }
  replace(as_state(self)->metadata, normalized_metadata(metadata));
  return 0;
}

bool is_protocol_name(PyObject *name) {
  return PyUnicode_Check(name) && PyUnicode_GetLength(name) > 1 && PyUnicode_ReadChar(name, 0) == '_' &&
         PyUnicode_ReadChar(name, 1) == '_';
}

// What another library's Variables call their value and metadata, so that its functions read states as its own; null
// for other names. May run Python.
nb::object by_layout(VariableState *state, PyObject *name) {
  const VariableLayout *layout = node_type(reinterpret_cast<PyTypeObject *>(state->type))->variable_layout();
  if (layout == nullptr) return {};
  nb::handle asked(name);
  if (layout->value.descriptor().attr("__name__").equal(asked)) return nb::borrow<nb::object>(state->value);
  if (!layout->metadata.descriptor().attr("__name__").equal(asked)) return {};
  return nb::steal<nb::object>(metadata_or_empty(state->metadata));
}

// Type, metadata, then the value: a state has a shape where its value has one.
PyObject *state_getattro(PyObject *self, PyObject *name) {
  PyObject *found = attribute_or_metadata(self, name, as_state(self)->metadata);
  if (found != nullptr || !PyErr_ExceptionMatches(PyExc_AttributeError) || is_protocol_name(name)) return found;
  return found_instead([&]() -> PyObject * {
    PyObject *own = guarded([&] { return by_layout(as_state(self), name); });
    if (own != nullptr || PyErr_Occurred() != nullptr) return own;
    // The value may be a state again, and so on.
    if (Py_EnterRecursiveCall(" while looking for an attribute of a VariableState's value") != 0) return nullptr;
    nb::object value = nb::borrow<nb::object>(as_state(self)->value);
    PyObject *attribute = PyObject_GetAttr(value.ptr(), name);
    Py_LeaveRecursiveCall();
    if (attribute == nullptr && PyErr_ExceptionMatches(PyExc_AttributeError)) PyErr_Clear();
    return attribute;
  });
}

PyObject *state_replace_value(PyObject *self, PyObject *value) {
  return guarded([&] { return new_variable_state(as_state(self)->type, value, as_state(self)->metadata); });
}

PyObject *rebuild_state(PyObject *, PyObject *args) {
  int version = 0;
  PyObject *type = nullptr, *value = nullptr, *metadata = nullptr;
  if (!PyArg_ParseTuple(args, "iOOO:variable_state", &version, &type, &value, &metadata)) return nullptr;
  if (version != kStatePickleVersion) {
    PyErr_Format(PyExc_ValueError, "this VariableState was pickled in format %d, and this treadle reads format %d",
                 version, kStatePickleVersion);
    return nullptr;
  }
  if (metadata != Py_None && !PyDict_Check(metadata)) {
    PyErr_SetString(PyExc_TypeError, "VariableState metadata must be a dict or None");
    return nullptr;
  }
  return guarded([&] {
    require_variable_type(type);
    return new_variable_state(type, value, metadata == Py_None ? nullptr : normalized_metadata(metadata))
        .release()
        .ptr();
  });
}

PyObject *state_reduce(PyObject *self, PyObject *) {
  return guarded([&] {
    VariableState *state = as_state(self);
    nb::object rebuild = nb::module_::import_("treadle._core").attr("_unpickle_variable_state");
    nb::object metadata = state->metadata != nullptr ? nb::borrow<nb::object>(state->metadata) : nb::none();
    nb::tuple arguments = nb::make_tuple(kStatePickleVersion, nb::borrow<nb::object>(state->type),
                                         nb::borrow<nb::object>(state->value), metadata);
    return nb::make_tuple(rebuild, arguments);
  });
}

PyGetSetDef state_getset[] = {
    {"type", state_get_type, nullptr, "The Variable type.", nullptr},
    {"value", state_get_value, state_set_value, "The Variable's raw value.", nullptr},
    {"raw_value", state_get_value, state_set_value, "The same.", nullptr},
    {"_metadata", state_get_metadata, state_set_metadata, "Metadata, copy-on-write.", nullptr},
    {"__class__", state_get_class, nullptr, "The Variable type.", nullptr},
    {nullptr, nullptr, nullptr, nullptr, nullptr}};

PyMethodDef state_methods[] = {
    {"_replace_value", state_replace_value, METH_O, "Same type and metadata with another value."},
    {"__reduce__", state_reduce, METH_NOARGS, "Pickle support."},
    {nullptr, nullptr, 0, nullptr}};

PyType_Slot state_slots[] = {py::slot(Py_tp_new, state_new),           py::slot(Py_tp_init, state_init),
                             py::slot(Py_tp_traverse, state_traverse), py::slot(Py_tp_clear, state_clear),
                             py::slot(Py_tp_dealloc, state_dealloc),   py::slot(Py_tp_getattro, state_getattro),
                             py::slot(Py_tp_repr, state_repr),         py::slot(Py_tp_getset, state_getset),
                             py::slot(Py_tp_methods, state_methods),   {0, nullptr}};

PyType_Spec state_spec = {"treadle._core.VariableState", sizeof(VariableState), 0,
                          Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC, state_slots};

PyMethodDef rebuild_state_method = {"variable_state", rebuild_state, METH_VARARGS,
                                    "variable_state(version, type, value, metadata)\n--\n\n"
                                    "The VariableState of a pickle."};

}  // namespace

nb::object new_variable_state(PyObject *type, PyObject *value, PyObject *metadata) {
  PyObject *self = py::allocate(variable_state_type);
  VariableState *state = as_state(self);
  replace(state->type, type);
  replace(state->value, value);
  replace(state->metadata, metadata);
  count(Kept::VariableState, 1);
  return nb::steal<nb::object>(self);
}

void bind_variable_state(nb::module_ &m) {
  variable_state_type = py::add_type(m, state_spec, "VariableState");
  py::add_unpickling(m, rebuild_state_method, "_unpickle_variable_state");
}

}  // namespace treadle
