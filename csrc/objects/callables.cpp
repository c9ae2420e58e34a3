#include "objects/callables.h"

#include <cstring>

#include "bindings.h"
#include "id_table.h"
#include "settings.h"

namespace treadle {
namespace {

// Names of attributes, made once.
struct Names {
  nb::object args = py::intern("args"), dict = py::intern("__dict__"), function = py::intern("func"),
             keywords = py::intern("keywords"), marker = py::intern("_treadle_lifted");
  nb::object of_method = nb::make_tuple(py::intern("__func__"), py::intern("__self__"));
  nb::object of_partial = nb::make_tuple(dict, args, function, keywords);
  nb::object of_lifted = nb::make_tuple(py::intern("__wrapped__"));
};

const Names &names() { return py::made_once<Names>(); }

// Where in `object` the pointer `field` lies: neither ABI tells.
size_t offset_in(const nb::object &object, const nb::object &field) {
  auto size = nb::cast<size_t>(nb::object(py::type_of(object).attr("__basicsize__")));
  for (size_t at = sizeof(PyObject); at + sizeof(PyObject *) <= size; at += sizeof(PyObject *)) {
    PyObject *found = nullptr;
    std::memcpy(&found, reinterpret_cast<char *>(object.ptr()) + at, sizeof found);
    if (found == field.ptr()) return at;
  }
  throw std::runtime_error("a callable of this Python does not keep its parts in itself");
}

// Where methods and partials keep their parts, which may then be looked at without running Python.
struct Offsets {
  size_t method_function, method_self, dict, args, function, keywords;

  Offsets() {
    nb::object called = nb::module_::import_("operator").attr("add"), self = nb::make_tuple(nb::none());
    nb::object method = settings().method_type(called, self);
    method_function = offset_in(method, called);
    method_self = offset_in(method, self);
    nb::object partial = settings().partial_type(called, self);
    function = offset_in(partial, called);
    args = offset_in(partial, partial.attr("args"));
    keywords = offset_in(partial, partial.attr("keywords"));
    nb::setattr(partial, "mark", self);
    dict = offset_in(partial, partial.attr("__dict__"));
  }
};

PyObject *field(PyObject *object, size_t offset) {
  return *reinterpret_cast<PyObject **>(reinterpret_cast<char *>(object) + offset);
}

// Most programs transform no callable that holds a node, and their functions need not be asked.
bool g_any_lifted = false;

// What a transform left in the attributes of what it made, borrowed: (address, recipe, function). Other functions may
// have a copy of it among their attributes, so it says what it is about.
PyObject *marker_of(PyObject *callable) {
  if (!g_any_lifted) return nullptr;
  nb::object attributes = py::instance_dict(callable);
  PyObject *marker = nullptr;
  for (auto [name, value] : py::DictItems(attributes.ptr())) {
    if (name == names().marker.ptr()) marker = value;
  }
  if (marker == nullptr || !PyTuple_CheckExact(marker) || py::tuple_size(marker) != 3) return nullptr;
  PyObject *address = py::tuple_item(marker, 0);
  if (!py::is_exact(address, &PyLong_Type) || !is_recipe(py::tuple_item(marker, 1))) return nullptr;
  const bool is_own = PyLong_AsVoidPtr(address) == callable;
  PyErr_Clear();
  return is_own ? marker : nullptr;
}

// Appends what `value` holds to `held`, if it is a plain container or a callable.
void add_content(const nb::object &value, const NodeType &info, std::vector<nb::object> &held) {
  auto add = [&](nb::handle item) { held.push_back(nb::borrow<nb::object>(item)); };
  switch (info.kind) {
    case Kind::Tuple:
    case Kind::NamedTuple:
      for (Py_ssize_t i = 0; i < PyTuple_Size(value.ptr()); ++i) add(py::tuple_item(value.ptr(), i));
      return;
    case Kind::List:
      for (Py_ssize_t i = 0; i < py::list_size(value.ptr()); ++i) add(py::list_item(value.ptr(), i));
      return;
    case Kind::Dict:
    case Kind::Mapping: {
      nb::object dict = info.kind == Kind::Dict ? value : info.mapping_layout()->items(value.ptr());
      if (!dict.is_valid()) return;
      for (auto [key, item] : py::DictItems(dict.ptr())) add(item);
      return;
    }
    case Kind::Pytree: {
      nb::object parts = settings().flatten_one_level(value);
      if (parts.is_none()) return;
      for (nb::handle entry : nb::object(parts[0])) add(nb::object(entry[1]));
      break;
    }
    default:
      break;
  }
  const CallableParts parts = parts_of(value.ptr(), info.callable);
  for (size_t i = 0; i < parts.count; ++i) add(parts.items[i]);
}

}  // namespace

CallableParts parts_of(PyObject *callable, CallableKind kind) {
  if (kind == CallableKind::Lifted) {
    PyObject *marker = marker_of(callable);
    return marker == nullptr ? CallableParts{} : CallableParts{1, {py::tuple_item(marker, 2)}};
  }
  if (kind == CallableKind::None) return {};
  const Offsets &at = py::made_once<Offsets>();
  if (kind == CallableKind::Method) return {2, {field(callable, at.method_function), field(callable, at.method_self)}};
  PyObject *dict = field(callable, at.dict);
  if (dict == nullptr || py::dict_size(dict) == 0) dict = Py_None;
  return {4, {dict, field(callable, at.args), field(callable, at.function), field(callable, at.keywords)}};
}

const nb::object &part_names(CallableKind kind) {
  return kind == CallableKind::Method    ? names().of_method
         : kind == CallableKind::Partial ? names().of_partial
                                         : names().of_lifted;
}

PyObject *function_of_partial(PyObject *partial) { return field(partial, py::made_once<Offsets>().function); }

PyObject *recipe_of(PyObject *lifted) { return py::tuple_item(marker_of(lifted), 1); }

bool is_recipe(PyObject *value) {
  if (!PyTuple_CheckExact(value) || py::tuple_size(value) != 3) return false;
  return PyUnicode_CheckExact(py::tuple_item(value, 0)) && PyTuple_CheckExact(py::tuple_item(value, 1)) &&
         PyTuple_CheckExact(py::tuple_item(value, 2));
}

nb::object make_callable(CallableKind kind, const nb::object &made_by, const std::vector<nb::object> &parts) {
  if (kind == CallableKind::Method) return settings().method_type(parts.at(0), parts.at(1));
  if (kind == CallableKind::Partial) {
    // As pickle does it: `partial(partial(f, a), b)` would take apart what has attributes of its own.
    nb::object partial = settings().partial_type.attr("__new__")(made_by, parts.at(2));
    partial.attr("__setstate__")(nb::make_tuple(parts.at(2), parts.at(1), parts.at(3), parts.at(0)));
    return partial;
  }
  nb::object again = nb::module_::import_("treadle.transforms").attr(nb::str(nb::object(made_by[0])));
  nb::object args = nb::make_tuple(parts.at(0)) + nb::object(made_by[1]), options = nb::dict();
  for (nb::handle option : nb::object(made_by[2])) options[nb::object(option[0])] = nb::object(option[1]);
  return py::checked(PyObject_Call(again.ptr(), args.ptr(), options.ptr()));
}

bool holds_node(const nb::object &value) {
  // All that was met is held, so that addresses stay theirs.
  std::vector<nb::object> met{value};
  IdTable seen;
  for (size_t i = 0; i < met.size(); ++i) {
    nb::object at = met[i];
    if (!seen.insert(at.ptr(), 0).second) continue;
    const NodeType *info = classify(at.ptr());
    if (is_reference(info->kind)) return true;
    add_content(at, *info, met);
  }
  return false;
}

void bind_callables(nb::module_ &m) {
  m.def("holds_node", [](const nb::object &value) { return holds_node(value); }, nb::arg("value").none());
  m.def(
      "mark_lifted",
      [](const nb::object &made, const nb::object &recipe, const nb::object &function) {
        if (classify(made.ptr())->callable != CallableKind::Lifted) return;
        nb::object address = py::checked(PyLong_FromVoidPtr(made.ptr()));
        nb::object attributes = py::instance_dict(made.ptr()), marker = nb::make_tuple(address, recipe, function);
        py::check_status(PyDict_SetItem(attributes.ptr(), names().marker.ptr(), marker.ptr()));
        g_any_lifted = true;
      },
      nb::arg("made").none(), nb::arg("recipe"), nb::arg("function").none());
  m.def(
      "recipe_of",
      [](const nb::object &value) {
        const CallableKind kind = classify(value.ptr())->callable;
        if (kind != CallableKind::Lifted || parts_of(value.ptr(), kind).count == 0) return nb::object(nb::none());
        return nb::borrow<nb::object>(recipe_of(value.ptr()));
      },
      nb::arg("value").none());
  m.def(
      "callable_parts",
      [](const nb::object &value) {
        const CallableKind kind = classify(value.ptr())->callable;
        const CallableParts parts = parts_of(value.ptr(), kind);
        nb::list pairs;
        for (size_t i = 0; i < parts.count; ++i) {
          nb::object name = nb::borrow<nb::object>(py::tuple_item(part_names(kind).ptr(), static_cast<Py_ssize_t>(i)));
          pairs.append(nb::make_tuple(name, nb::borrow<nb::object>(parts.items[i])));
        }
        return pairs;
      },
      nb::arg("value").none());
}

}  // namespace treadle
