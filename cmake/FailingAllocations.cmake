# In debug builds, tests can make any `operator new` of the extension fail; see csrc/debug.cpp.
#
# The linker redirects the calls, so that memory is still allocated by whoever would have done it, a sanitizer
# included. Only GNU-like linkers on 64-bit systems are known to do that by these names.

function(treadle_make_allocations_fail target)
  if(NOT TREADLE_DEBUG OR NOT CMAKE_SYSTEM_NAME STREQUAL "Linux" OR NOT CMAKE_SIZEOF_VOID_P EQUAL 8)
    return()
  endif()
  target_compile_definitions(${target} PRIVATE TREADLE_FAIL_ALLOCATIONS=1)
  target_link_options(${target} PRIVATE LINKER:--wrap=_Znwm,--wrap=_Znam)
endfunction()
