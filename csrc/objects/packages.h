// What is known of packages that nobody changes while a program runs.
#pragma once

#include <string_view>

#include "python_compat.h"

namespace treadle {

// Which objects of a package's types, if they have no equality of their own, hold nothing that changes.
enum class Stateless : uint8_t { None, Callables, All };

// Of a package and what is inside it, but for inner ones that have a row. Each promise is about what the package
// defines.
struct Package {
  const char *name;
  bool constants;  // its functions read nothing that changes but their arguments; its classes stay as they are
  bool values;     // hashable objects of its types do not change: the same pointer means the same value
  Stateless stateless;
};

// Null for the name of a module that is in none of the known ones.
const Package *known_package(const nb::object &name);

// What promises something of the class or module. What only says that it is of a package, and is not found there, is
// of none.
const Package *package_of(const nb::object &object);

// True for a function written in C that does what it does to its arguments alone: it reads no clock and prints nothing.
bool is_constant_builtin(const nb::object &function);

// True for names of builtins whose calls do or read something that nobody can compare.
bool is_effectful_builtin(std::string_view name);

// The inner module of a module with constants that has none, or null: what names it as an attribute may change.
const char *inner_without_constants(const nb::object &module);

// True for the name of a module, or one inside, of a package with constants. What is not imported is not known to be
// that.
bool is_constant_package(const nb::object &name);

}  // namespace treadle
