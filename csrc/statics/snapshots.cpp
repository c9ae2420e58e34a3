#include "statics/snapshots.h"

#include "objects/node_types.h"
#include "settings.h"
#include "statics/functions.h"
#include "statics/hashing.h"

namespace treadle {
namespace {

bool is_mutable_builtin(PyObject *value) {
  return py::is_exact(value, &PySet_Type) || py::is_exact(value, &PyByteArray_Type);
}

bool is_set(PyObject *value) { return py::is_exact(value, &PySet_Type) || py::is_exact(value, &PyFrozenSet_Type); }

// The items of a set with their types, which its equality does not look at.
nb::object typed_items(const nb::object &set) {
  nb::object typed = py::checked(PySet_New(nullptr));
  nb::object items = py::checked(PySequence_Tuple(set.ptr()));
  for (Py_ssize_t i = 0; i < py::tuple_size(items.ptr()); ++i) {
    nb::object item = nb::borrow<nb::object>(py::tuple_item(items.ptr(), i));
    const bool by_representation = PyFloat_CheckExact(item.ptr()) || PyComplex_CheckExact(item.ptr());
    nb::object pair = nb::make_tuple(py::type_of(item), by_representation ? nb::object(nb::repr(item)) : item);
    py::check_status(PySet_Add(typed.ptr(), pair.ptr()));
  }
  return py::checked(PyFrozenSet_New(typed.ptr()));
}

// What a set or a bytearray holds now.
nb::object content(const nb::object &value) {
  if (is_set(value.ptr())) return typed_items(value);
  if (py::is_exact(value.ptr(), &PyByteArray_Type)) return py::checked(PyBytes_FromObject(value.ptr()));
  return value;
}

// What to look for in a value.
enum class Look : uint8_t { Changes, ChangesAndFunctions };

// An object that holds more is compared by what it is as far as this goes, since it is read at each call.
constexpr size_t kMaxParts = 4096;

bool found_in(PyObject *value, Look look, uint32_t depth);

// A frozen dataclass changes if something in it does.
bool found_in_fields(PyObject *value, Look look, uint32_t depth) {
  nb::object held = nb::borrow<nb::object>(value);
  nb::object parameters = nb::getattr(held, "__dataclass_params__", nb::none());
  if (look != Look::Changes || depth >= Recorder::kMaxDepth || !nb::cast<bool>(parameters.attr("frozen"))) return true;
  nb::object fields = fields_of(held);
  for (auto [name, field] : py::DictItems(fields.ptr())) {
    if (found_in(field, look, depth + 1)) return true;
  }
  return false;
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
    case Kind::Static:
      break;
    default:
      return false;
  }
  switch (info->static_kind) {
    case StaticKind::Function:
      return look == Look::ChangesAndFunctions && reads_something(nb::borrow<nb::object>(value));
    case StaticKind::Partial:
      return look == Look::ChangesAndFunctions;
    case StaticKind::Mutable:
    case StaticKind::Object:
      return true;
    case StaticKind::Fields:
      return found_in_fields(value, look, depth);
    default:
      if (look == Look::ChangesAndFunctions && is_set(value)) return true;
      return is_mutable_builtin(value);
  }
}

// Records what a static is made of, down to the functions in it.
class ContentReader {
 public:
  ContentReader(Recorder &recorder, Unhashable unhashable)
      : recorder_(recorder), unhashable_(unhashable), functions_(recorder) {}

  void value(const nb::object &held) {
    if (recorder_.is_too_deep()) return recorder_.same(held);
    const NodeType *info = classify(held.ptr());
    switch (info->kind) {
      case Kind::None:
        return recorder_.scalar(held);
      case Kind::List:
      case Kind::Dict:
        if (is_refused() && objects_ == 0) content_hash(held.ptr());
        [[fallthrough]];
      case Kind::Tuple:
      case Kind::NamedTuple:
        return recorder_.items(seen_, held, [&](const nb::object &item) { value(item); });
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
  bool is_refused() const { return unhashable_ == Unhashable::Refused; }

  void by_kind(const nb::object &held, StaticKind kind) {
    switch (kind) {
      case StaticKind::Simple:
        return recorder_.scalar(held);
      case StaticKind::Identity:
        return recorder_.same(held);
      case StaticKind::Frozen:
      case StaticKind::Mutable:
        return by_equality(held);
      case StaticKind::Fields:
        return object(held, py::type_of(held), fields_of(held));
      case StaticKind::Object:
        return object(held, held, py::instance_dict(held.ptr()));
      case StaticKind::Function:
        return functions_.function(held);
      case StaticKind::Partial:
        return functions_.partial(held);
      case StaticKind::Method:
        return recorder_.method(seen_, held, [&] {
          recorder_.same(held.attr("__self__"));
          value(held.attr("__func__"));
        });
    }
  }

  void object(const nb::object &held, const nb::object &identity, const nb::object &attributes) {
    if (recorder_.size() > kMaxParts) return recorder_.same(held);
    ++objects_;
    recorder_.object(seen_, held, identity, [&] { named(attributes); });
    --objects_;
  }

  // The arrays of JAX do not change.
  void array(const nb::object &held) {
    if (PyFloat_Check(held.ptr()) || PyComplex_Check(held.ptr())) return recorder_.scalar(held);
    if (is_refused() && objects_ == 0 && !py::type_of(held).is(settings().concrete_array)) {
      PyErr_SetString(PyExc_TypeError, "arrays are not hashable");
      throw nb::python_error();
    }
    recorder_.same(held);
  }

  void by_equality(const nb::object &held) {
    nb::object kept = held;
    size_t hash = 0;
    try {
      if (!is_refused() || objects_ > 0 || is_set(held.ptr())) kept = content(held);
      hash = typed_hash(kept.ptr());
    } catch (nb::python_error &error) {
      if (!error.matches(PyExc_TypeError)) throw;
      // What an object holds without a hash and without fields counts by identity, as the object does.
      if (objects_ > 0) return recorder_.same(held);
      if (is_refused()) throw;
    }
    recorder_.equal(kept, hash);
  }

  Recorder &recorder_;
  const Unhashable unhashable_;
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
  ContentReader(recorder, unhashable).value(nb::borrow<nb::object>(value));
  return recorder.take();
}

Reading metadata_snapshot(PyObject *metadata) {
  Recorder recorder(Trust::Itself);
  ContentReader(recorder, Unhashable::Allowed).named(nb::borrow<nb::object>(metadata));
  return recorder.take();
}

bool has_reading(PyObject *value) { return found_in(value, Look::ChangesAndFunctions, 0); }

bool may_change_in_place(PyObject *value) { return found_in(value, Look::Changes, 0); }

bool has_metadata_reading(PyObject *metadata) { return any_value(metadata, has_reading); }

bool is_unstable_metadata(PyObject *metadata) { return any_value(metadata, may_change_in_place); }

}  // namespace treadle
