// Hashing and comparing of static values: the parts of a graph that decide about retracing.
#pragma once

#include "hash.h"
#include "python_compat.h"

namespace treadle {

// Throw what hashing raises.
size_t content_hash(PyObject *value);
size_t typed_hash(PyObject *value);

// Scalars of Python's or numpy's, and enumerations of such. Floats compare by representation: 0.0 and -0.0 trace to
// different programs, and NaN equals itself.
bool scalars_equal(PyObject *a, PyObject *b);
size_t scalar_hash(PyObject *value);

// Hash of a value without a reading; consistent with `static_equal`. Throws the Python error of an unhashable value.
size_t static_hash(PyObject *value);

// As they are now: structural for functions and partials, by value for scalars, `==` where a type defines it, identity
// otherwise. Functions that hold lists or dicts are not equal, since these may change apart.
bool static_equal(PyObject *a, PyObject *b);

// Metadata dicts: same keys, equal values. Null stands for empty.
bool metadata_equal(PyObject *a, PyObject *b);
size_t metadata_hash(PyObject *metadata);

}  // namespace treadle
