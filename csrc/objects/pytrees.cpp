#include "objects/pytrees.h"

#include <unordered_set>

#include "settings.h"

namespace treadle {

std::array<PyTypeObject *, kRecentPytrees> recent_pytrees{};

void register_pytree(PyTypeObject *type) {
  // Never destroyed: instances may be made while the interpreter shuts down.
  static auto *known = new std::unordered_set<PyTypeObject *>();
  if (!known->contains(type)) {
    settings().register_pytree(py::type_object(type));
    known->insert(type);
  }
  recent_pytree(type) = type;
}

}  // namespace treadle
