#include "graph/statics.h"

#include <memory>
#include <unordered_map>
#include <utility>
#include <vector>

#include "graph/node_types.h"
#include "settings.h"

namespace weft {
namespace {

// Closures deeper than this compare by identity: they are rare, and comparison must not exhaust the C stack.
constexpr size_t kMaxDepth = 64;

// Functions inside of functions are hashed this deep.
constexpr size_t kMaxHashedFunctions = 4;

// What is remembered of code at most: a program has as many functions as it has.
constexpr size_t kMaxCodes = 4096;

// The names that code may look up among the globals; none for code whose package does not change them.
using Reads = std::vector<nb::object>;

void collect_names(const nb::object &code, Reads &names) {
  nb::object code_type = nb::borrow<nb::object>(reinterpret_cast<PyObject *>(Py_TYPE(code.ptr())));
  std::vector<nb::object> waiting{code};
  while (!waiting.empty()) {
    nb::object next = std::move(waiting.back());
    waiting.pop_back();
    for (nb::handle name : nb::object(next.attr("co_names"))) names.push_back(nb::borrow<nb::object>(name));
    for (nb::handle constant : nb::object(next.attr("co_consts"))) {
      // Code of functions that are defined inside.
      if (constant.type().is(code_type)) waiting.push_back(nb::borrow<nb::object>(constant));
    }
  }
}

// Remembered by code, which it keeps alive.
std::shared_ptr<const Reads> reads_of(const nb::object &function, const nb::object &code) {
  struct Known {
    nb::object code;
    std::shared_ptr<const Reads> reads;
  };
  static auto *cache = new std::unordered_map<PyObject *, Known>();
  if (auto found = cache->find(code.ptr()); found != cache->end()) return found->second.reads;
  auto reads = std::make_shared<Reads>();
  if (!from_constant_package(function)) collect_names(code, *reads);
  if (cache->size() >= kMaxCodes) {
    // Swapped out first: what is released may run code.
    std::unordered_map<PyObject *, Known> dropped;
    dropped.swap(*cache);
  }
  cache->emplace(code.ptr(), Known{code, reads});
  return reads;
}

// The global that a function would read under `name`, or null. Builtins are taken for constants.
nb::object global(const nb::object &globals, const nb::object &name) {
  PyObject *found = PyDict_GetItemWithError(globals.ptr(), name.ptr());
  if (found == nullptr && PyErr_Occurred()) throw nb::python_error();
  return nb::borrow<nb::object>(found);
}

bool is_hashable_type(PyObject *value) {
  return PyType_GetSlot(Py_TYPE(value), Py_tp_hash) != reinterpret_cast<void *>(&PyObject_HashNotImplemented);
}

// Functions, classes and modules of known packages, and objects of their types, such as transformed functions.
bool is_constant_object(PyObject *value) {
  nb::object held = nb::borrow<nb::object>(value);
  if (PyType_Check(value) || PyObject_TypeCheck(value, &PyModule_Type)) return from_constant_package(held);
  return from_constant_package(nb::borrow<nb::object>(reinterpret_cast<PyObject *>(Py_TYPE(value))));
}

// One comparison in progress. Pairs already being compared count as equal, which makes recursive functions terminate.
//
// A function is equal to another if nothing that it reads can differ, now or since the other was traced. So inside of
// functions the same pointer is not enough: a list, a node or an object with attributes may have changed meanwhile.
// A function that was captured is taken at its word, as `jax.jit` takes one that it has seen.
class Comparison {
 public:
  bool equal(PyObject *a, PyObject *b) {
    if (a == b && callables_ == 0) return true;
    if (Py_TYPE(a) != Py_TYPE(b)) return false;
    // Classifying may import or run nothing of the user's except for types never met, and both are kept alive here.
    nb::object keep_a = nb::borrow<nb::object>(a), keep_b = nb::borrow<nb::object>(b);
    const NodeType *info = classify(a);
    if (info->kind == Kind::None) return true;
    if (info->kind == Kind::Tuple || info->kind == Kind::NamedTuple) return tuples_equal(a, b);
    if (info->kind == Kind::Pytree) return callables_ == 0 && py::equal(a, b);
    // The arrays of JAX do not change.
    if (info->kind == Kind::Array)
      return a == b && reinterpret_cast<PyObject *>(Py_TYPE(a)) == settings().concrete_array.ptr();
    if (info->kind != Kind::Static) return false;
    switch (info->static_kind) {
      case StaticKind::Identity:
        return a == b && is_constant_object(a);
      case StaticKind::Simple:
        return a == b || simple_equal(a, b);
      case StaticKind::Frozen:
      case StaticKind::Mutable:
        return (callables_ == 0 || is_hashable_type(a)) && (a == b || py::equal(a, b));
      case StaticKind::Function:
        return a == b || in_callable(a, b, [&] { return functions_equal(keep_a, keep_b); });
      case StaticKind::Partial:
        return in_callable(a, b, [&] { return attributes_equal(keep_a, keep_b, {"func", "args", "keywords"}); });
      case StaticKind::Method:
        return a == b || nested(a, b, [&] {
                 return keep_a.attr("__self__").is(keep_b.attr("__self__")) &&
                        equal(nb::object(keep_a.attr("__func__")).ptr(), nb::object(keep_b.attr("__func__")).ptr());
               });
    }
    return false;
  }

 private:
  // Floats compare by representation: 0.0 and -0.0 trace to different programs, and NaN equals itself.
  static bool simple_equal(PyObject *a, PyObject *b) {
    if (py::is_exact(a, &PyFloat_Type) || py::is_exact(a, &PyComplex_Type)) {
      nb::object left = py::checked(PyObject_Repr(a)), right = py::checked(PyObject_Repr(b));
      return py::equal(left.ptr(), right.ptr());
    }
    return py::equal(a, b);
  }

  bool tuples_equal(PyObject *a, PyObject *b) {
    Py_ssize_t n = py::tuple_size(a);
    if (n != py::tuple_size(b)) return false;
    return nested(a, b, [&] {
      for (Py_ssize_t i = 0; i < n; ++i) {
        if (!equal(py::tuple_item(a, i), py::tuple_item(b, i))) return false;
      }
      return true;
    });
  }

  template <typename Body>
  bool nested(PyObject *a, PyObject *b, Body &&body) {
    for (auto &pair : active_) {
      if (pair.first == a && pair.second == b) return true;
    }
    if (active_.size() >= kMaxDepth) return false;
    active_.emplace_back(a, b);
    bool result = body();
    active_.pop_back();
    return result;
  }

  template <typename Body>
  bool in_callable(PyObject *a, PyObject *b, Body &&body) {
    ++callables_;
    bool result = nested(a, b, body);
    --callables_;
    return result;
  }

  bool attributes_equal(const nb::object &a, const nb::object &b, std::initializer_list<const char *> names) {
    for (const char *name : names) {
      nb::object left = a.attr(name), right = b.attr(name);
      if (!parts_equal(left, right)) return false;
    }
    return true;
  }

  bool parts_equal(const nb::object &a, const nb::object &b) {
    return nb::isinstance<nb::dict>(a) && nb::isinstance<nb::dict>(b) ? dicts_equal(a.ptr(), b.ptr())
                                                                      : equal(a.ptr(), b.ptr());
  }

  bool functions_equal(const nb::object &a, const nb::object &b) {
    nb::object code = a.attr("__code__"), globals = a.attr("__globals__");
    if (!code.is(b.attr("__code__")) || !globals.is(b.attr("__globals__"))) return false;
    std::shared_ptr<const Reads> reads = reads_of(a, code);
    for (const nb::object &name : *reads) {
      nb::object value = global(globals, name);
      if (value.is_valid() && !equal(value.ptr(), value.ptr())) return false;
    }
    if (!attributes_equal(a, b, {"__defaults__", "__kwdefaults__", "__dict__"})) return false;
    nb::object left = a.attr("__closure__"), right = b.attr("__closure__");
    if (left.is_none() || right.is_none()) return left.is(right);
    Py_ssize_t n = py::tuple_size(left.ptr());
    if (n != py::tuple_size(right.ptr())) return false;
    for (Py_ssize_t i = 0; i < n; ++i) {
      nb::object cell_a = left[static_cast<size_t>(i)], cell_b = right[static_cast<size_t>(i)];
      nb::object value_a = nb::getattr(cell_a, "cell_contents", nb::object());
      nb::object value_b = nb::getattr(cell_b, "cell_contents", nb::object());
      if (!value_a.is_valid() || !value_b.is_valid()) {
        if (value_a.is_valid() != value_b.is_valid()) return false;
        continue;
      }
      if (!equal(value_a.ptr(), value_b.ptr())) return false;
    }
    return true;
  }

 public:
  bool dicts_equal(PyObject *a, PyObject *b) {
    if (a == b && callables_ == 0) return true;
    if (py::dict_size(a) != py::dict_size(b)) return false;
    // Snapshots: comparing values may run code that changes either dict.
    nb::object keys = py::checked(PyDict_Keys(a)), values = py::checked(PyDict_Values(a));
    for (Py_ssize_t i = 0; i < py::list_size(keys.ptr()); ++i) {
      PyObject *found = PyDict_GetItemWithError(b, py::list_item(keys.ptr(), i));
      if (found == nullptr) {
        if (PyErr_Occurred()) throw nb::python_error();
        return false;
      }
      nb::object other = nb::borrow<nb::object>(found);
      if (!equal(py::list_item(values.ptr(), i), other.ptr())) return false;
    }
    return true;
  }

 private:
  std::vector<std::pair<PyObject *, PyObject *>> active_;
  size_t callables_ = 0;  // functions and partials around what is compared
};

size_t pointer_hash(PyObject *object) { return reinterpret_cast<size_t>(object) >> 4; }

Py_hash_t checked_hash(PyObject *value) {
  Py_hash_t hash = PyObject_Hash(value);
  if (hash == -1 && PyErr_Occurred()) throw nb::python_error();
  return hash;
}

// Floats hash by representation too (0.0 and -0.0 hash alike in Python, which is merely a collision).
size_t typed_hash(PyObject *value) {
  return mix(pointer_hash(reinterpret_cast<PyObject *>(Py_TYPE(value))), static_cast<size_t>(checked_hash(value)));
}

// Element-wise, so that functions inside hash as they compare. Depth is bounded like comparison is.
Py_hash_t tuple_hash(PyObject *value) {
  thread_local size_t depth = 0;
  size_t total = 1;
  if (depth >= kMaxDepth) return 1;
  struct Level {
    Level() { ++depth; }
    ~Level() { --depth; }
  } level;
  for (Py_ssize_t i = 0; i < py::tuple_size(value); ++i) {
    total = mix(total, static_cast<size_t>(static_hash(py::tuple_item(value, i))));
  }
  return static_cast<Py_hash_t>(total);
}

Py_hash_t hash_if_any(PyObject *value);

// What the function reads now, as far as it compares by value: a variable may be bound to something else later, and
// what was remembered with the old value would then compare equal.
size_t hash_read(PyObject *value) {
  const NodeType *info = classify(value);
  if (info->kind == Kind::Tuple || info->kind == Kind::NamedTuple) return static_cast<size_t>(hash_if_any(value));
  if (info->kind != Kind::Static) return 0;
  if (info->static_kind == StaticKind::Identity || info->static_kind == StaticKind::Method) return 0;
  return static_cast<size_t>(hash_if_any(value));
}

Py_hash_t function_hash(const nb::object &function) {
  thread_local size_t depth = 0;
  nb::object code = function.attr("__code__");
  size_t total = pointer_hash(code.ptr());
  if (depth >= kMaxHashedFunctions) return static_cast<Py_hash_t>(total);
  struct Level {
    Level() { ++depth; }
    ~Level() { --depth; }
  } level;
  nb::object globals = function.attr("__globals__");
  std::shared_ptr<const Reads> reads = reads_of(function, code);
  for (const nb::object &name : *reads) {
    nb::object value = global(globals, name);
    if (!value.is_valid()) continue;
    const NodeType *info = classify(value.ptr());
    const bool by_value = info->kind == Kind::Static && info->static_kind == StaticKind::Simple;
    total = mix(total, by_value ? typed_hash(value.ptr()) : pointer_hash(value.ptr()));
  }
  nb::object cells = function.attr("__closure__");
  if (cells.is_none()) return static_cast<Py_hash_t>(total);
  for (nb::handle cell : cells) {
    nb::object value = nb::getattr(cell, "cell_contents", nb::object());
    total = mix(total, value.is_valid() ? hash_read(value.ptr()) : 0);
  }
  return static_cast<Py_hash_t>(total);
}

Py_hash_t partial_hash(const nb::object &partial) {
  thread_local size_t depth = 0;
  if (depth >= kMaxHashedFunctions) return 17;
  struct Level {
    Level() { ++depth; }
    ~Level() { --depth; }
  } level;
  nb::object function = partial.attr("func"), arguments = partial.attr("args"), keywords = partial.attr("keywords");
  size_t total = static_cast<size_t>(static_hash(function.ptr())) ^ 0x5bd1;
  for (nb::handle argument : arguments) total = mix(total, hash_read(argument.ptr()));
  // A sum, as keyword arguments compare in any order.
  size_t named = 0;
  for (nb::handle item : nb::object(keywords.attr("items")())) {
    nb::object key = item[0], value = item[1];
    named += mix(static_cast<size_t>(checked_hash(key.ptr())), hash_read(value.ptr()));
  }
  return static_cast<Py_hash_t>(mix(total, named));
}

bool may_change_in_place(PyObject *value, size_t depth) {
  const NodeType *info = classify(value);
  if (info->kind == Kind::Tuple || info->kind == Kind::NamedTuple) {
    // As deep as `tuple_hash` looks.
    for (Py_ssize_t i = 0; depth < kMaxDepth && i < py::tuple_size(value); ++i) {
      if (may_change_in_place(py::tuple_item(value, i), depth + 1)) return true;
    }
    return false;
  }
  return info->kind == Kind::Pytree || (info->kind == Kind::Static && info->static_kind == StaticKind::Mutable);
}

// Zero for what has no hash: metadata may hold it, and equality decides.
Py_hash_t hash_if_any(PyObject *value) {
  try {
    return static_hash(value);
  } catch (nb::python_error &error) {
    if (!error.matches(PyExc_TypeError)) throw;
  }
  return 0;
}

}  // namespace

Py_hash_t static_hash(PyObject *value) {
  nb::object held = nb::borrow<nb::object>(value);
  const NodeType *info = classify(value);
  if (info->kind == Kind::Array) {
    PyErr_SetString(PyExc_TypeError, "arrays are not hashable");
    throw nb::python_error();
  }
  if (info->kind == Kind::Tuple || info->kind == Kind::NamedTuple) return tuple_hash(value);
  if (is_reference(info->kind)) return static_cast<Py_hash_t>(pointer_hash(value));
  if (info->kind != Kind::Static) return checked_hash(value);
  switch (info->static_kind) {
    case StaticKind::Identity:
      return static_cast<Py_hash_t>(pointer_hash(value));
    case StaticKind::Function:
      return function_hash(held);
    case StaticKind::Partial:
      return partial_hash(held);
    case StaticKind::Method:
      return static_cast<Py_hash_t>(pointer_hash(nb::object(held.attr("__self__")).ptr()));
    case StaticKind::Simple:
    case StaticKind::Frozen:
    case StaticKind::Mutable:
      return static_cast<Py_hash_t>(typed_hash(value));
  }
  return 0;
}

bool static_equal(PyObject *a, PyObject *b) { return a == b || Comparison().equal(a, b); }

bool is_unstable_static(PyObject *value) { return may_change_in_place(value, 0); }

bool is_unstable_metadata(PyObject *metadata) {
  // A copy: classifying types never met runs code.
  nb::object values = py::checked(PyDict_Values(metadata));
  for (Py_ssize_t i = 0; i < py::list_size(values.ptr()); ++i) {
    if (is_unstable_static(py::list_item(values.ptr(), i))) return true;
  }
  return false;
}

bool metadata_equal(PyObject *a, PyObject *b) {
  if (a == b) return true;
  if (a == nullptr || b == nullptr) return false;
  return Comparison().dicts_equal(a, b);
}

Py_hash_t metadata_hash(PyObject *metadata) {
  if (metadata == nullptr) return 0;
  // A sum over entries is independent of insertion order. Values are hashed by type, and by content where that may
  // change: what was remembered with the old content would compare equal afterwards.
  size_t total = static_cast<size_t>(py::dict_size(metadata));
  PyObject *key = nullptr;
  PyObject *value = nullptr;
  Py_ssize_t position = 0;
  while (PyDict_Next(metadata, &position, &key, &value)) {
    nb::object name = nb::borrow<nb::object>(key), held = nb::borrow<nb::object>(value);
    size_t entry =
        mix(static_cast<size_t>(checked_hash(key)), pointer_hash(reinterpret_cast<PyObject *>(Py_TYPE(value))));
    if (is_unstable_static(value)) entry = mix(entry, static_cast<size_t>(hash_if_any(value)));
    total += entry;
  }
  return static_cast<Py_hash_t>(total);
}

}  // namespace weft
