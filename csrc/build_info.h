// How this extension was compiled, for `python -m weft` and bug reports.
#pragma once

#include "python_compat.h"

namespace weft {

void bind_build_info(nb::module_ &m);

}  // namespace weft
