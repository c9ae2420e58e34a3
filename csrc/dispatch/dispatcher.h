// The callable that `weft.jit` returns.
#pragma once

#include "python_compat.h"

namespace weft {

void bind_dispatcher(nb::module_ &m);

}  // namespace weft
