#include "structure/graphdef.h"

#include <cstring>
#include <iterator>
#include <string>

#include "bindings.h"
#include "errors.h"
#include "objects/callables.h"
#include "statics/hashing.h"

namespace treadle {
namespace {

constexpr int kPickleVersion = 2;

template <typename T>
nb::bytes to_bytes(const std::vector<T> &values) {
  return nb::bytes(reinterpret_cast<const char *>(values.data()), values.size() * sizeof(T));
}

template <typename T>
std::vector<T> from_bytes(nb::handle object) {
  if (!nb::isinstance<nb::bytes>(object)) throw nb::value_error("broken GraphDef pickle: a table is not bytes");
  nb::bytes bytes = nb::borrow<nb::bytes>(object);
  if (bytes.size() % sizeof(T) != 0) throw nb::value_error("broken GraphDef pickle: a table is truncated");
  std::vector<T> values(bytes.size() / sizeof(T));
  if (!values.empty()) std::memcpy(values.data(), bytes.c_str(), bytes.size());
  return values;
}

void require(bool condition, const char *what) {
  if (!condition) throw nb::value_error((std::string("broken GraphDef pickle: ") + what).c_str());
}

// Everything the engine relies on when it follows the tables: nothing read from a pickle is trusted.
class Validator {
 public:
  explicit Validator(const GraphDef &def) : def_(def), leaf_seen_(def.n_leaves(), false) {}

  void run() {
    require(def_.constants.size() == def_.constant_kinds.size(), "constants do not match their kinds");
    for (const Item &item : def_.items) check(item);
    for (uint32_t r = 0; r < def_.n_refs(); ++r) check(r);
    for (bool seen : leaf_seen_) require(seen, "leaf without a place");
    require(def_.root_begin < def_.items.size() && end_of(def_.root_begin) == def_.items.size(), "root expression");
    if (def_.root_kind == RootKind::Call) {
      const Item &root = def_.items[def_.root_begin];
      require(root.op == Op::Tuple && root.n == 2 && def_.items[def_.root_begin + 1].op == Op::Tuple, "call root");
    }
  }

 private:
  bool has_kind(uint32_t i, ConstantKind kind) const {
    return i < def_.constants.size() && def_.constant_kinds[i] == kind;
  }

  bool is_keys(uint32_t i, uint32_t n) const {
    return PyTuple_CheckExact(def_.constant(i)) && PyTuple_Size(def_.constant(i)) == static_cast<Py_ssize_t>(n);
  }

  // The same keys, each once.
  bool is_order(uint32_t i, uint32_t keys) const {
    PyObject *order = def_.constant(i);
    const Py_ssize_t n = PyTuple_Size(def_.constant(keys));
    if (!has_kind(i, ConstantKind::Order) || !PyTuple_CheckExact(order) || PyTuple_Size(order) != n) return false;
    nb::object names = py::checked(PySet_New(order)), sorted = py::checked(PySet_New(def_.constant(keys)));
    return PySet_Size(names.ptr()) == n && py::equal(names.ptr(), sorted.ptr());
  }

  bool is_type(uint32_t i) const { return has_kind(i, ConstantKind::Type) && PyType_Check(def_.constant(i)); }

  void take_leaf(uint32_t leaf, uint32_t owner) {
    require(leaf < def_.n_leaves() && !leaf_seen_[leaf] && def_.leaf_owner[leaf] == owner, "leaf table");
    leaf_seen_[leaf] = true;
  }

  void check(const Item &item) {
    const OpInfo &info = item.info();
    for (uint32_t i = 0; i < info.n_constants; ++i) {
      require(item.constant != kNone && has_kind(item.constant + i, info.constants[i]), info.name);
    }
    if (item.keys() != kNone) require(is_keys(item.keys(), item.n), info.name);
    if (info.n_constants > 1 && info.constants[info.n_constants - 2] == ConstantKind::Order)
      require(is_order(item.keys() - 1, item.keys()), info.name);
    if (item.op == Op::Leaf) take_leaf(item.n, kNone);
    if (item.op == Op::Ref) require(item.n < def_.n_refs(), "reference out of range");
    if (item.op == Op::Static || item.op == Op::None) require(item.n == 0, "children of what has none");
    check_callable(item);
    if (item.op == Op::NamedTuple || item.op == Op::Mapping) {
      require(is_type(item.constant), info.name);
      PyTypeObject *type = py::as_type(def_.constant(item.constant));
      require(
          item.op == Op::Mapping ? node_type(type)->kind == Kind::Mapping : PyType_IsSubtype(type, &PyTuple_Type) != 0,
          info.name);
    }
  }

  void check_callable(const Item &item) const {
    if (callable_of(item.op) == CallableKind::None) return;
    require(item.n == static_cast<uint32_t>(py::tuple_size(part_names(callable_of(item.op)).ptr())), item.info().name);
    if (item.op == Op::Partial)
      require(PyType_Check(def_.constant(item.constant)) &&
                  node_type(py::as_type(def_.constant(item.constant)))->callable == CallableKind::Partial,
              item.info().name);
    if (item.op == Op::Lifted) require(is_recipe(def_.constant(item.constant)), item.info().name);
  }

  uint32_t end_of(uint32_t begin) const {
    uint64_t open = 1;
    uint32_t at = begin;
    for (; open > 0; --open) {
      require(at < def_.items.size(), "unfinished expression");
      open += def_.items[at++].n_children();
    }
    return at;
  }

  bool is_metadata(uint32_t i) const { return has_kind(i, ConstantKind::Metadata) && PyDict_Check(def_.constant(i)); }

  // Treadle's own nodes mark nothing; others mark data by a dict or a frozenset.
  bool may_have_marks(uint32_t r) const {
    uint32_t extra = def_.refs[r].extra;
    const NodeLayout *layout = node_type(def_.ref_type(r))->node_layout();
    if (extra == kNone) return true;
    if (layout == nullptr || !layout->marks_name.is_valid()) return false;
    if (layout->marks_field.is_valid()) return is_metadata(extra);
    return has_kind(extra, ConstantKind::Static) && PyAnySet_Check(def_.constant(extra));
  }

  void check(uint32_t r) {
    const RefDef &ref = def_.refs[r];
    require(is_type(ref.type), "node type");
    require(node_type(def_.ref_type(r))->kind == ref.kind, "node kind does not match its type");
    if (ref.kind == Kind::Variable) {
      require(ref.extra == kNone || is_metadata(ref.extra), "metadata");
      require(ref.keys == kNone && ref.children == 0 && ref.n_children == 0, "variable with children");
      return take_leaf(ref.leaf, r);
    }
    require(ref.kind == Kind::Object || ref.kind == Kind::Custom, "node kind");
    require(ref.leaf == kNone, "node with a value");
    require(ref.kind == Kind::Custom ? has_kind(ref.extra, ConstantKind::Static) : may_have_marks(r), "static part");
    require(has_kind(ref.keys, ConstantKind::Keys) && is_keys(ref.keys, ref.n_children), "attribute names");
    require(ref.keys > 0 && is_order(ref.keys - 1, ref.keys), "order of attribute names");
    require(static_cast<uint64_t>(ref.children) + ref.n_children <= def_.child_items.size(), "attribute table");
    for (uint32_t c = 0; c < ref.n_children; ++c) {
      require(def_.child_item(r, c) < def_.root_begin, "attribute out of range");
      end_of(def_.child_item(r, c));
    }
  }

  const GraphDef &def_;
  std::vector<bool> leaf_seen_;
};

// Attribute names come out of a pickle as strings of their own; guards compare them by pointer.
nb::object interned_names(const nb::object &keys) {
  std::vector<nb::object> names = py::to_objects(keys);
  for (nb::object &name : names) name = py::interned(std::move(name));
  return py::to_tuple(std::move(names));
}

nb::object unpickle(const nb::tuple &state) {
  require(state.size() == 9, "wrong number of tables");
  for (size_t i : {size_t{0}, size_t{1}, size_t{2}}) require(nb::isinstance<nb::int_>(state[i]), "header");
  int version = nb::cast<int>(state[0]);
  if (version != kPickleVersion) {
    throw nb::value_error(("this GraphDef was pickled in format " + std::to_string(version) +
                           ", and this treadle reads format " + std::to_string(kPickleVersion))
                              .c_str());
  }
  nb::object object = new_graphdef();
  GraphDef &def = graphdef_of(object);
  int root_kind = nb::cast<int>(state[1]);
  require(root_kind == 0 || root_kind == 1, "root kind");
  def.root_kind = static_cast<RootKind>(root_kind);
  def.root_begin = nb::cast<uint32_t>(state[2]);
  std::vector<uint32_t> items = from_bytes<uint32_t>(state[3]), refs = from_bytes<uint32_t>(state[4]);
  require(items.size() % 3 == 0 && refs.size() % 7 == 0, "table size");
  for (size_t i = 0; i < items.size(); i += 3) {
    require(items[i] < std::size(kOps), "unknown operation");
    def.items.push_back({static_cast<Op>(items[i]), items[i + 1], items[i + 2]});
  }
  for (size_t i = 0; i < refs.size(); i += 7) {
    require(refs[i] <= static_cast<uint32_t>(Kind::Static), "unknown kind");
    def.refs.push_back(
        {static_cast<Kind>(refs[i]), refs[i + 1], refs[i + 2], refs[i + 3], refs[i + 4], refs[i + 5], refs[i + 6]});
  }
  def.child_items = from_bytes<uint32_t>(state[5]);
  def.leaf_owner = from_bytes<uint32_t>(state[6]);
  for (uint8_t kind : from_bytes<uint8_t>(state[7])) {
    require(kind <= static_cast<uint8_t>(ConstantKind::Order), "unknown constant kind");
    def.constant_kinds.push_back(static_cast<ConstantKind>(kind));
  }
  require(nb::isinstance<nb::tuple>(state[8]), "constants");
  def.constants = py::to_objects(state[8]);
  Validator(def).run();
  for (size_t i = 0; i < def.constants.size(); ++i) {
    if (def.constant_kinds[i] == ConstantKind::Keys || def.constant_kinds[i] == ConstantKind::Order)
      def.constants[i] = interned_names(def.constants[i]);
    // One tuple where names are in their sorted order.
    if (i > 0 && def.constant_kinds[i] == ConstantKind::Keys && def.constant_kinds[i - 1] == ConstantKind::Order &&
        py::equal(def.constants[i].ptr(), def.constants[i - 1].ptr())) {
      def.constants[i - 1] = def.constants[i];
    }
  }
  size_t statics = 0;
  for (size_t i = 0; i < def.constants.size(); ++i) {
    if (def.constant_kinds[i] == ConstantKind::Static) statics = mix(statics, def.read(static_cast<uint32_t>(i)));
  }
  def.finish(statics);
  return object;
}

// A plain C function, because pickle can only name those.
PyObject *unpickle_function(PyObject *, PyObject *state) {
  return guarded([&] {
    require(PyTuple_CheckExact(state), "the state is not a tuple");
    try {
      return unpickle(nb::borrow<nb::tuple>(state));
    } catch (const std::bad_cast &) {
      throw nb::value_error("broken GraphDef pickle: a number is out of range");
    }
  });
}

PyMethodDef unpickle_method = {"graphdef", unpickle_function, METH_O,
                               "graphdef(tables)\n--\n\nThe GraphDef of a pickle."};

}  // namespace

// Rows as plain numbers: structs have padding, and their layout is not a file format.
nb::tuple pickle_state(const GraphDef &def) {
  std::vector<uint32_t> items, refs;
  for (const Item &item : def.items) items.insert(items.end(), {static_cast<uint32_t>(item.op), item.n, item.constant});
  for (const RefDef &ref : def.refs) {
    refs.insert(refs.end(), {static_cast<uint32_t>(ref.kind), ref.type, ref.extra, ref.keys, ref.leaf, ref.children,
                             ref.n_children});
  }
  nb::list constants;
  std::vector<uint8_t> kinds;
  for (size_t i = 0; i < def.constants.size(); ++i) {
    constants.append(def.constants[i]);
    kinds.push_back(static_cast<uint8_t>(def.constant_kinds[i]));
  }
  return nb::make_tuple(kPickleVersion, static_cast<int>(def.root_kind), def.root_begin, to_bytes(items),
                        to_bytes(refs), to_bytes(def.child_items), to_bytes(def.leaf_owner), to_bytes(kinds),
                        nb::tuple(constants));
}

void bind_pickling(nb::module_ &m) { py::add_unpickling(m, unpickle_method, "_unpickle_graphdef"); }

}  // namespace treadle
