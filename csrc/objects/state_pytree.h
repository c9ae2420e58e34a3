// `VariableState` as a node of JAX's pytrees: States of thousands of entries are flattened through it.
#pragma once

#include "python_compat.h"

namespace treadle {

void bind_state_pytree(nb::module_ &m);

}  // namespace treadle
