// Arrays that are given away: who else holds them.
#pragma once

#include "dispatch/guards.h"

namespace treadle {

// Numbers of leaves, as the Python side gives them.
std::vector<uint32_t> leaf_ids(const nb::object &iterable);

// What of a call may be donated, and how the plan's structure tells of a leaf whether a node holds it.
// Invariant: `leaves` is ascending; `in_node` has an entry for each leaf of the structure.
struct Donation {
  Donation() = default;
  Donation(std::vector<uint32_t> donated, const GraphDef &def);

  bool empty() const { return leaves.empty(); }

  std::vector<uint32_t> leaves;
  std::vector<bool> in_node;
};

// What cannot be given away as it is, of the leaves that a call donates.
struct Separation {
  std::vector<uint32_t> shared;  // leaves in nodes whose array somebody else holds as well
  std::vector<uint32_t> copied;  // all that need a copy: those, and what the call itself uses twice
};

// Looks at reference counts: a leaf in a node is held by what it was found in and by the `holders` that the caller
// knows of, one for each leaf of `leaves`. An argument's own array is its caller's to give away, whoever else holds it.
Separation separate(const Donation &donation, const std::vector<PyObject *> &leaves, Py_ssize_t holders);

}  // namespace treadle
