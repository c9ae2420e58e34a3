#include <nanobind/stl/string.h>

#include <string>

#include "bindings.h"

// CMake defines these three.
#if !defined(TREADLE_VERSION) || !defined(TREADLE_BUILD_TYPE) || !defined(TREADLE_SANITIZE)
#error "build treadle through its CMakeLists.txt"
#endif

namespace treadle {
namespace {

#define TREADLE_TEXT_(x) #x
#define TREADLE_TEXT(x) TREADLE_TEXT_(x)

#if defined(__clang__)
constexpr const char *kCompiler = "Clang " TREADLE_TEXT(__clang_major__) "." TREADLE_TEXT(__clang_minor__);
#elif defined(__GNUC__)
constexpr const char *kCompiler = "GCC " __VERSION__;
#elif defined(_MSC_VER)
constexpr const char *kCompiler = "MSVC " TREADLE_TEXT(_MSC_VER);
#else
constexpr const char *kCompiler = "an unknown compiler";
#endif

#if defined(Py_LIMITED_API)
constexpr const char *kAbi = "stable ABI";
#else
constexpr const char *kAbi = "CPython " PY_VERSION " ABI";
#endif

std::string build_info() {
  std::string info = std::string(TREADLE_BUILD_TYPE) + " build, " + kAbi + ", " + kCompiler;
#if defined(TREADLE_DEBUG)
  info += ", assertions on";
#endif
  if (*TREADLE_SANITIZE != '\0') info += std::string(", sanitizers ") + TREADLE_SANITIZE;
  return info;
}

}  // namespace

void bind_build_info(nb::module_ &m) {
  m.attr("__version__") = TREADLE_VERSION;
  m.def("build_info", &build_info, "How the extension was compiled, in one line.");
}

}  // namespace treadle
