#include "graph/graphdef.h"

#include <nanobind/stl/string.h>

#include <algorithm>
#include <cstring>

#include "deferred_release.h"
#include "errors.h"
#include "graph/filters.h"
#include "graph/statics.h"
#include "settings.h"

namespace treadle {
namespace {

nb::object *g_graphdef_type = nullptr;

// Depth-first over the expressions of a GraphDef in canonical order, item by item, so that two can go in step. Keeps
// the path that leads to the item; a reference's definition is entered at its first occurrence.
class Traversal {
 public:
  explicit Traversal(const GraphDef &def) : def_(def), seen_(def.n_refs(), false) {}

  // Goes to the next item; false after the last.
  bool next() {
    if (item_ == nullptr) {
      if (def_.items.size() <= def_.root_begin) return false;
      expression(def_.root_begin);
      return true;
    }
    while (!frames_.empty()) {
      Frame &frame = frames_.back();
      if (frame.next == frame.count) {
        uint32_t cursor = frame.cursor;
        bool by_value = frame.ref == kNone;
        path_.resize(frame.path_size);
        frames_.pop_back();
        if (by_value && !frames_.empty() && frames_.back().ref == kNone) frames_.back().cursor = cursor;
        continue;
      }
      uint32_t child = frame.next++;
      path_.resize(frame.path_size);
      kept_ = frame.path_size;
      push_key(frame, child);
      uint32_t at = frame.ref == kNone ? frame.cursor : def_.child_items[def_.refs[frame.ref].children + child];
      size_t parent = frames_.size() - 1;
      bool opened = expression(at);
      if (!opened && frames_[parent].ref == kNone) frames_[parent].cursor = at + 1;
      return true;
    }
    return false;
  }

  const Item &item() const { return *item_; }
  // True where a reference is reached for the first time, as opposed to shared.
  bool first() const { return first_; }
  const std::vector<nb::object> &path() const { return path_; }
  // How many leading keys of the path were there at the previous item too; at most one key is new.
  size_t kept() const { return kept_; }
  nb::tuple path_tuple() const {
    nb::object result = py::checked(PyTuple_New(static_cast<Py_ssize_t>(path_.size())));
    for (size_t i = 0; i < path_.size(); ++i) {
      py::tuple_init(result.ptr(), static_cast<Py_ssize_t>(i), nb::object(path_[i]).release().ptr());
    }
    return nb::steal<nb::tuple>(result.release());
  }

 private:
  struct Frame {
    uint32_t ref;  // kNone for a by-value container
    uint32_t next, count;
    uint32_t cursor;  // by-value: where the next child's expression starts
    size_t path_size;
    PyObject *keys;  // borrowed from the constants, or null for positions
    PyObject *transparent;
    uint8_t hide;  // levels of a call's root, whose own positions do not show
    bool int_keys;
  };

  // Stops at the item at `at`; true if a frame was opened for its children.
  bool expression(uint32_t at) {
    const Item &item = def_.items[at];
    item_ = &item;
    first_ = item.op == Op::Ref && !seen_[item.n];
    if (item.op == Op::Ref) {
      if (!first_) return false;
      seen_[item.n] = true;
      const RefDef &def = def_.refs[item.n];
      if (def.kind == Kind::Variable) return false;
      // The parent continues after the reference, wherever the definition lies.
      if (!frames_.empty() && frames_.back().ref == kNone) frames_.back().cursor = at + 1;
      const NodeType *info = node_type(def_.ref_type(item.n));
      frames_.push_back({item.n, 0, def.n_children, 0, path_.size(), def_.constant(def.keys), info->transparent.ptr(),
                         0, info->layout && info->layout->int_keys});
      return true;
    }
    if (item.op < Op::Tuple) return false;
    uint8_t hide = 0;
    if (def_.root_kind == RootKind::Call && frames_.empty()) hide = 1;
    frames_.push_back({kNone, 0, item.n, at + 1, path_.size(), child_keys(item), nullptr, hide, false});
    return true;
  }

  PyObject *child_keys(const Item &item) const {
    switch (item.op) {
      case Op::Dict:
        return def_.constant(item.constant);
      case Op::NamedTuple:
      case Op::Pytree:
      case Op::Mapping:
        return def_.constant(item.constant + 1);
      default:
        return nullptr;
    }
  }

  void push_key(const Frame &frame, uint32_t child) {
    if (frame.hide != 0) return;
    if (frame.keys == nullptr) {
      path_.push_back(nb::int_(child));
      return;
    }
    PyObject *key = py::tuple_item(frame.keys, static_cast<Py_ssize_t>(child));
    if (is_transparent(key, frame.transparent)) return;
    path_.push_back(frame.int_keys ? index_or_name(key) : nb::borrow<nb::object>(key));
  }

  // Names are mostly interned, but strings made at run time are not.
  static bool is_transparent(PyObject *key, PyObject *transparent) {
    if (key == transparent || transparent == nullptr) return key == transparent;
    return PyUnicode_Check(key) && PyUnicode_Compare(key, transparent) == 0;
  }

  const GraphDef &def_;
  const Item *item_ = nullptr;  // among those of `def_`, which are complete; null before the first
  bool first_ = false;
  size_t kept_ = 0;
  std::vector<bool> seen_;
  std::vector<Frame> frames_;
  std::vector<nb::object> path_;
};

nb::tuple to_tuple(std::vector<nb::object> &values) {
  nb::object result = py::checked(PyTuple_New(static_cast<Py_ssize_t>(values.size())));
  for (size_t i = 0; i < values.size(); ++i) {
    py::tuple_init(result.ptr(), static_cast<Py_ssize_t>(i), values[i].release().ptr());
  }
  return nb::steal<nb::tuple>(result.release());
}

nb::object none_if_null(PyObject *object) { return object != nullptr ? nb::borrow<nb::object>(object) : nb::none(); }

// ---- differences and repr -------------------------------------------------------------------------------------------

// What stands at one place of a structure, but for the path: in a deep graph all paths together are far larger than the
// graph. Equal rows at equal places mean equal structures.
struct Row {
  Op op;
  uint32_t n;  // reference id, child count
  bool first;
  uint32_t constant = kNone;  // compared
  uint32_t extra = kNone;     // Variable metadata, Custom static part or data marks
  bool marks = false;         // the extra is data marks
};

std::string type_label(PyObject *type) { return py::text(nb::borrow<nb::object>(type).attr("__name__")); }

Row row_at(const GraphDef &def, const Traversal &walk) {
  const Item &item = walk.item();
  Row row{item.op, item.n, walk.first()};
  switch (item.op) {
    case Op::Leaf:
      row.n = 0;
      break;
    case Op::Ref: {
      const RefDef &ref = def.refs[item.n];
      row.constant = ref.type;
      row.marks = ref.kind == Kind::Object;
      if (row.first && ref.extra != kNone) row.extra = ref.extra;
      break;
    }
    case Op::Static:
    case Op::Dict:
    case Op::NamedTuple:
    case Op::Pytree:
    case Op::Mapping:
      row.constant = item.constant;
      break;
    case Op::None:
    case Op::Tuple:
    case Op::List:
      break;
  }
  return row;
}

// What a message shows for a row.
nb::object shown(const GraphDef &def, const Row &row) {
  auto text = [](const std::string &value) -> nb::object { return nb::str(value.c_str()); };
  switch (row.op) {
    case Op::Leaf:
      return text("array");
    case Op::None:
      return text("None");
    case Op::Dict:
      return text("dict");
    case Op::Tuple:
      return text("tuple of length " + std::to_string(row.n));
    case Op::List:
      return text("list of length " + std::to_string(row.n));
    case Op::Ref:
      if (!row.first) return text("shared " + type_label(def.constant(row.constant)));
      break;
    default:
      break;
  }
  return nb::borrow<nb::object>(def.constant(row.constant));
}

nb::object missing() { return nb::str("<absent>"); }

// Marks on a node's attributes say little to a reader: they count only where nothing else differs.
enum class Marks : uint8_t { Ignore, Compare };

// True if both are there and equal, or neither is.
bool same_constant(const GraphDef &a, uint32_t i, const GraphDef &b, uint32_t j) {
  return i == kNone || j == kNone ? i == j : constants_equal(a, i, b, j);
}

// A static by what it is and, where that is what differs, by what it reads.
std::pair<nb::object, nb::object> shown_statics(const GraphDef &was, const Row &a, const GraphDef &is, const Row &b) {
  nb::object there = shown(was, a), here = shown(is, b);
  const Reading *then = was.reading(a.constant), *now = is.reading(b.constant);
  if (a.op != Op::Static || b.op != Op::Static || then == nullptr || now == nullptr) return {there, here};
  auto [before, after] = then->difference(*now);
  if (before.empty() || after.empty()) return {there, here};
  auto with = [](const nb::object &value, const std::string &read) {
    nb::object name = nb::getattr(value, "__qualname__", nb::none());
    return nb::str((py::text(name.is_none() ? nb::repr(value) : nb::str(name)) + " with " + read).c_str());
  };
  return {with(there, before), with(here, after)};
}

// What a message shows for two rows at one path; none if they are equal.
std::optional<std::pair<nb::object, nb::object>> row_difference(const GraphDef &was, const Row &a, const GraphDef &is,
                                                                const Row &b, Marks marks) {
  // Which keys a dict has shows at the keys themselves.
  if (a.op != b.op || a.first != b.first || (a.op != Op::Dict && !same_constant(was, a.constant, is, b.constant))) {
    return shown_statics(was, a, is, b);
  }
  bool ignored = marks == Marks::Ignore && a.marks;
  if (!ignored && !same_constant(was, a.extra, is, b.extra)) {
    auto held = [](const GraphDef &def, uint32_t extra) {
      return extra == kNone ? nb::object(nb::dict()) : nb::borrow<nb::object>(def.constant(extra));
    };
    return std::pair{held(was, a.extra), held(is, b.extra)};
  }
  if (a.n == b.n || a.op == Op::Dict) return std::nullopt;
  return std::pair{shown(was, a), shown(is, b)};
}

// True if both are at equal paths, given that they were one item ago: only what changed since is compared.
bool still_together(const Traversal &a, const Traversal &b) {
  const std::vector<nb::object> &left = a.path(), &right = b.path();
  if (left.size() != right.size()) return false;
  for (size_t i = std::min(a.kept(), b.kept()); i < left.size(); ++i) {
    if (!py::equal(left[i].ptr(), right[i].ptr())) return false;
  }
  return true;
}

// True if something stands at `path`. Remembers how far the last path agreed, instead of comparing each from its start.
bool shows(const GraphDef &def, const std::vector<nb::object> &path) {
  Traversal walk(def);
  size_t agreed = 0;
  while (walk.next()) {
    const std::vector<nb::object> &here = walk.path();
    agreed = std::min(agreed, walk.kept());
    while (agreed < here.size() && agreed < path.size() && py::equal(here[agreed].ptr(), path[agreed].ptr())) ++agreed;
    if (agreed == here.size() && agreed == path.size()) return true;
  }
  return false;
}

nb::object difference_in_step(const GraphDef &a, const GraphDef &b, Marks marks) {
  Traversal left(a), right(b);
  while (true) {
    bool in_left = left.next(), in_right = right.next();
    if (!in_left && !in_right) return nb::none();
    bool only_left = in_left && !in_right, only_right = in_right && !in_left;
    if (in_left && in_right && !still_together(left, right)) {
      // One side has an entry the other lacks: the one whose path the other side never shows.
      only_left = !shows(b, left.path());
      only_right = !only_left;
    }
    if (only_left) return nb::make_tuple(left.path_tuple(), shown(a, row_at(a, left)), missing());
    if (only_right) return nb::make_tuple(right.path_tuple(), missing(), shown(b, row_at(b, right)));
    if (auto difference = row_difference(a, row_at(a, left), b, row_at(b, right), marks)) {
      return nb::make_tuple(left.path_tuple(), difference->first, difference->second);
    }
  }
}

std::string repr_of(const GraphDef &def) {
  std::string text = "GraphDef(" + std::to_string(def.n_refs()) + " references, " + std::to_string(def.n_leaves()) +
                     " leaves, hash=" + std::to_string(def.hash % 0xffffff) + ")";
  // The path as text, and how long it was at each key: only what changes from line to line is made anew.
  std::string path;
  std::vector<size_t> before_key;
  Traversal walk(def);
  while (walk.next()) {
    if (walk.kept() < before_key.size()) {
      path.resize(before_key[walk.kept()]);
      before_key.resize(walk.kept());
    }
    for (size_t i = before_key.size(); i < walk.path().size(); ++i) {
      before_key.push_back(path.size());
      path += (path.empty() ? "" : ".") + py::text(nb::str(walk.path()[i]));
    }
    Row row = row_at(def, walk);
    nb::object what = shown(def, row);
    text += "\n  ";
    text += path.empty() ? "<root>" : path;
    text += ": ";
    text += row.op == Op::Static ? py::text(nb::repr(what))
            : row.op == Op::Ref && row.first
                ? type_label(what.ptr()) + " #" + std::to_string(row.n)
                : py::text(nb::str(what)) + (row.op == Op::Ref ? " #" + std::to_string(row.n) : "");
    if (row.extra != kNone && !row.marks) text += " " + py::text(nb::repr(nb::handle(def.constant(row.extra))));
  }
  return text;
}

// ---- pickling -------------------------------------------------------------------------------------------------------

constexpr int kPickleVersion = 1;

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

void require(bool condition, const char *what) {
  if (!condition) throw nb::value_error((std::string("broken GraphDef pickle: ") + what).c_str());
}

// Everything the engine relies on when it follows the tables: nothing read from a pickle is trusted.
void validate(const GraphDef &def) {
  auto has_kind = [&](uint32_t i, ConstantKind kind) {
    return i < def.constants.size() && def.constant_kinds[i] == kind;
  };
  auto is_keys = [&](uint32_t i, uint32_t n, ConstantKind kind) {
    return has_kind(i, kind) && PyTuple_CheckExact(def.constant(i)) &&
           PyTuple_Size(def.constant(i)) == static_cast<Py_ssize_t>(n);
  };
  require(def.constants.size() == def.constant_kinds.size(), "constants do not match their kinds");
  std::vector<bool> leaf_seen(def.n_leaves(), false);
  auto take_leaf = [&](uint32_t leaf, uint32_t owner) {
    require(leaf < def.n_leaves() && !leaf_seen[leaf] && def.leaf_owner[leaf] == owner, "leaf table");
    leaf_seen[leaf] = true;
  };
  for (const Item &item : def.items) {
    switch (item.op) {
      case Op::Leaf:
        take_leaf(item.n, kNone);
        break;
      case Op::Ref:
        require(item.n < def.n_refs(), "reference out of range");
        break;
      case Op::Static:
        require(item.n == 0 && has_kind(item.constant, ConstantKind::Static), "static out of range");
        break;
      case Op::None:
        require(item.n == 0, "None with children");
        break;
      case Op::Tuple:
      case Op::List:
        break;
      case Op::Dict:
        require(is_keys(item.constant, item.n, ConstantKind::Keys), "dict keys");
        break;
      case Op::NamedTuple:
        require(has_kind(item.constant, ConstantKind::Type) && PyType_Check(def.constant(item.constant)) &&
                    PyType_IsSubtype(reinterpret_cast<PyTypeObject *>(def.constant(item.constant)), &PyTuple_Type) &&
                    is_keys(item.constant + 1, item.n, ConstantKind::PathKeys),
                "namedtuple type");
        break;
      case Op::Pytree:
        require(has_kind(item.constant, ConstantKind::Treedef) &&
                    is_keys(item.constant + 1, item.n, ConstantKind::PathKeys),
                "treedef");
        break;
      case Op::Mapping:
        require(has_kind(item.constant, ConstantKind::Type) && PyType_Check(def.constant(item.constant)) &&
                    node_type(reinterpret_cast<PyTypeObject *>(def.constant(item.constant)))->kind == Kind::Mapping &&
                    is_keys(item.constant + 1, item.n, ConstantKind::Keys),
                "mapping");
        break;
      default:
        require(false, "unknown operation");
    }
  }
  auto end_of = [&](uint32_t begin) {
    uint64_t open = 1;
    uint32_t at = begin;
    while (open > 0) {
      require(at < def.items.size(), "unfinished expression");
      const Item &item = def.items[at++];
      open += (item.op >= Op::Tuple ? item.n : 0);
      --open;
    }
    return at;
  };
  // Treadle's own nodes mark nothing; others mark data by a dict or a frozenset.
  auto has_marks = [&](uint32_t r) {
    uint32_t extra = def.refs[r].extra;
    const Layout *layout = node_type(def.ref_type(r))->layout.get();
    if (extra == kNone) return true;
    if (layout == nullptr || !layout->marks_name.is_valid()) return false;
    if (layout->marks_field.is_valid())
      return has_kind(extra, ConstantKind::Metadata) && PyDict_Check(def.constant(extra));
    return has_kind(extra, ConstantKind::Static) && PyAnySet_Check(def.constant(extra));
  };
  for (uint32_t r = 0; r < def.n_refs(); ++r) {
    const RefDef &ref = def.refs[r];
    require(has_kind(ref.type, ConstantKind::Type) && PyType_Check(def.constant(ref.type)), "node type");
    require(node_type(def.ref_type(r))->kind == ref.kind, "node kind does not match its type");
    if (ref.kind == Kind::Variable) {
      require(
          ref.extra == kNone || (has_kind(ref.extra, ConstantKind::Metadata) && PyDict_Check(def.constant(ref.extra))),
          "metadata");
      require(ref.keys == kNone && ref.children == 0 && ref.n_children == 0, "variable with children");
      take_leaf(ref.leaf, r);
      continue;
    }
    require(ref.kind == Kind::Object || ref.kind == Kind::Custom, "node kind");
    require(ref.leaf == kNone, "node with a value");
    require(ref.kind == Kind::Custom ? has_kind(ref.extra, ConstantKind::Static) : has_marks(r), "static part");
    require(is_keys(ref.keys, ref.n_children, ConstantKind::Keys), "attribute names");
    require(static_cast<uint64_t>(ref.children) + ref.n_children <= def.child_items.size(), "attribute table");
    for (uint32_t c = 0; c < ref.n_children; ++c) {
      uint32_t begin = def.child_items[ref.children + c];
      require(begin < def.root_begin, "attribute out of range");
      end_of(begin);
    }
  }
  for (bool seen : leaf_seen) require(seen, "leaf without a place");
  require(def.root_begin < def.items.size() && end_of(def.root_begin) == def.items.size(), "root expression");
  if (def.root_kind == RootKind::Call) {
    const Item &root = def.items[def.root_begin];
    require(root.op == Op::Tuple && root.n == 2 && def.items[def.root_begin + 1].op == Op::Tuple, "call root");
  }
}

// Attribute names come out of a pickle as strings of their own; guards compare them by pointer.
nb::object interned(const nb::object &keys) {
  std::vector<nb::object> names;
  for (nb::handle key : keys) {
    PyObject *name = nb::borrow<nb::object>(key).release().ptr();
    if (py::is_exact(name, &PyUnicode_Type)) PyUnicode_InternInPlace(&name);
    names.push_back(nb::steal<nb::object>(name));
  }
  return to_tuple(names);
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
    require(items[i] <= static_cast<uint32_t>(Op::Mapping), "unknown operation");
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
    require(kind <= static_cast<uint8_t>(ConstantKind::PathKeys), "unknown constant kind");
    def.constant_kinds.push_back(static_cast<ConstantKind>(kind));
  }
  require(nb::isinstance<nb::tuple>(state[8]), "constants");
  for (nb::handle constant : nb::borrow<nb::tuple>(state[8])) def.constants.push_back(nb::borrow<nb::object>(constant));
  validate(def);
  for (size_t i = 0; i < def.constants.size(); ++i) {
    if (def.constant_kinds[i] == ConstantKind::Keys) def.constants[i] = interned(def.constants[i]);
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
  return guarded([&]() -> PyObject * {
    require(PyTuple_CheckExact(state), "the state is not a tuple");
    try {
      return unpickle(nb::borrow<nb::tuple>(state)).release().ptr();
    } catch (const std::bad_cast &) {
      throw nb::value_error("broken GraphDef pickle: a number is out of range");
    }
  });
}

PyMethodDef unpickle_method = {"_unpickle_graphdef", unpickle_function, METH_O, "Rebuild a GraphDef from its tables."};

// ---- tables as Python values ----------------------------------------------------------------------------------------

nb::tuple leaf_refs(const GraphDef &def) {
  std::vector<nb::object> result;
  for (uint32_t owner : def.leaf_owner) result.push_back(nb::int_(owner == kNone ? -1 : static_cast<int64_t>(owner)));
  return to_tuple(result);
}

nb::tuple leaf_types(const GraphDef &def) {
  std::vector<nb::object> result;
  for (uint32_t owner : def.leaf_owner) {
    result.push_back(none_if_null(owner == kNone ? nullptr : def.constant(def.refs[owner].type)));
  }
  return to_tuple(result);
}

nb::tuple leaf_metadata(const GraphDef &def) {
  std::vector<nb::object> result;
  nb::dict empty;
  for (uint32_t owner : def.leaf_owner) {
    if (owner == kNone) {
      result.push_back(nb::none());
    } else {
      PyObject *metadata = def.constant(def.refs[owner].extra);
      result.push_back(metadata != nullptr ? nb::borrow<nb::object>(metadata) : nb::object(empty));
    }
  }
  return to_tuple(result);
}

nb::tuple ref_types(const GraphDef &def) {
  std::vector<nb::object> result;
  for (const RefDef &ref : def.refs) result.push_back(nb::borrow<nb::object>(def.constant(ref.type)));
  return to_tuple(result);
}

nb::object path_index(const GraphDef &def) {
  if (!def.path_index_cache.is_valid()) {
    nb::dict index;
    nb::tuple paths = leaf_paths(def);
    for (size_t i = 0; i < paths.size(); ++i) index[paths[i]] = nb::int_(i);
    def.path_index_cache = index;
  }
  return def.path_index_cache;
}

nb::tuple reachable(const GraphDef &def, uint32_t start) {
  if (start >= def.n_refs()) throw nb::index_error("no such reference");
  std::vector<bool> seen(def.n_refs(), false), leaf_seen(def.n_leaves(), false);
  std::vector<uint32_t> pending{start};
  seen[start] = true;
  while (!pending.empty()) {
    const RefDef &ref = def.refs[pending.back()];
    pending.pop_back();
    if (ref.kind == Kind::Variable) leaf_seen[ref.leaf] = true;
    for (uint32_t c = 0; c < ref.n_children; ++c) {
      uint32_t at = def.child_items[ref.children + c];
      for (uint32_t end = def.skip(at); at < end; ++at) {
        const Item &item = def.items[at];
        if (item.op == Op::Leaf) leaf_seen[item.n] = true;
        if (item.op == Op::Ref && !seen[item.n]) {
          seen[item.n] = true;
          pending.push_back(item.n);
        }
      }
    }
  }
  std::vector<nb::object> result;
  for (uint32_t i = 0; i < def.n_leaves(); ++i) {
    if (leaf_seen[i]) result.push_back(nb::int_(i));
  }
  return to_tuple(result);
}

nb::tuple root_items(const GraphDef &def) {
  std::vector<nb::object> result;
  for (size_t at = def.root_begin; at < def.items.size(); ++at) {
    const Item &item = def.items[at];
    if (item.op == Op::Leaf || item.op == Op::Ref) result.push_back(nb::make_tuple(item.op == Op::Ref, item.n));
  }
  return to_tuple(result);
}

int traverse_graphdef(PyObject *self, visitproc visit, void *arg) {
  Py_VISIT(Py_TYPE(self));
  return nb::inst_ready(self) ? nb::inst_ptr<GraphDef>(self)->traverse(visit, arg) : 0;
}

int clear_graphdef(PyObject *self) {
  if (nb::inst_ready(self)) nb::inst_ptr<GraphDef>(self)->clear();
  return 0;
}

PyType_Slot graphdef_slots[] = {{Py_tp_traverse, reinterpret_cast<void *>(traverse_graphdef)},
                                {Py_tp_clear, reinterpret_cast<void *>(clear_graphdef)},
                                {0, nullptr}};

}  // namespace

uint32_t GraphDef::skip(uint32_t begin) const {
  uint64_t open = 1;
  uint32_t at = begin;
  while (open > 0) {
    const Item &item = items[at++];
    if (item.op >= Op::Tuple) open += item.n;
    --open;
  }
  return at;
}

GraphDef::~GraphDef() {
  // What they refer to lives on in the constants, whose release is not bounded by the C stack: a static may be another
  // GraphDef, which holds another one.
  readings.clear();
  for (nb::object &constant : constants) release_nested(constant.release().ptr());
}

void GraphDef::finish(size_t statics) {
  size_t seed = mix(static_cast<size_t>(root_kind), statics);
  for (const Item &item : items) seed = mix(seed, (static_cast<size_t>(item.op) << 32) | item.n);
  for (const RefDef &ref : refs) seed = mix(seed, (static_cast<size_t>(ref.kind) << 32) | ref.n_children);
  for (size_t i = 0; i < constants.size(); ++i) {
    PyObject *constant = constants[i].ptr();
    switch (constant_kinds[i]) {
      case ConstantKind::Type:
        seed = mix(seed, reinterpret_cast<size_t>(constant) >> 4);
        break;
      case ConstantKind::Keys: {
        Py_hash_t keys = PyObject_Hash(constant);
        if (keys == -1 && PyErr_Occurred()) throw nb::python_error();
        seed = mix(seed, static_cast<size_t>(keys));
        break;
      }
      case ConstantKind::Metadata:
        seed = mix(seed, read(static_cast<uint32_t>(i)));
        break;
      case ConstantKind::Static:
      case ConstantKind::Treedef:  // aux data need not be hashable; equality decides
      case ConstantKind::PathKeys:
        break;
    }
  }
  std::sort(readings.begin(), readings.end(), [](const auto &a, const auto &b) { return a.first < b.first; });
  hash = seed;
}

size_t GraphDef::read(uint32_t constant) {
  nb::object value = constants[constant];
  if (constant_kinds[constant] == ConstantKind::Metadata) {
    if (!has_metadata_reading(value.ptr())) return metadata_hash(value.ptr());
    readings.emplace_back(constant, Reading::of_metadata(value.ptr()));
  } else {
    if (!has_reading(value.ptr())) return static_hash(value.ptr());
    readings.emplace_back(constant, Reading(value.ptr(), Unhashable::Refused));
  }
  return readings.back().second.hash();
}

const Reading *GraphDef::reading(uint32_t constant) const {
  auto found = std::lower_bound(readings.begin(), readings.end(), constant,
                                [](const auto &entry, uint32_t wanted) { return entry.first < wanted; });
  return found != readings.end() && found->first == constant ? &found->second : nullptr;
}

bool constants_equal(const GraphDef &a, uint32_t i, const GraphDef &b, uint32_t j) {
  const Reading *read_a = a.reading(i), *read_b = b.reading(j);
  if (read_a != nullptr && read_b != nullptr) return read_a->equals(*read_b);
  if (read_a != nullptr || read_b != nullptr || a.constant_kinds[i] != b.constant_kinds[j]) return false;
  return constant_equal(a.constant_kinds[i], a.constant(i), b.constant(j));
}

bool constant_equal(ConstantKind kind, PyObject *a, PyObject *b) {
  if (a == b) return true;
  switch (kind) {
    case ConstantKind::Static:
      return static_equal(a, b);
    case ConstantKind::Type:
      return false;
    case ConstantKind::Metadata:
      return metadata_equal(a, b);
    case ConstantKind::Keys:
    case ConstantKind::Treedef:
      return py::equal(a, b);
    case ConstantKind::PathKeys:
      return true;
  }
  return false;
}

bool GraphDef::equals(const GraphDef &other) const {
  if (this == &other) return true;
  if (hash != other.hash || root_kind != other.root_kind || root_begin != other.root_begin || items != other.items ||
      refs != other.refs || child_items != other.child_items || leaf_owner != other.leaf_owner ||
      constant_kinds != other.constant_kinds) {
    return false;
  }
  for (size_t i = 0; i < constants.size(); ++i) {
    if (!constants_equal(*this, static_cast<uint32_t>(i), other, static_cast<uint32_t>(i))) return false;
  }
  return true;
}

int GraphDef::traverse(visitproc visit, void *arg) const {
  for (const nb::object &constant : constants) Py_VISIT(constant.ptr());
  for (const auto &entry : readings) {
    if (int stop = entry.second.traverse(visit, arg)) return stop;
  }
  Py_VISIT(paths_cache.ptr());
  Py_VISIT(ref_paths_cache.ptr());
  Py_VISIT(path_index_cache.ptr());
  Py_VISIT(partition_cache.ptr());
  return 0;
}

void GraphDef::clear() {
  // Swapped out first: dropping constants can run code that looks at this object.
  std::vector<nb::object> dropped;
  dropped.swap(constants);
  std::vector<std::pair<uint32_t, Reading>> dropped_readings;
  dropped_readings.swap(readings);
  items.clear();
  refs.clear();
  child_items.clear();
  leaf_owner.clear();
  constant_kinds.clear();
  root_begin = 0;
  paths_cache.reset();
  ref_paths_cache.reset();
  path_index_cache.reset();
  partition_cache.reset();
}

nb::object new_graphdef() {
  nb::object object = nb::inst_alloc(*g_graphdef_type);
  new (nb::inst_ptr<GraphDef>(object)) GraphDef();
  nb::inst_mark_ready(object);
  return object;
}

GraphDef &graphdef_of(nb::handle object) {
  if (!nb::type_check(object.type()) || !object.type().is(*g_graphdef_type) || !nb::inst_ready(object))
    throw nb::type_error("expected a GraphDef");
  return *nb::inst_ptr<GraphDef>(object);
}

nb::tuple leaf_paths(const GraphDef &def) {
  if (!def.paths_cache.is_valid()) {
    std::vector<nb::object> paths(def.n_leaves(), nb::make_tuple());
    Traversal walk(def);
    while (walk.next()) {
      const Item &item = walk.item();
      if (item.op == Op::Leaf) paths[item.n] = walk.path_tuple();
      if (item.op == Op::Ref && walk.first() && def.refs[item.n].kind == Kind::Variable) {
        paths[def.refs[item.n].leaf] = walk.path_tuple();
      }
    }
    def.paths_cache = to_tuple(paths);
  }
  return nb::borrow<nb::tuple>(def.paths_cache);
}

size_t length_of_leaf_paths(const GraphDef &def) {
  size_t length = 0;
  Traversal walk(def);
  while (walk.next()) {
    const Item &item = walk.item();
    const bool variable = item.op == Op::Ref && walk.first() && def.refs[item.n].kind == Kind::Variable;
    if (variable || item.op == Op::Leaf) length += walk.path().size();
  }
  return length;
}

uint32_t PathTree::add(uint32_t parent, nb::object key) {
  steps_.push_back({parent, length(parent) + 1, std::move(key)});
  return static_cast<uint32_t>(steps_.size());
}

nb::tuple PathTree::tuple(uint32_t path) const {
  nb::object result = py::checked(PyTuple_New(static_cast<Py_ssize_t>(length(path))));
  for (; path != kRoot; path = steps_[path - 1].parent) {
    const Step &step = steps_[path - 1];
    py::tuple_init(result.ptr(), static_cast<Py_ssize_t>(step.length) - 1, nb::object(step.key).release().ptr());
  }
  return nb::steal<nb::tuple>(result.release());
}

std::vector<uint32_t> paths_of_references(const GraphDef &def, const std::vector<bool> &wanted, PathTree &paths) {
  std::vector<uint32_t> result(def.n_refs(), kNone);
  std::vector<uint32_t> trail{PathTree::kRoot};  // of the current path's beginnings, as many as were asked for
  Traversal walk(def);
  while (walk.next()) {
    trail.resize(std::min(trail.size(), walk.kept() + 1));
    const Item &item = walk.item();
    if (item.op != Op::Ref || !walk.first() || !wanted[item.n]) continue;
    for (size_t i = trail.size() - 1; i < walk.path().size(); ++i) {
      trail.push_back(paths.add(trail.back(), walk.path()[i]));
    }
    result[item.n] = trail.back();
  }
  return result;
}

nb::object path_of_reference(const GraphDef &def, uint32_t ref) {
  Traversal walk(def);
  while (walk.next()) {
    if (walk.item().op == Op::Ref && walk.item().n == ref) return walk.path_tuple();
  }
  return nb::make_tuple();
}

nb::tuple ref_paths(const GraphDef &def) {
  if (!def.ref_paths_cache.is_valid()) {
    std::vector<nb::object> paths(def.n_refs(), nb::make_tuple());
    Traversal walk(def);
    while (walk.next()) {
      if (walk.item().op == Op::Ref && walk.first()) paths[walk.item().n] = walk.path_tuple();
    }
    def.ref_paths_cache = to_tuple(paths);
  }
  return nb::borrow<nb::tuple>(def.ref_paths_cache);
}

nb::object first_difference(const GraphDef &a, const GraphDef &b) {
  if (a.equals(b)) return nb::none();
  nb::object difference = difference_in_step(a, b, Marks::Ignore);
  return difference.is_none() ? difference_in_step(a, b, Marks::Compare) : difference;
}

void bind_graphdef(nb::module_ &m) {
  nb::class_<GraphDef> cls(m, "GraphDef", nb::type_slots(graphdef_slots), nb::is_final());
  g_graphdef_type = new nb::object(cls);
  cls.def_prop_ro("num_leaves", &GraphDef::n_leaves);
  cls.def_prop_ro("num_refs", &GraphDef::n_refs);
  cls.def_prop_ro("root_kind", [](const GraphDef &def) { return def.root_kind == RootKind::Call ? "call" : "graph"; });
  cls.def("paths", &leaf_paths);
  cls.def("paths_length", &length_of_leaf_paths);
  cls.def("ref_paths", &ref_paths);
  cls.def("leaf_refs", &leaf_refs);
  cls.def("leaf_types", &leaf_types);
  cls.def("leaf_metadata", &leaf_metadata);
  cls.def("ref_types", &ref_types);
  cls.def("path_index", &path_index);
  cls.def("partition", &partition, nb::arg("filters"), nb::arg("leaves"));
  cls.def("reachable", &reachable, nb::arg("ref"));
  cls.def("root_items", &root_items);
  cls.def("difference", &first_difference, nb::arg("other"));
  cls.def("__hash__", [](const GraphDef &def) { return static_cast<Py_ssize_t>(def.hash >> 1); });
  cls.def(
      "__eq__",
      [](const GraphDef &def, nb::handle other) -> nb::object {
        if (!other.type().is(*g_graphdef_type)) return nb::borrow<nb::object>(Py_NotImplemented);
        return nb::bool_(def.equals(graphdef_of(other)));
      },
      nb::arg("other").none());
  cls.def("__repr__", &repr_of);
  cls.def(
      "__deepcopy__", [](nb::handle self, nb::handle) { return nb::borrow<nb::object>(self); }, nb::arg("memo").none());
  cls.def("__copy__", [](nb::handle self) { return nb::borrow<nb::object>(self); });
  cls.def("__reduce__", [](const GraphDef &def) {
    return nb::make_tuple(nb::module_::import_("treadle._core").attr("_unpickle_graphdef"),
                          nb::make_tuple(pickle_state(def)));
  });
  nb::object module_name = m.attr("__name__");
  m.attr("_unpickle_graphdef") = py::checked(PyCFunction_NewEx(&unpickle_method, nullptr, module_name.ptr()));
}

}  // namespace treadle
