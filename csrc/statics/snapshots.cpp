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

// What a set or a bytearray holds now.
nb::object content(const nb::object &value) {
  if (py::is_exact(value.ptr(), &PySet_Type)) return py::checked(PyFrozenSet_New(value.ptr()));
  if (py::is_exact(value.ptr(), &PyByteArray_Type)) return py::checked(PyBytes_FromObject(value.ptr()));
  return value;
}

// What to look for in a value.
enum class Look : uint8_t { Changes, ChangesAndFunctions };

bool found_in(PyObject *value, Look look, uint32_t depth = 0) {
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
      return true;
    default:
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
        if (is_refused()) content_hash(held.ptr());
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

  // The arrays of JAX do not change.
  void array(const nb::object &held) {
    if (is_refused() && !py::type_of(held).is(settings().concrete_array)) {
      PyErr_SetString(PyExc_TypeError, "arrays are not hashable");
      throw nb::python_error();
    }
    recorder_.same(held);
  }

  void by_equality(const nb::object &held) {
    nb::object kept = held;
    size_t hash = 0;
    try {
      if (!is_refused()) kept = content(held);
      hash = typed_hash(kept.ptr());
    } catch (nb::python_error &error) {
      if (is_refused() || !error.matches(PyExc_TypeError)) throw;
    }
    recorder_.equal(kept, hash);
  }

  Recorder &recorder_;
  const Unhashable unhashable_;
  FunctionReader functions_;
  IdTable seen_;
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
  Recorder recorder(Trust::SeenFunctions);
  ContentReader(recorder, unhashable).value(nb::borrow<nb::object>(value));
  return recorder.take();
}

Reading metadata_snapshot(PyObject *metadata) {
  Recorder recorder(Trust::SeenFunctions);
  ContentReader(recorder, Unhashable::Allowed).named(nb::borrow<nb::object>(metadata));
  return recorder.take();
}

bool has_reading(PyObject *value) { return found_in(value, Look::ChangesAndFunctions); }

bool may_change_in_place(PyObject *value) { return found_in(value, Look::Changes); }

bool has_metadata_reading(PyObject *metadata) { return any_value(metadata, has_reading); }

bool is_unstable_metadata(PyObject *metadata) { return any_value(metadata, may_change_in_place); }

}  // namespace treadle
