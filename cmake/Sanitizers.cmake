# Sanitizers apply to nanobind's library as well as ours, so they are set for the whole directory.
#
# The interpreter itself is not instrumented: preload the runtime when running, as tools/sanitize.py does.

if(TREADLE_SANITIZE)
  if(MSVC)
    message(FATAL_ERROR "TREADLE_SANITIZE needs GCC or Clang")
  endif()
  add_compile_options(-fsanitize=${TREADLE_SANITIZE} -fno-sanitize-recover=all)
  add_link_options(-fsanitize=${TREADLE_SANITIZE})
endif()
