#include "statics/snapshots.h"

#include "objects/node_types.h"
#include "settings.h"
#include "statics/attributes.h"
#include "statics/functions.h"
#include "statics/hashing.h"

namespace treadle {
namespace {

bool is_mutable_builtin(PyObject *value) {
  return py::is_exact(value, &PySet_Type) || py::is_exact(value, &PyByteArray_Type);
}

bool is_set(PyObject *value) { return py::is_exact(value, &PySet_Type) || py::is_exact(value, &PyFrozenSet_Type); }

// Kinds of lists and dicts, which say what they hold as these do.
bool has_items(PyObject *value) {
  static auto *deque = new nb::object(nb::module_::import_("collections").attr("deque"));
  return PyDict_Check(value) || PyList_Check(value) || py::has_type(value, deque->ptr());
}

// What a set or a bytearray holds now.
nb::object content(const nb::object &value) {
  if (is_set(value.ptr())) return typed_items_of(value);
  if (py::is_exact(value.ptr(), &PyByteArray_Type)) return py::checked(PyBytes_FromObject(value.ptr()));
  return value;
}

// Arrays that may change in place. Those of JAX do not.
bool is_numpy_array(PyObject *value) {
  static auto *kind = new nb::object(nb::module_::import_("numpy").attr("ndarray"));
  return PyObject_TypeCheck(value, py::as_type(kind->ptr())) != 0;
}

// Bytes of arrays and buffers that are read at each call; larger ones count by identity.
constexpr Py_ssize_t kMaxBytes = Py_ssize_t{1} << 16;

// What an array or a buffer holds now; null if that would be too much, or are objects.
nb::object bytes_of(const nb::object &value) {
  if (is_numpy_array(value.ptr())) {
    nb::object dtype = value.attr("dtype");
    if (nb::cast<bool>(nb::object(dtype.attr("hasobject"))) || nb::cast<Py_ssize_t>(value.attr("nbytes")) > kMaxBytes)
      return {};
    return nb::make_tuple(dtype, value.attr("shape"), value.attr("tobytes")());
  }
  if (PyObject_CheckBuffer(value.ptr()) == 0) return {};
  nb::object view = py::checked(PyMemoryView_FromObject(value.ptr()));
  if (nb::cast<Py_ssize_t>(view.attr("nbytes")) > kMaxBytes) return {};
  return nb::make_tuple(view.attr("format"), view.attr("shape"), view.attr("tobytes")());
}

// What to look for in a value.
enum class Look : uint8_t { Changes, ChangesAndFunctions };

// What is read of statics that may change, at each call: containers that would make it more count by identity and
// length, other objects by identity.
constexpr size_t kMaxParts = 1024;

bool found_in(PyObject *value, Look look, uint32_t depth);

bool found_in_values(const nb::object &dict, Look look, uint32_t depth) {
  for (auto [name, item] : py::DictItems(dict.ptr())) {
    if (found_in(item, look, depth)) return true;
  }
  return false;
}

// What is frozen changes if something in it does.
bool found_in_fields(PyObject *value, const NodeType *info, Look look, uint32_t depth) {
  if (look != Look::Changes || depth >= Recorder::kMaxDepth || !info->frozen) return true;
  return found_in_values(attributes_of(nb::borrow<nb::object>(value)), look, depth + 1);
}

bool found_in_partial(PyObject *value, Look look, uint32_t depth) {
  if (look != Look::Changes || depth >= Recorder::kMaxDepth) return true;
  nb::object held = nb::borrow<nb::object>(value);
  nb::object function = held.attr("func"), arguments = held.attr("args"), keywords = held.attr("keywords");
  return found_in(function.ptr(), look, depth + 1) || found_in(arguments.ptr(), look, depth + 1) ||
         found_in_values(keywords, look, depth + 1);
}

// The method of an object that can change, or, of what is not trusted to stay, one that reads something.
bool found_in_method(PyObject *value, Look look, uint32_t depth) {
  if (depth >= Recorder::kMaxDepth) return true;
  nb::object held = nb::borrow<nb::object>(value);
  nb::object self = held.attr("__self__"), function = held.attr("__func__");
  return found_in(self.ptr(), look, depth + 1) || found_in(function.ptr(), look, depth + 1);
}

bool found_in(PyObject *value, Look look, uint32_t depth) {
  const NodeType *info = classify(value);
  switch (info->kind) {
    case Kind::Tuple:
    case Kind::NamedTuple:
      for (Py_ssize_t i = 0; depth < Recorder::kMaxDepth && i < py::tuple_size(value); ++i) {
        if (found_in(py::tuple_item(value, i), look, depth + 1)) return true;
      }
      return false;
    case Kind::List:
    case Kind::Dict:
    case Kind::Pytree:
      return true;
    case Kind::Array:
      return is_numpy_array(value);
    case Kind::Static:
      break;
    default:
      return false;
  }
  switch (info->static_kind) {
    case StaticKind::Method:
      return found_in_method(value, look, depth);
    case StaticKind::Function:
      return look == Look::ChangesAndFunctions && reads_something(nb::borrow<nb::object>(value));
    case StaticKind::Partial:
      return found_in_partial(value, look, depth);
    case StaticKind::Mutable:
    case StaticKind::Object:
      return true;
    case StaticKind::Fields:
      return found_in_fields(value, info, look, depth);
    default:
      if (look == Look::ChangesAndFunctions && is_set(value)) return true;
      return is_mutable_builtin(value);
  }
}

// Records what a static is made of, down to the functions in it.
class ContentReader {
 public:
  ContentReader(Recorder &recorder, Unhashable unhashable, bool changes)
      : recorder_(recorder), unhashable_(unhashable), changes_(changes), functions_(recorder) {}

  void value(const nb::object &held) {
    if (recorder_.is_decided()) return;
    if (recorder_.is_too_deep()) return recorder_.same(held);
    const NodeType *info = classify(held.ptr());
    switch (info->kind) {
      case Kind::None:
        return recorder_.scalar(held);
      case Kind::List:
      case Kind::Dict:
        if (is_refused()) content_hash(held.ptr());
        [[fallthrough]];
      case Kind::Tuple:
      case Kind::NamedTuple:
        return items(held);
      case Kind::Array:
        return array(held);
      case Kind::Pytree:
        return by_equality(held);
      case Kind::Static:
        return by_kind(held, info->static_kind);
      default:
        return recorder_.same(held);
    }
  }

  void named(const nb::object &dict) {
    recorder_.named(seen_, dict,
                    [&](const nb::object &item) { item.is_valid() ? value(item) : recorder_.identical(item); });
  }

 private:
  // Inside of an object, what cannot be read counts by identity, as the object does.
  bool is_refused() const { return unhashable_ == Unhashable::Refused && objects_ == 0; }

  // True if reading so many parts more would be too much at each call.
  bool are_too_many(size_t n) const { return changes_ && recorder_.size() + n > kMaxParts; }

  void by_kind(const nb::object &held, StaticKind kind) {
    switch (kind) {
      case StaticKind::Simple:
      case StaticKind::Number:
        return recorder_.scalar(held);
      case StaticKind::Identity:
        return recorder_.same(held);
      case StaticKind::Frozen:
      case StaticKind::Mutable:
        return by_equality(held);
      case StaticKind::Fields:
        return object(held, py::type_of(held));
      case StaticKind::Object:
        return object(held, held);
      case StaticKind::Function:
        return functions_.function(held);
      case StaticKind::Partial:
        return functions_.partial(held);
      case StaticKind::Method:
        return recorder_.method(seen_, held, [&] {
          // Of the object what it holds: other parts of a graph than nodes are read, too.
          ++objects_;
          value(held.attr("__self__"));
          --objects_;
          value(held.attr("__func__"));
        });
    }
  }

  void items(const nb::object &held) {
    const auto n = static_cast<size_t>(PyObject_Size(held.ptr()));
    if (objects_ > 0 && are_too_many(PyDict_Check(held.ptr()) ? 2 * n : n)) return recorder_.same_of_length(held, n);
    recorder_.items(seen_, held, [&](const nb::object &item) { value(item); });
  }

  void object(const nb::object &held, const nb::object &identity) {
    ++objects_;
    nb::object attributes = attributes_of(held);
    const auto n = static_cast<size_t>(py::dict_size(attributes.ptr()));
    if (are_too_many(2 * n)) {
      recorder_.same_of_length(held, n);
    } else {
      recorder_.object(seen_, held, identity, [&] { named(attributes); });
    }
    --objects_;
  }

  // The arrays of JAX do not change.
  void array(const nb::object &held) {
    if (is_refused() && !py::type_of(held).is(settings().concrete_array)) {
      PyErr_SetString(PyExc_TypeError, "arrays are not hashable");
      throw nb::python_error();
    }
    nb::object kept = is_numpy_array(held.ptr()) ? bytes_of(held) : nb::object();
    if (!kept.is_valid()) return recorder_.same(held);
    recorder_.equal(kept, typed_hash(kept.ptr()));
  }

  void by_equality(const nb::object &held) {
    const bool is_container = is_set(held.ptr()) || is_mutable_builtin(held.ptr());
    if (is_container) {
      const auto n = static_cast<size_t>(PyObject_Size(held.ptr()));
      if (are_too_many(n)) return recorder_.same_of_length(held, n);
    }
    nb::object kept = held;
    size_t hash = 0;
    try {
      if (!is_refused() || is_set(held.ptr())) kept = content(held);
      hash = typed_hash(kept.ptr());
    } catch (nb::python_error &error) {
      // A memoryview that can be written raises a ValueError.
      const bool is_unhashable = error.matches(PyExc_TypeError) || PyObject_CheckBuffer(held.ptr()) != 0;
      if (!is_unhashable) throw;
      if (objects_ > 0 && has_items(held.ptr())) return items(held);
      if (is_refused()) {
        if (error.matches(PyExc_TypeError)) throw;
        PyErr_Format(PyExc_TypeError, "unhashable type: '%s'", py::type_name(Py_TYPE(held.ptr())).c_str());
        throw nb::python_error();
      }
      kept = objects_ > 0 ? bytes_of(held) : held;
      if (!kept.is_valid()) return recorder_.same(held);
      hash = objects_ > 0 ? typed_hash(kept.ptr()) : 0;
    }
    recorder_.equal(kept, hash);
  }

  Recorder &recorder_;
  const Unhashable unhashable_;
  const bool changes_;  // something in what is read may change
  FunctionReader functions_;
  IdTable seen_;
  uint32_t objects_ = 0;  // around what is read
};

// Classifying types never met runs code, which must not change the metadata; at worst an entry is then missed.
bool any_value(PyObject *metadata, bool (*predicate)(PyObject *)) {
  if (metadata == nullptr) return false;
  for (auto [key, value] : py::DictItems(metadata)) {
    // Mostly scalars, of which a look at the type is enough.
    const NodeType *info = known_type(Py_TYPE(value));
    if (info != nullptr && info->kind == Kind::Static && info->static_kind == StaticKind::Simple) continue;
    nb::object held = nb::borrow<nb::object>(value);
    if (predicate(value)) return true;
  }
  return false;
}

}  // namespace

Reading snapshot(PyObject *value, Unhashable unhashable) {
  Recorder recorder(Trust::Itself);
  ContentReader(recorder, unhashable, may_change_in_place(value)).value(nb::borrow<nb::object>(value));
  return recorder.take();
}

Reading metadata_snapshot(PyObject *metadata) {
  Recorder recorder(Trust::Itself);
  ContentReader(recorder, Unhashable::Allowed, true).named(nb::borrow<nb::object>(metadata));
  return recorder.take();
}

bool still_reads(PyObject *value, Unhashable unhashable, const Reading &then) {
  Recorder recorder(then);
  ContentReader(recorder, unhashable, true).value(nb::borrow<nb::object>(value));
  return recorder.agrees();
}

bool metadata_still_reads(PyObject *metadata, const Reading &then) {
  Recorder recorder(then);
  ContentReader(recorder, Unhashable::Allowed, true).named(nb::borrow<nb::object>(metadata));
  return recorder.agrees();
}

bool has_reading(PyObject *value) { return found_in(value, Look::ChangesAndFunctions, 0); }

bool may_change_in_place(PyObject *value) { return found_in(value, Look::Changes, 0); }

bool has_metadata_reading(PyObject *metadata) { return any_value(metadata, has_reading); }

bool is_unstable_metadata(PyObject *metadata) { return any_value(metadata, may_change_in_place); }

}  // namespace treadle
