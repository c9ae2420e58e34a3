#include "objects/layout.h"

#include <cstring>
#include <unordered_map>

#include "objects/node_types.h"
#include "settings.h"
#include "statics/statics.h"

namespace treadle {
namespace {

// Distinct contents remembered at most: a program has a few, unless it makes metadata up as it goes.
constexpr size_t kMaxSnapshots = 4096;

// Tuples in metadata nested deeper than this count as values that may refer to anything.
constexpr int kMaxTupleDepth = 16;

// True for constants, as far as their types tell: they lead to none of a caller's objects.
bool refers_to_nothing(PyObject *value, int depth) {
  if (py::is_exact(value, &PyTuple_Type) && depth < kMaxTupleDepth) {
    for (Py_ssize_t i = 0; i < py::tuple_size(value); ++i) {
      if (!refers_to_nothing(py::tuple_item(value, i), depth + 1)) return false;
    }
    return true;
  }
  const NodeType *type = classify(value);
  if (type->kind == Kind::None) return true;
  if (type->kind != Kind::Static) return false;
  if (type->static_kind == StaticKind::Simple) return true;
  // A frozen dataclass has the fields it likes.
  return type->static_kind == StaticKind::Frozen &&
         PyObject_HasAttrString(reinterpret_cast<PyObject *>(Py_TYPE(value)), "__dataclass_params__") == 0;
}

using Bucket = std::vector<std::shared_ptr<const Snapshot>>;

std::unordered_map<size_t, Bucket> &snapshots() {
  static auto *cache = new std::unordered_map<size_t, Bucket>();
  return *cache;
}

size_t address(PyObject *object) { return reinterpret_cast<size_t>(object) >> 4; }

nb::object interned(const nb::object &name) {
  if (!name.is_valid()) return name;
  PyObject *text = nb::object(name).release().ptr();
  if (PyUnicode_CheckExact(text)) PyUnicode_InternInPlace(&text);
  return nb::steal<nb::object>(text);
}

nb::object null_if_none(nb::object value) { return value.is_none() ? nb::object() : value; }

}  // namespace

Slot::Slot(const nb::object &type, const nb::object &name)
    : descriptor_(py::checked(PyObject_GetAttr(type.ptr(), name.ptr()))) {
  PyTypeObject *kind = Py_TYPE(descriptor_.ptr());
  if (!nb::object(nb::borrow<nb::object>(reinterpret_cast<PyObject *>(kind)))
           .is(nb::module_::import_("types").attr("MemberDescriptorType"))) {
    PyErr_Format(PyExc_TypeError, "%R of %R is not a slot", name.ptr(), type.ptr());
    throw nb::python_error();
  }
  get_ = reinterpret_cast<descrgetfunc>(PyType_GetSlot(kind, Py_tp_descr_get));
  set_ = reinterpret_cast<descrsetfunc>(PyType_GetSlot(kind, Py_tp_descr_set));
  offset_ = find_offset(descriptor_.attr("__objclass__"));
}

// Neither ABI tells where a descriptor's slot lies in an instance, so one is filled and looked for.
size_t Slot::find_offset(const nb::object &type) const {
  nb::object probe = bare_instance(reinterpret_cast<PyTypeObject *>(type.ptr())), mark = py::checked(PyList_New(0));
  set(probe.ptr(), mark.ptr());
  auto size = nb::cast<size_t>(type.attr("__basicsize__"));
  for (size_t at = sizeof(PyObject); at + sizeof(PyObject *) <= size; at += sizeof(PyObject *)) {
    PyObject *found = nullptr;
    std::memcpy(&found, reinterpret_cast<char *>(probe.ptr()) + at, sizeof found);
    if (found == mark.ptr()) return at;
  }
  PyErr_Format(PyExc_TypeError, "%R does not keep its slot %R in its instances", type.ptr(), descriptor_.ptr());
  throw nb::python_error();
}

nb::object Slot::get(PyObject *object) const {
  return py::checked(get_(descriptor_.ptr(), object, reinterpret_cast<PyObject *>(Py_TYPE(object))));
}

void Slot::set(PyObject *object, PyObject *value) const { py::check_status(set_(descriptor_.ptr(), object, value)); }

Entries entries_of(PyObject *dict) {
  Entries entries;
  PyObject *key = nullptr, *value = nullptr;
  Py_ssize_t position = 0;
  while (PyDict_Next(dict, &position, &key, &value)) entries.emplace_back(key, value);
  return entries;
}

bool has_entries(PyObject *dict, const Entries &entries) {
  if (py::dict_size(dict) != static_cast<Py_ssize_t>(entries.size())) return false;
  PyObject *key = nullptr, *value = nullptr;
  Py_ssize_t position = 0;
  for (const auto &[known_key, known_value] : entries) {
    if (!PyDict_Next(dict, &position, &key, &value) || key != known_key || value != known_value) return false;
  }
  return true;
}

std::shared_ptr<const Snapshot> snapshot_of(PyObject *dict, const nb::object &judge) {
  size_t hash = address(judge.ptr());
  PyObject *key = nullptr, *value = nullptr;
  Py_ssize_t position = 0;
  while (PyDict_Next(dict, &position, &key, &value)) hash = mix(mix(hash, address(key)), address(value));
  auto &cache = snapshots();
  if (auto found = cache.find(hash); found != cache.end()) {
    for (const auto &known : found->second) {
      if (known->judge.is(judge) && has_entries(dict, known->entries)) return known;
    }
  }
  auto fresh = std::make_shared<Snapshot>();
  fresh->dict = py::checked(PyDict_Copy(dict));
  fresh->judge = judge;
  fresh->entries = entries_of(fresh->dict.ptr());
  fresh->refusal = judge.is_valid() ? judge(fresh->dict) : nb::none();
  for (const auto &entry : fresh->entries) {
    if (!refers_to_nothing(entry.second, 0)) return fresh;
  }
  if (cache.size() >= kMaxSnapshots) {
    // Swapped out first: what goes may run code that asks for snapshots.
    std::unordered_map<size_t, Bucket> dropped;
    dropped.swap(cache);
  }
  cache[hash].push_back(fresh);
  return fresh;
}

bool Layout::hides(PyObject *name) const { return name == state_name.ptr() || name == marks_name.ptr(); }

PyObject *Layout::marks_object(PyObject *dict) const {
  if (!marks_name.is_valid()) return nullptr;
  PyObject *found = PyDict_GetItemWithError(dict, marks_name.ptr());
  if (found == nullptr && PyErr_Occurred()) throw nb::python_error();
  return found;
}

nb::object Layout::marks(PyObject *dict) const {
  PyObject *found = marks_object(dict);
  if (found == nullptr || !marks_field.is_valid()) return nb::borrow<nb::object>(found);
  nb::object content = py::checked(PyObject_GetAttr(found, marks_field.ptr()));
  if (!PyDict_Check(content.ptr())) return content;
  return snapshot_of(content.ptr(), nb::object())->dict;
}

nb::object Layout::marks_from(PyObject *marks) const {
  nb::object held = nb::borrow<nb::object>(marks);
  return make_marks.is_valid() ? make_marks(held) : held;
}

std::shared_ptr<const Snapshot> Layout::snapshot(PyObject *variable) const {
  nb::object dict = metadata.get(variable);
  if (!PyDict_Check(dict.ptr())) throw nb::type_error("the metadata of a Variable must be a dict");
  return snapshot_of(dict.ptr(), refuse);
}

nb::object Layout::owner(PyObject *object, bool is_variable) const {
  nb::object at;
  if (is_variable) {
    at = trace.get(object);
  } else {
    nb::object dict = py::instance_dict(object);
    PyObject *state = PyDict_GetItemWithError(dict.ptr(), state_name.ptr());
    if (state == nullptr) {
      if (PyErr_Occurred()) throw nb::python_error();
      // Without a memory of its trace an object can be changed anywhere.
      return nb::object();
    }
    at = nb::borrow<nb::object>(state);
  }
  for (const nb::object &name : owner_path) at = py::checked(PyObject_GetAttr(at.ptr(), name.ptr()));
  return at;
}

nb::object Layout::items(PyObject *mapping) const {
  PyObject *found = nullptr;
  if (items_slot.is_bound()) {
    found = items_slot.peek(mapping);
  } else {
    nb::object attributes = py::instance_dict(mapping);
    found = PyDict_GetItemWithError(attributes.ptr(), items_name.ptr());
    if (found == nullptr && PyErr_Occurred()) throw nb::python_error();
  }
  return found != nullptr && py::is_exact(found, &PyDict_Type) ? nb::borrow<nb::object>(found) : nb::object();
}

PyObject *Layout::peek_items(PyObject *mapping) const {
  PyObject *found = nullptr;
  if (items_slot.is_bound()) {
    found = items_slot.peek(mapping);
  } else {
    // Looking a name up compares it with names of the same hash, which may be of a type of the user's own.
    nb::object attributes = py::instance_dict(mapping);
    PyObject *name = nullptr, *held = nullptr;
    Py_ssize_t position = 0;
    while (PyDict_Next(attributes.ptr(), &position, &name, &held)) {
      if (name == items_name.ptr()) found = held;
    }
  }
  return found != nullptr && py::is_exact(found, &PyDict_Type) ? found : nullptr;
}

nb::object Layout::mapping_from(PyTypeObject *type, const nb::object &dict) const {
  if (make_mapping.is_valid()) return make_mapping(dict);
  nb::object mapping = bare_instance(type);
  nb::object attributes = py::instance_dict(mapping.ptr());
  py::check_status(PyDict_SetItem(attributes.ptr(), items_name.ptr(), dict.ptr()));
  return mapping;
}

bool is_marked(PyObject *marks, PyObject *name) {
  if (PyDict_Check(marks)) {
    PyObject *mark = PyDict_GetItemWithError(marks, name);
    if (mark == nullptr && PyErr_Occurred()) throw nb::python_error();
    return mark == Py_True;
  }
  int found = PySet_Contains(marks, name);
  py::check_status(found);
  return found == 1;
}

nb::object own_metadata(PyObject *metadata) {
  // Making a dict may run a collection, and with it a finalizer that replaces the metadata.
  nb::object held = nb::borrow<nb::object>(metadata);
  return py::checked(metadata != nullptr ? PyDict_Copy(metadata) : PyDict_New());
}

nb::object index_or_name(PyObject *name) {
  Py_ssize_t size = 0;
  const char *text = PyUnicode_Check(name) ? PyUnicode_AsUTF8AndSize(name, &size) : nullptr;
  if (text == nullptr) PyErr_Clear();
  bool is_index = size > 0 && (text[0] != '0' || size == 1);
  for (Py_ssize_t i = 0; i < size && is_index; ++i) is_index = text[i] >= '0' && text[i] <= '9';
  return is_index ? py::checked(PyLong_FromString(text, nullptr, 10)) : nb::borrow<nb::object>(name);
}

nb::object bare_instance(PyTypeObject *type) {
  // The method, not the slot: it refuses types whose instances need more than `object` sets up, such as dicts.
  return py::checked(
      PyObject_CallFunctionObjArgs(settings().object_new.ptr(), reinterpret_cast<PyObject *>(type), nullptr));
}

std::unique_ptr<Layout> read_layout(const nb::object &type, const nb::object &description) {
  auto layout = std::make_unique<Layout>();
  auto name = [&](const char *field) { return interned(null_if_none(description.attr(field))); };
  nb::object kind = description.attr("kind");
  if (kind.equal(nb::str("variable"))) {
    layout->value = Slot(type, description.attr("value"));
    layout->metadata = Slot(type, description.attr("metadata"));
    layout->trace = Slot(type, description.attr("trace"));
    layout->counterpart = description.attr("counterpart");
    layout->refuse = description.attr("refuse");
    for (nb::handle refused : nb::object(description.attr("refused_values")))
      layout->refused_values.push_back(nb::borrow<nb::object>(refused));
    layout->refused_value_reason = description.attr("refused_value_reason");
  } else if (kind.equal(nb::str("node"))) {
    layout->state_name = name("state");
    layout->marks_name = name("marks");
    layout->marks_field = name("marks_field");
    layout->make_marks = null_if_none(description.attr("make_marks"));
    layout->int_keys = nb::cast<bool>(description.attr("int_keys"));
  } else {
    layout->items_name = name("items");
    layout->make_mapping = null_if_none(description.attr("make"));
    nb::object slot = nb::getattr(type, layout->items_name, nb::none());
    if (!slot.is_none()) layout->items_slot = Slot(type, layout->items_name);
    return layout;
  }
  layout->make_trace = description.attr("make_trace");
  for (nb::handle step : nb::object(description.attr("owner_path")))
    layout->owner_path.push_back(interned(nb::borrow<nb::object>(step)));
  return layout;
}

}  // namespace treadle
