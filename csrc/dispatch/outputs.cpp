#include "dispatch/outputs.h"

#include <vector>

#include "bindings.h"
#include "errors.h"

namespace treadle {
namespace {

// Nested and concurrent calls use one each.
constexpr size_t kMaxSpare = 16;

// Never destroyed, like the type.
std::vector<nb::object> &spare() {
  static auto *objects = new std::vector<nb::object>();
  return *objects;
}

nb::object make_outputs(const nb::object &effects, const nb::object &leaves) {
  nb::object fields = PyTuple_CheckExact(leaves.ptr()) ? leaves : nb::object(nb::tuple(leaves));
  if (spare().empty()) return Bound<Outputs>::make(effects, fields);
  nb::object object = std::move(spare().back());
  spare().pop_back();
  Outputs *outputs = nb::inst_ptr<Outputs>(object);
  outputs->effects = effects;
  outputs->leaves = fields;
  return object;
}

// A plain C function: JAX calls it once a call, and argument conversion would be a good part of its cost.
PyObject *unflatten_outputs(PyObject *, PyObject *const *args, Py_ssize_t count) {
  return guarded([&] {
    if (count != 2) throw nb::type_error("_unflatten_outputs takes the effects and the leaves");
    return make_outputs(nb::borrow<nb::object>(args[0]), nb::borrow<nb::object>(args[1]));
  });
}

PyMethodDef unflatten_method = {"_unflatten_outputs",
                                reinterpret_cast<PyCFunction>(reinterpret_cast<void *>(unflatten_outputs)),
                                METH_FASTCALL, "Rebuild an Outputs from its effects and leaves."};

nb::object none_if_null(const nb::object &object) { return object.is_valid() ? object : nb::none(); }

}  // namespace

int Outputs::traverse(visitproc visit, void *arg) const {
  Py_VISIT(effects.ptr());
  Py_VISIT(leaves.ptr());
  return 0;
}

void Outputs::clear() {
  effects.reset();
  leaves.reset();
}

Outputs &outputs_of(const nb::object &result) {
  if (!is_outputs(result)) {
    throw std::runtime_error("a compiled function returned something else than its outputs");
  }
  return *nb::inst_ptr<Outputs>(result);
}

void recycle_outputs(nb::object &&result) {
  nb::object object = std::move(result);
  if (Py_REFCNT(object.ptr()) != 1 || spare().size() >= kMaxSpare) return;
  Bound<Outputs>::of(object).clear();
  spare().push_back(std::move(object));
}

void bind_outputs(nb::module_ &m) {
  auto cls = Bound<Outputs>::bind(m, "Outputs");
  cls.def("__init__", [](Outputs *self, nb::object effects, nb::object leaves) {
    new (self) Outputs{std::move(effects), nb::tuple(leaves)};
  });
  cls.def_prop_ro("effects", [](const Outputs &outputs) { return none_if_null(outputs.effects); });
  cls.def_prop_ro("leaves", [](const Outputs &outputs) { return none_if_null(outputs.leaves); });
  m.def("_flatten_outputs", [](const Outputs &outputs) {
    return nb::make_tuple(none_if_null(outputs.leaves), none_if_null(outputs.effects));
  });
  py::add_function(m, unflatten_method);
}

}  // namespace treadle
