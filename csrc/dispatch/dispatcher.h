// The callable that `treadle.jit` returns.
#pragma once

#include "python_compat.h"

namespace treadle {

void bind_dispatcher(nb::module_ &m);

}  // namespace treadle
