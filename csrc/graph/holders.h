// Statics that lead to nodes: a rebuilt graph would have new nodes, and its statics would go on with the old ones.
#pragma once

#include <optional>
#include <string>

#include "id_table.h"
#include "python_compat.h"

namespace treadle {

struct HeldNode {
  nb::object node;
  std::string name;  // of the variable, parameter or attribute that leads there, if it has one
};

// False for what can lead to nothing.
bool may_hold_node(PyObject *value);

// The first object with an id that the value leads to, as far as a bounded search finds one: by what a function closes
// over, its defaults, attributes and the globals that it names; by the items of containers and the attributes of
// objects. Nodes without an id are not looked into: they are constants.
std::optional<HeldNode> node_held_by(const nb::object &value, const IdTable &ids);

}  // namespace treadle
