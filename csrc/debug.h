// What the debug build offers its tests: objects counted, and allocations made to fail. Costs nothing in a release.
#pragma once

#include "python_compat.h"

namespace treadle {

enum class Kept : uint8_t {
  GraphDef,
  Flat,
  Effects,
  Outputs,
  Plan,
  Dispatcher,
  VariableCell,
  ObjectNode,
  VariableState,
};

#if defined(TREADLE_DEBUG)
void count(Kept kind, int change);
#else
inline void count(Kept, int) {}
#endif

// A member that counts the objects it is part of.
template <Kept kind>
struct Counted {
#if defined(TREADLE_DEBUG)
  Counted() { count(kind, 1); }
  Counted(const Counted &) { count(kind, 1); }
  Counted &operator=(const Counted &) { return *this; }
  ~Counted() { count(kind, -1); }
#endif
};

}  // namespace treadle
