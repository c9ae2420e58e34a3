#include "objects/node_types.h"

#include <iterator>
#include <memory>
#include <unordered_map>

#include "bindings.h"
#include "objects/cells.h"
#include "objects/packages.h"
#include "settings.h"

namespace treadle {
namespace {

struct Entry {
  std::unique_ptr<NodeType> info;
  nb::object watcher;  // weak reference to the type; its callback removes the entry
};

// Never destroyed: entries may be asked for while the interpreter shuts down.
std::unordered_map<PyTypeObject *, Entry> &table() {
  static auto *entries = new std::unordered_map<PyTypeObject *, Entry>();
  return *entries;
}

// In front of the table, by address: a walk asks for each object it meets. Invariant: what is here is in the table.
struct Recent {
  PyTypeObject *type = nullptr;
  const NodeType *info = nullptr;
};
constexpr size_t kRecent = 256;
Recent g_recent[kRecent];

Recent &recent(PyTypeObject *type) {
  const size_t hash = reinterpret_cast<size_t>(type) >> 4;
  return g_recent[(hash ^ (hash >> 8)) % kRecent];
}

bool has_attribute(const nb::object &object, const char *name) {
  PyObject *found = PyObject_GetAttrString(object.ptr(), name);
  if (found == nullptr) {
    if (!PyErr_ExceptionMatches(PyExc_AttributeError)) throw nb::python_error();
    PyErr_Clear();
    return false;
  }
  Py_DECREF(found);
  return true;
}

bool is_simple(PyTypeObject *type) {
  return type == &PyLong_Type || type == &PyFloat_Type || type == &PyBool_Type || type == &PyUnicode_Type ||
         type == &PyBytes_Type || type == &PyComplex_Type || type == Py_TYPE(Py_Ellipsis);
}

// What numpy has for numbers. Of records, which change, and of subclasses, which hold what they like, nothing is known.
bool is_numpys_number(PyObject *object) {
  static auto *generic = new nb::object(nb::module_::import_("numpy").attr("generic"));
  if (PyType_IsSubtype(Py_TYPE(object), py::as_type(generic->ptr())) == 0) return false;
  return package_of(py::type_of(object)) != nullptr;
}

nb::object own_dict(const nb::object &type) { return py::checked(PyObject_GetAttrString(type.ptr(), "__dict__")); }

bool is_frozen(const nb::object &type) {
  if (PyMapping_HasKeyString(own_dict(type).ptr(), "__dataclass_params__") == 0) return false;
  return nb::cast<bool>(type.attr("__dataclass_params__").attr("frozen"));
}

// The class that says what equality is.
nb::object where_equality_is(const nb::object &type) {
  for (nb::handle base : nb::object(type.attr("__mro__"))) {
    nb::object held = nb::borrow<nb::object>(base);
    if (PyMapping_HasKeyString(own_dict(held).ptr(), "__eq__") != 0) return held;
  }
  return type;
}

// Code that `dataclasses` writes has no file.
bool is_equality_of_a_dataclass(const nb::object &type) {
  nb::object entries = own_dict(where_equality_is(type));
  if (PyMapping_HasKeyString(entries.ptr(), "__dataclass_params__") == 0) return false;
  nb::object equality = nb::getattr(entries[nb::str("__eq__")], "__wrapped__", nb::object(entries[nb::str("__eq__")]));
  nb::object file = nb::getattr(nb::getattr(equality, "__code__", nb::none()), "co_filename", nb::none());
  return nb::isinstance<nb::str>(file) && py::text(file).starts_with("<string>");
}

// Names of slots, as a tuple, or null: descriptors of members that its classes define.
nb::object slots_of(const nb::object &type) {
  static auto *member = new nb::object(nb::module_::import_("types").attr("MemberDescriptorType"));
  std::vector<nb::object> found;
  for (nb::handle base : nb::object(type.attr("__mro__"))) {
    if ((PyType_GetFlags(py::as_type(base.ptr())) & Py_TPFLAGS_HEAPTYPE) == 0) continue;
    nb::object entries = own_dict(nb::borrow<nb::object>(base));
    for (nb::handle entry : nb::list(entries.attr("items")())) {
      if (nb::object(entry[1]).type().is(*member)) found.push_back(nb::object(entry[0]));
    }
  }
  return found.empty() ? nb::object() : py::to_tuple(std::move(found));
}

bool has_instance_dict(const nb::object &type) {
  nb::object offset = nb::getattr(type, "__dictoffset__", nb::int_(0));
  return !offset.equal(nb::int_(0));
}

// True if nothing of an instance is hidden in C structures.
bool is_written_in_python(const nb::object &type) {
  for (nb::handle base : nb::object(type.attr("__mro__"))) {
    auto *as_type = py::as_type(base.ptr());
    if (as_type != &PyBaseObject_Type && !is_made_by_python(as_type)) return false;
  }
  return true;
}

// Without a hash, what an instance holds is all there is to compare.
bool is_read_without_hash(const nb::object &type, const nb::object &slots) {
  if (!nb::getattr(type, "__hash__", nb::none()).is_none()) return false;
  if (type.is(nb::module_::import_("types").attr("SimpleNamespace"))) return true;
  return (slots.is_valid() || has_instance_dict(type)) && is_written_in_python(type);
}

// Of the user's, or of a library of which nothing is known: its objects have attributes.
bool is_users(const nb::object &type, const nb::object &slots) {
  auto *as_type = py::as_type(type.ptr());
  if ((PyType_GetFlags(as_type) & Py_TPFLAGS_HEAPTYPE) == 0 || PyType_IsSubtype(as_type, &PyType_Type)) return false;
  if (!slots.is_valid() && !has_instance_dict(type)) return false;
  nb::object module = nb::getattr(type, "__module__", nb::none());
  if (!nb::isinstance<nb::str>(module) || package_of(type) != nullptr) return false;
  const std::string name = py::text(module);
  nb::object standard = nb::module_::import_("sys").attr("stdlib_module_names");
  return name == "__main__" || !nb::cast<bool>(standard.attr("__contains__")(name.substr(0, name.find('.')).c_str()));
}

StaticKind static_kind(PyTypeObject *type) {
  const Settings &s = settings();
  PyObject *as_object = py::as_object(type);
  if (is_simple(type)) return StaticKind::Simple;
  if (as_object == s.function_type.ptr()) return StaticKind::Function;
  if (as_object == s.partial_type.ptr()) return StaticKind::Partial;
  if (as_object == s.method_type.ptr()) return StaticKind::Method;
  if (PyType_IsSubtype(type, &PyType_Type)) {
    // Classes compare by identity unless a metaclass says otherwise.
    if (PyType_GetSlot(type, Py_tp_richcompare) == PyType_GetSlot(&PyType_Type, Py_tp_richcompare))
      return StaticKind::Identity;
  }
  nb::object object = py::type_object(type);
  if (PyObject_IsSubclass(as_object, s.enum_type.ptr()) == 1) return StaticKind::Frozen;
  if (PyType_GetSlot(type, Py_tp_richcompare) == PyType_GetSlot(&PyBaseObject_Type, Py_tp_richcompare)) {
    return is_users(object, slots_of(object)) ? StaticKind::Object : StaticKind::Identity;
  }
  const Package *package = package_of(object);
  if (package != nullptr && package->values) return StaticKind::Frozen;
  if (is_equality_of_a_dataclass(object) || is_read_without_hash(object, slots_of(object))) return StaticKind::Fields;
  return StaticKind::Mutable;
}

// Of functions most are not lifted.
CallableKind callable_kind(PyTypeObject *type) {
  const Settings &s = settings();
  nb::object object = py::type_object(type);
  if (object.is(s.method_type)) return CallableKind::Method;
  if (PyType_IsSubtype(type, py::as_type(s.partial_type.ptr()))) return CallableKind::Partial;
  return object.is(s.function_type) || has_attribute(object, "_lifted_") ? CallableKind::Lifted : CallableKind::None;
}

// The kind of types that need no instance to be recognized; Static stands for "unknown yet".
Kind kind_of_type(PyTypeObject *type) {
  if (type == Py_TYPE(Py_None)) return Kind::None;
  if (PyType_IsSubtype(type, variable_cell_type)) return Kind::Variable;
  if (PyType_IsSubtype(type, object_node_type)) return Kind::Object;
  if (type == &PyTuple_Type) return Kind::Tuple;
  if (type == &PyList_Type) return Kind::List;
  if (type == &PyDict_Type) return Kind::Dict;
  if (is_simple(type)) return Kind::Static;
  if (PyType_IsSubtype(type, &PyTuple_Type) && has_attribute(py::type_object(type), "_fields")) return Kind::NamedTuple;
  return Kind::Static;
}

Kind kind_of_instance(PyObject *object) {
  const Settings &s = settings();
  nb::object held = nb::borrow<nb::object>(object);
  // A number in a node is a static, as Python's are.
  if (nb::cast<bool>(s.is_array(held))) return is_numpys_number(object) ? Kind::Static : Kind::Array;
  if (!s.flatten_one_level(held).is_none()) return Kind::Pytree;
  return Kind::Static;
}

// JAX asks its registry first; of a named tuple that nobody registered it says that the type is all there is to know.
bool is_registered_named_tuple(PyObject *object) {
  // It cannot take apart what has another number of values than of fields; the walk says so better.
  nb::object fields = py::type_of(object).attr("_fields");
  if (PyObject_Size(fields.ptr()) != PyTuple_Size(object)) {
    PyErr_Clear();
    return false;
  }
  nb::object parts = settings().flatten_one_level(nb::borrow<nb::object>(object));
  return !parts.is_none() && !nb::object(parts[1]).is(py::type_of(object));
}

constexpr const char *kWatchedType = "treadle.watched_type";

// Called when a type dies; `self` is a capsule around its address.
PyObject *forget(PyObject *self, PyObject *) {
  auto *type = static_cast<PyTypeObject *>(PyCapsule_GetPointer(self, kWatchedType));
  if (type == nullptr) return nullptr;
  auto entry = table().find(type);
  if (entry != table().end()) {
    // Taken out first: the entry's members may run code when released.
    Entry dropped = std::move(entry->second);
    table().erase(entry);
    if (recent(type).type == type) recent(type) = {};
  }
  Py_RETURN_NONE;
}

PyMethodDef forget_method = {"forget_type", forget, METH_O, nullptr};

// Entries stay where they are as long as their type lives: others hold them by pointer. Describing a type runs Python,
// so another thread, or the described type's own code, may have made the entry meanwhile.
const NodeType *remember(PyTypeObject *type, std::unique_ptr<NodeType> info) {
  if (const NodeType *known = known_type(type)) return known;
  nb::object key = py::checked(PyCapsule_New(type, kWatchedType, nullptr));
  nb::object forget_type = py::checked(PyCFunction_NewEx(&forget_method, key.ptr(), nullptr));
  nb::object watcher = py::checked(PyWeakref_NewRef(py::as_object(type), forget_type.ptr()));
  auto [place, fresh] = table().try_emplace(type, Entry{std::move(info), std::move(watcher)});
  (void)fresh;
  return place->second.info.get();
}

// What an adapter for another library says about a type: how its instances are laid out, or why they cannot be walked.
void adapt(const nb::object &type, NodeType &info) {
  nb::object description = settings().adapt(type);
  if (description.is_none()) return;
  info.layout = read_layout(type, description);
  if (info.layout == nullptr) {
    info.refusal = description.attr("reason");
    return;
  }
  static constexpr Kind kinds[] = {Kind::Variable, Kind::Object, Kind::Mapping};
  static_assert(std::variant_size_v<Layout> == std::size(kinds));
  info.kind = kinds[info.layout->index()];
}

std::unique_ptr<NodeType> describe(PyTypeObject *type, PyObject *object) {
  auto info = std::make_unique<NodeType>();
  info->kind = kind_of_type(type);
  nb::object as_object = py::type_object(type);
  if (info->kind == Kind::Static && !is_simple(type)) adapt(as_object, *info);
  if (info->layout || info->refusal.is_valid()) return info;
  if (info->kind == Kind::Static && !is_simple(type) && object != nullptr) info->kind = kind_of_instance(object);
  if (info->kind == Kind::NamedTuple && object != nullptr && is_registered_named_tuple(object)) {
    info->kind = Kind::Pytree;
  }
  if (info->kind == Kind::Static) {
    const bool is_number = object != nullptr && is_numpys_number(object) &&
                           nb::cast<bool>(settings().is_array(nb::borrow<nb::object>(object)));
    info->static_kind = is_number ? StaticKind::Number : static_kind(type);
    if (info->static_kind == StaticKind::Fields || info->static_kind == StaticKind::Object) {
      info->frozen = is_frozen(as_object);
      info->slots = slots_of(as_object);
    }
  }
  if (info->kind == Kind::Static || info->kind == Kind::Pytree) info->callable = callable_kind(type);
  if (info->kind == Kind::Variable) {
    // A class may also take the place of the methods that read and write.
    nb::object own_access = nb::getattr(as_object, "_own_access", nb::none());
    const bool owns = nb::cast<bool>(py::type_object(&PyBool_Type)(own_access));
    info->has_get_hook = owns || has_attribute(as_object, "on_get_value");
    info->has_set_hook = owns || has_attribute(as_object, "on_set_value");
  }
  if (info->kind == Kind::Object && has_attribute(as_object, "_transparent_")) {
    info->transparent = py::interned(as_object.attr("_transparent_"));
  }
  if (info->kind == Kind::Object) {
    info->data_names = nb::getattr(as_object, kDataNames, nb::object());
    info->static_names = nb::getattr(as_object, kStaticNames, nb::object());
  }
  return info;
}

void register_node_type(nb::handle type, nb::object flatten, nb::object create, nb::object set_key,
                        nb::object pop_key) {
  if (!PyType_Check(type.ptr())) throw nb::type_error("register_node_type: the first argument must be a type");
  // A type met before its registration has an entry, which others may hold: it changes in place.
  auto *info = const_cast<NodeType *>(node_type(py::as_type(type.ptr())));
  info->kind = Kind::Custom;
  info->flatten = std::move(flatten);
  info->create = std::move(create);
  info->set_key = std::move(set_key);
  info->pop_key = std::move(pop_key);
}

}  // namespace

bool is_made_by_python(PyTypeObject *type) {
  if ((PyType_GetFlags(type) & Py_TPFLAGS_HEAPTYPE) == 0) return false;
  // Such classes have one deallocator.
  auto *known = py::as_type(settings().enum_type.ptr());
  return PyType_GetSlot(type, Py_tp_dealloc) == PyType_GetSlot(known, Py_tp_dealloc);
}

const NodeType *classify(PyObject *object) {
  PyTypeObject *type = Py_TYPE(object);
  const NodeType *known = known_type(type);
  return known != nullptr ? known : remember(type, describe(type, object));
}

const NodeType *known_type(PyTypeObject *type) {
  Recent &front = recent(type);
  if (front.type == type) return front.info;
  auto &entries = table();
  auto found = entries.find(type);
  if (found == entries.end()) return nullptr;
  front = {type, found->second.info.get()};
  return front.info;
}

const NodeType *node_type(PyTypeObject *type) {
  const NodeType *known = known_type(type);
  return known != nullptr ? known : remember(type, describe(type, nullptr));
}

void bind_node_types(nb::module_ &m) {
  m.def("register_node_type", &register_node_type, nb::arg("type"), nb::arg("flatten"), nb::arg("create"),
        nb::arg("set_key"), nb::arg("pop_key"));
  m.def(
      "is_node", [](nb::handle object) { return is_reference(classify(object.ptr())->kind); },
      nb::arg("object").none());
}

}  // namespace treadle
