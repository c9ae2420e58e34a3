#include "statics/reading.h"

#include <cmath>
#include <memory>
#include <string_view>
#include <unordered_map>
#include <utility>

#include "id_table.h"
#include "objects/node_types.h"
#include "settings.h"

namespace treadle {
namespace {

// Values nested deeper count as unknown: they are rare, and capturing must not exhaust the C stack.
constexpr uint32_t kMaxDepth = 64;

// Parts of one function and what it reads. A function that reads more, such as a table, counts as never the same.
constexpr size_t kMaxParts = 4096;

// Attribute names of functions and partials, made once: they are looked up at every walk.
struct AttributeNames {
  nb::object code = intern("__code__"), globals = intern("__globals__"), closure = intern("__closure__"),
             defaults = intern("__defaults__"), keyword_defaults = intern("__kwdefaults__"), dict = intern("__dict__"),
             cell = intern("cell_contents"), self = intern("__self__"), function = intern("__func__"),
             name = intern("__name__"), module = intern("__module__"), partial_function = intern("func"),
             args = intern("args"), keywords = intern("keywords");

  static nb::object intern(const char *name) { return py::checked(PyUnicode_InternFromString(name)); }
};

// Made when first asked for, never freed. Making it runs Python: the lock of a static variable would be held while
// another thread runs, which might wait for it with the interpreter's own lock in hand.
template <typename T>
const T &made_once() {
  static const T *made = nullptr;
  if (made == nullptr) {
    auto fresh = std::make_unique<const T>();
    if (made == nullptr) made = fresh.release();
  }
  return *made;
}

const AttributeNames &names() { return made_once<AttributeNames>(); }

nb::object get(const nb::object &object, const nb::object &name) {
  return py::checked(PyObject_GetAttr(object.ptr(), name.ptr()));
}

// The first part of the dotted name of a module; empty for what is no name.
std::string root_of(const nb::object &name) {
  if (!nb::isinstance<nb::str>(name)) return {};
  std::string text = py::text(name);
  return text.substr(0, text.find('.'));
}

// True for the name of a module, or one inside, of a package that nobody changes while a program runs. What is not
// imported is not known to be that.
bool is_constant_package(const nb::object &name) {
  std::string root = root_of(name);
  nb::object as_text = py::checked(PyUnicode_FromStringAndSize(root.data(), static_cast<Py_ssize_t>(root.size())));
  nb::object package = nb::steal<nb::object>(PyImport_GetModule(as_text.ptr()));
  if (!package.is_valid() && PyErr_Occurred()) throw nb::python_error();
  return package.is_valid() && from_constant_package(package);
}

// What is remembered of code at most: a program has as many functions as it has.
constexpr size_t kMaxCodes = 4096;

// The global that a function would read under `name`, or null. Builtins are taken for constants.
nb::object global(const nb::object &globals, const nb::object &name) {
  PyObject *found = PyDict_GetItemWithError(globals.ptr(), name.ptr());
  if (found == nullptr && PyErr_Occurred()) throw nb::python_error();
  return nb::borrow<nb::object>(found);
}

// What code may look up by name; nothing for code whose package does not change its globals.
struct Names {
  std::vector<nb::object> globals;
  // Builtins that lead to variables which the code does not name, unless a global hides them.
  std::vector<nb::object> reaching;
  // Whether it imports something that may change.
  bool imports = false;

  bool empty() const { return globals.empty() && !imports; }
};

// How code says that it imports or calls what leads to other variables.
struct Instructions {
  nb::object list = nb::module_::import_("dis").attr("get_instructions");
  int import_name = nb::cast<int>(nb::module_::import_("dis").attr("opmap")["IMPORT_NAME"]);

  // The second and third in bodies of classes.
  static bool loads_global(std::string_view operation) {
    return operation == "LOAD_GLOBAL" || operation == "LOAD_NAME" || operation == "LOAD_FROM_DICT_OR_GLOBALS";
  }

  static bool is_reaching(std::string_view name) {
    for (std::string_view known : {"globals", "locals", "vars", "eval", "exec", "__import__"}) {
      if (name == known) return true;
    }
    return false;
  }
};

const Instructions &instructions() { return made_once<Instructions>(); }

// Listing instructions takes long, and most code does nothing to list them for. One byte in two is an instruction.
bool is_to_be_listed(const nb::object &code) {
  nb::object bytes = code.attr("co_code");
  const char *text = PyBytes_AsString(bytes.ptr());
  if (text == nullptr) throw nb::python_error();
  for (Py_ssize_t i = 0; i < PyBytes_Size(bytes.ptr()); i += 2) {
    if (static_cast<unsigned char>(text[i]) == instructions().import_name) return true;
  }
  for (nb::handle name : nb::object(code.attr("co_names"))) {
    if (Instructions::is_reaching(py::text(nb::borrow<nb::object>(name)))) return true;
  }
  return false;
}

void collect_instructions(const nb::object &code, Names &names) {
  // An import follows the level of its package, 0 for absolute names, and the names that it takes.
  nb::object level = nb::none(), last = nb::none();
  for (nb::handle instruction : nb::object(instructions().list(code))) {
    const std::string operation = py::text(nb::object(instruction.attr("opname")));
    if (operation == "EXTENDED_ARG") continue;
    nb::object argument = instruction.attr("argval");
    if (operation == "IMPORT_NAME") {
      if (!level.equal(nb::int_(0)) || !is_constant_package(argument)) names.imports = true;
    } else if (Instructions::loads_global(operation) && Instructions::is_reaching(py::text(argument))) {
      names.reaching.push_back(argument);
    }
    level = std::exchange(last, argument);
  }
}

void collect_names(const nb::object &code, Names &names) {
  nb::object code_type = nb::borrow<nb::object>(reinterpret_cast<PyObject *>(Py_TYPE(code.ptr())));
  std::vector<nb::object> waiting{code};
  while (!waiting.empty()) {
    nb::object next = std::move(waiting.back());
    waiting.pop_back();
    for (nb::handle name : nb::object(next.attr("co_names"))) {
      names.globals.push_back(nb::borrow<nb::object>(name));
    }
    if (is_to_be_listed(next)) collect_instructions(next, names);
    for (nb::handle constant : nb::object(next.attr("co_consts"))) {
      // Code of functions that are defined inside.
      if (constant.type().is(code_type)) waiting.push_back(nb::borrow<nb::object>(constant));
    }
  }
}

// Remembered by code, which it keeps alive. Whether the package changes its globals is asked of these, as they come
// with the code: what the function says of itself may be copied from another that it wraps.
std::shared_ptr<const Names> names_read(const nb::object &globals, const nb::object &code) {
  struct Known {
    nb::object code;
    std::shared_ptr<const Names> names;
  };
  static auto *cache = new std::unordered_map<PyObject *, Known>();
  if (auto found = cache->find(code.ptr()); found != cache->end()) return found->second.names;
  auto read = std::make_shared<Names>();
  nb::object module = global(globals, names().name);
  if (!module.is_valid() || !is_constant_package(module)) collect_names(code, *read);
  if (cache->size() >= kMaxCodes) {
    // Swapped out first: what is released may run code.
    std::unordered_map<PyObject *, Known> dropped;
    dropped.swap(*cache);
  }
  cache->emplace(code.ptr(), Known{code, read});
  return read;
}

// Null if it is empty.
nb::object content_of_cell(nb::handle cell) {
  PyObject *content = PyObject_GetAttr(cell.ptr(), names().cell.ptr());
  if (content == nullptr) {
    if (!PyErr_ExceptionMatches(PyExc_ValueError)) throw nb::python_error();
    PyErr_Clear();
  }
  return nb::steal<nb::object>(content);
}

nb::object type_object(PyTypeObject *type) { return nb::borrow<nb::object>(reinterpret_cast<PyObject *>(type)); }

nb::object type_of(const nb::object &value) { return type_object(Py_TYPE(value.ptr())); }

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
            type_object(&PyBaseObject_Type)};
  }
};

const StandardTypes &standard_types() { return made_once<StandardTypes>(); }

bool is_module(const nb::object &value) { return PyObject_TypeCheck(value.ptr(), &PyModule_Type) != 0; }

// Classes and modules of known packages, and objects of such types as have nothing that changes, such as transformed
// functions.
bool is_constant_object(const nb::object &value) {
  if (PyType_Check(value.ptr()) || is_module(value)) return from_constant_package(value);
  nb::object type = type_of(value);
  for (const nb::object &known : standard_types().stateless) {
    if (type.is(known)) return true;
  }
  std::string root = root_of(nb::getattr(type, names().module, nb::none()));
  // Functions of numpy, but not its random generators.
  if (root == "numpy") return PyCallable_Check(value.ptr()) != 0;
  for (std::string_view package : {"jax", "jaxlib", "ml_dtypes", "optax", "typing", "treadle"}) {
    if (root == package) return true;
  }
  return false;
}

bool is_mutable_builtin(PyObject *value) {
  return py::is_exact(value, &PySet_Type) || py::is_exact(value, &PyByteArray_Type);
}

// What a set or a bytearray holds now.
nb::object content(const nb::object &value) {
  if (py::is_exact(value.ptr(), &PySet_Type)) return py::checked(PyFrozenSet_New(value.ptr()));
  if (py::is_exact(value.ptr(), &PyByteArray_Type)) return py::checked(PyBytes_FromObject(value.ptr()));
  return value;
}

// The hash of exact floats and complex numbers that are NaN in some part; any number would do.
constexpr size_t kHashOfNan = 0x7ff8;

bool is_nan(PyObject *value) {
  if (py::is_exact(value, &PyFloat_Type)) return std::isnan(PyFloat_AsDouble(value));
  if (!py::is_exact(value, &PyComplex_Type)) return false;
  return std::isnan(PyComplex_RealAsDouble(value)) || std::isnan(PyComplex_ImagAsDouble(value));
}

// What to look for in a value.
enum class Look : uint8_t { Changes, ChangesAndFunctions };

bool found_in(PyObject *value, Look look, uint32_t depth = 0) {
  const NodeType *info = classify(value);
  switch (info->kind) {
    case Kind::Tuple:
    case Kind::NamedTuple:
      for (Py_ssize_t i = 0; depth < kMaxDepth && i < py::tuple_size(value); ++i) {
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
    case StaticKind::Function: {
      if (look == Look::Changes) return false;
      nb::object function = nb::borrow<nb::object>(value);
      return !get(function, names().closure).is_none() || !get(function, names().defaults).is_none() ||
             !get(function, names().keyword_defaults).is_none() ||
             !names_read(get(function, names().globals), get(function, names().code))->empty();
    }
    case StaticKind::Partial:
      return look == Look::ChangesAndFunctions;
    case StaticKind::Mutable:
      return true;
    default:
      return is_mutable_builtin(value);
  }
}

}  // namespace

class Reading::Capture {
 public:
  Capture(Reading &reading, Unhashable unhashable) : reading_(reading), unhashable_(unhashable) {}

  void value(const nb::object &held) {
    if (depth_ >= kMaxDepth) return functions_ > 0 ? unknown(held) : same(held);
    const NodeType *info = classify(held.ptr());
    switch (info->kind) {
      case Kind::None:
        return scalar(held);
      case Kind::Tuple:
      case Kind::NamedTuple:
        return too_large(py::tuple_size(held.ptr())) ? unknown(held) : sequence(held, held);
      case Kind::List:
      case Kind::Dict:
        if (functions_ == 0 && unhashable_ == Unhashable::Refused) content_hash(held.ptr());
        if (functions_ > 0) reading_.holds_containers_ = true;
        if (too_large(PyObject_Size(held.ptr()))) return unknown(held);
        return container(held, info->kind == Kind::List);
      case Kind::Array:
        return array(held);
      case Kind::Pytree:
        return functions_ > 0 ? unknown(held) : by_equality(held);
      case Kind::Static:
        return by_kind(held, info->static_kind);
      default:
        return functions_ > 0 ? unknown(held) : same(held);
    }
  }

  // Names with values, in any order; None or an empty dict where there are none.
  void named(const nb::object &dict) {
    if (dict.is_none() || py::dict_size(dict.ptr()) == 0) return optional(nb::object());
    nb::object keys = py::checked(PyDict_Keys(dict.ptr()));
    if (PyList_Sort(keys.ptr()) < 0) {
      // Names that do not compare, which only odd code puts there, stay in the order in which they are.
      if (!PyErr_ExceptionMatches(PyExc_TypeError)) throw nb::python_error();
      PyErr_Clear();
    }
    const Py_ssize_t n = py::list_size(keys.ptr());
    inside(dict, PartKind::Mapping, type_of(dict), n, [&] {
      for (Py_ssize_t i = 0; i < n; ++i) {
        nb::object key = nb::borrow<nb::object>(py::list_item(keys.ptr(), i));
        value(key);
        optional(global(dict, key));
      }
    });
  }

 private:
  void by_kind(const nb::object &held, StaticKind kind) {
    switch (kind) {
      case StaticKind::Simple:
        return scalar(held);
      case StaticKind::Identity:
        return functions_ == 0 || is_constant_object(held) ? same(held) : unknown(held);
      case StaticKind::Frozen:
      case StaticKind::Mutable:
        return by_equality(held);
      case StaticKind::Function:
        return function(held);
      case StaticKind::Partial:
        return partial(held);
      case StaticKind::Method:
        return inside(held, PartKind::Method, type_of(held), 2, [&] {
          // A new function that reads a method reads what the method is bound to.
          nb::object self = get(held, names().self);
          functions_ > 0 ? value(self) : same(self);
          value(get(held, names().function));
        });
    }
  }

  void scalar(const nb::object &held) {
    add(PartKind::Scalar, held);
    mix_in(typed_hash(held.ptr()));
  }

  void same(const nb::object &held) {
    add(PartKind::Same, held);
    mix_in(pointer_hash(held.ptr()));
  }

  // So that a table is not copied for nothing.
  bool too_large(Py_ssize_t n) const {
    return functions_ > 0 && reading_.parts_.size() + static_cast<size_t>(n) > kMaxParts;
  }

  void unknown(const nb::object &held) { add(PartKind::Unknown, type_of(held)); }

  // The arrays of JAX do not change.
  void array(const nb::object &held) {
    if (type_of(held).is(settings().concrete_array)) return same(held);
    if (functions_ > 0) return unknown(held);
    if (unhashable_ == Unhashable::Refused) {
      PyErr_SetString(PyExc_TypeError, "arrays are not hashable");
      throw nb::python_error();
    }
    same(held);
  }

  // A builtin method is what it is called and bound to. Its own `==` takes an object that has changed for the same.
  bool builtin_method(const nb::object &held) {
    if (!PyCFunction_Check(held.ptr()) && !type_of(held).is(standard_types().method_wrapper)) return false;
    nb::object self = get(held, names().self);
    if (self.is_none() || is_module(self)) return false;
    inside(held, PartKind::Method, type_of(held), 2, [&] {
      value(self);
      value(get(held, names().name));
    });
    return true;
  }

  void by_equality(const nb::object &held) {
    if (functions_ > 0) {
      if (builtin_method(held)) return;
      // Their hash does not tell what they lead to.
      const StandardTypes &types = standard_types();
      if (type_of(held).is(types.context_variable) || nb::isinstance(held, types.weak_reference)) return unknown(held);
    }
    size_t hash = 0;
    nb::object kept = held;
    try {
      if (functions_ == 0 && unhashable_ == Unhashable::Allowed) kept = content(held);
      hash = typed_hash(kept.ptr());
    } catch (nb::python_error &error) {
      if (!error.matches(PyExc_TypeError)) throw;
      // What has no hash may have changed since.
      if (functions_ > 0) return unknown(held);
      if (unhashable_ == Unhashable::Refused) throw;
    }
    add(PartKind::Equal, kept).hash = hash;
    mix_in(hash);
  }

  void container(const nb::object &held, bool is_list) {
    // Copied: hashing items may run code that changes the container. Items of containers inside of functions do not
    // count for the hash: what was remembered under it must be found when they have changed.
    const bool hashed = std::exchange(hashed_, hashed_ && functions_ == 0);
    if (is_list) {
      sequence(held, py::checked(PyList_AsTuple(held.ptr())));
    } else {
      nb::object keys = py::checked(PyDict_Keys(held.ptr())), values = py::checked(PyDict_Values(held.ptr()));
      const Py_ssize_t n = py::list_size(keys.ptr());
      inside(held, PartKind::Mapping, type_of(held), n, [&] {
        for (Py_ssize_t i = 0; i < n; ++i) {
          value(nb::borrow<nb::object>(py::list_item(keys.ptr(), i)));
          value(nb::borrow<nb::object>(py::list_item(values.ptr(), i)));
        }
      });
    }
    hashed_ = hashed;
  }

  void sequence(const nb::object &held, const nb::object &items) {
    const Py_ssize_t n = py::tuple_size(items.ptr());
    inside(held, PartKind::Sequence, type_of(held), n, [&] {
      for (Py_ssize_t i = 0; i < n; ++i) value(nb::borrow<nb::object>(py::tuple_item(items.ptr(), i)));
    });
  }

  // Null where something is not there.
  void optional(const nb::object &held) {
    if (held.is_valid()) return value(held);
    add(PartKind::Same, held);
  }

  void partial(const nb::object &held) {
    ++functions_;
    inside(held, PartKind::Partial, held, 3, [&] {
      value(get(held, names().partial_function));
      value(get(held, names().args));
      named(get(held, names().keywords));
    });
    --functions_;
  }

  void function(const nb::object &held) {
    ++functions_;
    nb::object code = get(held, names().code), globals = get(held, names().globals);
    nb::object cells = get(held, names().closure);
    std::shared_ptr<const Names> read = names_read(globals, code);
    inside(held, PartKind::Function, held, 1, [&] {
      same(code);
      add(PartKind::Same, globals);
      const bool hashed = std::exchange(hashed_, false);
      if (read->imports) add(PartKind::Unknown, type_object(&PyModule_Type));
      for (const nb::object &name : read->reaching) {
        if (!global(globals, name).is_valid()) add(PartKind::Unknown, type_object(&PyDict_Type));
      }
      for (const nb::object &name : read->globals) {
        nb::object found = global(globals, name);
        // A function under a name is taken at its word.
        const bool is_function = found.is_valid() && type_of(found).is(settings().function_type);
        if (is_function) {
          add(PartKind::Same, found);
        } else {
          optional(found);
        }
      }
      hashed_ = hashed;
      value(get(held, names().defaults));
      named(get(held, names().keyword_defaults));
      named(get(held, names().dict));
      const Py_ssize_t n_cells = cells.is_none() ? 0 : py::tuple_size(cells.ptr());
      for (Py_ssize_t i = 0; i < n_cells; ++i) optional(content_of_cell(py::tuple_item(cells.ptr(), i)));
    });
    --functions_;
  }

  // A part with others inside, once per object: what recurs is referred to.
  template <typename Body>
  void inside(const nb::object &held, PartKind kind, nb::object value, Py_ssize_t n, Body &&body) {
    // Apart by where it is: inside of functions less is taken for granted.
    IdTable &seen = functions_ > 0 ? seen_in_functions_ : seen_;
    auto [part, fresh] = seen.insert(held.ptr(), static_cast<uint32_t>(reading_.parts_.size()));
    if (!fresh) {
      add(PartKind::Seen, kind == PartKind::Function ? value : nb::object()).n = part;
      return;
    }
    kept_.push_back(held);
    const size_t at = reading_.parts_.size();
    add(kind, std::move(value)).n = static_cast<uint32_t>(n);
    mix_in(static_cast<size_t>(kind));
    ++depth_;
    body();
    --depth_;
    reading_.parts_[at].end = static_cast<uint32_t>(reading_.parts_.size());
  }

  Part &add(PartKind kind, nb::object value) {
    reading_.parts_.push_back({kind, 0, static_cast<uint32_t>(reading_.parts_.size() + 1), std::move(value), 0});
    return reading_.parts_.back();
  }

  void mix_in(size_t hash) {
    if (hashed_) reading_.hash_ = mix(reading_.hash_, hash);
  }

  Reading &reading_;
  Unhashable unhashable_;
  uint32_t depth_ = 0;
  uint32_t functions_ = 0;  // functions and partials around what is captured
  bool hashed_ = true;
  IdTable seen_, seen_in_functions_;
  std::vector<nb::object> kept_;  // so that their addresses stay theirs
};

Reading::Reading(PyObject *value, Unhashable unhashable) {
  Capture(*this, unhashable).value(nb::borrow<nb::object>(value));
}

Reading Reading::of_metadata(PyObject *metadata) {
  Reading reading;
  Capture(reading, Unhashable::Allowed).named(nb::borrow<nb::object>(metadata));
  return reading;
}

std::optional<std::pair<uint32_t, uint32_t>> Reading::mismatch(const Reading &other) const {
  // Functions taken at their word, where something inside may differ after all, and how far a partial is.
  std::vector<std::pair<uint32_t, uint32_t>> taken;
  uint32_t trusted_end = 0;
  uint32_t i = 0, j = 0;
  while (i < parts_.size() && j < other.parts_.size()) {
    const Part &a = parts_[i], &b = other.parts_[j];
    const std::pair<uint32_t, uint32_t> here{i, j};
    if (a.kind != b.kind || a.n != b.n) return here;
    switch (a.kind) {
      case PartKind::Scalar:
        if (!a.value.is(b.value) && !scalars_equal(a.value.ptr(), b.value.ptr())) return here;
        break;
      case PartKind::Equal:
        if (a.hash != b.hash || !a.value.type().is(b.value.type())) return here;
        if (!a.value.is(b.value) && !py::equal(a.value.ptr(), b.value.ptr())) return here;
        break;
      case PartKind::Unknown:
        if (i >= trusted_end) return here;
        break;
      case PartKind::Seen:
        if (a.value.is_valid() && a.value.is(b.value)) break;
        for (const auto &[begin, end] : taken) {
          if (a.n >= begin && a.n < end) return here;
        }
        break;
      case PartKind::Function:
        if (!a.value.is(b.value)) break;
        taken.emplace_back(i, a.end);
        i = a.end;
        j = b.end;
        continue;
      case PartKind::Partial:
        if (a.value.is(b.value) && i >= trusted_end) trusted_end = a.end;
        break;
      case PartKind::Same:
      case PartKind::Sequence:
      case PartKind::Mapping:
      case PartKind::Method:
        if (!a.value.is(b.value)) return here;
        break;
    }
    ++i;
    ++j;
  }
  if (i == parts_.size() && j == other.parts_.size()) return std::nullopt;
  return std::pair<uint32_t, uint32_t>{i, j};
}

std::string Reading::described(uint32_t part) const {
  if (part >= parts_.size()) return "";
  const Part &p = parts_[part];
  switch (p.kind) {
    case PartKind::Scalar:
    case PartKind::Equal:
      return py::text(nb::repr(p.value));
    case PartKind::Unknown:
      return "a " + py::text(nb::object(p.value.attr("__qualname__"))) + " that may have changed";
    case PartKind::Sequence:
    case PartKind::Mapping:
      return "a " + py::text(nb::object(p.value.attr("__qualname__"))) + " of length " + std::to_string(p.n);
    case PartKind::Function:
      return py::text(nb::object(p.value.attr("__qualname__")));
    default:
      return p.value.is_valid() ? py::text(nb::repr(p.value)) : "";
  }
}

std::pair<std::string, std::string> Reading::difference(const Reading &other) const {
  auto where = mismatch(other);
  // At the beginning it is the value itself that differs.
  if (!where || where->first == 0) return {};
  return {described(where->first), other.described(where->second)};
}

int Reading::traverse(visitproc visit, void *arg) const {
  for (const Part &part : parts_) Py_VISIT(part.value.ptr());
  return 0;
}

bool has_reading(PyObject *value) { return found_in(value, Look::ChangesAndFunctions); }

bool may_change_in_place(PyObject *value) { return found_in(value, Look::Changes); }

size_t content_hash(PyObject *value) {
  Py_hash_t hash = PyObject_Hash(value);
  if (hash == -1 && PyErr_Occurred()) throw nb::python_error();
  return static_cast<size_t>(hash);
}

// Floats hash as Python has it: 0.0 and -0.0 hash alike, which is merely a collision. Except for NaN, which Python
// hashes by address, while here it equals itself.
size_t typed_hash(PyObject *value) {
  const size_t hash = is_nan(value) ? kHashOfNan : content_hash(value);
  return mix(pointer_hash(reinterpret_cast<PyObject *>(Py_TYPE(value))), hash);
}

bool scalars_equal(PyObject *a, PyObject *b) {
  if (Py_TYPE(a) != Py_TYPE(b)) return false;
  if (py::is_exact(a, &PyFloat_Type) || py::is_exact(a, &PyComplex_Type)) {
    nb::object left = py::checked(PyObject_Repr(a)), right = py::checked(PyObject_Repr(b));
    return py::equal(left.ptr(), right.ptr());
  }
  return py::equal(a, b);
}

}  // namespace treadle
