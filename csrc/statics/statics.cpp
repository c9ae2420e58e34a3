#include "statics/statics.h"

#include "objects/node_types.h"

namespace treadle {
namespace {

// Classifying types never met runs code, which must not change the metadata; at worst an entry is then missed.
bool any_value(PyObject *metadata, bool (*predicate)(PyObject *)) {
  if (metadata == nullptr) return false;
  PyObject *value = nullptr;
  Py_ssize_t position = 0;
  while (PyDict_Next(metadata, &position, nullptr, &value)) {
    // Mostly scalars, of which a look at the type is enough.
    const NodeType *info = known_type(Py_TYPE(value));
    if (info != nullptr && info->kind == Kind::Static && info->static_kind == StaticKind::Simple) continue;
    nb::object held = nb::borrow<nb::object>(value);
    if (predicate(value)) return true;
  }
  return false;
}

}  // namespace

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
      case StaticKind::Frozen:
        return typed_hash(value);
      default:
        break;
    }
  }
  return Reading(value, Unhashable::Refused).hash();
}

bool static_equal(PyObject *a, PyObject *b) {
  if (a == b) return true;
  if (Py_TYPE(a) != Py_TYPE(b)) return false;
  nb::object keep_a = nb::borrow<nb::object>(a), keep_b = nb::borrow<nb::object>(b);
  const NodeType *info = classify(a);
  if (info->kind == Kind::Static) {
    if (info->static_kind == StaticKind::Simple) return scalars_equal(a, b);
    if (info->static_kind == StaticKind::Frozen) return py::equal(a, b);
    if (info->static_kind == StaticKind::Method) {
      nb::object function_a = keep_a.attr("__func__"), function_b = keep_b.attr("__func__");
      return keep_a.attr("__self__").is(keep_b.attr("__self__")) && static_equal(function_a.ptr(), function_b.ptr());
    }
  }
  Reading left(a, Unhashable::Allowed), right(b, Unhashable::Allowed);
  return !left.holds_containers() && left.equals(right);
}

bool is_unstable_metadata(PyObject *metadata) { return any_value(metadata, may_change_in_place); }

bool has_metadata_reading(PyObject *metadata) { return any_value(metadata, has_reading); }

bool metadata_equal(PyObject *a, PyObject *b) {
  if (a == b) return true;
  if (a == nullptr || b == nullptr || py::dict_size(a) != py::dict_size(b)) return false;
  // Snapshots: comparing values may run code that changes either dict.
  nb::object keys = py::checked(PyDict_Keys(a)), values = py::checked(PyDict_Values(a));
  for (Py_ssize_t i = 0; i < py::list_size(keys.ptr()); ++i) {
    PyObject *found = PyDict_GetItemWithError(b, py::list_item(keys.ptr(), i));
    if (found == nullptr) {
      if (PyErr_Occurred()) throw nb::python_error();
      return false;
    }
    nb::object other = nb::borrow<nb::object>(found);
    if (!static_equal(py::list_item(values.ptr(), i), other.ptr())) return false;
  }
  return true;
}

size_t metadata_hash(PyObject *metadata) {
  if (metadata == nullptr) return 0;
  // A sum over entries is independent of insertion order; values are hashed by type, as not all of them have a hash.
  size_t total = static_cast<size_t>(py::dict_size(metadata));
  PyObject *key = nullptr;
  PyObject *value = nullptr;
  Py_ssize_t position = 0;
  while (PyDict_Next(metadata, &position, &key, &value)) {
    nb::object held = nb::borrow<nb::object>(key);
    total += mix(content_hash(held.ptr()), pointer_hash(reinterpret_cast<PyObject *>(Py_TYPE(value))));
  }
  return total;
}

}  // namespace treadle
