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
    {"numpy.random", false, false, Stateless::None},
    {"ml_dtypes",   true,  true,  Stateless::All},
    {"optax",       true,  true,  Stateless::All},
    {"treadle",     true,  false, Stateless::All},
    {"flax",        true,  false, Stateless::None},
    {"math",        true,  false, Stateless::None},
    {"cmath",       true,  false, Stateless::None},
    {"functools",   true,  false, Stateless::None},
    {"_functools",  true,  false, Stateless::None},
    {"operator",    true,  false, Stateless::None},
    {"_operator",   true,  false, Stateless::None},
    {"itertools",   true,  false, Stateless::None},
    {"typing",      true,  false, Stateless::All},
    {"collections", true,  false, Stateless::None},
    {"abc",         true,  false, Stateless::None},
    {"dataclasses", true,  false, Stateless::None},
    {"enum",        true,  false, Stateless::None},
    {"types",       true,  false, Stateless::None},
    {"datetime",    false, true,  Stateless::None},
    {"decimal",     false, true,  Stateless::None},
    {"fractions",   false, true,  Stateless::None},
    {"pathlib",     false, true,  Stateless::None},
    {"re",          false, true,  Stateless::None},
    {"uuid",        false, true,  Stateless::None},
};
// clang-format on

nb::object imported_module(const nb::object &name) {
  if (!nb::isinstance<nb::str>(name)) return {};
  nb::object module = nb::steal<nb::object>(PyImport_GetModule(name.ptr()));
  if (!module.is_valid() && PyErr_Occurred()) throw nb::python_error();
  return module;
}

// True if the class can be found where it says. Types that are not made at run time cannot say anything else.
bool is_found_where_it_says(const nb::object &type, const nb::object &module_name) {
  if ((PyType_GetFlags(py::as_type(type.ptr())) & Py_TPFLAGS_HEAPTYPE) == 0) return true;
  nb::object found = imported_module(module_name);
  if (!found.is_valid()) return false;
  std::string rest = py::text(nb::object(type.attr("__qualname__")));
  while (found.is_valid() && !rest.empty()) {
    const size_t dot = rest.find('.');
    found = nb::getattr(found, rest.substr(0, dot).c_str(), nb::object());
    rest = dot == std::string::npos ? "" : rest.substr(dot + 1);
  }
  return found.is(type);
}

}  // namespace

const Package *known_package(const nb::object &name) {
  if (!nb::isinstance<nb::str>(name)) return nullptr;
  const std::string text = py::text(name);
  const Package *found = nullptr;
  for (const Package &package : kPackages) {
    const std::string_view known = package.name;
    const bool is_inside =
        text.compare(0, known.size(), known) == 0 && (text.size() == known.size() || text[known.size()] == '.');
    if (is_inside && (found == nullptr || known.size() > std::string_view(found->name).size())) found = &package;
  }
  return found;
}

const Package *package_of(const nb::object &object) {
  const bool is_module = PyObject_TypeCheck(object.ptr(), &PyModule_Type) != 0;
  nb::object name = nb::getattr(object, is_module ? "__name__" : "__module__", nb::none());
  const Package *package = known_package(name);
  if (package == nullptr) return nullptr;
  const bool is_honest = is_module ? imported_module(name).is(object)
                                   : !PyType_Check(object.ptr()) || is_found_where_it_says(object, name);
  return is_honest ? package : nullptr;
}

bool is_effectful_builtin(std::string_view name) {
  for (std::string_view known : {"print", "input", "open", "breakpoint", "help", "exit", "quit", "eval", "exec",
                                 "globals", "locals", "vars", "__import__", "setattr", "delattr"}) {
    if (name == known) return true;
  }
  return false;
}

bool is_constant_builtin(const nb::object &function) {
  const Package *package = known_package(nb::getattr(function, "__module__", nb::none()));
  if (package == nullptr || !package->constants) return false;
  return package->name != std::string_view("builtins") ||
         !is_effectful_builtin(py::text(nb::object(function.attr("__name__"))));
}

const char *inner_without_constants(const nb::object &module) {
  nb::object name = nb::getattr(module, "__name__", nb::none());
  if (!nb::isinstance<nb::str>(name)) return nullptr;
  const std::string outer = py::text(name) + ".";
  for (const Package &package : kPackages) {
    const std::string_view known = package.name;
    if (!package.constants && known.size() > outer.size() && known.substr(0, outer.size()) == outer)
      return package.name + outer.size();
  }
  return nullptr;
}

bool is_constant_package(const nb::object &name) {
  const Package *package = known_package(name);
  if (package == nullptr || !package->constants) return false;
  nb::object imported = imported_module(nb::str(package->name));
  if (!imported.is_valid()) return false;
  const Package *says = package_of(imported);
  return says != nullptr && says->constants;
}

}  // namespace treadle
