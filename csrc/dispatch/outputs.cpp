#include "dispatch/outputs.h"

#include "graph/effects.h"

namespace weft {
namespace {

struct Recorded {
  PyObject *leaves;  // borrowed, for identity only
  nb::object effects;
};

// Empty outside dispatcher calls, so that a thread ends with nothing to release.
thread_local std::vector<Recorded> t_recorded;
thread_local size_t t_depth = 0;

nb::object *g_outputs_type = nullptr;

nb::object record(const nb::object &effects, const nb::object &leaves) {
  if (t_depth > 0 && PyTuple_CheckExact(leaves.ptr())) {
    t_recorded.push_back({leaves.ptr(), effects});
    return leaves;
  }
  return nb::cast(Outputs{effects, nb::tuple(leaves)});
}

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
  outputs->effects = nb::none();
  outputs->leaves = nb::make_tuple();
  return 0;
}

PyType_Slot slots[] = {
    {Py_tp_traverse, reinterpret_cast<void *>(traverse)}, {Py_tp_clear, reinterpret_cast<void *>(clear)}, {0, nullptr}};

}  // namespace

OutputsScope::OutputsScope() : mark_(t_recorded.size()) { ++t_depth; }

OutputsScope::~OutputsScope() {
  --t_depth;
  // Popped one by one: releasing Effects may run code that records and removes entries of its own.
  while (t_recorded.size() > mark_) {
    nb::object effects = std::move(t_recorded.back().effects);
    t_recorded.pop_back();
  }
}

std::pair<nb::object, nb::object> OutputsScope::take(const nb::object &result) const {
  for (size_t i = t_recorded.size(); i > mark_; --i) {
    if (t_recorded[i - 1].leaves == result.ptr()) return {t_recorded[i - 1].effects, result};
  }
  // Under `jax.disable_jit` the traced function's own return value arrives.
  if (result.type().is(*g_outputs_type)) {
    Outputs *outputs = nb::inst_ptr<Outputs>(result);
    return {outputs->effects, outputs->leaves};
  }
  throw std::runtime_error("a compiled function returned something else than its outputs");
}

void bind_outputs(nb::module_ &m) {
  nb::class_<Outputs> cls(m, "Outputs", nb::type_slots(slots), nb::is_final());
  g_outputs_type = new nb::object(cls);
  cls.def("__init__", [](Outputs *self, nb::object effects, nb::object leaves) {
    new (self) Outputs{std::move(effects), nb::tuple(leaves)};
  });
  cls.def_prop_ro("effects", [](const Outputs &outputs) { return outputs.effects; });
  cls.def_prop_ro("leaves", [](const Outputs &outputs) { return outputs.leaves; });
  m.def("_flatten_outputs", [](const Outputs &outputs) { return nb::make_tuple(outputs.leaves, outputs.effects); });
  m.def("_unflatten_outputs", &record, nb::arg("effects").none(), nb::arg("leaves").none());
}

}  // namespace weft
