// Classes of Variables and nodes as JAX pytrees.
#pragma once

#include <array>

#include "python_compat.h"

namespace treadle {

// Some of the classes that are registered, each at one place: most graphs are of few. JAX keeps what is registered, so
// that none of them can be freed.
inline constexpr size_t kRecentPytrees = 64;
extern std::array<PyTypeObject *, kRecentPytrees> recent_pytrees;

inline PyTypeObject *&recent_pytree(PyTypeObject *type) {
  const auto address = reinterpret_cast<size_t>(type);
  return recent_pytrees[(address >> 4 ^ address >> 11) % kRecentPytrees];
}

// Registers a class with JAX unless that was done before.
void register_pytree(PyTypeObject *type);

// To be called before an instance is made. Classes that have none stay unknown to JAX and can be freed.
inline void ensure_pytree(PyTypeObject *type) {
  if (recent_pytree(type) != type) register_pytree(type);
}

}  // namespace treadle
