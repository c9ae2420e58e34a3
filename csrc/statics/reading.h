// Readings: snapshots of static values, which decide whether two of them trace to the same program.
#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "python_compat.h"

namespace treadle {

// What hashing does with values that have no hash: metadata may hold them, statics may not.
enum class Unhashable : uint8_t { Refused, Allowed };

// What a static value was made of when it was captured: for functions all that they read, for containers their items,
// each as a part, in preorder. Functions made anew by the same code are equal if their readings are.
//
// Invariant: parts own what they refer to, do not change after capture, and the end of a container's part is in range.
class Reading {
 public:
  // Hashes what the value is made of, which runs code of the user's types, and throws what that raises.
  Reading(PyObject *value, Unhashable unhashable);
  // Of a dict of metadata, in any order of its keys.
  static Reading of_metadata(PyObject *metadata);

  // Compares with `==` where a type defines it. A function that is in both is taken at its word, as `jax.jit` takes one
  // that it has seen; lists, dicts and objects with a hash of their own are not.
  bool equals(const Reading &other) const { return !mismatch(other); }

  // What stands here and there at the first difference, for people; empty where that would not tell them anything.
  std::pair<std::string, std::string> difference(const Reading &other) const;

  // Of what the value is by itself; nothing that its functions read from globals or containers, which may change.
  size_t hash() const { return hash_; }

  // True if a function holds a list or a dict: equal ones may become different.
  bool holds_containers() const { return holds_containers_; }

  int traverse(visitproc visit, void *arg) const;

 private:
  enum class PartKind : uint8_t {
    Scalar,    // by value and type
    Equal,     // by `==` and hash
    Same,      // by identity
    Seen,      // a container or function that was met before; `n` is its part
    Unknown,   // nobody can tell whether it is what it was
    Sequence,  // `n` items follow
    Mapping,   // `n` keys, each with its value
    Partial,   // function, arguments, keywords
    Method,    // instance, function
    Function,  // code, globals, what it reads of them, defaults, attributes, cells
  };
  struct Part {
    PartKind kind;
    uint32_t n;
    uint32_t end;      // one past the last part inside
    nb::object value;  // Sequence, Mapping, Method, Unknown: the type; null where nothing was
    size_t hash;       // Equal: at the time of capture
  };
  class Capture;
  Reading() = default;

  std::optional<std::pair<uint32_t, uint32_t>> mismatch(const Reading &other) const;
  std::string described(uint32_t part) const;

  std::vector<Part> parts_;
  size_t hash_ = 0;
  bool holds_containers_ = false;
};

// True if the value is a function that reads something, may change in place, or is a tuple of such: a pointer to it, or
// its hash, does not tell what it was.
bool has_reading(PyObject *value);

// True if the value may change in place, or is a tuple of such: functions are taken at their word.
bool may_change_in_place(PyObject *value);

// Exact builtin scalars of one type. Floats compare by representation: 0.0 and -0.0 trace to different programs, and
// NaN equals itself.
bool scalars_equal(PyObject *a, PyObject *b);

inline size_t pointer_hash(PyObject *object) { return reinterpret_cast<size_t>(object) >> 4; }

// Throws what hashing raises.
size_t content_hash(PyObject *value);
size_t typed_hash(PyObject *value);

inline size_t mix(size_t seed, size_t value) {
  seed ^= value + 0x9e3779b97f4a7c15ULL + (seed << 6) + (seed >> 2);
  return seed * 0xff51afd7ed558ccdULL;
}

}  // namespace treadle
