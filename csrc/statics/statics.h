// Hashing and comparing of static values: the parts of a graph that decide about retracing.
#pragma once

#include "python_compat.h"
#include "statics/reading.h"

namespace treadle {

// Hash of a value without a reading; consistent with `static_equal`. Throws the Python error of an unhashable value.
size_t static_hash(PyObject *value);

// As they are now: structural for functions and partials, by value for scalars, `==` where a type defines it, identity
// otherwise. Functions that hold lists or dicts are not equal, since these may change apart.
bool static_equal(PyObject *a, PyObject *b);

// True if a value of a metadata dict may change in place, so that a guard must read it again.
bool is_unstable_metadata(PyObject *metadata);

// True if a value of a metadata dict has a reading.
bool has_metadata_reading(PyObject *metadata);

// Metadata dicts: same keys, equal values. Null stands for empty.
bool metadata_equal(PyObject *a, PyObject *b);
size_t metadata_hash(PyObject *metadata);

}  // namespace treadle
