// From tables to objects: fresh graphs, and values of expressions.
#pragma once

#include "objects/owners.h"
#include "structure/graphdef.h"

namespace treadle {

// Where a leaf's value comes from while an expression is built.
using LeafSource = std::vector<PyObject *>;
LeafSource borrowed(const std::vector<nb::object> &objects);

// Builds the value of the expression that starts at `begin`. `leaves` and `refs` are indexed by leaf and reference id;
// they are borrowed and must be held by the caller, since rebuilding pytrees runs Python.
nb::object build_expression(const GraphDef &def, uint32_t begin, const LeafSource &leaves,
                            const std::vector<nb::object> &refs);

// An object for reference `ref`, without its attributes; Variables are complete.
nb::object new_reference(const GraphDef &def, uint32_t ref, PyObject *value, Owner &owner);

// Gives a fresh node its children.
void fill_node(const GraphDef &def, uint32_t ref, const nb::object &node, const LeafSource &leaves,
               const std::vector<nb::object> &refs);

// Fresh objects for the whole graph: the root and the objects by reference id.
std::pair<nb::object, std::vector<nb::object>> unflatten(const GraphDef &def, const LeafSource &leaves);

}  // namespace treadle
