#include "graph/cells.h"

#include <utility>

#include "debug.h"
#include "deferred_release.h"
#include "errors.h"
#include "graph/node_types.h"
#include "settings.h"

namespace treadle {

PyTypeObject *variable_cell_type = nullptr;
PyTypeObject *object_node_type = nullptr;
PyTypeObject *variable_state_type = nullptr;

namespace {

PyObject *g_empty_metadata = nullptr;
PyObject *g_value_name = nullptr;

// What runs when a value is read or written: our name in the metadata and flax's, which is also that of the method.
struct HookNames {
  PyObject *metadata = nullptr;
  PyObject *method = nullptr;
};
HookNames g_get_hooks, g_set_hooks;

constexpr int kStatePickleVersion = 1;

void replace(PyObject *&slot, PyObject *value) {
  PyObject *old = slot;
  Py_XINCREF(value);
  slot = value;
  Py_XDECREF(old);
}

void free_instance(PyObject *self) {
  PyTypeObject *type = Py_TYPE(self);
  auto free = reinterpret_cast<freefunc>(PyType_GetSlot(type, Py_tp_free));
  free(self);
  Py_DECREF(type);
}

PyObject *metadata_or_empty(PyObject *metadata) {
  PyObject *result = metadata != nullptr ? metadata : g_empty_metadata;
  Py_INCREF(result);
  return result;
}

// Generic lookup first, then the metadata under that name, which `slot` holds.
PyObject *attribute_or_metadata(PyObject *self, PyObject *name, PyObject *const &slot) {
  PyObject *found = PyObject_GenericGetAttr(self, name);
  if (found != nullptr || slot == nullptr || !PyErr_ExceptionMatches(PyExc_AttributeError)) return found;
  PyObject *kind = nullptr, *error = nullptr, *traceback = nullptr;
  PyErr_Fetch(&kind, &error, &traceback);
  {
    // Names of the user's own str type compare as they like, and may replace the metadata meanwhile.
    nb::object metadata = nb::borrow<nb::object>(slot);
    found = PyDict_GetItemWithError(metadata.ptr(), name);
    Py_XINCREF(found);
  }
  if (found == nullptr && !PyErr_Occurred()) {
    PyErr_Restore(kind, error, traceback);
    return nullptr;
  }
  Py_XDECREF(kind);
  Py_XDECREF(error);
  Py_XDECREF(traceback);
  return found;
}

// `object.__new__` would have done it, whose place `cell_new` and `node_new` take.
void refuse_abstract(PyTypeObject *type) {
  if ((PyType_GetFlags(type) & Py_TPFLAGS_IS_ABSTRACT) == 0) return;
  auto object_new = reinterpret_cast<newfunc>(PyType_GetSlot(&PyBaseObject_Type, Py_tp_new));
  nb::object no_arguments = py::checked(PyTuple_New(0));
  py::checked(object_new(type, no_arguments.ptr(), nullptr));
}

// ---- VariableCell -------------------------------------------------------------------------------------------------

PyObject *cell_new(PyTypeObject *type, PyObject *, PyObject *) {
  return guarded([&]() -> PyObject * {
    refuse_abstract(type);
    nb::object trace = current_trace();
    return new_variable(type, Py_None, nullptr, trace.ptr()).release().ptr();
  });
}

int cell_traverse(PyObject *self, visitproc visit, void *arg) {
  VariableCell *cell = as_cell(self);
  Py_VISIT(cell->value);
  Py_VISIT(cell->metadata);
  Py_VISIT(cell->trace);
  Py_VISIT(Py_TYPE(self));
  return 0;
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
  free_instance(self);
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
  return guarded([&]() -> PyObject * {
    bool hooked = has_hook(self, g_get_hooks, node_type(Py_TYPE(self))->has_get_hook);
    nb::object value = nb::borrow<nb::object>(as_cell(self)->value);
    if (!hooked) return value.release().ptr();
    return nb::borrow<nb::object>(self).attr("_get_hooked")(value).release().ptr();
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
  return guarded([&]() -> PyObject * {
    check_trace(as_cell(self)->trace, self);
    Py_RETURN_NONE;
  });
}

PyObject *cell_enter_trace(PyObject *self, PyObject *) {
  return guarded([&]() -> PyObject * {
    nb::object trace = current_trace();
    replace(as_cell(self)->trace, trace.ptr());
    Py_RETURN_NONE;
  });
}

PyObject *cell_getattro(PyObject *self, PyObject *name) {
  return attribute_or_metadata(self, name, as_cell(self)->metadata);
}

// True if the type of `self` handles writes to `name` itself (a property, a slot, one of the getset entries). Looks
// into the classes' own dicts, since a descriptor may give another object when it is asked for through the class.
bool has_data_descriptor(PyObject *self, PyObject *name) {
  nb::object type = nb::borrow<nb::object>(reinterpret_cast<PyObject *>(Py_TYPE(self)));
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
    {"_enter_trace", cell_enter_trace, METH_NOARGS, "Make the current trace the owner."},
    {nullptr, nullptr, 0, nullptr}};

PyType_Slot cell_slots[] = {{Py_tp_new, reinterpret_cast<void *>(cell_new)},
                            {Py_tp_traverse, reinterpret_cast<void *>(cell_traverse)},
                            {Py_tp_clear, reinterpret_cast<void *>(cell_clear)},
                            {Py_tp_dealloc, reinterpret_cast<void *>(cell_dealloc)},
                            {Py_tp_getattro, reinterpret_cast<void *>(cell_getattro)},
                            {Py_tp_setattro, reinterpret_cast<void *>(cell_setattro)},
                            {Py_tp_getset, cell_getset},
                            {Py_tp_methods, cell_methods},
                            {0, nullptr}};

PyType_Spec cell_spec = {"treadle._core.VariableCell", sizeof(VariableCell), 0,
                         Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC, cell_slots};

// ---- ObjectNode ---------------------------------------------------------------------------------------------------

// As `object.__new__` does: nobody else looks at the arguments where `__init__` is that of `object`.
void refuse_arguments(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
  if (py::tuple_size(args) == 0 && (kwargs == nullptr || py::dict_size(kwargs) == 0)) return;
  if (PyType_GetSlot(type, Py_tp_init) != PyType_GetSlot(&PyBaseObject_Type, Py_tp_init)) return;
  nb::object name = py::checked(PyObject_GetAttrString(reinterpret_cast<PyObject *>(type), "__name__"));
  PyErr_Format(PyExc_TypeError, "%S() takes no arguments", name.ptr());
  throw nb::python_error();
}

int node_setattro(PyObject *self, PyObject *name, PyObject *value);

// Its `__init__` sets attributes by `object.__setattr__`, which CPython refuses for what checks each write itself.
void refuse_frozen_dataclass(PyTypeObject *type) {
  if (PyType_GetSlot(type, Py_tp_setattro) == reinterpret_cast<void *>(node_setattro)) return;
  nb::object parameters = nb::getattr(reinterpret_cast<PyObject *>(type), "__dataclass_params__", nb::none());
  if (parameters.is_none() || !nb::cast<bool>(parameters.attr("frozen")) || !nb::cast<bool>(parameters.attr("init")))
    return;
  nb::object name = py::checked(PyObject_GetAttrString(reinterpret_cast<PyObject *>(type), "__name__"));
  PyErr_Format(PyExc_TypeError,
               "%S is a frozen dataclass, whose attributes cannot be set; a graph node is mutable. Remove frozen=True "
               "from @dataclass.",
               name.ptr());
  throw nb::python_error();
}

PyObject *node_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
  return guarded([&]() -> PyObject * {
    refuse_abstract(type);
    refuse_arguments(type, args, kwargs);
    refuse_frozen_dataclass(type);
    nb::object trace = current_trace();
    return new_node(type, trace.ptr()).release().ptr();
  });
}

int node_traverse(PyObject *self, visitproc visit, void *arg) {
  Py_VISIT(as_node(self)->trace);
  Py_VISIT(as_node(self)->dict);
  Py_VISIT(Py_TYPE(self));
  return 0;
}

int node_clear(PyObject *self) {
  Py_CLEAR(as_node(self)->dict);
  return 0;
}

void node_dealloc(PyObject *self) {
  PyObject_GC_UnTrack(self);
  Py_CLEAR(as_node(self)->trace);
  Py_CLEAR(as_node(self)->dict);
  count(Kept::ObjectNode, -1);
  free_instance(self);
}

int node_setattro(PyObject *self, PyObject *name, PyObject *value) {
  return guarded([&] {
    check_trace(as_node(self)->trace, self);
    return PyObject_GenericSetAttr(self, name, value);
  });
}

PyObject *node_check_mutable(PyObject *self, PyObject *) {
  return guarded([&]() -> PyObject * {
    check_trace(as_node(self)->trace, self);
    Py_RETURN_NONE;
  });
}

PyObject *node_enter_trace(PyObject *self, PyObject *) {
  return guarded([&]() -> PyObject * {
    nb::object trace = current_trace();
    replace(as_node(self)->trace, trace.ptr());
    Py_RETURN_NONE;
  });
}

PyMethodDef node_methods[] = {
    {"_check_mutable", node_check_mutable, METH_NOARGS, "Raise TraceContextError if owned by another trace."},
    {"_enter_trace", node_enter_trace, METH_NOARGS, "Make the current trace the owner."},
    {nullptr, nullptr, 0, nullptr}};

PyMemberDef node_members[] = {
    {"__dictoffset__", py::kMemberSsize, offsetof(ObjectNode, dict), py::kMemberReadonly, nullptr},
    {nullptr, 0, 0, 0, nullptr}};

PyGetSetDef node_getset[] = {{"__dict__", PyObject_GenericGetDict, PyObject_GenericSetDict, nullptr, nullptr},
                             {nullptr, nullptr, nullptr, nullptr, nullptr}};

PyType_Slot node_slots[] = {{Py_tp_new, reinterpret_cast<void *>(node_new)},
                            {Py_tp_traverse, reinterpret_cast<void *>(node_traverse)},
                            {Py_tp_clear, reinterpret_cast<void *>(node_clear)},
                            {Py_tp_members, node_members},
                            {Py_tp_getset, node_getset},
                            {Py_tp_dealloc, reinterpret_cast<void *>(node_dealloc)},
                            {Py_tp_setattro, reinterpret_cast<void *>(node_setattro)},
                            {Py_tp_methods, node_methods},
                            {0, nullptr}};

PyType_Spec node_spec = {"treadle._core.ObjectNode", sizeof(ObjectNode), 0,
                         Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC, node_slots};

// ---- VariableState ------------------------------------------------------------------------------------------------

// Entries made by hand and those read from a pickle; the walk makes them of types that it has met.
void require_variable_type(PyObject *type) {
  if (PyType_Check(type) && node_type(reinterpret_cast<PyTypeObject *>(type))->kind == Kind::Variable) return;
  PyErr_Format(PyExc_TypeError, "VariableState: the type must be a Variable type such as treadle.Param, got %R", type);
  throw nb::python_error();
}

PyObject *state_new(PyTypeObject *, PyObject *args, PyObject *kwargs) {
  PyObject *type = nullptr, *value = nullptr;
  if (!PyArg_ParseTuple(args, "OO:VariableState", &type, &value)) return nullptr;
  return guarded([&]() -> PyObject * {
    require_variable_type(type);
    nb::object metadata;
    if (normalized_metadata(kwargs) != nullptr) metadata = py::checked(PyDict_Copy(kwargs));
    return new_variable_state(type, value, metadata.ptr()).release().ptr();
  });
}

// `object.__init__` would reject the arguments that `__new__` has taken.
int state_init(PyObject *, PyObject *, PyObject *) { return 0; }

int state_traverse(PyObject *self, visitproc visit, void *arg) {
  VariableState *state = as_state(self);
  Py_VISIT(state->type);
  Py_VISIT(state->value);
  Py_VISIT(state->metadata);
  Py_VISIT(Py_TYPE(self));
  return 0;
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
  free_instance(self);
  for (PyObject *object : held) release_nested(object);
}

PyObject *state_repr(PyObject *self) {
  return guarded(
      [&]() -> PyObject * { return settings().variable_state_repr(nb::borrow<nb::object>(self)).release().ptr(); });
}

PyObject *state_get_type(PyObject *self, void *) {
  PyObject *type = as_state(self)->type;
  Py_INCREF(type);
  return type;
}

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

PyObject *state_getattro(PyObject *self, PyObject *name) {
  return attribute_or_metadata(self, name, as_state(self)->metadata);
}

PyObject *state_replace_value(PyObject *self, PyObject *value) {
  return guarded([&]() -> PyObject * {
    return new_variable_state(as_state(self)->type, value, as_state(self)->metadata).release().ptr();
  });
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
  return guarded([&]() -> PyObject * {
    require_variable_type(type);
    return new_variable_state(type, value, metadata == Py_None ? nullptr : normalized_metadata(metadata))
        .release()
        .ptr();
  });
}

PyObject *state_reduce(PyObject *self, PyObject *) {
  return guarded([&]() -> PyObject * {
    VariableState *state = as_state(self);
    nb::object rebuild = nb::module_::import_("treadle._core").attr("_unpickle_variable_state");
    nb::object metadata = state->metadata != nullptr ? nb::borrow<nb::object>(state->metadata) : nb::none();
    nb::tuple arguments = nb::make_tuple(kStatePickleVersion, nb::borrow<nb::object>(state->type),
                                         nb::borrow<nb::object>(state->value), metadata);
    return nb::make_tuple(rebuild, arguments).release().ptr();
  });
}

PyGetSetDef state_getset[] = {{"type", state_get_type, nullptr, "The Variable type.", nullptr},
                              {"value", state_get_value, state_set_value, "The Variable's raw value.", nullptr},
                              {"_metadata", state_get_metadata, nullptr, "Metadata, never mutated in place.", nullptr},
                              {nullptr, nullptr, nullptr, nullptr, nullptr}};

PyMethodDef state_methods[] = {
    {"_replace_value", state_replace_value, METH_O, "Same type and metadata with another value."},
    {"__reduce__", state_reduce, METH_NOARGS, "Pickle support."},
    {nullptr, nullptr, 0, nullptr}};

PyType_Slot state_slots[] = {{Py_tp_new, reinterpret_cast<void *>(state_new)},
                             {Py_tp_init, reinterpret_cast<void *>(state_init)},
                             {Py_tp_traverse, reinterpret_cast<void *>(state_traverse)},
                             {Py_tp_clear, reinterpret_cast<void *>(state_clear)},
                             {Py_tp_dealloc, reinterpret_cast<void *>(state_dealloc)},
                             {Py_tp_getattro, reinterpret_cast<void *>(state_getattro)},
                             {Py_tp_repr, reinterpret_cast<void *>(state_repr)},
                             {Py_tp_getset, state_getset},
                             {Py_tp_methods, state_methods},
                             {0, nullptr}};

PyType_Spec state_spec = {"treadle._core.VariableState", sizeof(VariableState), 0,
                          Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC, state_slots};

PyMethodDef rebuild_state_method = {"variable_state", rebuild_state, METH_VARARGS,
                                    "variable_state(version, type, value, metadata)\n--\n\n"
                                    "The VariableState of a pickle."};

PyTypeObject *make_type(nb::module_ &m, PyType_Spec &spec, const char *name) {
  nb::object type = py::checked(PyType_FromSpec(&spec));
  m.attr(name) = type;
  return reinterpret_cast<PyTypeObject *>(type.release().ptr());
}

PyObject *allocate(PyTypeObject *type) {
  auto alloc = reinterpret_cast<allocfunc>(PyType_GetSlot(type, Py_tp_alloc));
  PyObject *self = alloc(type, 0);
  if (self == nullptr) throw nb::python_error();
  return self;
}

}  // namespace

PyObject *normalized_metadata(PyObject *metadata) {
  return metadata != nullptr && py::dict_size(metadata) > 0 ? metadata : nullptr;
}

nb::object new_variable(PyTypeObject *type, PyObject *value, PyObject *metadata, PyObject *trace) {
  PyObject *self = allocate(type);
  VariableCell *cell = as_cell(self);
  replace(cell->value, value);
  replace(cell->metadata, metadata);
  replace(cell->trace, trace);
  count(Kept::VariableCell, 1);
  return nb::steal<nb::object>(self);
}

nb::object new_node(PyTypeObject *type, PyObject *trace) {
  PyObject *self = allocate(type);
  replace(as_node(self)->trace, trace);
  count(Kept::ObjectNode, 1);
  return nb::steal<nb::object>(self);
}

nb::object new_variable_state(PyObject *type, PyObject *value, PyObject *metadata) {
  PyObject *self = allocate(variable_state_type);
  VariableState *state = as_state(self);
  replace(state->type, type);
  replace(state->value, value);
  replace(state->metadata, metadata);
  count(Kept::VariableState, 1);
  return nb::steal<nb::object>(self);
}

void bind_cells(nb::module_ &m) {
  nb::dict empty;
  g_empty_metadata = nb::module_::import_("types").attr("MappingProxyType")(empty).release().ptr();
  g_value_name = PyUnicode_InternFromString("value");
  g_get_hooks = {PyUnicode_InternFromString("get_value_hooks"), PyUnicode_InternFromString("on_get_value")};
  g_set_hooks = {PyUnicode_InternFromString("set_value_hooks"), PyUnicode_InternFromString("on_set_value")};
  for (PyObject *name :
       {g_value_name, g_get_hooks.metadata, g_get_hooks.method, g_set_hooks.metadata, g_set_hooks.method}) {
    if (name == nullptr) throw nb::python_error();
  }
  variable_cell_type = make_type(m, cell_spec, "VariableCell");
  object_node_type = make_type(m, node_spec, "ObjectNode");
  variable_state_type = make_type(m, state_spec, "VariableState");
  // Pickles name functions by module and name: the public place, which imports them from here.
  nb::str module_name("treadle.pickles");
  m.attr("_unpickle_variable_state") =
      py::checked(PyCFunction_NewEx(&rebuild_state_method, nullptr, module_name.ptr()));
}

}  // namespace treadle
