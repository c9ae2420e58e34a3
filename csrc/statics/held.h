// What static values hold, at any depth: in closures, defaults and attributes of functions, as arguments of partials,
// in containers and objects. Nodes are left out. Looks at a bounded number of values.
#pragma once

#include "python_compat.h"

namespace treadle {

// True if `value`, or what it holds, is a tracer of `trace`.
bool holds_tracer(PyObject *value, const nb::object &trace);

// Appends what runs when code uses the value: functions and other callables, and classes of objects.
void collect_callables(PyObject *value, std::vector<nb::object> &callables);

}  // namespace treadle
