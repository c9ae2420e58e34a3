// Writing leaf values into existing objects, and nested views of flat values.
#pragma once

#include "graph/walk.h"

namespace treadle {

// Writes `values[i]` as leaf `indices[i]` of the walked graph: all or nothing.
void set_leaves(const Flat &flat, nb::handle indices, nb::handle values);

// Nested dict of `values` by `paths`.
nb::object nest(nb::handle paths, nb::handle values);

}  // namespace treadle
