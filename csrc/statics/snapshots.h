// Snapshots of static values: what they hold themselves, which may change in place while they stay the same objects.
#pragma once

#include "statics/reading.h"

namespace treadle {

// What hashing does with values that have no hash and cannot be read: metadata may hold them, statics may not.
enum class Unhashable : uint8_t { Refused, Allowed };

// The reading of a value as it is now: lists, dicts and sets by their items, functions by what they read. Hashes what
// the value is made of, which runs code of the user's types, and throws what that raises.
Reading snapshot(PyObject *value, Unhashable unhashable);

// Of a dict of metadata, in any order of its keys.
Reading metadata_snapshot(PyObject *metadata);

// True if a snapshot taken now would equal the reading, as far as it can be told without the snapshot.
bool still_reads(PyObject *value, Unhashable unhashable, const Reading &then);
bool metadata_still_reads(PyObject *metadata, const Reading &then);

// True if the value is a function that reads something, may change in place, or is a tuple of such: a pointer to it, or
// its hash, does not tell what it was.
bool has_reading(PyObject *value);

// True if the value may change in place, or is a tuple of such: functions are taken at their word.
bool may_change_in_place(PyObject *value);

// The same of the values of a metadata dict, null for none.
bool has_metadata_reading(PyObject *metadata);
bool is_unstable_metadata(PyObject *metadata);

}  // namespace treadle
