// Which variables code may look up besides those that it is given.
#pragma once

#include <memory>
#include <vector>

#include "python_compat.h"

namespace treadle {

// What code, and the code of functions defined inside, may look up by name; nothing for code whose package does not
// change its globals.
struct Names {
  nb::object code;  // kept alive, so that its address stays its own
  std::vector<nb::object> globals;
  // Globals with the attributes that are taken of them, one after the other: all that the code makes of such a global,
  // unless it is among `whole`.
  std::vector<std::vector<nb::object>> dotted;
  std::vector<nb::object> whole;
  // Builtins that lead to variables which the code does not name, or have effects, unless a global hides them.
  std::vector<nb::object> reaching;
  // What it names besides, which may be attributes of modules.
  std::vector<nb::object> attributes;
  // Whether it imports something that may change.
  bool imports = false;

  bool empty() const { return globals.empty() && !imports; }
  bool takes_whole(const nb::object &global) const;
};

// Remembered by code. Whether the package changes its globals is asked of these, as they come with the code: what the
// function says of itself may be copied from another that it wraps.
std::shared_ptr<const Names> names_read(const nb::object &globals, const nb::object &code);

}  // namespace treadle
