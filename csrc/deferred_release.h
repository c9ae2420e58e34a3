// Releasing chains of objects of ours without recursion.
#pragma once

#include "python_compat.h"

namespace treadle {

// Drops an owned reference (or null) from within a deallocator. A chain of objects that each hold the next is released
// one after the other, however long it is: what is nested deeper than the C stack should bear waits for the outermost.
void release_nested(PyObject *owned) noexcept;

}  // namespace treadle
