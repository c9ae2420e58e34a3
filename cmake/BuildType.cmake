# One option chooses between the two builds there are: Release, and Debug with assertions.
#
# The debug build keeps -O1: the suite runs on it, and at -O0 that takes minutes longer without showing more.

if(TREADLE_DEBUG OR TREADLE_SANITIZE)
  set(CMAKE_BUILD_TYPE Debug)
  if(NOT MSVC)
    set(CMAKE_CXX_FLAGS_DEBUG "-O1 -g -fno-omit-frame-pointer -D_GLIBCXX_ASSERTIONS")
  endif()
elseif(NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
  set(CMAKE_BUILD_TYPE Release)
endif()
