// What classes define, object by object.
#pragma once

#include "python_compat.h"

namespace treadle {

// The names and values of what the user's classes define, of all nodes in `root` and their bases, in the order in which
// they are met: of an unchanged program the same objects. Runs before each call of a lifted class, hence apart from
// readings.
nb::object definitions_below(const nb::object &root);

}  // namespace treadle
