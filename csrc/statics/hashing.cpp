#include "statics/hashing.h"

#include <cmath>

#include "objects/node_types.h"
#include "statics/snapshots.h"

namespace treadle {
namespace {

// The hash of floats and complex numbers that are NaN in some part; any number would do.
constexpr size_t kHashOfNan = 0x7ff8;

bool is_nan(PyObject *value) {
  if (PyFloat_Check(value)) return std::isnan(PyFloat_AsDouble(value));
  if (!PyComplex_Check(value)) return false;
  return std::isnan(PyComplex_RealAsDouble(value)) || std::isnan(PyComplex_ImagAsDouble(value));
}

bool same_float(double a, double b) {
  if (std::isnan(a) || std::isnan(b)) return std::isnan(a) && std::isnan(b);
  return a == b && std::signbit(a) == std::signbit(b);
}

// One of numpy's own numbers, as its bytes.
nb::object bytes_of_number(PyObject *value) { return nb::borrow<nb::object>(value).attr("tobytes")(); }

bool is_numpys_number(PyObject *value) {
  const NodeType *info = known_type(Py_TYPE(value));
  return info != nullptr && info->kind == Kind::Static && info->static_kind == StaticKind::Number;
}

}  // namespace

size_t content_hash(PyObject *value) {
  Py_hash_t hash = PyObject_Hash(value);
  if (hash == -1 && PyErr_Occurred()) throw nb::python_error();
  return static_cast<size_t>(hash);
}

// Floats hash as Python has it: 0.0 and -0.0 hash alike, which is merely a collision. Except for NaN, which Python
// hashes by address, while here it equals itself.
size_t typed_hash(PyObject *value) {
  const size_t hash = is_nan(value) ? kHashOfNan : content_hash(value);
  return mix(pointer_hash(Py_TYPE(value)), hash);
}

size_t scalar_hash(PyObject *value) {
  if (!is_numpys_number(value)) return typed_hash(value);
  return mix(pointer_hash(Py_TYPE(value)), content_hash(bytes_of_number(value).ptr()));
}

bool scalars_equal(PyObject *a, PyObject *b) {
  if (Py_TYPE(a) != Py_TYPE(b)) return false;
  if (is_numpys_number(a)) return py::equal(bytes_of_number(a).ptr(), bytes_of_number(b).ptr());
  // Not by what a type of the user's makes of it.
  if (PyFloat_Check(a)) return same_float(PyFloat_AsDouble(a), PyFloat_AsDouble(b));
  if (PyComplex_Check(a)) {
    return same_float(PyComplex_RealAsDouble(a), PyComplex_RealAsDouble(b)) &&
           same_float(PyComplex_ImagAsDouble(a), PyComplex_ImagAsDouble(b));
  }
  return py::equal(a, b);
}

size_t static_hash(PyObject *value) {
  const NodeType *info = classify(value);
  if (is_reference(info->kind)) return pointer_hash(value);
  if (info->kind == Kind::Static) {
    switch (info->static_kind) {
      case StaticKind::Identity:
        return pointer_hash(value);
      case StaticKind::Method:
        return pointer_hash(nb::object(nb::borrow<nb::object>(value).attr("__self__")).ptr());
      case StaticKind::Function:
        return pointer_hash(nb::object(nb::borrow<nb::object>(value).attr("__code__")).ptr());
      case StaticKind::Simple:
      case StaticKind::Number:
        return scalar_hash(value);
      case StaticKind::Frozen:
        return typed_hash(value);
      default:
        break;
    }
  }
  return snapshot(value, Unhashable::Refused).hash();
}

bool static_equal(PyObject *a, PyObject *b) {
  if (a == b) return true;
  if (Py_TYPE(a) != Py_TYPE(b)) return false;
  nb::object keep_a = nb::borrow<nb::object>(a), keep_b = nb::borrow<nb::object>(b);
  const NodeType *info = classify(a);
  if (info->kind == Kind::Static) {
    if (info->static_kind == StaticKind::Simple || info->static_kind == StaticKind::Number) return scalars_equal(a, b);
    if (info->static_kind == StaticKind::Frozen) return py::equal(a, b);
    if (info->static_kind == StaticKind::Method) {
      nb::object function_a = keep_a.attr("__func__"), function_b = keep_b.attr("__func__");
      return keep_a.attr("__self__").is(keep_b.attr("__self__")) && static_equal(function_a.ptr(), function_b.ptr());
    }
  }
  const Reading left = snapshot(a, Unhashable::Allowed), right = snapshot(b, Unhashable::Allowed);
  return !left.holds_containers() && left.equals(right);
}

bool metadata_equal(PyObject *a, PyObject *b) {
  if (a == b) return true;
  if (a == nullptr || b == nullptr || py::dict_size(a) != py::dict_size(b)) return false;
  // Snapshots: comparing values may run code that changes either dict.
  nb::object keys = py::checked(PyDict_Keys(a)), values = py::checked(PyDict_Values(a));
  for (Py_ssize_t i = 0; i < py::list_size(keys.ptr()); ++i) {
    nb::object other = py::dict_get(b, py::list_item(keys.ptr(), i));
    if (!other.is_valid() || !static_equal(py::list_item(values.ptr(), i), other.ptr())) return false;
  }
  return true;
}

size_t metadata_hash(PyObject *metadata) {
  if (metadata == nullptr) return 0;
  // A sum over entries is independent of insertion order; values are hashed by type, as not all of them have a hash.
  size_t total = static_cast<size_t>(py::dict_size(metadata));
  for (auto [key, value] : py::DictItems(metadata)) {
    nb::object held = nb::borrow<nb::object>(key);
    total += mix(content_hash(held.ptr()), pointer_hash(Py_TYPE(value)));
  }
  return total;
}

}  // namespace treadle
