#include "graph/statics.h"

#include <utility>
#include <vector>

#include "graph/node_types.h"

namespace weft {
namespace {

// Closures deeper than this compare by identity: they are rare, and comparison must not exhaust the C stack.
constexpr size_t kMaxDepth = 64;

// One comparison in progress. Pairs already being compared count as equal, which makes recursive functions terminate.
class Comparison {
 public:
  bool equal(PyObject *a, PyObject *b) {
    if (a == b) return true;
    if (Py_TYPE(a) != Py_TYPE(b)) return false;
    // Classifying may import or run nothing of the user's except for types never met, and both are kept alive here.
    nb::object keep_a = nb::borrow<nb::object>(a), keep_b = nb::borrow<nb::object>(b);
    const NodeType *info = classify(a);
    if (info->kind == Kind::Tuple || info->kind == Kind::NamedTuple) return tuples_equal(a, b);
    if (info->kind == Kind::Pytree) return py::equal(a, b);
    if (info->kind != Kind::Static) return false;
    switch (info->static_kind) {
      case StaticKind::Identity:
        return false;
      case StaticKind::Simple:
        return simple_equal(a, b);
      case StaticKind::Frozen:
      case StaticKind::Mutable:
        return py::equal(a, b);
      case StaticKind::Function:
        return nested(a, b, [&] { return functions_equal(keep_a, keep_b); });
      case StaticKind::Partial:
        return nested(a, b, [&] { return attributes_equal(keep_a, keep_b, {"func", "args", "keywords"}); });
      case StaticKind::Method:
        return nested(a, b, [&] {
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
    if (!a.attr("__code__").is(b.attr("__code__")) || !a.attr("__globals__").is(b.attr("__globals__"))) return false;
    if (!attributes_equal(a, b, {"__defaults__", "__kwdefaults__", "__dict__"})) return false;
    nb::object left = a.attr("__closure__"), right = b.attr("__closure__");
    if (left.is_none() || right.is_none()) return left.is(right);
    Py_ssize_t n = py::tuple_size(left.ptr());
    if (n != py::tuple_size(right.ptr())) return false;
    for (Py_ssize_t i = 0; i < n; ++i) {
      nb::object cell_a = left[static_cast<size_t>(i)], cell_b = right[static_cast<size_t>(i)];
      if (cell_a.is(cell_b)) continue;
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
    if (a == b) return true;
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

}  // namespace

Py_hash_t static_hash(PyObject *value) {
  nb::object held = nb::borrow<nb::object>(value);
  const NodeType *info = classify(value);
  if (info->kind == Kind::Array) throw nb::type_error("arrays are not hashable");
  if (info->kind == Kind::Tuple || info->kind == Kind::NamedTuple) return tuple_hash(value);
  if (is_reference(info->kind)) return static_cast<Py_hash_t>(pointer_hash(value));
  if (info->kind != Kind::Static) return checked_hash(value);
  switch (info->static_kind) {
    case StaticKind::Identity:
      return static_cast<Py_hash_t>(pointer_hash(value));
    case StaticKind::Function:
      return static_cast<Py_hash_t>(pointer_hash(nb::object(held.attr("__code__")).ptr()));
    case StaticKind::Partial: {
      nb::object function = held.attr("func");
      if (static_cast<void *>(Py_TYPE(function.ptr())) == static_cast<void *>(Py_TYPE(value))) return 17;
      return static_hash(function.ptr()) ^ 0x5bd1;
    }
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

bool is_unstable_static(PyObject *value) {
  const NodeType *info = classify(value);
  return info->kind == Kind::Static && info->static_kind == StaticKind::Mutable;
}

bool metadata_equal(PyObject *a, PyObject *b) {
  if (a == b) return true;
  if (a == nullptr || b == nullptr) return false;
  return Comparison().dicts_equal(a, b);
}

Py_hash_t metadata_hash(PyObject *metadata) {
  if (metadata == nullptr) return 0;
  // A sum over entries is independent of insertion order. Values are hashed by type only where they are containers.
  size_t total = static_cast<size_t>(py::dict_size(metadata));
  PyObject *key = nullptr;
  PyObject *value = nullptr;
  Py_ssize_t position = 0;
  while (PyDict_Next(metadata, &position, &key, &value)) {
    total += mix(static_cast<size_t>(checked_hash(key)), pointer_hash(reinterpret_cast<PyObject *>(Py_TYPE(value))));
  }
  return static_cast<Py_hash_t>(total);
}

}  // namespace weft
