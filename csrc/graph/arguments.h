// Calls as graphs: the root is their arguments, positional ones and those by name.
#pragma once

#include <vector>

#include "graph/walk.h"

namespace treadle {

// Which arguments are part of the structure. Invariant: `positions` is sorted.
struct StaticArguments {
  std::vector<uint32_t> positions;
  std::vector<nb::object> names;
  bool has_position(size_t i) const;
  bool has_name(PyObject *name) const;
};
StaticArguments static_arguments(nb::handle positions, nb::handle names);

// Walks arguments in vectorcall form: `values` holds positional, then keyword arguments.
Flat flatten_arguments(PyObject *const *values, size_t n_positional, PyObject *keyword_names,
                       const StaticArguments &statics);

// A sequence and a mapping as the arguments of a call in vectorcall form. Owns what `values` borrows: the mapping may
// change during the call.
class UnpackedCall {
 public:
  UnpackedCall(nb::handle args, nb::handle kwargs);

  std::vector<PyObject *> values;
  size_t n_positional = 0;
  nb::object keyword_names;

 private:
  nb::object positional_, keywords_;
};

}  // namespace treadle
