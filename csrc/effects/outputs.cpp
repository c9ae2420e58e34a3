#include "effects/effects.h"

#include "structure/paths.h"

namespace treadle {
namespace {

// Paths of the leaves of `after` that continue no input: below the attribute that was set, the result's by position.
// Invariant: what has no path is kNone. Tuples are left to the caller, since in a deep graph few of the paths are asked
// for.
class NewPaths {
 public:
  // `result` comes before all paths in the result.
  NewPaths(const Effects &effects, const nb::object &result)
      : effects_(effects), after_(effects.after_def()), leaves_(after_.n_leaves(), kNone) {
    const GraphDef &before = effects.before_def();
    std::vector<bool> changed(before.n_refs(), false);
    for (const AttributeChange &set : effects.sets) changed[set.ref] = true;
    refs_ = paths_of_references(before, changed, tree_);
    refs_.resize(after_.n_refs(), kNone);
    for (uint32_t r = 0; r < effects.n_known(); ++r) {
      if (changed[r]) define(r);
    }
    in_result_ = true;
    expression(after_.root_begin, tree_.add(PathTree::kRoot, result));
    in_result_ = false;
    define_new();
  }

  // Per leaf the object of the result, counted with its arrays, that reached it first; kNone if an argument did.
  std::vector<uint32_t> reached_by() const {
    std::vector<uint32_t> of_path(tree_.size(), kNone), of_leaf(leaves_.size(), kNone);
    for (const auto &[path, item] : result_items_) of_path[path] = item;
    for (uint32_t path = 1; path < tree_.size(); ++path) {
      if (of_path[path] == kNone) of_path[path] = of_path[tree_.parent(path)];
    }
    for (size_t leaf = 0; leaf < leaves_.size(); ++leaf) {
      if (leaves_[leaf] != kNone) of_leaf[leaf] = of_path[leaves_[leaf]];
    }
    return of_leaf;
  }

  nb::tuple of_reference(uint32_t r) const { return tree_.tuple(refs_[r] != kNone ? refs_[r] : PathTree::kRoot); }
  nb::tuple of(uint32_t leaf) const { return tree_.tuple(leaves_[leaf] != kNone ? leaves_[leaf] : PathTree::kRoot); }

 private:
  struct Level {
    const Item *item;
    uint32_t next;
    uint32_t path;
  };

  void expression(uint32_t begin, uint32_t base) {
    std::vector<Level> levels;
    uint32_t end = after_.skip(begin);
    for (uint32_t at = begin; at < end; ++at) {
      while (!levels.empty() && levels.back().next == levels.back().item->n) levels.pop_back();
      const Item &item = after_.items[at];
      uint32_t path = base;
      if (!levels.empty()) {
        Level &level = levels.back();
        uint32_t index = level.next++;
        if (item.op == Op::Static || item.op == Op::None) continue;
        PyObject *keys = after_.child_keys(*level.item);
        path = tree_.add(level.path, keys != nullptr ? nb::borrow<nb::object>(py::tuple_item(keys, index))
                                                     : nb::object(nb::int_(index)));
      }
      if (item.op == Op::Leaf) leaves_[item.n] = path;
      if (item.op == Op::Ref && refs_[item.n] == kNone) {
        refs_[item.n] = path;
        if (in_result_) result_items_.emplace_back(path, n_items_);
      }
      if (in_result_ && (item.op == Op::Leaf || item.op == Op::Ref)) ++n_items_;
      if (item.info().has_children) levels.push_back({&item, 0, path});
    }
  }

  void define(uint32_t r) {
    const RefDef &ref = after_.refs[r];
    if (ref.kind == Kind::Variable) {
      leaves_[ref.leaf] = refs_[r];
      return;
    }
    if (refs_[r] == kNone) return;
    const NodeType *info = node_type(after_.ref_type(r));
    const bool int_keys = info->node_layout() != nullptr && info->node_layout()->int_keys;
    for (uint32_t c = 0; c < ref.n_children; ++c) {
      PyObject *key = after_.child_key(r, c);
      uint32_t path = refs_[r];
      if (key != info->transparent.ptr()) {
        path = tree_.add(path, int_keys ? index_or_name(key) : nb::borrow<nb::object>(key));
      }
      expression(after_.child_item(r, c), path);
    }
  }

  // New references get their path from whoever reaches them first; one pass per generation of new references.
  void define_new() {
    std::vector<bool> defined(after_.n_refs(), false);
    for (bool progress = true; progress;) {
      progress = false;
      for (uint32_t r = effects_.n_known(); r < after_.n_refs(); ++r) {
        if (defined[r] || refs_[r] == kNone) continue;
        defined[r] = progress = true;
        define(r);
      }
    }
  }

  const Effects &effects_;
  const GraphDef &after_;
  PathTree tree_;
  std::vector<uint32_t> leaves_, refs_;  // paths, by leaf and by reference of `after`
  bool in_result_ = false;
  uint32_t n_items_ = 0;                                     // arrays and objects of the result so far
  std::vector<std::pair<uint32_t, uint32_t>> result_items_;  // path and number of each object that it reached first
};

}  // namespace

nb::tuple path_of_new_reference(const Effects &effects, uint32_t r) {
  return NewPaths(effects, nb::str("result")).of_reference(r);
}

nb::tuple output_rows(const Effects &effects) {
  const GraphDef &after = effects.after_def();
  const NewPaths new_paths(effects, nb::str("result"));
  std::vector<bool> in_result(after.n_leaves(), false);
  std::vector<uint32_t> position(after.n_leaves(), 0);
  uint32_t count = 0;
  for (size_t at = after.root_begin; at < after.items.size(); ++at) {
    if (after.items[at].op != Op::Leaf) continue;
    in_result[after.items[at].n] = true;
    position[after.items[at].n] = count++;
  }
  const std::vector<uint32_t> reached_by = new_paths.reached_by();
  nb::list rows;
  for (uint32_t leaf : effects.out_leaf) {
    uint32_t known = effects.input_of[leaf];
    nb::object path = known != kNone ? nb::object(leaf_paths(effects.before_def())[known]) : new_paths.of(leaf);
    if (known == kNone && (in_result[leaf] || reached_by[leaf] != kNone))
      path = nb::steal<nb::object>(PyTuple_GetSlice(path.ptr(), 1, PyTuple_Size(path.ptr())));
    if (in_result[leaf]) {
      rows.append(nb::make_tuple("result", position[leaf], path));
    } else if (known != kNone) {
      rows.append(nb::make_tuple("leaf", known, path));
    } else {
      const int64_t item = reached_by[leaf] == kNone ? -1 : int64_t{reached_by[leaf]};
      rows.append(nb::make_tuple("new", item, path));
    }
  }
  return nb::tuple(rows);
}

nb::tuple output_types(const Effects &effects) {
  nb::list rows;
  for (uint32_t leaf : effects.out_leaf) rows.append(type_or_none(effects.after_def(), leaf));
  return nb::tuple(rows);
}

nb::tuple output_metadata(const Effects &effects) {
  nb::list rows;
  for (uint32_t leaf : effects.out_leaf) rows.append(metadata_or_none(effects.after_def(), leaf));
  return nb::tuple(rows);
}

}  // namespace treadle
