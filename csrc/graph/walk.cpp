#include "graph/walk.h"

#include <algorithm>
#include <unordered_map>

#include "objects/cells.h"
#include "settings.h"
#include "statics/statics.h"

namespace treadle {
namespace {

// Insertion orders remembered at most. A program has as many as it has kinds of modules; the bound only matters for
// graphs whose attribute names are made up at run time.
constexpr size_t kMaxKeyOrders = 4096;

using OrderBucket = std::vector<std::shared_ptr<const KeyOrder>>;

std::unordered_map<size_t, OrderBucket> &order_cache() {
  static auto *cache = new std::unordered_map<size_t, OrderBucket>();
  return *cache;
}

std::vector<nb::object> dict_keys(PyObject *dict) {
  std::vector<nb::object> keys;
  keys.reserve(static_cast<size_t>(py::dict_size(dict)));
  PyObject *key = nullptr, *value = nullptr;
  Py_ssize_t position = 0;
  while (PyDict_Next(dict, &position, &key, &value)) keys.push_back(nb::borrow<nb::object>(key));
  return keys;
}

bool has_keys_in_order(PyObject *dict, const std::vector<nb::object> &keys) {
  if (py::dict_size(dict) != static_cast<Py_ssize_t>(keys.size())) return false;
  PyObject *key = nullptr, *value = nullptr;
  Py_ssize_t position = 0;
  for (const nb::object &known : keys) {
    if (!PyDict_Next(dict, &position, &key, &value) || key != known.ptr()) return false;
  }
  return true;
}

// Sorts like Python's `sorted`; keys that do not compare raise its TypeError.
std::shared_ptr<const KeyOrder> sort_keys(std::vector<nb::object> keys, const Layout *layout) {
  // Indices and names do not compare; a layout that has both puts indices first.
  nb::object list = py::checked(PyList_New(0)), indices = py::checked(PyList_New(0));
  for (const nb::object &key : keys) {
    if (layout != nullptr && layout->hides(key.ptr())) continue;
    bool is_index = layout != nullptr && layout->int_keys && py::is_exact(key.ptr(), &PyLong_Type);
    py::check_status(PyList_Append(is_index ? indices.ptr() : list.ptr(), key.ptr()));
  }
  py::check_status(PyList_Sort(list.ptr()));
  if (py::list_size(indices.ptr()) > 0) {
    py::check_status(PyList_Sort(indices.ptr()));
    py::check_status(PyList_SetSlice(list.ptr(), 0, 0, indices.ptr()));
  }
  auto order = std::make_shared<KeyOrder>();
  order->sorted = py::checked(PyList_AsTuple(list.ptr()));
  std::unordered_map<PyObject *, uint32_t> rank;
  for (Py_ssize_t i = 0; i < py::tuple_size(order->sorted.ptr()); ++i) {
    rank[py::tuple_item(order->sorted.ptr(), i)] = static_cast<uint32_t>(i);
  }
  for (const nb::object &key : keys) {
    auto place = rank.find(key.ptr());
    order->rank.push_back(place != rank.end() ? place->second : kNone);
  }
  order->inserted = std::move(keys);
  order->layout = layout;
  return order;
}

nb::object plain_key(const nb::object &entry) {
  for (const char *field : {"key", "idx", "name"}) {
    nb::object value = nb::getattr(entry, field, nb::object());
    if (value.is_valid()) return value;
  }
  return entry;
}

std::string type_name(PyObject *value) {
  nb::object name = nb::borrow<nb::object>(reinterpret_cast<PyObject *>(Py_TYPE(value))).attr("__name__");
  return py::text(py::checked(PyObject_Str(name.ptr())));
}

// Bound to the container being opened: everything else is a leaf of its one level. A plain C function, because making
// one can fail politely when memory runs out.
PyObject *is_other(PyObject *self, PyObject *other) { return PyBool_FromLong(self != other); }

PyMethodDef is_other_method = {"is_other", is_other, METH_O, nullptr};

// Says where in the graph a user's function failed.
void add_path_note(nb::python_error &error, const nb::object &path) {
  nb::object note = settings().graph_error("could not be walked", path, false);
  nb::borrow<nb::object>(error.value()).attr("add_note")(nb::str(note));
}

}  // namespace

std::shared_ptr<const KeyOrder> key_order(PyObject *dict, const Layout *layout) {
  size_t hash = static_cast<size_t>(py::dict_size(dict)) + (reinterpret_cast<size_t>(layout) >> 4);
  PyObject *key = nullptr, *value = nullptr;
  Py_ssize_t position = 0;
  while (PyDict_Next(dict, &position, &key, &value)) {
    if (!py::is_exact(key, &PyUnicode_Type)) return sort_keys(dict_keys(dict), layout);
    hash = mix(hash, reinterpret_cast<size_t>(key) >> 4);
  }
  auto &cache = order_cache();
  if (auto found = cache.find(hash); found != cache.end()) {
    for (const auto &order : found->second) {
      if (order->layout == layout && has_keys_in_order(dict, order->inserted)) return order;
    }
  }
  auto order = sort_keys(dict_keys(dict), layout);
  if (cache.size() >= kMaxKeyOrders) cache.clear();
  cache[hash].push_back(order);
  return order;
}

namespace {

// Sizes of the last walk: the next one is most likely of the same graph, and growing a dozen tables step by step costs
// more than walking it.
struct SizeHint {
  size_t items = 0, refs = 0, children = 0, constants = 0, leaves = 0;
};
SizeHint g_hint;

}  // namespace

Walker::Walker() : graphdef(new_graphdef()), def_(&graphdef_of(graphdef)), path_prefix_(nb::make_tuple()) {
  def_->items.reserve(g_hint.items);
  def_->refs.reserve(g_hint.refs);
  def_->child_items.reserve(g_hint.children);
  def_->constants.reserve(g_hint.constants);
  def_->constant_kinds.reserve(g_hint.constants);
  def_->leaf_owner.reserve(g_hint.leaves);
  leaves.reserve(g_hint.leaves);
  refs.reserve(g_hint.refs);
}

uint32_t Walker::add_constant(ConstantKind kind, nb::object value) {
  def_->constants.push_back(std::move(value));
  def_->constant_kinds.push_back(kind);
  return static_cast<uint32_t>(def_->constants.size() - 1);
}

void Walker::add_leaf(PyObject *value, uint32_t owner) {
  leaves.push_back(nb::borrow<nb::object>(value));
  def_->leaf_owner.push_back(owner);
}

void Walker::add_static(PyObject *value) {
  const uint32_t constant = add_constant(ConstantKind::Static, nb::borrow<nb::object>(value));
  try {
    static_hash_ = mix(static_hash_, def_->read(constant));
  } catch (nb::python_error &error) {
    if (!error.matches(PyExc_TypeError)) throw;
    raise_graph_error(
        current_path(),
        "holds a static value of type '" + type_name(value) +
            "' that is not hashable; use a hashable value (a tuple instead of a set or bytearray, a frozen "
            "dataclass), or wrap arrays and state in a Variable",
        ErrorKind::Static);
  }
  scratch_.push_back({Op::Static, 0, constant});
}

void Walker::open(const Frame &frame) {
  size_t depth = frames_.size();
  // A container that holds itself has no end. Looking for it at every power of two keeps the check out of normal walks
  // and linear in deep ones.
  if (frame.ref == kNone && depth >= 1024 && (depth & (depth - 1)) == 0) {
    for (size_t i = 0; i < frames_.size(); ++i) {
      if (frames_[i].ref == kNone && frames_[i].object == frame.object) {
        raise_graph_error(
            path_to(i),
            "is a plain container that contains itself; use treadle.List or treadle.Dict, which are nodes with "
            "identity");
      }
    }
  }
  frames_.push_back(frame);
}

std::shared_ptr<const KeyOrder> Walker::sorted_order(PyObject *dict, const Layout *layout) {
  try {
    return key_order(dict, layout);
  } catch (nb::python_error &error) {
    if (!error.matches(PyExc_TypeError)) throw;
    raise_graph_error(current_path(), "is a dict whose keys cannot be sorted; use keys of one type, such as str");
  }
}

// Takes the values of `dict` by sorted key, for a frame that walks them.
Walker::Frame Walker::dict_frame(PyObject *dict, const KeyOrder &order) {
  auto count = static_cast<uint32_t>(py::tuple_size(order.sorted.ptr()));
  size_t begin = values_.size();
  values_.resize(begin + count);
  PyObject *key = nullptr, *value = nullptr;
  Py_ssize_t position = 0;
  for (size_t i = 0; i < order.rank.size(); ++i) {
    // Comparing keys to sort them may have run code that moved them.
    if (!PyDict_Next(dict, &position, &key, &value) || key != order.inserted[i].ptr())
      raise_graph_error(current_path(), "changed while it was walked");
    if (order.rank[i] != kNone) values_[begin + order.rank[i]] = nb::borrow<nb::object>(value);
  }
  if (PyDict_Next(dict, &position, &key, &value)) raise_graph_error(current_path(), "changed while it was walked");
  Frame frame{};
  frame.keys = order.sorted.ptr();
  frame.values_begin = begin;
  frame.count = count;
  frame.ref = kNone;
  frame.object = dict;
  return frame;
}

// A plain dict, walked by value.
void Walker::open_dict(PyObject *dict, Scalars scalars) {
  std::shared_ptr<const KeyOrder> order = sorted_order(dict, nullptr);
  Frame frame = dict_frame(dict, *order);
  scratch_.push_back({Op::Dict, frame.count, add_constant(ConstantKind::Keys, order->sorted)});
  frame.items_begin = scratch_.size();
  frame.offsets_begin = offsets_.size();
  frame.scalars = scalars;
  open(frame);
}

// Another library's class around a dict, walked by value.
void Walker::open_mapping(PyObject *value, const Layout &layout, Scalars scalars) {
  nb::object dict = layout.items(value);
  if (!dict.is_valid()) raise_graph_error(current_path(), "is a mapping without a dict of items");
  std::shared_ptr<const KeyOrder> order = sorted_order(dict.ptr(), nullptr);
  Frame frame = dict_frame(dict.ptr(), *order);
  nb::object type = nb::borrow<nb::object>(reinterpret_cast<PyObject *>(Py_TYPE(value)));
  scratch_.push_back({Op::Mapping, frame.count, add_constant(ConstantKind::Type, type)});
  add_constant(ConstantKind::Keys, order->sorted);
  frame.items_begin = scratch_.size();
  frame.offsets_begin = offsets_.size();
  frame.scalars = scalars;
  open(frame);
}

// The attributes of a node.
void Walker::open_children(PyObject *dict, uint32_t ref, const NodeType &info, PyObject *marks) {
  std::shared_ptr<const KeyOrder> order = sorted_order(dict, info.layout.get());
  Frame frame = dict_frame(dict, *order);
  def_->refs[ref].keys = add_constant(ConstantKind::Keys, order->sorted);
  def_->refs[ref].n_children = frame.count;
  frame.ref = ref;
  frame.transparent = info.transparent.ptr();
  frame.items_begin = scratch_.size();
  frame.offsets_begin = offsets_.size();
  frame.scalars = Scalars::Static;
  frame.marks = marks;
  frame.int_keys = info.layout && info.layout->int_keys;
  open(frame);
}

void Walker::open_sequence(PyObject *value, Op op, Scalars scalars) {
  bool is_list = op == Op::List;
  Py_ssize_t n = is_list ? py::list_size(value) : PyTuple_Size(value);
  size_t begin = values_.size();
  for (Py_ssize_t i = 0; i < n; ++i) {
    values_.push_back(nb::borrow<nb::object>(is_list ? py::list_item(value, i) : py::tuple_item(value, i)));
  }
  PyObject *keys = nullptr;
  uint32_t constant = kNone;
  if (op == Op::NamedTuple) {
    nb::object type = nb::borrow<nb::object>(reinterpret_cast<PyObject *>(Py_TYPE(value)));
    constant = add_constant(ConstantKind::Type, type);
    nb::object fields = nb::tuple(nb::object(type.attr("_fields")));
    if (py::tuple_size(fields.ptr()) != n)
      raise_graph_error(current_path(), "is a named tuple with other _fields than values");
    keys = fields.ptr();
    add_constant(ConstantKind::PathKeys, fields);
  }
  auto count = static_cast<uint32_t>(n);
  scratch_.push_back({op, count, constant});
  open({keys, begin, 0, count, kNone, nullptr, scratch_.size(), offsets_.size(), scalars, value, nullptr, false});
}

// A type only JAX's registry knows: one level through the registry, kept as a treedef for rebuilding.
void Walker::open_pytree(PyObject *value, Scalars scalars) {
  const Settings &s = settings();
  nb::object held = nb::borrow<nb::object>(value);
  nb::object one_level = s.flatten_one_level(held);
  if (one_level.is_none()) raise_graph_error(current_path(), "was a registered pytree and no longer is");
  nb::object is_leaf = py::checked(PyCFunction_NewEx(&is_other_method, held.ptr(), nullptr));
  nb::object flattened = s.tree_flatten(held, is_leaf);
  nb::object children = flattened[0], treedef = flattened[1];
  std::vector<nb::object> keys;
  for (nb::handle entry : nb::object(one_level[0])) keys.push_back(plain_key(nb::borrow<nb::object>(entry[0])));
  size_t begin = values_.size();
  for (nb::handle child : children) values_.push_back(nb::borrow<nb::object>(child));
  auto count = static_cast<uint32_t>(values_.size() - begin);
  if (keys.size() != count)
    raise_graph_error(current_path(), "is a pytree whose flatten function is not deterministic");
  nb::object key_tuple = py::checked(PyTuple_New(static_cast<Py_ssize_t>(count)));
  for (uint32_t i = 0; i < count; ++i) py::tuple_init(key_tuple.ptr(), i, keys[i].release().ptr());
  uint32_t constant = add_constant(ConstantKind::Treedef, treedef);
  PyObject *borrowed_keys = key_tuple.ptr();
  add_constant(ConstantKind::PathKeys, key_tuple);
  scratch_.push_back({Op::Pytree, count, constant});
  open({borrowed_keys, begin, 0, count, kNone, nullptr, scratch_.size(), offsets_.size(), scalars, value, nullptr,
        false});
}

// A Variable of another library: its metadata may change in place, so the structure gets a snapshot.
void Walker::define_variable(uint32_t ref, PyObject *value, const Layout &layout) {
  std::shared_ptr<const Snapshot> metadata = layout.snapshot(value);
  if (!metadata->refusal.is_none()) {
    raise_graph_error(current_path(), py::text(metadata->refusal));
  }
  nb::object raw = layout.value.get(value);
  for (const nb::object &refused : layout.refused_values) {
    if (reinterpret_cast<PyObject *>(Py_TYPE(raw.ptr())) == refused.ptr())
      raise_graph_error(current_path(), py::text(layout.refused_value_reason));
  }
  if (!metadata->entries.empty()) def_->refs[ref].extra = add_constant(ConstantKind::Metadata, metadata->dict);
  def_->refs[ref].leaf = def_->n_leaves();
  add_leaf(raw.ptr(), ref);
}

void Walker::define(uint32_t ref, PyObject *value, const NodeType *info) {
  nb::object type = nb::borrow<nb::object>(reinterpret_cast<PyObject *>(Py_TYPE(value)));
  RefDef &def = def_->refs[ref];
  def = {info->kind, add_constant(ConstantKind::Type, type), kNone, kNone, kNone, 0, 0};
  if (info->kind == Kind::Variable && info->layout) {
    define_variable(ref, value, *info->layout);
  } else if (info->kind == Kind::Variable) {
    VariableCell *cell = as_cell(value);
    if (cell->metadata != nullptr) {
      def_->refs[ref].extra = add_constant(ConstantKind::Metadata, nb::borrow<nb::object>(cell->metadata));
    }
    def_->refs[ref].leaf = def_->n_leaves();
    add_leaf(cell->value, ref);
  } else if (info->kind == Kind::Object) {
    nb::object dict = py::instance_dict(value);
    nb::object marks = info->layout ? info->layout->marks(dict.ptr()) : nb::object();
    if (marks.is_valid()) {
      bool is_dict = PyDict_Check(marks.ptr());
      const uint32_t constant = add_constant(is_dict ? ConstantKind::Metadata : ConstantKind::Static, marks);
      if (!is_dict) static_hash_ = mix(static_hash_, def_->read(constant));
      def_->refs[ref].extra = constant;
    }
    open_children(dict.ptr(), ref, *info, marks.ptr());
  } else {
    nb::dict children;
    try {
      nb::object parts = info->flatten(nb::borrow<nb::object>(value));
      for (nb::handle entry : nb::object(parts[0])) children[nb::object(entry[0])] = nb::object(entry[1]);
      def_->refs[ref].extra = add_constant(ConstantKind::Static, nb::object(parts[1]));
      static_hash_ = mix(static_hash_, def_->read(def_->refs[ref].extra));
    } catch (nb::python_error &error) {
      add_path_note(error, current_path());
      throw;
    }
    open_children(children.ptr(), ref, *info, nullptr);
  }
}

void Walker::visit_reference(PyObject *value, const NodeType *info) {
  auto next = static_cast<uint32_t>(refs.size());
  auto [id, fresh] = ids.insert(value, next);
  scratch_.push_back({Op::Ref, id, kNone});
  if (!fresh) return;
  refs.push_back(nb::borrow<nb::object>(value));
  def_->refs.push_back({});
  define(next, value, info);
}

void Walker::visit(PyObject *value, Scalars scalars) {
  const NodeType *info = classify(value);
  switch (info->kind) {
    case Kind::None:
      scratch_.push_back({Op::None, 0, kNone});
      break;
    case Kind::Variable:
    case Kind::Object:
    case Kind::Custom:
      visit_reference(value, info);
      break;
    case Kind::Tuple:
      open_sequence(value, Op::Tuple, scalars);
      break;
    case Kind::List:
      open_sequence(value, Op::List, scalars);
      break;
    case Kind::NamedTuple:
      open_sequence(value, Op::NamedTuple, scalars);
      break;
    case Kind::Dict:
      open_dict(value, scalars);
      break;
    case Kind::Mapping:
      open_mapping(value, *info->layout, scalars);
      break;
    case Kind::Pytree:
      open_pytree(value, scalars);
      break;
    case Kind::Array:
      scratch_.push_back({Op::Leaf, def_->n_leaves(), kNone});
      add_leaf(value, kNone);
      break;
    case Kind::Static:
      if (info->refusal.is_valid()) raise_graph_error(current_path(), py::text(info->refusal));
      if (scalars == Scalars::Leaves || (scalars == Scalars::Numbers && is_number(value))) {
        scratch_.push_back({Op::Leaf, def_->n_leaves(), kNone});
        add_leaf(value, kNone);
      } else {
        add_static(value);
      }
      break;
  }
}

void Walker::close(const Frame &frame) {
  if (frame.ref != kNone) {
    auto base = static_cast<uint32_t>(def_->items.size());
    def_->refs[frame.ref].children = static_cast<uint32_t>(def_->child_items.size());
    for (size_t i = frame.offsets_begin; i < offsets_.size(); ++i) def_->child_items.push_back(base + offsets_[i]);
    offsets_.resize(frame.offsets_begin);
    auto first = scratch_.begin() + static_cast<std::ptrdiff_t>(frame.items_begin);
    def_->items.insert(def_->items.end(), first, scratch_.end());
    scratch_.erase(first, scratch_.end());
  }
  values_.resize(frame.values_begin);
}

void Walker::run() {
  while (!frames_.empty()) {
    Frame &frame = frames_.back();
    if (frame.next == frame.count) {
      Frame done = frame;
      frames_.pop_back();
      close(done);
      continue;
    }
    size_t index = frame.values_begin + frame.next++;
    if (frame.ref != kNone) offsets_.push_back(static_cast<uint32_t>(scratch_.size() - frame.items_begin));
    Scalars scalars = frame.scalars;
    if (frame.marks != nullptr && is_marked(frame.marks, py::tuple_item(frame.keys, frame.next - 1)))
      scalars = Scalars::Numbers;
    visit(values_[index].ptr(), scalars);
  }
}

void Walker::walk_known(std::vector<nb::object> known, const GraphDef &before) {
  known_def_ = &before;
  for (const nb::object &object : known) ids.insert(object.ptr(), static_cast<uint32_t>(ids.size()));
  if (ids.size() != known.size()) throw nb::value_error("known references must be distinct");
  refs = std::move(known);
  def_->refs.resize(refs.size());
  auto count = static_cast<uint32_t>(def_->refs.size());
  for (uint32_t i = 0; i < count; ++i) {
    known_ref_ = i;
    nb::object object = refs[i];
    const NodeType *info = classify(object.ptr());
    if (!is_reference(info->kind)) throw nb::type_error("known references must be graph nodes or Variables");
    define(i, object.ptr(), info);
    run();
  }
  known_ref_ = kNone;
}

void Walker::root_container(Op op, uint32_t n, const nb::object &keys) {
  uint32_t constant = keys.is_valid() ? add_constant(ConstantKind::Keys, keys) : kNone;
  scratch_.push_back({op, n, constant});
}

void Walker::root(PyObject *value, Outside outside, const nb::object &path_prefix) {
  path_prefix_ = path_prefix;
  visit(value, outside == Outside::Call ? Scalars::Leaves : Scalars::Static);
  run();
}

void Walker::root_static(PyObject *value, const nb::object &path_prefix) {
  path_prefix_ = path_prefix;
  add_static(value);
}

void Walker::finish() {
  def_->root_begin = static_cast<uint32_t>(def_->items.size());
  def_->items.insert(def_->items.end(), scratch_.begin(), scratch_.end());
  scratch_.clear();
  g_hint = {def_->items.size(), def_->refs.size(), def_->child_items.size(), def_->constants.size(), leaves.size()};
  def_->finish(static_hash_);
}

nb::object Walker::current_path() const { return path_to(frames_.size()); }

// Path to what the frame `end` walks; with all frames, to the child being visited.
nb::object Walker::path_to(size_t end) const {
  nb::list path;
  nb::object prefix = path_prefix_;
  if (known_ref_ != kNone) prefix = path_of_reference(*known_def_, known_ref_);
  for (nb::handle key : prefix) path.append(key);
  for (size_t i = 0; i < end; ++i) {
    const Frame &frame = frames_[i];
    if (frame.next == 0) continue;
    uint32_t child = frame.next - 1;
    nb::object key = frame.keys != nullptr
                         ? nb::borrow<nb::object>(py::tuple_item(frame.keys, static_cast<Py_ssize_t>(child)))
                         : nb::object(nb::int_(child));
    if (frame.transparent != nullptr && py::equal(key.ptr(), frame.transparent)) continue;
    path.append(frame.int_keys ? index_or_name(key.ptr()) : key);
  }
  return nb::tuple(path);
}

namespace {

Flat take(Walker &walker) {
  walker.finish();
  return {walker.graphdef, std::move(walker.leaves), std::move(walker.refs), std::move(walker.ids)};
}

}  // namespace

Flat flatten(nb::handle root) {
  Walker walker;
  walker.root(root.ptr(), Outside::Graph, nb::make_tuple());
  return take(walker);
}

bool StaticArguments::has_position(size_t i) const {
  return std::binary_search(positions.begin(), positions.end(), static_cast<uint32_t>(i));
}

bool StaticArguments::has_name(PyObject *name) const {
  for (const nb::object &known : names) {
    if (known.ptr() == name || py::equal(known.ptr(), name)) return true;
  }
  return false;
}

StaticArguments static_arguments(nb::handle positions, nb::handle names) {
  StaticArguments statics;
  for (nb::handle position : positions) statics.positions.push_back(nb::cast<uint32_t>(position));
  std::sort(statics.positions.begin(), statics.positions.end());
  for (nb::handle name : names) statics.names.push_back(nb::borrow<nb::object>(name));
  return statics;
}

Flat flatten_arguments(PyObject *const *values, size_t n_positional, PyObject *keyword_names,
                       const StaticArguments &statics) {
  Walker walker;
  graphdef_of(walker.graphdef).root_kind = RootKind::Call;
  size_t n_keywords = keyword_names != nullptr ? static_cast<size_t>(py::tuple_size(keyword_names)) : 0;
  walker.root_container(Op::Tuple, 2, nb::object());
  walker.root_container(Op::Tuple, static_cast<uint32_t>(n_positional), nb::object());
  auto add = [&](PyObject *value, bool is_static, const nb::object &label) {
    nb::object prefix = nb::make_tuple(label);
    if (is_static) {
      walker.root_static(value, prefix);
    } else {
      walker.root(value, Outside::Call, prefix);
    }
  };
  for (size_t i = 0; i < n_positional; ++i) add(values[i], statics.has_position(i), nb::int_(i));
  std::vector<std::pair<PyObject *, PyObject *>> keywords;
  for (size_t i = 0; i < n_keywords; ++i) {
    keywords.emplace_back(py::tuple_item(keyword_names, static_cast<Py_ssize_t>(i)), values[n_positional + i]);
  }
  std::sort(keywords.begin(), keywords.end(),
            [](const auto &a, const auto &b) { return PyUnicode_Compare(a.first, b.first) < 0; });
  nb::object names = py::checked(PyTuple_New(static_cast<Py_ssize_t>(n_keywords)));
  for (size_t i = 0; i < n_keywords; ++i) {
    py::tuple_init(names.ptr(), static_cast<Py_ssize_t>(i), nb::borrow<nb::object>(keywords[i].first).release().ptr());
  }
  walker.root_container(Op::Dict, static_cast<uint32_t>(n_keywords), names);
  for (const auto &[name, value] : keywords) add(value, statics.has_name(name), nb::borrow<nb::object>(name));
  return take(walker);
}

UnpackedCall::UnpackedCall(nb::handle args, nb::handle kwargs)
    : positional_(py::checked(PySequence_Tuple(args.ptr()))), keywords_(py::checked(PyDict_New())) {
  py::check_status(PyDict_Update(keywords_.ptr(), kwargs.ptr()));
  n_positional = static_cast<size_t>(py::tuple_size(positional_.ptr()));
  for (size_t i = 0; i < n_positional; ++i) {
    values.push_back(py::tuple_item(positional_.ptr(), static_cast<Py_ssize_t>(i)));
  }
  nb::list names;
  PyObject *key = nullptr, *value = nullptr;
  Py_ssize_t position = 0;
  while (PyDict_Next(keywords_.ptr(), &position, &key, &value)) {
    if (!PyUnicode_Check(key)) throw nb::type_error("keyword names must be strings");
    names.append(nb::borrow<nb::object>(key));
    values.push_back(value);
  }
  keyword_names = nb::tuple(names);
}

Flat flatten_call(nb::handle args, nb::handle kwargs, nb::handle static_argnums, nb::handle static_argnames) {
  UnpackedCall call(args, kwargs);
  return flatten_arguments(call.values.data(), call.n_positional, call.keyword_names.ptr(),
                           static_arguments(static_argnums, static_argnames));
}

}  // namespace treadle
