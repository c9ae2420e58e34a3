// How this extension was compiled, for `python -m treadle` and bug reports.
#pragma once

#include "python_compat.h"

namespace treadle {

void bind_build_info(nb::module_ &m);

}  // namespace treadle
