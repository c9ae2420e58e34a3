#include "debug.h"

#include <array>
#include <new>

#if defined(TREADLE_FAIL_ALLOCATIONS)

namespace {

// Allocations of this thread until the one that fails; 0 when none is to.
thread_local long t_countdown = 0;

void *failing(std::size_t size, void *(*allocate)(std::size_t)) {
  if (t_countdown > 0 && --t_countdown == 0) throw std::bad_alloc();
  return allocate(size);
}

}  // namespace

// The linker sends every `operator new` of the extension here (--wrap), nanobind's included. Those inside the C++
// library, such as a long message being put together, are not reached.
extern "C" {
void *__real__Znwm(std::size_t size);
void *__real__Znam(std::size_t size);
void *__wrap__Znwm(std::size_t size);
void *__wrap__Znam(std::size_t size);

void *__wrap__Znwm(std::size_t size) { return failing(size, __real__Znwm); }
void *__wrap__Znam(std::size_t size) { return failing(size, __real__Znam); }
}

#endif

#include "bindings.h"

namespace treadle {

#if defined(TREADLE_DEBUG)

namespace {

constexpr std::array kNames = {"GraphDef",   "Flat",         "Effects",    "Outputs",      "Plan",
                               "Dispatcher", "VariableCell", "ObjectNode", "VariableState"};

// The global lock guards them, as it guards the objects.
std::array<long, kNames.size()> g_counts{};

}  // namespace

void count(Kept kind, int change) { g_counts[static_cast<size_t>(kind)] += change; }

#endif

void bind_debug([[maybe_unused]] nb::module_ &m) {
#if defined(TREADLE_DEBUG)
  m.def(
      "_live_counts",
      [] {
        nb::dict counts;
        for (size_t i = 0; i < kNames.size(); ++i) counts[kNames[i]] = g_counts[i];
        return counts;
      },
      "Debug builds only: how many objects of each class of the core there are.");
#endif
#if defined(TREADLE_FAIL_ALLOCATIONS)
  m.def(
      "_fail_allocation",
      [](long n) {
        bool unreached = t_countdown > 0;
        t_countdown = n;
        return unreached;
      },
      nb::arg("n"),
      "Debug builds only: make the n-th allocation from now fail, none if 0; True if the one asked for before was not "
      "reached.");
#endif
}

}  // namespace treadle
