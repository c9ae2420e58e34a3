#include "bindings.h"
#include "errors.h"
#include "objects/cells.h"
#include "settings.h"

namespace treadle {
namespace {

// Type and metadata of a VariableState, as JAX compares them between trees. Invariant: `type` is owned and non-null;
// `metadata` as in VariableState.
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

PyObject *flatten(PyObject *, PyObject *object) {
  return guarded([&] {
    const VariableState &state = state_of(object);
    nb::object children = nb::make_tuple(nb::borrow<nb::object>(state.value));
    return nb::make_tuple(children, new_aux(state.type, state.metadata));
  });
}

PyObject *flatten_with_keys(PyObject *, PyObject *object) {
  return guarded([&] {
    const VariableState &state = state_of(object);
    nb::object child = nb::make_tuple(settings().value_key, nb::borrow<nb::object>(state.value));
    return nb::make_tuple(nb::make_tuple(child), new_aux(state.type, state.metadata));
  });
}

PyObject *unflatten(PyObject *, PyObject *const *args, Py_ssize_t count) {
  return guarded([&] {
    if (count != 2 || Py_TYPE(args[0]) != state_aux_type) {
      throw nb::type_error("_unflatten_variable_state takes the structure and the children");
    }
    nb::object children = py::checked(PySequence_Tuple(args[1]));
    if (py::tuple_size(children.ptr()) != 1) throw nb::value_error("a VariableState has one child, its value");
    const StateAux *aux = as_aux(args[0]);
    return new_variable_state(aux->type, py::tuple_item(children.ptr(), 0), aux->metadata);
  });
}

// Plain C functions: JAX calls one for each entry, and argument conversion would be a good part of its cost.
PyMethodDef functions[] = {
    {"_flatten_variable_state", flatten, METH_O, "(children, structure) of a VariableState."},
    {"_flatten_variable_state_with_keys", flatten_with_keys, METH_O, "The same, with the children's keys."},
    {"_unflatten_variable_state", reinterpret_cast<PyCFunction>(reinterpret_cast<void *>(unflatten)), METH_FASTCALL,
     "A VariableState from structure and children."},
};

}  // namespace

void bind_state_pytree(nb::module_ &m) {
  state_aux_type = py::add_type(m, aux_spec, "VariableStateAux");
  for (PyMethodDef &function : functions) py::add_function(m, function);
}

}  // namespace treadle
