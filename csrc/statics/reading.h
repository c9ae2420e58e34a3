// Readings: what static values were made of when they were looked at.
#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "id_table.h"
#include "python_compat.h"
#include "statics/hashing.h"

namespace treadle {

// What is taken for granted. Of what a function reads, nothing is: it may be read by another one.
enum class Trust : uint8_t {
  Itself,   // a function that is the value, or an item of it, is what it was if it is the same object, as by `jax.jit`
  Nothing,  // nor that; lists, dicts and arrays are unknown
};

// A value as parts, flat and in preorder: for functions all that they read, for containers their items. Values made
// anew are equal if their readings are.
//
// Invariant: parts own what they refer to, do not change after they were recorded, and the end of a part is in range.
// Both sides of a comparison were recorded with the same trust.
class Reading {
 public:
  // Compares with `==` where a type defines it.
  bool equals(const Reading &other) const { return !mismatch(other); }

  // What stands here and there at the first difference, for people; empty where that would not tell them anything.
  std::pair<std::string, std::string> difference(const Reading &other) const;

  // Of what the value is by itself; nothing that its functions read from globals or containers, which may change.
  size_t hash() const { return hash_; }

  // True if a function holds a list or a dict: equal ones may become different.
  bool holds_containers() const { return holds_containers_; }

  // True if nobody can tell whether some of it is what it was.
  bool holds_unknown() const { return holds_unknown_; }

  int traverse(visitproc visit, void *arg) const;

 private:
  friend class Recorder;
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
    Object,    // attributes; `value` is the type, or the object itself where identity counts
    Function,  // code, globals, what it reads of them, defaults, attributes, cells
  };
  struct Part {
    PartKind kind;
    bool itself;  // of functions and partials, and of references to them: no other one reads it
    uint32_t n;
    uint32_t end;      // one past the last part inside
    nb::object value;  // Sequence, Mapping, Method, Unknown: the type; null where nothing was
    size_t hash;       // at the time of recording
  };

  // Where parts that were taken at their word stand in either reading: they need not be of one length.
  struct Skipped {
    uint32_t begin, end, other_begin, other_end;
  };
  static bool is_same_place(const std::vector<Skipped> &skipped, uint32_t here, uint32_t there);

  std::optional<std::pair<uint32_t, uint32_t>> mismatch(const Reading &other) const;
  std::string described(uint32_t part) const;

  std::vector<Part> parts_;
  size_t hash_ = 0;
  Trust trust_ = Trust::Itself;
  bool holds_containers_ = false;
  bool holds_unknown_ = false;
};

// Puts a Reading together. What a value consists of is for its readers to say: snapshots.cpp for what a static holds
// itself, functions.cpp for what functions read. Invariant: no recursion deeper than `kMaxDepth` of them.
class Recorder {
 public:
  // Values nested deeper count as unknown: they are rare, and recording must not exhaust the C stack.
  static constexpr uint32_t kMaxDepth = 200;

  explicit Recorder(Trust trust) { reading_.trust_ = trust; }
  Reading take() { return std::move(reading_); }

  Trust trust() const { return reading_.trust_; }
  bool holds_unknown() const { return reading_.holds_unknown_; }
  bool is_too_deep() const { return depth_ >= kMaxDepth; }
  // True while what a function or partial reads is recorded.
  bool is_inside_callable() const { return callables_ > 0; }
  size_t size() const { return reading_.parts_.size(); }
  void holds_container() { reading_.holds_containers_ = true; }

  // By value and type; by the hash of `value`, which `typed_hash` gave; by identity.
  void scalar(const nb::object &value) { add(Part::Scalar, value, typed_hash(value.ptr())); }
  void equal(const nb::object &value, size_t hash) { add(Part::Equal, value, hash); }
  void same(const nb::object &value) { add(Part::Same, value, pointer_hash(value.ptr())); }
  // By identity, which does not count for the hash; null where something is not there.
  void identical(const nb::object &value) { add(Part::Same, value); }
  void unknown(const nb::object &value) { unknown_of(py::type_of(value)); }
  void unknown_of(const nb::object &type) {
    reading_.holds_unknown_ = true;
    add(Part::Unknown, type);
  }

  // Parts with others inside, once per object and `seen`: what recurs is referred to. `record` records the inside,
  // `value` one item of it, or null where a name had nothing any more.
  template <typename Value>
  void items(IdTable &seen, const nb::object &container, Value &&value);
  // Names with values, in any order; None or an empty dict where there are none.
  template <typename Value>
  void named(IdTable &seen, const nb::object &dict, Value &&value);
  // The instance and the function of a method; function, arguments and keywords of a partial; what a function is.
  template <typename Record>
  void method(IdTable &seen, const nb::object &object, Record &&record) {
    inside(seen, object, Part::Method, py::type_of(object), 2, record);
  }
  // What an object holds, with names.
  template <typename Record>
  void object(IdTable &seen, const nb::object &object, const nb::object &identity, Record &&record) {
    inside(seen, object, Part::Object, identity, 1, record);
  }
  template <typename Record>
  void callable(IdTable &seen, const nb::object &object, bool is_partial, Record &&record) {
    auto counted = [&] {
      ++callables_;
      record();
      --callables_;
    };
    inside(seen, object, is_partial ? Part::Partial : Part::Function, object, is_partial ? 3 : 1, counted);
  }

  // While `record` runs, parts do not count for the hash.
  template <typename Record>
  void unhashed(bool wanted, Record &&record) {
    const bool hashed = std::exchange(hashed_, hashed_ && !wanted);
    record();
    hashed_ = hashed;
  }

 private:
  using Part = Reading::PartKind;

  Reading::Part &add(Part kind, nb::object value) {
    reading_.parts_.push_back({kind, !is_inside_callable(), 0, static_cast<uint32_t>(size() + 1), std::move(value), 0});
    return reading_.parts_.back();
  }
  void add(Part kind, const nb::object &value, size_t hash) {
    add(kind, value).hash = hash;
    mix_in(hash);
  }
  void mix_in(size_t hash) {
    if (hashed_) reading_.hash_ = mix(reading_.hash_, hash);
  }
  static nb::object sorted_names(const nb::object &dict);

  template <typename Record>
  void inside(IdTable &seen, const nb::object &object, Part kind, nb::object value, Py_ssize_t n, Record &record) {
    const auto at = static_cast<uint32_t>(size());
    auto [part, fresh] = seen.insert(object.ptr(), at);
    if (!fresh) {
      add(Part::Seen, kind == Part::Function ? value : nb::object()).n = part;
      return;
    }
    kept_.push_back(object);
    add(kind, std::move(value)).n = static_cast<uint32_t>(n);
    mix_in(static_cast<size_t>(kind));
    ++depth_;
    record();
    --depth_;
    reading_.parts_[at].end = static_cast<uint32_t>(size());
  }

  Reading reading_;
  uint32_t depth_ = 0;
  uint32_t callables_ = 0;
  bool hashed_ = true;
  std::vector<nb::object> kept_;  // so that their addresses stay theirs
};

// Copied first: hashing items may run code that changes the container.
template <typename Value>
void Recorder::items(IdTable &seen, const nb::object &container, Value &&value) {
  if (py::is_exact(container.ptr(), &PyDict_Type)) {
    nb::object keys = py::checked(PyDict_Keys(container.ptr())), values = py::checked(PyDict_Values(container.ptr()));
    const Py_ssize_t n = py::list_size(keys.ptr());
    auto record = [&] {
      for (Py_ssize_t i = 0; i < n; ++i) {
        value(nb::borrow<nb::object>(py::list_item(keys.ptr(), i)));
        value(nb::borrow<nb::object>(py::list_item(values.ptr(), i)));
      }
    };
    return inside(seen, container, Part::Mapping, py::type_of(container), n, record);
  }
  const bool is_list = py::is_exact(container.ptr(), &PyList_Type);
  nb::object copied = is_list ? py::checked(PyList_AsTuple(container.ptr())) : container;
  const Py_ssize_t n = PyTuple_Size(copied.ptr());
  auto record = [&] {
    for (Py_ssize_t i = 0; i < n; ++i) value(nb::borrow<nb::object>(py::tuple_item(copied.ptr(), i)));
  };
  inside(seen, container, Part::Sequence, py::type_of(container), n, record);
}

template <typename Value>
void Recorder::named(IdTable &seen, const nb::object &dict, Value &&value) {
  if (dict.is_none() || py::dict_size(dict.ptr()) == 0) return identical(nb::object());
  nb::object names = sorted_names(dict);
  const Py_ssize_t n = py::list_size(names.ptr());
  auto record = [&] {
    for (Py_ssize_t i = 0; i < n; ++i) {
      nb::object name = nb::borrow<nb::object>(py::list_item(names.ptr(), i));
      value(name);
      value(py::dict_get(dict.ptr(), name.ptr()));
    }
  };
  inside(seen, dict, Part::Mapping, py::type_of(dict), n, record);
}

}  // namespace treadle
