#include "build_info.h"

#include <nanobind/stl/string.h>

#include <string>

// CMake defines these three.
#if !defined(WEFT_VERSION) || !defined(WEFT_BUILD_TYPE) || !defined(WEFT_SANITIZE)
#error "build weft through its CMakeLists.txt"
#endif

namespace weft {
namespace {

#define WEFT_TEXT_(x) #x
#define WEFT_TEXT(x) WEFT_TEXT_(x)

#if defined(__clang__)
constexpr const char *kCompiler = "Clang " WEFT_TEXT(__clang_major__) "." WEFT_TEXT(__clang_minor__);
#elif defined(__GNUC__)
constexpr const char *kCompiler = "GCC " __VERSION__;
#elif defined(_MSC_VER)
constexpr const char *kCompiler = "MSVC " WEFT_TEXT(_MSC_VER);
#else
constexpr const char *kCompiler = "an unknown compiler";
#endif

#if defined(Py_LIMITED_API)
constexpr const char *kAbi = "stable ABI";
#else
constexpr const char *kAbi = "CPython " PY_VERSION " ABI";
#endif

std::string build_info() {
  std::string info = std::string(WEFT_BUILD_TYPE) + " build, " + kAbi + ", " + kCompiler;
#if defined(WEFT_DEBUG)
  info += ", assertions on";
#endif
  if (*WEFT_SANITIZE != '\0') info += std::string(", sanitizers ") + WEFT_SANITIZE;
  return info;
}

}  // namespace

void bind_build_info(nb::module_ &m) {
  m.attr("__version__") = WEFT_VERSION;
  m.def("build_info", &build_info, "How the extension was compiled, in one line.");
}

}  // namespace weft
