// Output leaves on their way through a JAX transform.
#pragma once

#include "bound.h"
#include "debug.h"

namespace treadle {

// The pytree node a traced function returns. Invariant: `effects` is an Effects, `leaves` a tuple with one entry per
// output.
//
// For traces of a plan that did something else than its first one. JAX takes the structure of a compiled function's
// result from flattening what the first call returned, so the node must reach the caller as it is. A dispatcher gives
// it back when it has read it, and the next call uses it again: a hot call allocates no object of ours.
struct Outputs {
  nb::object effects;
  nb::object leaves;
  [[no_unique_address]] Counted<Kept::Outputs> counted = {};

  int traverse(visitproc visit, void *arg) const;
  void clear();
};

inline bool is_outputs(const nb::object &result) { return Bound<Outputs>::is(result); }

// The Outputs behind a jitted call's result.
Outputs &outputs_of(const nb::object &result);

// Takes back an Outputs that nobody else refers to.
void recycle_outputs(nb::object &&result);

}  // namespace treadle
