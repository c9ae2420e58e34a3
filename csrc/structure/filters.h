// Filters: which leaves of a graph a caller means.
#pragma once

#include "structure/graphdef.h"

namespace treadle {

// For each leaf the index of the first of `filters` (compiled specs, see filters.py) that matches it, or -1.
nb::object partition(const GraphDef &def, nb::tuple filters, nb::handle leaves);

}  // namespace treadle
