#include "objects/packages.h"

namespace treadle {
namespace {

// clang-format off
constexpr Package kPackages[] = {
    //             constants values
    {"builtins",    true,  true,  Stateless::None},
    {"jax",         true,  true,  Stateless::All},
    {"jaxlib",      true,  true,  Stateless::All},
    {"numpy",       true,  true,  Stateless::Callables},
    {"ml_dtypes",   true,  true,  Stateless::All},
    {"optax",       true,  true,  Stateless::All},
    {"treadle",     true,  false, Stateless::All},
    {"math",        true,  false, Stateless::None},
    {"functools",   true,  false, Stateless::None},
    {"operator",    true,  false, Stateless::None},
    {"itertools",   true,  false, Stateless::None},
    {"typing",      true,  false, Stateless::All},
    {"collections", true,  false, Stateless::None},
    {"datetime",    false, true,  Stateless::None},
    {"decimal",     false, true,  Stateless::None},
    {"fractions",   false, true,  Stateless::None},
    {"pathlib",     false, true,  Stateless::None},
    {"re",          false, true,  Stateless::None},
    {"uuid",        false, true,  Stateless::None},
};
// clang-format on

// The first part of a dotted name; empty for what is no name.
std::string root_of(const nb::object &name) {
  if (!nb::isinstance<nb::str>(name)) return {};
  std::string text = py::text(name);
  return text.substr(0, text.find('.'));
}

}  // namespace

const Package *known_package(const nb::object &name) {
  std::string root = root_of(name);
  for (const Package &package : kPackages) {
    if (root == package.name) return &package;
  }
  return nullptr;
}

const Package *package_of(const nb::object &object) {
  const bool is_module = PyObject_TypeCheck(object.ptr(), &PyModule_Type) != 0;
  return known_package(nb::getattr(object, is_module ? "__name__" : "__module__", nb::none()));
}

bool is_constant_package(const nb::object &name) {
  const Package *package = known_package(name);
  if (package == nullptr || !package->constants) return false;
  nb::object root = nb::str(package->name);
  nb::object imported = nb::steal<nb::object>(PyImport_GetModule(root.ptr()));
  if (!imported.is_valid() && PyErr_Occurred()) throw nb::python_error();
  if (!imported.is_valid()) return false;
  const Package *says = package_of(imported);
  return says != nullptr && says->constants;
}

}  // namespace treadle
