// Callables made of others: bound methods, partials, and what treadle's transforms made of a callable. Those that hold
// a node are walked like containers.
#pragma once

#include <array>

#include "objects/node_types.h"

namespace treadle {

// What a callable was made of, borrowed: as many as it has part names.
struct CallableParts {
  size_t count = 0;
  std::array<PyObject *, 4> items{};
};

// Runs no Python. Empty if the object is no such callable after all, as most functions.
CallableParts parts_of(PyObject *callable, CallableKind kind);

// A tuple, sorted, made once: how the parts are called in paths.
const nb::object &part_names(CallableKind kind);

// Borrowed: what a partial calls.
PyObject *function_of_partial(PyObject *partial);

// Borrowed, of what a transform made: (name of the transform, its other arguments, its options).
PyObject *recipe_of(PyObject *lifted);
bool is_recipe(PyObject *value);

// From parts in the order of their names. `made_by` is the type of a partial, the recipe of what a transform made.
nb::object make_callable(CallableKind kind, const nb::object &made_by, const std::vector<nb::object> &parts);

// True if the value is a node or a Variable, or a callable or plain container that leads to one.
bool holds_node(const nb::object &value);

}  // namespace treadle
