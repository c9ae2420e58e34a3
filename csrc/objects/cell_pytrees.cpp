#include "bindings.h"
#include "errors.h"
#include "objects/cells.h"
#include "settings.h"

namespace treadle {
namespace {

// Variables and their states are pytrees whose one child is the value. This is the rest, type and metadata, as JAX
// compares it between trees. Invariant: `type` is owned and non-null; `metadata` as in VariableState.
struct StateAux {
  PyObject_HEAD PyObject *type;
  PyObject *metadata;
};

PyTypeObject *state_aux_type = nullptr;

StateAux *as_aux(PyObject *object) { return reinterpret_cast<StateAux *>(object); }

nb::object new_aux(PyObject *type, PyObject *metadata) {
  nb::object self = nb::steal<nb::object>(py::allocate(state_aux_type));
  Py_INCREF(type);
  Py_XINCREF(metadata);
  as_aux(self.ptr())->type = type;
  as_aux(self.ptr())->metadata = metadata;
  return self;
}

// Most Variables are of few types and without metadata. JAX keeps those types for good, so that one may be kept here.
nb::object aux_of_variable(PyObject *type, PyObject *metadata) {
  static PyObject *last = nullptr;
  if (metadata != nullptr) return new_aux(type, metadata);
  if (last == nullptr || as_aux(last)->type != type) replace(last, new_aux(type, nullptr).ptr());
  return nb::borrow<nb::object>(last);
}

nb::object metadata_or_none(const StateAux *aux) {
  return aux->metadata == nullptr ? nb::none() : nb::borrow<nb::object>(aux->metadata);
}

PyObject *aux_new(PyTypeObject *, PyObject *args, PyObject *) {
  PyObject *type = nullptr, *metadata = nullptr;
  if (!PyArg_ParseTuple(args, "OO:VariableStateAux", &type, &metadata)) return nullptr;
  if (metadata != Py_None && !PyDict_Check(metadata)) {
    PyErr_SetString(PyExc_TypeError, "VariableStateAux: metadata must be a dict or None");
    return nullptr;
  }
  return guarded([&] { return new_aux(type, metadata == Py_None ? nullptr : normalized_metadata(metadata)); });
}

int aux_traverse(PyObject *self, visitproc visit, void *arg) {
  return py::visit_all(self, visit, arg, as_aux(self)->type, as_aux(self)->metadata);
}

int aux_clear(PyObject *self) {
  Py_CLEAR(as_aux(self)->metadata);
  return 0;
}

void aux_dealloc(PyObject *self) {
  PyObject_GC_UnTrack(self);
  Py_CLEAR(as_aux(self)->type);
  Py_CLEAR(as_aux(self)->metadata);
  py::free_instance(self);
}

PyObject *aux_compare(PyObject *self, PyObject *other, int operation) {
  if ((operation != Py_EQ && operation != Py_NE) || Py_TYPE(other) != state_aux_type) Py_RETURN_NOTIMPLEMENTED;
  return guarded([&] {
    const StateAux *a = as_aux(self), *b = as_aux(other);
    bool equal = a->type == b->type;
    if (equal && a->metadata != b->metadata) {
      equal = a->metadata != nullptr && b->metadata != nullptr &&
              nb::cast<bool>(settings().same(metadata_or_none(a), metadata_or_none(b)));
    }
    return PyBool_FromLong(equal == (operation == Py_EQ));
  });
}

// Metadata values may be unhashable; type and number of entries tell most structures apart.
Py_hash_t aux_hash(PyObject *self) {
  auto hash = static_cast<Py_hash_t>(reinterpret_cast<size_t>(as_aux(self)->type) >> 4);
  PyObject *metadata = as_aux(self)->metadata;
  return hash + (metadata == nullptr ? 0 : py::dict_size(metadata));
}

PyObject *aux_repr(PyObject *self) {
  return guarded([&] {
    nb::object metadata = as_aux(self)->metadata == nullptr ? nb::dict() : metadata_or_none(as_aux(self));
    nb::object name = nb::borrow<nb::object>(as_aux(self)->type).attr("__name__");
    return PyUnicode_FromFormat("(%S, %R)", name.ptr(), metadata.ptr());
  });
}

PyObject *aux_reduce(PyObject *self, PyObject *) {
  return guarded([&] {
    nb::object type = nb::borrow<nb::object>(as_aux(self)->type);
    return nb::make_tuple(py::type_object(state_aux_type), nb::make_tuple(type, metadata_or_none(as_aux(self))))
        .release()
        .ptr();
  });
}

PyMethodDef aux_methods[] = {{"__reduce__", aux_reduce, METH_NOARGS, "Type and metadata."},
                             {nullptr, nullptr, 0, nullptr}};

PyType_Slot aux_slots[] = {
    py::slot(Py_tp_new, aux_new),         py::slot(Py_tp_traverse, aux_traverse),   py::slot(Py_tp_clear, aux_clear),
    py::slot(Py_tp_dealloc, aux_dealloc), py::slot(Py_tp_richcompare, aux_compare), py::slot(Py_tp_hash, aux_hash),
    py::slot(Py_tp_repr, aux_repr),       py::slot(Py_tp_methods, aux_methods),     {0, nullptr}};

PyType_Spec aux_spec = {"treadle.pickles.VariableStateAux", sizeof(StateAux), 0,
                        Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC, aux_slots};

const VariableState &state_of(PyObject *object) {
  if (Py_TYPE(object) != variable_state_type) throw nb::type_error("expected a VariableState");
  return *as_state(object);
}

const VariableCell &cell_of(PyObject *object) {
  if (!PyType_IsSubtype(Py_TYPE(object), variable_cell_type)) throw nb::type_error("expected a Variable");
  return *as_cell(object);
}

nb::object pair(const nb::object &first, const nb::object &second) {
  nb::object made = py::checked(PyTuple_New(2));
  py::tuple_init(made.ptr(), 0, nb::object(first).release().ptr());
  py::tuple_init(made.ptr(), 1, nb::object(second).release().ptr());
  return made;
}

nb::object child(PyObject *value) {
  nb::object made = py::checked(PyTuple_New(1));
  py::tuple_init(made.ptr(), 0, nb::borrow<nb::object>(value).release().ptr());
  return made;
}

nb::object child_with_key(PyObject *value) {
  return child(pair(settings().value_key, nb::borrow<nb::object>(value)).ptr());
}

// The arguments of an unflatten function, looked at: what is not of this file's making may be anything.
struct Parts {
  Parts(PyObject *const *args, Py_ssize_t count) {
    if (count != 2 || Py_TYPE(args[0]) != state_aux_type) throw nb::type_error("expected structure and children");
    children = py::checked(PySequence_Tuple(args[1]));
    if (py::tuple_size(children.ptr()) != 1) throw nb::value_error("there is one child, the value");
    aux = as_aux(args[0]);
    value = py::tuple_item(children.ptr(), 0);
  }
  nb::object children;
  const StateAux *aux;  // borrowed from the arguments
  PyObject *value;      // borrowed from `children`
};

PyObject *flatten_state(PyObject *, PyObject *object) {
  return guarded([&] {
    const VariableState &state = state_of(object);
    return pair(child(state.value), new_aux(state.type, state.metadata));
  });
}

PyObject *flatten_state_with_keys(PyObject *, PyObject *object) {
  return guarded([&] {
    const VariableState &state = state_of(object);
    return pair(child_with_key(state.value), new_aux(state.type, state.metadata));
  });
}

PyObject *unflatten_state(PyObject *, PyObject *const *args, Py_ssize_t count) {
  return guarded([&] {
    Parts parts(args, count);
    return new_variable_state(parts.aux->type, parts.value, parts.aux->metadata);
  });
}

PyObject *flatten_variable(PyObject *, PyObject *object) {
  return guarded([&] {
    const VariableCell &cell = cell_of(object);
    return pair(child(cell.value), aux_of_variable(py::as_object(Py_TYPE(object)), cell.metadata));
  });
}

PyObject *flatten_variable_with_keys(PyObject *, PyObject *object) {
  return guarded([&] {
    const VariableCell &cell = cell_of(object);
    return pair(child_with_key(cell.value), aux_of_variable(py::as_object(Py_TYPE(object)), cell.metadata));
  });
}

// Runs no hook and looks at nothing: JAX puts anything where a value was.
PyObject *unflatten_variable(PyObject *, PyObject *const *args, Py_ssize_t count) {
  return guarded([&] {
    Parts parts(args, count);
    PyTypeObject *type = py::as_type(parts.aux->type);
    if (!PyType_Check(parts.aux->type) || !PyType_IsSubtype(type, variable_cell_type))
      throw nb::type_error("expected the structure of a Variable");
    nb::object trace = current_trace();
    return new_variable(type, parts.value, parts.aux->metadata, trace.ptr());
  });
}

PyCFunction fast(PyObject *(*function)(PyObject *, PyObject *const *, Py_ssize_t)) {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void *>(function));
}

// Plain C functions: JAX calls one for each entry, and argument conversion would be a good part of its cost.
PyMethodDef functions[] = {
    {"_flatten_variable_state", flatten_state, METH_O, "(children, structure) of a VariableState."},
    {"_flatten_variable_state_with_keys", flatten_state_with_keys, METH_O, "The same, with the children's keys."},
    {"_unflatten_variable_state", fast(unflatten_state), METH_FASTCALL, "A VariableState from structure and children."},
    {"_flatten_variable", flatten_variable, METH_O, "(children, structure) of a Variable."},
    {"_flatten_variable_with_keys", flatten_variable_with_keys, METH_O, "The same, with the children's keys."},
    {"_unflatten_variable", fast(unflatten_variable), METH_FASTCALL, "A Variable from structure and children."},
};

}  // namespace

void bind_cell_pytrees(nb::module_ &m) {
  state_aux_type = py::add_type(m, aux_spec, "VariableStateAux");
  for (PyMethodDef &function : functions) py::add_function(m, function);
}

}  // namespace treadle
