// Tracers that static values hold.
#pragma once

#include "python_compat.h"

namespace treadle {

// True if `value`, or what it holds, is a tracer of `trace`: what functions have in their closures, defaults and
// attributes, partials as arguments, containers and objects inside. Nodes are left out, as their leaves are carried
// out. Looks at a bounded number of values.
bool holds_tracer(PyObject *value, const nb::object &trace);

}  // namespace treadle
