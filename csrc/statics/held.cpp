#include "statics/held.h"

#include "id_table.h"
#include "objects/node_types.h"
#include "objects/packages.h"
#include "settings.h"
#include "statics/attributes.h"

namespace treadle {
namespace {

// Statics that hold more are large tables, which are made once and not by a trace.
constexpr size_t kMaxValues = 4096;

class Held {
 public:
  explicit Held(PyObject *value) { add(nb::borrow<nb::object>(value)); }

  // A value whose turn has come; null after the last.
  nb::object next() {
    if (open_.empty()) return {};
    nb::object value = std::move(open_.back());
    open_.pop_back();
    return value;
  }

  // What the value holds has its turn too.
  void expand(const nb::object &value) {
    const NodeType *info = classify(value.ptr());
    switch (info->kind) {
      case Kind::Tuple:
      case Kind::NamedTuple:
      case Kind::List:
        return add_items(value);
      case Kind::Dict:
        return add_values(value);
      case Kind::Pytree:
        return add_children(value);
      case Kind::Static:
        return expand_static(value, info->static_kind);
      default:
        return;
    }
  }

 private:
  void add(nb::object value) {
    const NodeType *known = known_type(Py_TYPE(value.ptr()));
    if (known != nullptr && known->kind == Kind::Static && known->static_kind == StaticKind::Simple) return;
    // Values may hold each other.
    if (met_.size() >= kMaxValues || !met_.insert(value.ptr(), 0).second) return;
    kept_.push_back(value);
    open_.push_back(std::move(value));
  }

  void add_items(const nb::object &iterable) {
    for (nb::handle item : nb::steal<nb::object>(py::checked(PySequence_List(iterable.ptr())).release()))
      add(nb::borrow<nb::object>(item));
  }

  void add_values(const nb::object &dict) {
    if (PyDict_Check(dict.ptr())) add_items(py::checked(PyDict_Values(dict.ptr())));
  }

  void add_attribute(const nb::object &object, const char *name) {
    nb::object found = nb::getattr(object, name, nb::object());
    if (found.is_valid()) add(std::move(found));
  }

  void add_children(const nb::object &value) {
    nb::object one_level = settings().flatten_one_level(value);
    if (one_level.is_none()) return;
    for (nb::handle entry : nb::object(one_level[0])) add(nb::object(entry[1]));
  }

  void expand_static(const nb::object &value, StaticKind kind) {
    switch (kind) {
      case StaticKind::Simple:
      case StaticKind::Number:
        return;
      case StaticKind::Function:
        return expand_function(value);
      case StaticKind::Partial:
        for (const char *name : {"func", "args", "keywords"}) add_attribute(value, name);
        return;
      case StaticKind::Method:
        for (const char *name : {"__self__", "__func__"}) add_attribute(value, name);
        return;
      case StaticKind::Fields:
      case StaticKind::Object:
        return add_values(attributes_of(value));
      case StaticKind::Identity:
      case StaticKind::Frozen:
      case StaticKind::Mutable:
        break;
    }
    if (PyType_Check(value.ptr()) || PyObject_TypeCheck(value.ptr(), &PyModule_Type)) return;
    if (PyDict_Check(value.ptr())) return add_values(value);
    if (PyList_Check(value.ptr()) || PyAnySet_Check(value.ptr())) return add_items(value);
    if (PyCFunction_Check(value.ptr())) return add_attribute(value, "__self__");
    // What JAX makes of functions.
    if (PyCallable_Check(value.ptr()) != 0) add_attribute(value, "__wrapped__");
    if (kind == StaticKind::Mutable && has_dict(value)) add_values(attributes_of(value));
  }

  static bool has_dict(const nb::object &value) {
    return (PyType_GetFlags(Py_TYPE(value.ptr())) & Py_TPFLAGS_HEAPTYPE) != 0;
  }

  void expand_function(const nb::object &function) {
    nb::object cells = function.attr("__closure__");
    if (!cells.is_none()) {
      for (nb::handle cell : cells) add_attribute(nb::borrow<nb::object>(cell), "cell_contents");
    }
    for (const char *name : {"__defaults__", "__kwdefaults__", "__dict__"}) add_attribute(function, name);
  }

  IdTable met_;
  std::vector<nb::object> kept_;  // so that their addresses stay theirs
  std::vector<nb::object> open_;
};

}  // namespace

bool holds_tracer(PyObject *value, const nb::object &trace) {
  auto *tracer = py::as_type(settings().tracer.ptr());
  Held held(value);
  while (nb::object next = held.next()) {
    if (PyType_IsSubtype(Py_TYPE(next.ptr()), tracer) == 0) {
      held.expand(next);
    } else if (nb::getattr(next, "_trace", nb::none()).is(trace)) {
      return true;
    }
  }
  return false;
}

void collect_callables(PyObject *value, std::vector<nb::object> &callables) {
  Held held(value);
  while (nb::object next = held.next()) {
    if (is_reference(classify(next.ptr())->kind)) continue;
    if (PyCallable_Check(next.ptr()) != 0) {
      callables.push_back(std::move(next));
      continue;
    }
    // What known packages define stays as it is.
    if (package_of(py::type_of(next)) == nullptr) callables.push_back(py::type_of(next));
    held.expand(next);
  }
}

}  // namespace treadle
