// What one call site remembers: a plan for each structure.
#pragma once

#include <memory>
#include <optional>
#include <unordered_map>
#include <vector>

#include "dispatch/donation.h"
#include "dispatch/guards.h"
#include "dispatch/placement.h"

namespace treadle {

// Invariant: `traced` is the structure that the compiled function was traced for; the guards are about an equal one, of
// the objects last walked with this plan.
struct Plan {
  Plan(nb::object graphdef, nb::object call_function, std::vector<uint32_t> donated_leaves, nb::object effects_list,
       std::optional<Placement> placing)
      : traced(std::move(graphdef)),
        call(std::move(call_function)),
        donation(std::move(donated_leaves), graphdef_of(traced)),
        traced_effects(std::move(effects_list)),
        placement(std::move(placing)) {}

  // Where a function is the same object, equal structures may have read it with different values: a structure is
  // compared with the one that was traced, or the difference would be passed on from call to call.
  nb::object traced;
  nb::object call;
  Donation donation;
  // List that the first trace puts its Effects into. Traces with the same effects return a plain tuple of leaves, or
  // the leaf where there is one, which costs JAX less than a node of ours; others (another shape, another outcome)
  // return an Outputs with their own.
  nb::object traced_effects;
  nb::object first_effects;  // what the list holds, once it has been read
  std::optional<Placement> placement;
  Guards guards;

  int traverse(visitproc visit, void *arg) const;
  // Takes the guards from a walk that gave this plan's structure.
  void remember(const Flat &flat);

  [[maybe_unused, no_unique_address]] Counted<Kept::Plan> counted;
};

using PlanRef = std::shared_ptr<Plan>;

// Invariant: `plans_` and `age_` hold the same plans, at most `capacity_`, and `recent_` some of them.
class PlanCache {
 public:
  explicit PlanCache(size_t capacity) : capacity_(capacity) {}

  // All plans, oldest use first.
  const std::vector<PlanRef> &all() const { return age_; }
  // Those to be tried by their guards before the arguments are walked, most recently used first.
  const std::vector<PlanRef> &recent() const { return recent_; }

  // The plan that was traced for such a structure, or null. Runs user code.
  PlanRef find(const GraphDef &def) const;
  void add(const PlanRef &plan);
  void use(const PlanRef &plan);
  void clear();

 private:
  void drop(const PlanRef &plan);

  const size_t capacity_;
  std::unordered_map<size_t, std::vector<PlanRef>> plans_;  // by the hash of what they were traced for
  std::vector<PlanRef> recent_, age_;
};

}  // namespace treadle
