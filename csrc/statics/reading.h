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
    Same,      // by identity; `n` is its length where it has too many items to read them
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
  // Of parts of one kind, but for what is inside; references to earlier parts are for the caller to follow.
  static bool is_same_part(const Part &a, const Part &b);
  // True for a function or partial, or a reference to a function, that is the very same object. All in a partial that
  // is taken is `trusted`.
  bool takes(const Part &a, const Part &b, bool trusted) const {
    return trust_ == Trust::Itself && (a.itself || trusted) && a.value.is_valid() && a.value.is(b.value);
  }

  std::optional<std::pair<uint32_t, uint32_t>> mismatch(const Reading &other) const;
  std::string described(uint32_t part) const;

  std::vector<Part> parts_;
  size_t hash_ = 0;
  Trust trust_ = Trust::Itself;
  bool holds_containers_ = false;
  bool holds_unknown_ = false;
};

// Puts a Reading together, or compares with one, part by part, without making another. What a value consists of is for
// its readers to say: snapshots.cpp for what a static holds itself, functions.cpp for what functions read. Invariant:
// no recursion deeper than `kMaxDepth` of them.
class Recorder {
 public:
  // Values nested deeper count as unknown: they are rare, and recording must not exhaust the C stack.
  static constexpr uint32_t kMaxDepth = 200;

  explicit Recorder(Trust trust) { reading_.trust_ = trust; }
  // To compare with `expected`, which lives longer.
  explicit Recorder(const Reading &expected) : expected_(&expected) { reading_.trust_ = expected.trust_; }

  Reading take() { return std::move(reading_); }
  // True if all that was read is as expected.
  bool agrees() const { return agrees_ && at_ == expected_->parts_.size(); }
  // True if nothing that is still read can make a difference.
  bool is_decided() const { return !agrees_; }

  Trust trust() const { return reading_.trust_; }
  bool holds_unknown() const { return reading_.holds_unknown_; }
  bool is_too_deep() const { return depth_ >= kMaxDepth; }
  // True while what a function or partial reads is recorded.
  bool is_inside_callable() const { return callables_ > 0; }
  size_t size() const { return expected_ != nullptr ? at_ : reading_.parts_.size(); }
  void holds_container() { reading_.holds_containers_ = true; }

  // By value and type; by the hash of `value`, which `typed_hash` gave; by identity.
  void scalar(const nb::object &value) {
    add_hashed(Part::Scalar, value, expected_ != nullptr ? 0 : scalar_hash(value.ptr()));
  }
  void equal(const nb::object &value, size_t hash) { add_hashed(Part::Equal, value, hash); }
  void same(const nb::object &value) { add_hashed(Part::Same, value, pointer_hash(value.ptr())); }
  // By identity and length.
  void same_of_length(const nb::object &value, size_t length) {
    mix_in(pointer_hash(value.ptr()));
    add(Part::Same, value, static_cast<uint32_t>(length));
  }
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
  void partial(IdTable &seen, const nb::object &object, Record &&record) {
    inside(seen, object, Part::Partial, object, 3, record);
  }
  template <typename Record>
  void function(IdTable &seen, const nb::object &object, Record &&record) {
    inside(seen, object, Part::Function, object, 1, record);
  }
  // While `record` runs, what is recorded is what a function or partial reads.
  template <typename Record>
  void read_by_callable(Record &&record) {
    ++callables_;
    record();
    --callables_;
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

  void add(Part kind, nb::object value, uint32_t n = 0, size_t hash = 0) {
    Reading::Part part{kind, !is_inside_callable(), n, static_cast<uint32_t>(size() + 1), std::move(value), hash};
    if (expected_ != nullptr) return compare(part);
    reading_.parts_.push_back(std::move(part));
  }
  void add_hashed(Part kind, const nb::object &value, size_t hash) {
    add(kind, value, 0, hash);
    mix_in(hash);
  }
  void compare(const Reading::Part &part);
  void mix_in(size_t hash) {
    if (hashed_) reading_.hash_ = mix(reading_.hash_, hash);
  }
  static nb::object sorted_names(const nb::object &dict);

  template <typename Record>
  void inside(IdTable &seen, const nb::object &object, Part kind, nb::object value, Py_ssize_t n, Record &record) {
    const auto at = static_cast<uint32_t>(size());
    auto [part, fresh] = seen.insert(object.ptr(), at);
    if (!fresh) return add(Part::Seen, kind == Part::Function ? std::move(value) : nb::object(), part);
    kept_.push_back(object);
    add(kind, std::move(value), static_cast<uint32_t>(n));
    mix_in(static_cast<size_t>(kind));
    if (is_decided() || skips(at)) return;
    ++depth_;
    record();
    --depth_;
    if (expected_ == nullptr) reading_.parts_[at].end = static_cast<uint32_t>(size());
  }
  // Past a function that is the one that was expected, and taken at its word.
  bool skips(size_t at);

  Reading reading_;
  const Reading *expected_ = nullptr;
  size_t at_ = 0;       // the next part that is expected
  bool agrees_ = true;  // so far
  bool taken_ = false;  // the last part is a function that is taken at its word
  size_t trusted_end_ = 0;
  uint32_t depth_ = 0;
  uint32_t callables_ = 0;
  bool hashed_ = true;
  std::vector<nb::object> kept_;  // so that their addresses stay theirs
};

// Copied first: hashing items may run code that changes the container.
template <typename Value>
void Recorder::items(IdTable &seen, const nb::object &container, Value &&value) {
  if (PyDict_Check(container.ptr())) {
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
  nb::object copied = PyTuple_Check(container.ptr()) ? container : py::checked(PySequence_Tuple(container.ptr()));
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
