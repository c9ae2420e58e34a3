// Where in a graph its leaves and references are found.
#pragma once

#include <utility>
#include <vector>

#include "structure/graphdef.h"

namespace treadle {

// The paths of leaves and of references in canonical order: the first way each was reached. Computed apart, because in
// a deep graph the paths of all references are long even where those of the leaves are few.
nb::tuple leaf_paths(const GraphDef &def);
nb::tuple ref_paths(const GraphDef &def);
// The keys of all leaves' paths together, for whoever has to decide whether to make them. Linear.
size_t length_of_leaf_paths(const GraphDef &def);
nb::object path_of_reference(const GraphDef &def, uint32_t ref);

// Paths that share their beginnings: each is one key behind another path, so a path costs the same however long it is,
// until a tuple is made of it. A path is known by a number.
class PathTree {
 public:
  static constexpr uint32_t kRoot = 0;  // the empty path

  uint32_t add(uint32_t parent, nb::object key);
  nb::tuple tuple(uint32_t path) const;
  uint32_t size() const { return static_cast<uint32_t>(steps_.size()) + 1; }
  // Of a path that is not the root. A parent's number is smaller than its children's.
  uint32_t parent(uint32_t path) const { return steps_[path - 1].parent; }

 private:
  struct Step {
    uint32_t parent, length;
    nb::object key;
  };

  uint32_t length(uint32_t path) const { return path == kRoot ? 0 : steps_[path - 1].length; }

  std::vector<Step> steps_;  // by number, from 1 on
};

// The path of each of `wanted` (true by reference id) in `paths`; kNone for the others.
std::vector<uint32_t> paths_of_references(const GraphDef &def, const std::vector<bool> &wanted, PathTree &paths);

}  // namespace treadle
