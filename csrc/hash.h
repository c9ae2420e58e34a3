// How hashes are put together.
#pragma once

#include "python_compat.h"

namespace treadle {

inline size_t pointer_hash(const void *address) { return reinterpret_cast<size_t>(address) >> 4; }

inline size_t mix(size_t seed, size_t value) {
  seed ^= value + 0x9e3779b97f4a7c15ULL + (seed << 6) + (seed >> 2);
  return seed * 0xff51afd7ed558ccdULL;
}

}  // namespace treadle
