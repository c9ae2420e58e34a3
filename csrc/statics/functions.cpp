#include "statics/functions.h"

#include "bindings.h"
#include "bound.h"
#include "objects/packages.h"
#include "settings.h"
#include "statics/attributes.h"
#include "statics/hashing.h"

namespace treadle {
namespace {

// Parts of one function and what it reads. A function that reads more, such as a table, counts as never the same.
constexpr size_t kMaxParts = 4096;

// Attribute names of functions and partials, made once: they are looked up at every walk.
struct AttributeNames {
  nb::object code = py::intern("__code__"), globals = py::intern("__globals__"), closure = py::intern("__closure__"),
             defaults = py::intern("__defaults__"), keyword_defaults = py::intern("__kwdefaults__"),
             dict = py::intern("__dict__"), cell = py::intern("cell_contents"), self = py::intern("__self__"),
             function = py::intern("__func__"), wrapped = py::intern("__wrapped__"), name = py::intern("__name__"),
             module = py::intern("__module__"), partial_function = py::intern("func"), args = py::intern("args"),
             keywords = py::intern("keywords");
};

const AttributeNames &names() { return py::made_once<AttributeNames>(); }

nb::object get(const nb::object &object, const nb::object &name) {
  return py::checked(PyObject_GetAttr(object.ptr(), name.ptr()));
}

// Null if it is empty.
nb::object content_of_cell(PyObject *cell) {
  PyObject *content = PyObject_GetAttr(cell, names().cell.ptr());
  if (content == nullptr) {
    if (!PyErr_ExceptionMatches(PyExc_ValueError)) throw nb::python_error();
    PyErr_Clear();
  }
  return nb::steal<nb::object>(content);
}

// Types of the standard library whose objects are told apart here.
struct StandardTypes {
  nb::object weak_reference = nb::module_::import_("weakref").attr("ref");
  nb::object context_variable = nb::module_::import_("contextvars").attr("ContextVar");
  nb::object method_wrapper = nb::module_::import_("types").attr("MethodWrapperType");
  // Their objects hold nothing that changes; iterators, caches, generators and the like of the same modules do.
  std::vector<nb::object> stateless = made_stateless();

  static std::vector<nb::object> made_stateless() {
    nb::object types = nb::module_::import_("types"), functions = nb::module_::import_("operator");
    return {types.attr("WrapperDescriptorType"),
            types.attr("MethodDescriptorType"),
            types.attr("ClassMethodDescriptorType"),
            types.attr("GetSetDescriptorType"),
            types.attr("MemberDescriptorType"),
            nb::module_::import_("_collections").attr("_tuplegetter"),
            functions.attr("attrgetter"),
            functions.attr("itemgetter"),
            py::type_object(&PyBaseObject_Type)};
  }
};

const StandardTypes &standard_types() { return py::made_once<StandardTypes>(); }

bool is_module(const nb::object &value) { return PyObject_TypeCheck(value.ptr(), &PyModule_Type) != 0; }

// One that is no more than what it defines.
bool is_users_module(const nb::object &value) {
  return py::is_exact(value.ptr(), &PyModule_Type) && package_of(value) == nullptr;
}

bool promises_constants(const Package *package) { return package != nullptr && package->constants; }

// A builtin method is what it is called and bound to. Its own `==` takes an object that has changed for the same.
bool is_builtin_method(const nb::object &held) {
  if (!PyCFunction_Check(held.ptr()) && !py::type_of(held).is(standard_types().method_wrapper)) return false;
  nb::object self = get(held, names().self);
  return !self.is_none() && !is_module(self);
}

// What a transformed function says of itself where nothing was copied from a class. It may be of a known package only
// if the function that it transforms is.
bool is_made_by_constant_package(const nb::object &held) {
  nb::object attributes = nb::getattr(held, names().dict, nb::none());
  if (PyDict_Check(attributes.ptr())) {
    nb::object module = py::dict_get(attributes.ptr(), names().module.ptr());
    if (module.is_valid()) return promises_constants(known_package(module));
  }
  // Or it is found where it says.
  nb::object module_name = nb::getattr(held, names().module, nb::none());
  nb::object name = nb::getattr(held, names().name, nb::none());
  if (!nb::isinstance<nb::str>(name) || !promises_constants(known_package(module_name))) return false;
  nb::object module = nb::steal<nb::object>(PyImport_GetModule(module_name.ptr()));
  if (!module.is_valid() && PyErr_Occurred()) throw nb::python_error();
  return module.is_valid() && nb::getattr(module, name, nb::none()).is(held);
}

// Members of an enumeration of numbers or texts. Other types below these have what attributes they like.
bool is_scalar_member(const nb::object &held) {
  const bool is_scalar = PyLong_Check(held.ptr()) || PyUnicode_Check(held.ptr()) || PyBytes_Check(held.ptr());
  return is_scalar && nb::isinstance(held, settings().enum_type);
}

nb::object builtin(const char *name) { return nb::module_::import_("builtins").attr(name); }

// What descriptors call the functions that they are made of.
struct DescriptorNames {
  nb::object function = py::intern("__func__");  // of static and class methods
  std::vector<nb::object> accessors{py::intern("fget"), py::intern("fset"), py::intern("fdel")};
  nb::object fields = py::intern("__dataclass_fields__");
  std::vector<nb::object> defaults{py::intern("default"), py::intern("default_factory")};
  // Their types.
  nb::object static_method = builtin("staticmethod"), class_method = builtin("classmethod"),
             property = builtin("property");
  nb::object cached_property = nb::module_::import_("functools").attr("cached_property");
  nb::object member_property = nb::module_::import_("enum").attr("property");
  nb::object missing = py::type_of(nb::object(nb::module_::import_("dataclasses").attr("MISSING")));
};

const DescriptorNames &names_in_descriptors() { return py::made_once<DescriptorNames>(); }

// What a class has besides what it is made of: descriptions, and what is kept for its own use.
bool is_aside(std::string_view name) {
  for (std::string_view known :
       {"__doc__", "__dict__", "__weakref__", "__annotations__", "__annotate_func__", "__annotations_cache__",
        "__abstractmethods__", "_abc_impl", "__dataclass_fields__", "__dataclass_params__", "__slotnames__"}) {
    if (name == known) return true;
  }
  return false;
}

// Code that `dataclasses` writes has no file.
bool is_generated(const nb::object &function) {
  nb::object innermost = nb::getattr(function, names().wrapped, function);
  nb::object code = nb::getattr(innermost, names().code, nb::none());
  nb::object file = nb::getattr(code, "co_filename", nb::none());
  return nb::isinstance<nb::str>(file) && py::text(file).starts_with("<string>");
}

bool is_static(const nb::object &held, StaticKind kind) {
  const NodeType *info = classify(held.ptr());
  return info->kind == Kind::Static && info->static_kind == kind;
}

}  // namespace

// Classes and modules of known packages, and objects of such types as have nothing that changes.
bool FunctionReader::is_constant_object(const nb::object &held) const {
  if (PyType_Check(held.ptr()) || is_module(held)) return promises_constants(package_of(held));
  nb::object type = py::type_of(held);
  for (const nb::object &known : standard_types().stateless) {
    if (type.is(known)) return true;
  }
  const Package *package = package_of(type);
  if (package == nullptr || package->stateless == Stateless::None) return false;
  return package->stateless == Stateless::All || PyCallable_Check(held.ptr()) != 0;
}

void FunctionReader::value(const nb::object &held) {
  if (!holds_containers() && recorder_.holds_unknown()) return;  // nobody will ask
  if (recorder_.is_too_deep()) return recorder_.unknown(held);
  const NodeType *info = classify(held.ptr());
  switch (info->kind) {
    case Kind::None:
      return recorder_.scalar(held);
    case Kind::Tuple:
      return items(held);
    case Kind::NamedTuple:
      if (!holds_containers()) return recorder_.unknown(held);
      items(held);
      return type(py::type_of(held));
    case Kind::List:
    case Kind::Dict:
      return holds_containers() ? items(held) : recorder_.unknown(held);
    case Kind::Array: {
      // The arrays of JAX do not change.
      const bool is_constant = holds_containers() && py::type_of(held).is(settings().concrete_array);
      return is_constant ? recorder_.same(held) : recorder_.unknown(held);
    }
    case Kind::Pytree:
      return nb::isinstance(held, settings().partial_type) ? partial(held) : recorder_.unknown(held);
    case Kind::Static:
      return constant(held, info->static_kind);
    default:
      return recorder_.unknown(held);
  }
}

void FunctionReader::constant(const nb::object &held, StaticKind kind) {
  switch (kind) {
    case StaticKind::Simple:
    case StaticKind::Number:
      return recorder_.scalar(held);
    case StaticKind::Function:
      return function(held);
    case StaticKind::Partial:
      return partial(held);
    case StaticKind::Method:
      return method(held, names().function);
    case StaticKind::Fields:
      return holds_containers() ? object(held) : recorder_.unknown(held);
    case StaticKind::Object:
      return users_object(held);
    case StaticKind::Identity:
    case StaticKind::Frozen:
    case StaticKind::Mutable:
      break;
  }
  if (py::is_exact(held.ptr(), &PySet_Type) || py::is_exact(held.ptr(), &PyFrozenSet_Type)) return set(held);
  if (is_builtin_method(held)) return method(held, names().name);
  if (PyCFunction_Check(held.ptr())) return builtin(held);
  // Their hash does not tell what they lead to.
  const StandardTypes &types = standard_types();
  if (py::type_of(held).is(types.context_variable) || nb::isinstance(held, types.weak_reference))
    return recorder_.unknown(held);
  if (is_constant_object(held)) {
    if (PyCallable_Check(held.ptr()) != 0 && !PyType_Check(held.ptr())) return transformed(held);
    return kind == StaticKind::Identity ? recorder_.same(held) : equal(held);
  }
  if (PyType_Check(held.ptr())) return type(held);
  if (kind == StaticKind::Identity) return recorder_.unknown(held);
  if (nb::isinstance(held, settings().enum_type) && !is_scalar_member(held)) return member(held);
  const bool is_constant = kind == StaticKind::Frozen && (holds_containers() || is_scalar_member(held));
  is_constant ? equal(held) : recorder_.unknown(held);
}

// An object that compares by content is what its attributes and its methods are: the code that reads it may call them.
void FunctionReader::object(const nb::object &held) {
  // What it holds may change, as may the items of a list.
  recorder_.unhashed(true, [&] {
    recorder_.object(seen_, held, py::type_of(held), [&] {
      recorder_.named(seen_, attributes_of(held), [&](const nb::object &item) { optional(item); });
      type(py::type_of(held));
    });
  });
}

// Nobody knows what a function makes of an object of the user's. A partial that is taken at its word has it as an
// argument, whose attributes may have been set.
void FunctionReader::users_object(const nb::object &held) {
  recorder_.unknown(held);
  if (!holds_containers() || functions_ > 0 || recorder_.size() - begin_ > kMaxParts) return;
  recorder_.unhashed(true, [&] {
    recorder_.object(seen_, held, held, [&] {
      recorder_.named(seen_, attributes_of(held), [&](const nb::object &item) { optional(item); });
    });
  });
}

// One with other items than scalars may hold functions.
void FunctionReader::set(const nb::object &held) {
  if (!holds_containers() || static_cast<size_t>(PyObject_Size(held.ptr())) > kMaxParts) return recorder_.unknown(held);
  nb::object items = py::checked(PySequence_Tuple(held.ptr()));
  for (Py_ssize_t i = 0; i < py::tuple_size(items.ptr()); ++i) {
    nb::object item = nb::borrow<nb::object>(py::tuple_item(items.ptr(), i));
    if (!item.is_none() && !is_static(item, StaticKind::Simple)) return recorder_.unknown(held);
  }
  const bool changes = py::is_exact(held.ptr(), &PySet_Type);
  if (changes) recorder_.holds_container();
  recorder_.unhashed(changes, [&] {
    recorder_.identical(py::type_of(held));
    equal(typed_items_of(held));
  });
}

// A member of an enumeration leads to its value, and to its class with its methods.
void FunctionReader::member(const nb::object &held) {
  recorder_.object(seen_, held, held, [&] {
    recorder_.named(seen_, attributes_of(held), [&](const nb::object &item) { optional(item); });
  });
}

// A class of the user's is itself and what it and its bases define, so that one with a method that was patched is
// another one. Of known packages, classes stay as they are.
void FunctionReader::type(const nb::object &held) {
  if (promises_constants(package_of(held))) return recorder_.identical(held);
  if (!starts(held)) return;
  auto read = [&] {
    nb::object meta = py::type_of(held);
    if (!meta.is(py::type_object(&PyType_Type))) type(meta);
    for (nb::handle base : nb::object(held.attr("__mro__"))) {
      nb::object defining = nb::borrow<nb::object>(base);
      recorder_.identical(defining);
      if (promises_constants(package_of(defining))) continue;
      // What functions in C read is not known.
      is_made_by_python(py::as_type(base.ptr())) ? definitions(defining) : recorder_.unknown(defining);
    }
  };
  recorder_.unhashed(true, [&] { recorder_.object(seen_, held, held, [&] { recorder_.read_by_callable(read); }); });
}

void FunctionReader::definitions(const nb::object &type) {
  const bool is_enumeration = PyObject_IsSubclass(type.ptr(), settings().enum_type.ptr()) == 1;
  nb::object entries = py::checked(PyDict_New());
  py::check_status(PyDict_Update(entries.ptr(), nb::object(type.attr("__dict__")).ptr()));
  nb::object keys = py::checked(PyDict_Keys(entries.ptr()));
  for (nb::handle key : keys) {
    nb::object name = nb::borrow<nb::object>(key), entry = py::dict_get(entries.ptr(), key.ptr());
    if (!nb::isinstance<nb::str>(name)) return recorder_.unknown(name);
    const std::string text = py::text(name);
    // What an enumeration knows of its members is what these are.
    if (is_aside(text) || (is_enumeration && text.starts_with('_') && !is_static(entry, StaticKind::Function)))
      continue;
    recorder_.scalar(name);
    definition(entry);
  }
  // What the generated `__init__` calls is not read with it.
  nb::object fields = py::dict_get(entries.ptr(), names_in_descriptors().fields.ptr());
  if (!fields.is_valid()) return;
  for (nb::handle field : nb::list(fields.attr("values")())) {
    for (const nb::object &name : names_in_descriptors().defaults) definition(nb::getattr(field, name, nb::none()));
  }
}

void FunctionReader::definition(const nb::object &entry) {
  const DescriptorNames &known = names_in_descriptors();
  if (is_static(entry, StaticKind::Function)) {
    // What `dataclasses` makes of fields reads nothing else.
    return is_generated(entry) ? recorder_.identical(entry) : function(entry);
  }
  nb::object type = py::type_of(entry);
  if (type.is(known.static_method) || type.is(known.class_method)) return value(get(entry, known.function));
  if (type.is(known.property)) {
    for (const nb::object &name : known.accessors) value(get(entry, name));
    return;
  }
  if (type.is(known.cached_property)) return value(get(entry, names().partial_function));
  if (type.is(known.missing) || type.is(known.member_property)) return recorder_.identical(type);
  value(entry);
}

// C functions are called as they are: what they read besides their arguments is known by their names only.
void FunctionReader::builtin(const nb::object &held) {
  is_constant_builtin(held) ? equal(held) : recorder_.unknown(held);
}

// A callable object of a known package: what that made of its own functions is constant, other functions are read
// through it.
void FunctionReader::transformed(const nb::object &held) {
  // Such as a function made into one of arrays, which does not say from what.
  nb::object name = nb::getattr(held, names().name, nb::none());
  if (nb::isinstance<nb::str>(name) && py::text(name).ends_with(" (vectorized)")) return recorder_.unknown(held);
  nb::object attributes = nb::getattr(held, names().dict, nb::none());
  if (is_made_by_constant_package(held) || !PyDict_Check(attributes.ptr())) return equal(held);
  recorder_.method(seen_, held, [&] {
    equal(held);
    nb::object wrapped = nb::getattr(held, names().wrapped, nb::object());
    optional(wrapped);
    nb::object keys = py::checked(PyDict_Keys(attributes.ptr()));
    for (nb::handle key : keys) {
      nb::object item = py::dict_get(attributes.ptr(), key.ptr());
      if (!item.is_valid() || !nb::isinstance<nb::str>(key)) continue;
      if (py::text(nb::borrow<nb::object>(key)).starts_with("__")) continue;
      // What says what it wraps keeps notes besides.
      const bool is_read = !wrapped.is_valid() || is_static(item, StaticKind::Function) ||
                           is_static(item, StaticKind::Partial) || is_static(item, StaticKind::Method);
      if (is_read) value(item);
    }
  });
}

// A new function that reads a method reads what the method is bound to.
void FunctionReader::method(const nb::object &held, const nb::object &function) {
  recorder_.method(seen_, held, [&] {
    value(get(held, names().self));
    value(get(held, function));
  });
}

void FunctionReader::equal(const nb::object &held) {
  try {
    recorder_.equal(held, typed_hash(held.ptr()));
  } catch (nb::python_error &error) {
    if (!error.matches(PyExc_TypeError)) throw;
    // What has no hash may have changed since.
    recorder_.unknown(held);
  }
}

void FunctionReader::items(const nb::object &held) {
  const bool changes = !PyTuple_Check(held.ptr());
  if (changes) recorder_.holds_container();
  // So that a table is not copied for nothing.
  if (recorder_.size() - begin_ + static_cast<size_t>(PyObject_Size(held.ptr())) > kMaxParts)
    return recorder_.unknown(held);
  // Items that may change do not count for the hash: what was remembered under it must be found when they have.
  recorder_.unhashed(changes, [&] { recorder_.items(seen_, held, [&](const nb::object &item) { value(item); }); });
}

// A function, partial or class that no other one reads is read by itself: what others read is no part of it. False, and
// it is unknown, if it would make the reading too long.
bool FunctionReader::starts(const nb::object &held) {
  if (!recorder_.is_inside_callable()) {
    seen_.clear();
    begin_ = recorder_.size();
  }
  if (recorder_.size() - begin_ <= kMaxParts) return true;
  recorder_.unknown(held);
  return false;
}

void FunctionReader::partial(const nb::object &held) {
  if (!starts(held)) return;
  recorder_.partial(seen_, held, [&] {
    recorder_.read_by_callable([&] {
      value(get(held, names().partial_function));
      value(get(held, names().args));
      recorder_.named(seen_, get(held, names().keywords), [&](const nb::object &item) { optional(item); });
    });
  });
}

void FunctionReader::globals_read(const nb::object &globals, const nb::object &code) {
  std::shared_ptr<const Names> read = names_read(globals, code);
  if (read->imports) recorder_.unknown_of(py::type_object(&PyModule_Type));
  for (const nb::object &name : read->reaching) {
    if (!py::dict_get(globals.ptr(), name.ptr()).is_valid()) recorder_.unknown(globals);
  }
  for (const nb::object &name : read->globals) {
    nb::object found = py::dict_get(globals.ptr(), name.ptr());
    // What the interpreter has under a name stays what it is; what somebody put there is like a global.
    if (!found.is_valid()) {
      found = py::dict_get(PyEval_GetBuiltins(), name.ptr());
      if (found.is_valid() && (PyCFunction_Check(found.ptr()) || PyType_Check(found.ptr()))) {
        recorder_.identical(found);
        continue;
      }
    }
    if (found.is_valid() && is_users_module(found) && !read->takes_whole(name)) {
      module(found, name, *read);
      continue;
    }
    optional(found);
    if (found.is_valid()) inner_modules(found, *read);
  }
}

// A module of the user's of which the code takes nothing but attributes is what these are.
void FunctionReader::module(const nb::object &held, const nb::object &name, const Names &read) {
  recorder_.identical(held);
  for (const std::vector<nb::object> &dotted : read.dotted) {
    if (!dotted[0].equal(name)) continue;
    nb::object found = held;
    for (size_t i = 1; i < dotted.size() && found.is_valid() && is_users_module(found); ++i) {
      nb::object entries = found.attr("__dict__");
      found = py::dict_get(entries.ptr(), dotted[i].ptr());
    }
    // What is not there may be made when it is asked for.
    if (!found.is_valid()) return recorder_.unknown(held);
    value(found);
    inner_modules(found, read);
  }
}

// What the code takes from a module by names that lead to an inner one whose functions read what changes.
void FunctionReader::inner_modules(const nb::object &found, const Names &read) {
  if (!is_module(found)) return;
  const char *inner = inner_without_constants(found);
  if (inner == nullptr) return;
  for (const nb::object &name : read.attributes) {
    if (py::text(name) == inner) return recorder_.unknown(found);
  }
}

void FunctionReader::function(const nb::object &held) {
  if (!starts(held)) return;
  recorder_.function(seen_, held, [&] {
    ++functions_;
    recorder_.read_by_callable([&] { read_by(held); });
    --functions_;
  });
}

void FunctionReader::read_by(const nb::object &function) {
  nb::object code = get(function, names().code), globals = get(function, names().globals);
  recorder_.same(code);
  recorder_.identical(globals);
  // What a seen function finds under its names may change: it must be found under its hash all the same.
  recorder_.unhashed(holds_containers(), [&] { globals_read(globals, code); });
  auto read = [&](const nb::object &item) { optional(item); };
  value(get(function, names().defaults));
  recorder_.named(seen_, get(function, names().keyword_defaults), read);
  recorder_.named(seen_, get(function, names().dict), read);
  nb::object cells = get(function, names().closure);
  const Py_ssize_t n_cells = cells.is_none() ? 0 : py::tuple_size(cells.ptr());
  for (Py_ssize_t i = 0; i < n_cells; ++i) {
    nb::object content = content_of_cell(py::tuple_item(cells.ptr(), i));
    optional(content);
    if (content.is_valid() && is_module(content)) inner_modules(content, *names_read(globals, code));
  }
}

bool reads_something(const nb::object &function) {
  return !get(function, names().closure).is_none() || !get(function, names().defaults).is_none() ||
         !get(function, names().keyword_defaults).is_none() ||
         !names_read(get(function, names().globals), get(function, names().code))->empty();
}

std::optional<Reading> fingerprint(const nb::tuple &functions) {
  Recorder recorder(Trust::Nothing);
  FunctionReader(recorder).value(functions);
  Reading reading = recorder.take();
  if (reading.holds_unknown()) return std::nullopt;
  return reading;
}

void bind_fingerprints(nb::module_ &m) {
  auto cls = Bound<Reading>::bind(m, "Fingerprint");
  cls.def("__hash__", [](const Reading &reading) { return static_cast<Py_ssize_t>(reading.hash() >> 1); });
  cls.def(
      "__eq__",
      [](const Reading &reading, nb::handle other) -> nb::object {
        if (!Bound<Reading>::is(other)) return nb::borrow<nb::object>(Py_NotImplemented);
        return nb::bool_(reading.equals(Bound<Reading>::of(other)));
      },
      nb::arg("other").none());
  m.def(
      "fingerprint",
      [](nb::args functions) {
        std::optional<Reading> reading = fingerprint(functions);
        return reading ? Bound<Reading>::make(std::move(*reading)) : nb::none();
      },
      nb::arg("functions"));
}

}  // namespace treadle
