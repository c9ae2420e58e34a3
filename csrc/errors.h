// C++ exceptions at the border to Python: nothing may escape into the interpreter.
#pragma once

#include <type_traits>

#include "python_compat.h"

namespace treadle {

// The exception that is being handled becomes the pending Python one. For catch blocks only; what is no std::exception
// passes on, since the C library ends threads that way.
void set_pending_error();

// TypeError: something else than an instance of `type` was given. Out of line, since hot code asks.
[[noreturn]] void raise_expected(PyObject *type);

// Runs the body of a C function for Python, which gives an int, a new reference or an object. If it throws, the result
// is what tells the interpreter so: null or -1.
template <typename Body>
auto guarded(Body &&body) {
  using Given = std::invoke_result_t<Body>;
  using Result = std::conditional_t<std::is_same_v<Given, int>, int, PyObject *>;
  try {
    if constexpr (std::is_base_of_v<nb::object, Given>) {
      return body().release().ptr();
    } else {
      return Result(body());
    }
  } catch (const std::exception &) {
    set_pending_error();
  }
  if constexpr (std::is_pointer_v<Result>) {
    return Result(nullptr);
  } else {
    return Result(-1);
  }
}

}  // namespace treadle
