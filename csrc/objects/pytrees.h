// Classes of Variables and nodes as JAX pytrees.
#pragma once

#include "python_compat.h"

namespace treadle {

// The class of which an instance was made last. JAX keeps what is registered, so that it cannot be freed.
extern PyTypeObject *last_pytree;

// Registers a class with JAX unless that was done before.
void register_pytree(PyTypeObject *type);

// To be called before an instance is made. Classes that have none stay unknown to JAX and can be freed.
inline void ensure_pytree(PyTypeObject *type) {
  if (type != last_pytree) register_pytree(type);
}

}  // namespace treadle
