# Warnings for our own sources; headers of Python and nanobind count as system headers.
#
# They are errors only where TREADLE_WERROR is set: a newer compiler's new warning must not stop a user who
# builds from the sdist.

function(treadle_set_warnings target)
  if(MSVC)
    # 4127 (constant condition) and 4702 (unreachable code) fire inside instantiated templates.
    target_compile_options(${target} PRIVATE
      /W4 /wd4127 /wd4702 /permissive- /utf-8 /external:W0 $<$<BOOL:${TREADLE_WERROR}>:/WX>)
    return()
  endif()
  target_compile_options(${target} PRIVATE
    -Wall -Wextra -Wshadow -Wnon-virtual-dtor -Woverloaded-virtual -Wformat=2
    -Wimplicit-fallthrough -Wundef -Wunused -Wvla
    $<$<BOOL:${TREADLE_WERROR}>:-Werror>)
  # CPython's method tables cast between function types, and its type objects are part-initialized.
  target_compile_options(${target} PRIVATE
    -Wno-missing-field-initializers -Wno-cast-function-type)
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    target_compile_options(${target} PRIVATE -Wduplicated-cond -Wlogical-op)
    if(CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
      # GCC 12 takes std::string's operator+ for an overflow once it is inlined across files (GCC bug 105651).
      target_compile_options(${target} PRIVATE -Wno-restrict -Wno-stringop-overflow)
      target_link_options(${target} PRIVATE -Wno-restrict -Wno-stringop-overflow)
    endif()
  endif()
endfunction()
