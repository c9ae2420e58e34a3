#include "structure/paths.h"

#include <algorithm>

#include "structure/traversal.h"

namespace treadle {

nb::tuple leaf_paths(const GraphDef &def) {
  if (!def.cache.paths.is_valid()) {
    std::vector<nb::object> paths(def.n_leaves(), nb::make_tuple());
    Traversal walk(def);
    while (walk.next()) {
      const Item &item = walk.item();
      if (item.op == Op::Leaf) paths[item.n] = walk.path_tuple();
      if (item.op == Op::Ref && walk.first() && def.refs[item.n].kind == Kind::Variable) {
        paths[def.refs[item.n].leaf] = walk.path_tuple();
      }
    }
    def.cache.paths = py::to_tuple(std::move(paths));
  }
  return nb::borrow<nb::tuple>(def.cache.paths);
}

size_t length_of_leaf_paths(const GraphDef &def) {
  size_t length = 0;
  Traversal walk(def);
  while (walk.next()) {
    const Item &item = walk.item();
    const bool variable = item.op == Op::Ref && walk.first() && def.refs[item.n].kind == Kind::Variable;
    if (variable || item.op == Op::Leaf) length += walk.path().size();
  }
  return length;
}

uint32_t PathTree::add(uint32_t parent, nb::object key) {
  steps_.push_back({parent, length(parent) + 1, std::move(key)});
  return static_cast<uint32_t>(steps_.size());
}

nb::tuple PathTree::tuple(uint32_t path) const {
  nb::object result = py::checked(PyTuple_New(static_cast<Py_ssize_t>(length(path))));
  for (; path != kRoot; path = steps_[path - 1].parent) {
    const Step &step = steps_[path - 1];
    py::tuple_init(result.ptr(), static_cast<Py_ssize_t>(step.length) - 1, nb::object(step.key).release().ptr());
  }
  return nb::steal<nb::tuple>(result.release());
}

std::vector<uint32_t> paths_of_references(const GraphDef &def, const std::vector<bool> &wanted, PathTree &paths) {
  std::vector<uint32_t> result(def.n_refs(), kNone);
  std::vector<uint32_t> trail{PathTree::kRoot};  // of the current path's beginnings, as many as were asked for
  Traversal walk(def);
  while (walk.next()) {
    trail.resize(std::min(trail.size(), walk.kept() + 1));
    const Item &item = walk.item();
    if (item.op != Op::Ref || !walk.first() || !wanted[item.n]) continue;
    for (size_t i = trail.size() - 1; i < walk.path().size(); ++i) {
      trail.push_back(paths.add(trail.back(), walk.path()[i]));
    }
    result[item.n] = trail.back();
  }
  return result;
}

nb::object path_of_reference(const GraphDef &def, uint32_t ref) {
  Traversal walk(def);
  while (walk.next()) {
    if (walk.item().op == Op::Ref && walk.item().n == ref) return walk.path_tuple();
  }
  return nb::make_tuple();
}

nb::tuple ref_paths(const GraphDef &def) {
  if (!def.cache.ref_paths.is_valid()) {
    std::vector<nb::object> paths(def.n_refs(), nb::make_tuple());
    Traversal walk(def);
    while (walk.next()) {
      if (walk.item().op == Op::Ref && walk.first()) paths[walk.item().n] = walk.path_tuple();
    }
    def.cache.ref_paths = py::to_tuple(std::move(paths));
  }
  return nb::borrow<nb::tuple>(def.cache.ref_paths);
}

}  // namespace treadle
