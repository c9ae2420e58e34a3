#include "dispatch/dispatcher.h"
namespace weft {
void bind_dispatcher(nb::module_ &) {}
}  // namespace weft
