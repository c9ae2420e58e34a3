// Output leaves on their way through a JAX transform.
#pragma once

#include <optional>
#include <utility>
#include <vector>

#include "python_compat.h"

namespace weft {

// The pytree node a traced function returns. Invariant: `effects` is an Effects, `leaves` a tuple with one entry per
// output.
struct Outputs {
  nb::object effects;
  nb::object leaves;
};

// While a dispatcher waits for JAX, unflattening an Outputs node records its Effects here and hands JAX's own tuple of
// leaves through: a call then allocates nothing of ours. Calls nest (a finalizer or the traced function may call
// another dispatcher), so each looks only at what was recorded since it began.
class OutputsScope {
 public:
  OutputsScope();
  ~OutputsScope();
  OutputsScope(const OutputsScope &) = delete;
  OutputsScope &operator=(const OutputsScope &) = delete;

  // Effects and leaves of a jitted call's result.
  std::pair<nb::object, nb::object> take(const nb::object &result) const;

 private:
  size_t mark_;
};

void bind_outputs(nb::module_ &m);

}  // namespace weft
