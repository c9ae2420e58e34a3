// Releasing chains of objects of ours without recursion.
#pragma once

#include "python_compat.h"

namespace treadle {

// Drops an owned reference (or null) from within a deallocator. A chain of objects that each hold the next is released
// one after the other, however long it is: what is nested deeper than the C stack should bear waits for the outermost.
void release_last_nested(PyObject *owned) noexcept;

inline void release_nested(PyObject *owned) noexcept {
  if (owned == nullptr) return;
  // What others hold too is not freed here, which is most of what a graph shares with the next one.
  if (Py_REFCNT(owned) > 1) {
    Py_DECREF(owned);
  } else {
    release_last_nested(owned);
  }
}

}  // namespace treadle
