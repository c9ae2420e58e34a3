// What objects that are no nodes hold, as something to compare.
#pragma once

#include "python_compat.h"

namespace treadle {

// By name: of a frozen dataclass the fields, of other objects what is in their dicts and slots. May be the dict itself.
nb::object attributes_of(const nb::object &object);

// The items of a set with their types, which its equality does not look at, as a frozenset.
nb::object typed_items_of(const nb::object &set);

}  // namespace treadle
