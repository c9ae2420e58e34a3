// Variables of any library, as Python code that handles them all sees them.
#pragma once

#include "python_compat.h"

namespace treadle {

void bind_variables(nb::module_ &m);

}  // namespace treadle
