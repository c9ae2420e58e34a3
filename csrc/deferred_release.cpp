#include "deferred_release.h"

#include <vector>

namespace treadle {
namespace {

constexpr size_t kMaxNesting = 64;

thread_local size_t g_nesting = 0;
// Never freed while something waits, and empty otherwise.
thread_local std::vector<PyObject *> g_waiting;

bool wait(PyObject *owned) noexcept {
  try {
    g_waiting.push_back(owned);
    return true;
  } catch (const std::exception &) {
    return false;
  }
}

}  // namespace

void release_last_nested(PyObject *owned) noexcept {
  // Without memory to wait in, the C stack has to do.
  if (g_nesting >= kMaxNesting && wait(owned)) return;
  ++g_nesting;
  Py_DECREF(owned);
  while (g_nesting == 1 && !g_waiting.empty()) {
    PyObject *next = g_waiting.back();
    g_waiting.pop_back();
    Py_DECREF(next);
  }
  --g_nesting;
}

}  // namespace treadle
