// Hashing and comparing of static values: the parts of a graph that decide about retracing.
#pragma once

#include "python_compat.h"

namespace weft {

// Hash consistent with `static_equal`. Throws the Python error of an unhashable value.
Py_hash_t static_hash(PyObject *value);

// Structural for functions and partials, by value for scalars, `==` where a type defines it, identity otherwise.
bool static_equal(PyObject *a, PyObject *b);

// True if the value can change in place without its pointer changing, so that a guard must hash it again.
bool is_unstable_static(PyObject *value);

// True if that holds for a value of a metadata dict.
bool is_unstable_metadata(PyObject *metadata);

// Metadata dicts: same keys, equal values. Null stands for empty.
bool metadata_equal(PyObject *a, PyObject *b);
Py_hash_t metadata_hash(PyObject *metadata);

inline size_t mix(size_t seed, size_t value) {
  seed ^= value + 0x9e3779b97f4a7c15ULL + (seed << 6) + (seed >> 2);
  return seed * 0xff51afd7ed558ccdULL;
}

}  // namespace weft
