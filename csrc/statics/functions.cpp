#include "statics/functions.h"

#include "bindings.h"
#include "bound.h"
#include "objects/packages.h"
#include "settings.h"
#include "statics/code.h"
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
             function = py::intern("__func__"), name = py::intern("__name__"), module = py::intern("__module__"),
             partial_function = py::intern("func"), args = py::intern("args"), keywords = py::intern("keywords");
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
            functions.attr("attrgetter"),
            functions.attr("itemgetter"),
            py::type_object(&PyBaseObject_Type)};
  }
};

const StandardTypes &standard_types() { return py::made_once<StandardTypes>(); }

bool is_module(const nb::object &value) { return PyObject_TypeCheck(value.ptr(), &PyModule_Type) != 0; }

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
  if (PyCallable_Check(held.ptr()) == 0) return false;
  nb::object attributes = nb::getattr(held, names().dict, nb::none());
  if (!PyDict_Check(attributes.ptr())) return false;
  nb::object module = py::dict_get(attributes.ptr(), names().module.ptr());
  return module.is_valid() && promises_constants(known_package(module));
}

// Such as members of an enumeration of numbers.
bool is_subtype_of_scalar(PyObject *value) {
  return PyLong_Check(value) || PyUnicode_Check(value) || PyBytes_Check(value);
}

// Callables of JAX that are equal if what they were made from is.
bool is_function_by_value(const nb::object &held) {
  const Package *package = package_of(py::type_of(held));
  return package != nullptr && package->stateless == Stateless::All && PyCallable_Check(held.ptr()) != 0;
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
  if (package->stateless == Stateless::Callables && PyCallable_Check(held.ptr()) == 0) return false;
  return trusts_functions() || is_made_by_constant_package(held);
}

void FunctionReader::value(const nb::object &held) {
  if (!trusts_functions() && recorder_.holds_unknown()) return;  // nobody will ask
  if (recorder_.is_too_deep()) return recorder_.unknown(held);
  const NodeType *info = classify(held.ptr());
  switch (info->kind) {
    case Kind::None:
      return recorder_.scalar(held);
    case Kind::Tuple:
      return items(held);
    case Kind::NamedTuple:  // with methods of the user's
    case Kind::List:
    case Kind::Dict:
      return trusts_functions() ? items(held) : recorder_.unknown(held);
    case Kind::Array: {
      // Numbers of numpy that are Python's as well.
      if (PyFloat_Check(held.ptr()) || PyComplex_Check(held.ptr())) return recorder_.scalar(held);
      // The arrays of JAX do not change.
      const bool is_constant = trusts_functions() && py::type_of(held).is(settings().concrete_array);
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
      return recorder_.scalar(held);
    case StaticKind::Function:
      return function(held);
    case StaticKind::Partial:
      return partial(held);
    case StaticKind::Method:
      return method(held, names().function);
    case StaticKind::Identity:
      return is_constant_object(held) ? recorder_.same(held) : recorder_.unknown(held);
    case StaticKind::Frozen:
    case StaticKind::Mutable:
      break;
  }
  if (is_builtin_method(held)) return method(held, names().name);
  // Their hash does not tell what they lead to.
  const StandardTypes &types = standard_types();
  if (py::type_of(held).is(types.context_variable) || nb::isinstance(held, types.weak_reference))
    return recorder_.unknown(held);
  const bool is_constant =
      is_subtype_of_scalar(held.ptr()) || PyCFunction_Check(held.ptr()) || is_function_by_value(held);
  trusts_functions() || is_constant ? equal(held) : recorder_.unknown(held);
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
  if (recorder_.size() + static_cast<size_t>(PyObject_Size(held.ptr())) > kMaxParts) return recorder_.unknown(held);
  // Items that may change do not count for the hash: what was remembered under it must be found when they have.
  recorder_.unhashed(changes, [&] { recorder_.items(seen_, held, [&](const nb::object &item) { value(item); }); });
}

void FunctionReader::partial(const nb::object &held) {
  recorder_.callable(seen_, held, true, [&] {
    value(get(held, names().partial_function));
    value(get(held, names().args));
    recorder_.named(seen_, get(held, names().keywords), [&](const nb::object &item) { optional(item); });
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
    // A function under a name is taken at its word. Builtins, which are not there, are taken for constants.
    const bool trusted = trusts_functions() && found.is_valid() && py::type_of(found).is(settings().function_type);
    trusted ? recorder_.identical(found) : optional(found);
  }
}

void FunctionReader::function(const nb::object &held) {
  recorder_.callable(seen_, held, false, [&] {
    nb::object code = get(held, names().code), globals = get(held, names().globals);
    recorder_.same(code);
    recorder_.identical(globals);
    // What a seen function finds under its names may change: it must be found under its hash all the same.
    recorder_.unhashed(trusts_functions(), [&] { globals_read(globals, code); });
    auto read = [&](const nb::object &item) { optional(item); };
    value(get(held, names().defaults));
    recorder_.named(seen_, get(held, names().keyword_defaults), read);
    recorder_.named(seen_, get(held, names().dict), read);
    nb::object cells = get(held, names().closure);
    const Py_ssize_t n_cells = cells.is_none() ? 0 : py::tuple_size(cells.ptr());
    for (Py_ssize_t i = 0; i < n_cells; ++i) optional(content_of_cell(py::tuple_item(cells.ptr(), i)));
  });
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
