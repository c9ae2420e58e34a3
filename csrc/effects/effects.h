// What a call did to its graph.
#pragma once

#include "graph/rebuild.h"

namespace treadle {

// Where a leaf's value comes from after the call: an input leaf that stayed, or an output of the transform.
struct LeafOrigin {
  bool is_output;
  uint32_t index;

  bool operator==(const LeafOrigin &) const = default;
};

struct AttributeChange {
  uint32_t ref;
  uint32_t child;  // index among the reference's children: in `after` for a set, in `before` for a removal

  bool operator==(const AttributeChange &) const = default;
};

// Invariant: `before` describes the call's arguments and `after` the same references 0..n-1 once the function ran, new
// references behind them, and its result as root. Holds structure only: no arrays, no graph objects.
class Effects {
 public:
  nb::object before, after;
  std::vector<LeafOrigin> origins;                     // per leaf of `after`
  std::vector<uint32_t> input_of;                      // per leaf of `after`: the input leaf it continues, or kNone
  std::vector<uint32_t> out_leaf;                      // per output: the leaf of `after`
  std::vector<uint32_t> changed_values;                // Variables whose value is an output
  std::vector<uint32_t> changed_metadata;              // Variables whose metadata differ, nodes whose data marks do
  std::vector<std::shared_ptr<const Layout>> layouts;  // per changed value; empty if all Variables are treadle's
  std::vector<AttributeChange> sets, removals;
  std::vector<uint32_t> reordered;      // nodes whose attributes are in another order, or are others
  std::vector<uint32_t> result_leaves;  // leaves of `after` that the result holds
  bool result_has_refs = false;
  [[no_unique_address]] Counted<Kept::Effects> counted;

  const GraphDef &before_def() const { return graphdef_of(before); }
  const GraphDef &after_def() const { return graphdef_of(after); }
  uint32_t n_known() const { return n_known_; }
  uint32_t n_new() const { return after_def().n_refs() - n_known_; }
  uint32_t n_out() const { return static_cast<uint32_t>(out_leaf.size()); }
  // The layout of the i-th changed value's Variable; null if it is treadle's.
  const VariableLayout *layout(size_t i) const {
    return layouts.empty() ? nullptr : std::get_if<VariableLayout>(layouts[i].get());
  }
  void find_layouts();
  // True if both say the same of calls with the same arguments' structure.
  bool equals(const Effects &other) const;
  // Only Variable values change, and the result is made of leaves: the common case of a training step.
  bool values_only() const { return values_only_; }
  int traverse(visitproc visit, void *arg) const;
  // To be called once, when all fields are set.
  void finish() {
    n_known_ = before_def().n_refs();
    values_only_ = sets.empty() && removals.empty() && changed_metadata.empty() && reordered.empty() && n_new() == 0 &&
                   !result_has_refs;
  }

 private:
  // Asked at every call.
  uint32_t n_known_ = 0;
  bool values_only_ = false;
};

inline Effects &effects_of(nb::handle object) { return Bound<Effects>::of(object); }

// comparing.cpp: walks `refs` (fresh objects of `before`, given `in_leaves`) and `result` again. `keep[i]` false forces
// input leaf i to be output even if unchanged. Returns the Effects object; the output leaves are appended to `outputs`.
nb::object trace_effects(std::vector<nb::object> refs, nb::object before, const LeafSource &in_leaves,
                         nb::handle result, const std::vector<bool> &keep, std::vector<nb::object> &outputs);

// applying.cpp: scatters into the caller's objects and returns the result: all of it, or nothing and an exception.
// Other libraries' Variables are not asked where they were made if `known_top_level` says that it was outside any
// transform.
nb::object apply_effects(const Effects &effects, const std::vector<nb::object> &refs, const LeafSource &in_leaves,
                         const LeafSource &out_leaves, bool known_top_level = false);

// outputs.cpp: a row for each output: (kind, index, path), see `_core.pyi`.
nb::tuple output_rows(const Effects &effects);
nb::tuple output_types(const Effects &effects);
// Where `after` has a new reference: the path starts with "result" if the result has it, else with an argument.
nb::tuple path_of_new_reference(const Effects &effects, uint32_t r);
nb::tuple output_metadata(const Effects &effects);

}  // namespace treadle
