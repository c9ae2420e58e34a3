#include "objects/layout.h"

#include <cstring>

#include "settings.h"

namespace treadle {
namespace {

nb::object null_if_none(nb::object value) { return value.is_none() ? nb::object() : value; }

PyObject *dict_or_null(PyObject *found) {
  return found != nullptr && py::is_exact(found, &PyDict_Type) ? found : nullptr;
}

TraceMemory read_memory(const nb::object &description) {
  TraceMemory memory{description.attr("make_trace"), py::to_objects(nb::object(description.attr("owner_path")))};
  for (nb::object &name : memory.path) name = py::interned(std::move(name));
  return memory;
}

Layout read_variable(const nb::object &type, const nb::object &description) {
  VariableLayout layout;
  layout.value = Slot(type, description.attr("value"));
  layout.metadata = Slot(type, description.attr("metadata"));
  layout.trace = Slot(type, description.attr("trace"));
  layout.counterpart = description.attr("counterpart");
  layout.refuse = description.attr("refuse");
  layout.refused_values = py::to_objects(nb::object(description.attr("refused_values")));
  layout.refused_value_reason = description.attr("refused_value_reason");
  layout.memory = read_memory(description);
  return layout;
}

Layout read_node(const nb::object &, const nb::object &description) {
  auto name = [&](const char *field) { return py::interned(null_if_none(description.attr(field))); };
  NodeLayout layout;
  layout.state_name = name("state");
  layout.marks_name = name("marks");
  layout.marks_field = name("marks_field");
  layout.make_marks = null_if_none(description.attr("make_marks"));
  layout.int_keys = nb::cast<bool>(description.attr("int_keys"));
  layout.memory = read_memory(description);
  return layout;
}

Layout read_mapping(const nb::object &type, const nb::object &description) {
  MappingLayout layout;
  layout.name = py::interned(description.attr("items"));
  layout.make = null_if_none(description.attr("make"));
  nb::object slot = nb::getattr(type, layout.name, nb::none());
  if (!slot.is_none()) layout.slot = Slot(type, layout.name);
  return layout;
}

}  // namespace

Slot::Slot(const nb::object &type, const nb::object &name)
    : descriptor_(py::checked(PyObject_GetAttr(type.ptr(), name.ptr()))) {
  PyTypeObject *kind = Py_TYPE(descriptor_.ptr());
  if (!py::type_object(kind).is(nb::module_::import_("types").attr("MemberDescriptorType"))) {
    PyErr_Format(PyExc_TypeError, "%R of %R is not a slot", name.ptr(), type.ptr());
    throw nb::python_error();
  }
  get_ = py::type_slot<descrgetfunc>(kind, Py_tp_descr_get);
  set_ = py::type_slot<descrsetfunc>(kind, Py_tp_descr_set);
  offset_ = find_offset(descriptor_.attr("__objclass__"));
}

// Neither ABI tells where a descriptor's slot lies in an instance, so one is filled and looked for.
size_t Slot::find_offset(const nb::object &type) const {
  nb::object probe = bare_instance(py::as_type(type.ptr())), mark = py::checked(PyList_New(0));
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
  return py::checked(get_(descriptor_.ptr(), object, py::as_object(Py_TYPE(object))));
}

void Slot::set(PyObject *object, PyObject *value) const { py::check_status(set_(descriptor_.ptr(), object, value)); }

nb::object bare_instance(PyTypeObject *type) {
  // The method, not the slot: it refuses types whose instances need more than `object` sets up, such as dicts.
  return py::checked(PyObject_CallFunctionObjArgs(settings().object_new.ptr(), py::as_object(type), nullptr));
}

nb::object TraceMemory::owner(nb::object at) const {
  for (const nb::object &name : path) at = py::checked(PyObject_GetAttr(at.ptr(), name.ptr()));
  return at;
}

std::shared_ptr<const DictSnapshot> VariableLayout::snapshot(PyObject *variable) const {
  nb::object dict = metadata.get(variable);
  if (!PyDict_Check(dict.ptr())) throw nb::type_error("the metadata of a Variable must be a dict");
  return snapshot_of(dict.ptr(), refuse);
}

PyObject *NodeLayout::marks_object(PyObject *dict) const {
  return marks_name.is_valid() ? py::dict_get(dict, marks_name.ptr()).ptr() : nullptr;
}

nb::object NodeLayout::marks(PyObject *dict) const {
  PyObject *found = marks_object(dict);
  if (found == nullptr || !marks_field.is_valid()) return nb::borrow<nb::object>(found);
  nb::object content = py::checked(PyObject_GetAttr(found, marks_field.ptr()));
  if (!PyDict_Check(content.ptr())) return content;
  return snapshot_of(content.ptr(), nb::object())->dict;
}

nb::object NodeLayout::marks_from(PyObject *marks) const {
  nb::object held = nb::borrow<nb::object>(marks);
  return make_marks.is_valid() ? make_marks(held) : held;
}

nb::object NodeLayout::owner(PyObject *node) const {
  nb::object state = py::dict_get(py::instance_dict(node).ptr(), state_name.ptr());
  return state.is_valid() ? memory.owner(std::move(state)) : state;
}

nb::object MappingLayout::items(PyObject *mapping) const {
  nb::object held = slot.is_bound() ? nb::borrow<nb::object>(slot.peek(mapping))
                                    : py::dict_get(py::instance_dict(mapping).ptr(), name.ptr());
  return nb::borrow<nb::object>(dict_or_null(held.ptr()));
}

PyObject *MappingLayout::peek_items(PyObject *mapping) const {
  if (slot.is_bound()) return dict_or_null(slot.peek(mapping));
  // Looking a name up compares it with names of the same hash, which may be of a type of the user's own.
  nb::object attributes = py::instance_dict(mapping);
  PyObject *found = nullptr;
  for (auto [attribute, value] : py::DictItems(attributes.ptr())) {
    if (attribute == name.ptr()) found = value;
  }
  return dict_or_null(found);
}

nb::object MappingLayout::made(PyTypeObject *type, const nb::object &dict) const {
  if (make.is_valid()) return make(dict);
  nb::object mapping = bare_instance(type);
  nb::object attributes = py::instance_dict(mapping.ptr());
  py::check_status(PyDict_SetItem(attributes.ptr(), name.ptr(), dict.ptr()));
  return mapping;
}

bool is_marked(PyObject *marks, PyObject *name) {
  if (PyDict_Check(marks)) return py::dict_get(marks, name).ptr() == Py_True;
  int found = PySet_Contains(marks, name);
  py::check_status(found);
  return found == 1;
}

nb::object index_or_name(PyObject *name) {
  Py_ssize_t size = 0;
  const char *text = PyUnicode_Check(name) ? PyUnicode_AsUTF8AndSize(name, &size) : nullptr;
  if (text == nullptr) PyErr_Clear();
  bool is_index = size > 0 && (text[0] != '0' || size == 1);
  for (Py_ssize_t i = 0; i < size && is_index; ++i) is_index = text[i] >= '0' && text[i] <= '9';
  return is_index ? py::checked(PyLong_FromString(text, nullptr, 10)) : nb::borrow<nb::object>(name);
}

std::shared_ptr<const Layout> read_layout(const nb::object &type, const nb::object &description) {
  using Read = Layout (*)(const nb::object &, const nb::object &);
  static constexpr std::pair<const char *, Read> kinds[] = {
      {"variable", read_variable}, {"node", read_node}, {"mapping", read_mapping}};
  for (const auto &[kind, read] : kinds) {
    if (description.attr("kind").equal(nb::str(kind))) return std::make_shared<const Layout>(read(type, description));
  }
  return nullptr;
}

}  // namespace treadle
