// State that is where it should be, or has to be moved there.
#pragma once

#include "dispatch/guards.h"
#include "effects/effects.h"

namespace treadle {

// The Variables that a call leaves placed, also where its function only reads them. Invariant: `known_` has for each of
// `leaves_` the shardings, by identity, of arrays that need not be moved; nothing before it was asked for the first
// time.
class Placement {
 public:
  Placement(std::vector<uint32_t> leaves, nb::object place)
      : leaves_(std::move(leaves)), known_(leaves_.size()), place_(std::move(place)) {}

  // Moves what is not where it should be, for `leave`. Runs the user's code if something is.
  void enter(CallFrame &frame);
  // Leaves the Variables that the function did not change where `enter` moved them.
  void leave(const Effects &effects, CallFrame &frame);

  int traverse(visitproc visit, void *arg) const;

 private:
  bool is_due(const CallFrame &frame) const;
  void learn(size_t i, PyObject *value);
  void leave_out_changed(const Effects &effects);

  std::vector<uint32_t> leaves_;
  std::vector<std::vector<nb::object>> known_;
  nb::object place_;  // (leaves of the call) -> the same, placed
  bool knows_changed_ = false;
};

}  // namespace treadle
