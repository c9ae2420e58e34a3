#include "dispatch/outputs.h"

#include <vector>

#include "errors.h"

namespace treadle {
namespace {

// Nested and concurrent calls use one each.
constexpr size_t kMaxSpare = 16;

nb::object *g_outputs_type = nullptr;

// Never destroyed, like the type.
std::vector<nb::object> &spare() {
  static auto *objects = new std::vector<nb::object>();
  return *objects;
}

nb::object make_outputs(const nb::object &effects, const nb::object &leaves) {
  nb::object fields = PyTuple_CheckExact(leaves.ptr()) ? leaves : nb::object(nb::tuple(leaves));
  if (spare().empty()) return nb::cast(Outputs{effects, fields});
  nb::object object = std::move(spare().back());
  spare().pop_back();
  Outputs *outputs = nb::inst_ptr<Outputs>(object);
  outputs->effects = effects;
  outputs->leaves = fields;
  return object;
}

// A plain C function: JAX calls it once a call, and argument conversion would be a good part of its cost.
PyObject *unflatten_outputs(PyObject *, PyObject *const *args, Py_ssize_t count) {
  return guarded([&]() -> PyObject * {
    if (count != 2) throw nb::type_error("_unflatten_outputs takes the effects and the leaves");
    return make_outputs(nb::borrow<nb::object>(args[0]), nb::borrow<nb::object>(args[1])).release().ptr();
  });
}

PyMethodDef unflatten_method = {"_unflatten_outputs",
                                reinterpret_cast<PyCFunction>(reinterpret_cast<void *>(unflatten_outputs)),
                                METH_FASTCALL, "Rebuild an Outputs from its effects and leaves."};

int traverse(PyObject *self, visitproc visit, void *arg) {
  Py_VISIT(Py_TYPE(self));
  if (!nb::inst_ready(self)) return 0;
  Outputs *outputs = nb::inst_ptr<Outputs>(self);
  Py_VISIT(outputs->effects.ptr());
  Py_VISIT(outputs->leaves.ptr());
  return 0;
}

int clear(PyObject *self) {
  if (!nb::inst_ready(self)) return 0;
  Outputs *outputs = nb::inst_ptr<Outputs>(self);
  outputs->effects.reset();
  outputs->leaves.reset();
  return 0;
}

PyType_Slot slots[] = {
    {Py_tp_traverse, reinterpret_cast<void *>(traverse)}, {Py_tp_clear, reinterpret_cast<void *>(clear)}, {0, nullptr}};

nb::object none_if_null(const nb::object &object) { return object.is_valid() ? object : nb::none(); }

}  // namespace

bool is_outputs(const nb::object &result) {
  return reinterpret_cast<PyObject *>(Py_TYPE(result.ptr())) == g_outputs_type->ptr();
}

Outputs &outputs_of(const nb::object &result) {
  if (!is_outputs(result) || !nb::inst_ready(result)) {
    throw std::runtime_error("a compiled function returned something else than its outputs");
  }
  return *nb::inst_ptr<Outputs>(result);
}

void recycle_outputs(nb::object &&result) {
  nb::object object = std::move(result);
  if (Py_REFCNT(object.ptr()) != 1 || spare().size() >= kMaxSpare) return;
  clear(object.ptr());
  spare().push_back(std::move(object));
}

void bind_outputs(nb::module_ &m) {
  nb::class_<Outputs> cls(m, "Outputs", nb::type_slots(slots), nb::is_final());
  g_outputs_type = new nb::object(cls);
  cls.def("__init__", [](Outputs *self, nb::object effects, nb::object leaves) {
    new (self) Outputs{std::move(effects), nb::tuple(leaves)};
  });
  cls.def_prop_ro("effects", [](const Outputs &outputs) { return none_if_null(outputs.effects); });
  cls.def_prop_ro("leaves", [](const Outputs &outputs) { return none_if_null(outputs.leaves); });
  m.def("_flatten_outputs", [](const Outputs &outputs) {
    return nb::make_tuple(none_if_null(outputs.leaves), none_if_null(outputs.effects));
  });
  m.attr("_unflatten_outputs") =
      py::checked(PyCFunction_NewEx(&unflatten_method, nullptr, nb::object(m.attr("__name__")).ptr()));
}

}  // namespace treadle
