#include "graph/walk.h"

#include <algorithm>

#include "bindings.h"
#include "graph/holders.h"
#include "objects/callables.h"
#include "objects/cells.h"
#include "settings.h"
#include "statics/hashing.h"
#include "structure/paths.h"
#include "structure/traversal.h"

namespace treadle {
namespace {

nb::object plain_key(const nb::object &entry) {
  for (const char *field : {"key", "idx", "name"}) {
    nb::object value = nb::getattr(entry, field, nb::object());
    if (value.is_valid()) return value;
  }
  return entry;
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

bool calls_node(PyObject *partial) { return holds_node(nb::borrow<nb::object>(function_of_partial(partial))); }

// Sizes of the last walk: the next one is most likely of the same graph, and growing a dozen tables step by step costs
// more than walking it.
struct SizeHint {
  size_t items = 0, refs = 0, children = 0, constants = 0, leaves = 0;
};
SizeHint g_hint;

}  // namespace

Walker::Walker(Variables variables)
    : graphdef(new_graphdef()), def_(&graphdef_of(graphdef)), path_prefix_(nb::make_tuple()), variables_(variables) {
  def_->items.reserve(g_hint.items);
  def_->refs.reserve(g_hint.refs);
  def_->child_items.reserve(g_hint.children);
  def_->constants.reserve(g_hint.constants);
  def_->constant_kinds.reserve(g_hint.constants);
  def_->leaf_owner.reserve(g_hint.leaves);
  leaves.reserve(g_hint.leaves);
  refs.reserve(g_hint.refs);
  // Unlike the others it is filled at once: a small walk behind a large one would pay for that.
  ids.reserve(std::min(g_hint.refs, size_t{2048}));
}

uint32_t Walker::add_constant(ConstantKind kind, nb::object value) {
  def_->constants.push_back(std::move(value));
  def_->constant_kinds.push_back(kind);
  return static_cast<uint32_t>(def_->constants.size() - 1);
}

// The constant of a reference's type, one for all of that type.
uint32_t Walker::type_constant(PyTypeObject *type) {
  if (type == last_type_) return last_type_constant_;
  auto [constant, fresh] = types_.insert(py::as_object(type), static_cast<uint32_t>(def_->constants.size()));
  if (fresh) add_constant(ConstantKind::Type, nb::borrow<nb::object>(py::as_object(type)));
  last_type_ = type;
  last_type_constant_ = constant;
  return constant;
}

void Walker::add_leaf(PyObject *value, uint32_t owner) {
  leaves.push_back(nb::borrow<nb::object>(value));
  def_->leaf_owner.push_back(owner);
}

void Walker::add_bare_leaf(PyObject *value) {
  scratch_.push_back({Op::Leaf, def_->n_leaves(), kNone});
  add_leaf(value, kNone);
}

// The constant of a static value.
uint32_t Walker::read_static(const nb::object &value) {
  const uint32_t constant = add_constant(ConstantKind::Static, value);
  try {
    static_hash_ = mix(static_hash_, def_->read(constant));
  } catch (nb::python_error &error) {
    if (!error.matches(PyExc_TypeError)) throw;
    raise_graph_error(current_path(),
                      "holds a static value of type '" + py::type_name(Py_TYPE(value.ptr())) +
                          "' that is not hashable; use a hashable value (bytes instead of a bytearray, a tuple "
                          "instead of a list), or wrap arrays and state in a Variable",
                      ErrorKind::Static);
  }
  return constant;
}

void Walker::add_static(PyObject *value) {
  scratch_.push_back({Op::Static, 0, read_static(nb::borrow<nb::object>(value))});
  if (is_in_node() && may_hold_node(value)) suspects_.push_back(scratch_.back().constant);
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
  frames_.back().items_begin = scratch_.size();
  frames_.back().offsets_begin = offsets_.size();
}

std::shared_ptr<const KeyOrder> Walker::sorted_order(PyObject *dict, const NodeLayout *layout) {
  try {
    return key_order(dict, layout);
  } catch (nb::python_error &error) {
    if (!error.matches(PyExc_TypeError)) throw;
    raise_graph_error(current_path(), "is a dict whose keys cannot be sorted; use keys of one type, such as str");
  }
}

// Puts the values of `dict` by sorted key behind those that wait already. False, with nothing done, if its keys are not
// those of the order.
bool Walker::take_values(PyObject *dict, const KeyOrder &order) {
  const size_t begin = values_.size();
  values_.resize(begin + static_cast<size_t>(py::tuple_size(order.sorted.ptr())));
  PyObject *key = nullptr, *value = nullptr;
  Py_ssize_t position = 0;
  for (size_t i = 0; i < order.rank.size(); ++i) {
    if (!PyDict_Next(dict, &position, &key, &value) || key != order.inserted[i].ptr()) {
      values_.resize(begin);
      return false;
    }
    if (order.rank[i] != kNone) values_[begin + order.rank[i]] = nb::borrow<nb::object>(value);
  }
  if (!PyDict_Next(dict, &position, &key, &value)) return true;
  values_.resize(begin);
  return false;
}

// The order of the keys of `dict`, whose values are taken for the frame that is opened next.
std::shared_ptr<const KeyOrder> Walker::take_sorted(PyObject *dict, const NodeLayout *layout) {
  std::shared_ptr<const KeyOrder> likely = likely_order(dict, layout);
  if (likely != nullptr && take_values(dict, *likely)) return likely;
  std::shared_ptr<const KeyOrder> order = sorted_order(dict, layout);
  // Comparing keys to sort them may have run code that moved them.
  if (!take_values(dict, *order)) raise_graph_error(current_path(), "changed while it was walked");
  return order;
}

// A frame for the children taken last by `take_sorted`.
Walker::Frame Walker::dict_frame(PyObject *dict, const KeyOrder &order) const {
  const auto count = static_cast<size_t>(py::tuple_size(order.sorted.ptr()));
  Frame frame = new_frame(order.sorted.ptr(), count, dict);
  frame.values_begin -= count;
  return frame;
}

// A frame for children by `keys` whose values come last in `values_`, to be opened when its constants are there.
Walker::Frame Walker::new_frame(PyObject *keys, size_t count, PyObject *object) const {
  Frame frame{};
  frame.keys = keys;
  frame.values_begin = values_.size();
  frame.count = static_cast<uint32_t>(count);
  frame.ref = kNone;
  frame.object = object;
  frame.in_callable = is_in_callable();
  frame.in_node = is_in_node();
  return frame;
}

// The constant of sorted keys, behind their order.
uint32_t Walker::add_keys(const nb::object &order, const nb::object &keys) {
  add_constant(ConstantKind::Order, order);
  return add_constant(ConstantKind::Keys, keys);
}

// A container walked by value.
void Walker::open_container(Op op, uint32_t constant, Frame frame, Scalars scalars) {
  scratch_.push_back({op, frame.count, constant});
  frame.scalars = scalars;
  open(frame);
}

void Walker::open_mapping(PyObject *value, const MappingLayout &layout, Scalars scalars) {
  nb::object dict = layout.items(value);
  if (!dict.is_valid()) raise_graph_error(current_path(), "is a mapping without a dict of items");
  open_dict(Op::Mapping, dict.ptr(), py::type_of(value), scalars);
}

// A plain dict, or the dict inside another library's mapping, whose type then comes before the keys. Outside of nodes
// they are JAX's, to whom order means nothing.
void Walker::open_dict(Op op, PyObject *dict, const nb::object &type, Scalars scalars) {
  std::shared_ptr<const KeyOrder> order = take_sorted(dict, nullptr);
  Frame frame = dict_frame(dict, *order);
  const auto first = static_cast<uint32_t>(def_->constants.size());
  if (type.is_valid()) add_constant(ConstantKind::Type, type);
  add_keys(frame.in_node ? order->children : order->sorted, order->sorted);
  open_container(op, first, frame, scalars);
}

// What an object of treadle's marks by attributes of its own, or its class by its.
void Walker::mark_children(Frame &frame, const KeyOrder &order, const NodeType &info) const {
  auto names = [&](uint32_t own, const nb::object &of_class) {
    PyObject *found = own != kNone ? values_[frame.values_begin + own].ptr() : of_class.ptr();
    return found != nullptr && PyAnySet_Check(found) ? found : nullptr;
  };
  frame.marks = names(order.data_names, info.data_names);
  frame.statics = names(order.static_names, info.static_names);
}

// How the child that is visited next is read, of a node that marks some.
Scalars Walker::scalars_of_child(const Frame &frame) const {
  PyObject *key = py::tuple_item(frame.keys, frame.next - 1);
  if (frame.statics != nullptr && is_marked(frame.statics, key)) return Scalars::Refused;
  if (frame.marks == nullptr || !is_marked(frame.marks, key)) return frame.scalars;
  // JAX's functions get all that is data, transforms what can be an argument of a compiled function.
  return variables_ == Variables::Leaves ? Scalars::Leaves : Scalars::Numbers;
}

void Walker::refuse_data(PyObject *value) const {
  raise_graph_error(current_path(),
                    "is a " + py::type_name(Py_TYPE(value)) +
                        ", which is data, but in an attribute that is marked as static. Mark it by treadle.data, or "
                        "take the mark away",
                    ErrorKind::Static);
}

// The attributes of a node.
void Walker::open_children(PyObject *dict, uint32_t ref, const NodeType &info, PyObject *marks) {
  const NodeLayout *layout = info.node_layout();
  std::shared_ptr<const KeyOrder> order = take_sorted(dict, layout);
  Frame frame = dict_frame(dict, *order);
  def_->refs[ref].keys = add_keys(order->children, order->sorted);
  def_->refs[ref].n_children = frame.count;
  frame.ref = ref;
  frame.transparent = info.transparent.ptr();
  frame.scalars = Scalars::Static;
  frame.marks = marks;
  if (layout == nullptr && info.kind == Kind::Object) mark_children(frame, *order, info);
  frame.int_keys = layout != nullptr && layout->int_keys;
  open(frame);
}

void Walker::open_sequence(PyObject *value, Op op, Scalars scalars) {
  const bool is_list = op == Op::List;
  const Py_ssize_t n = is_list ? py::list_size(value) : PyTuple_Size(value);
  Frame frame = new_frame(nullptr, static_cast<size_t>(n), value);
  for (Py_ssize_t i = 0; i < n; ++i) {
    values_.push_back(nb::borrow<nb::object>(is_list ? py::list_item(value, i) : py::tuple_item(value, i)));
  }
  uint32_t constant = kNone;
  if (op == Op::NamedTuple) {
    nb::object type = py::type_of(value);
    constant = add_constant(ConstantKind::Type, type);
    nb::object fields = nb::tuple(nb::object(type.attr("_fields")));
    if (py::tuple_size(fields.ptr()) != n)
      raise_graph_error(current_path(), "is a named tuple with other _fields than values");
    frame.keys = fields.ptr();
    add_constant(ConstantKind::PathKeys, fields);
  }
  open_container(op, constant, frame, scalars);
}

// A type only JAX's registry knows: one level through the registry, kept as a treedef for rebuilding.
void Walker::open_pytree(PyObject *value, Scalars scalars) {
  const Settings &s = settings();
  nb::object held = nb::borrow<nb::object>(value);
  nb::object one_level = s.flatten_one_level(held);
  if (one_level.is_none()) raise_graph_error(current_path(), "was a registered pytree and no longer is");
  nb::object is_leaf = py::checked(PyCFunction_NewEx(&is_other_method, held.ptr(), nullptr));
  nb::object flattened = s.tree_flatten(held, is_leaf);
  std::vector<nb::object> keys = py::to_objects(nb::object(one_level[0])),
                          children = py::to_objects(nb::object(flattened[0]));
  if (keys.size() != children.size())
    raise_graph_error(current_path(), "is a pytree whose flatten function is not deterministic");
  for (nb::object &entry : keys) entry = plain_key(nb::object(entry[0]));
  nb::object names = py::to_tuple(std::move(keys));
  Frame frame = new_frame(names.ptr(), children.size(), value);
  for (nb::object &child : children) values_.push_back(std::move(child));
  const uint32_t constant = add_constant(ConstantKind::Treedef, nb::object(flattened[1]));
  add_constant(ConstantKind::PathKeys, names);
  open_container(Op::Pytree, constant, frame, scalars);
}

// False if the callable leads to no node: it is a static then. Outside of nodes it is for JAX to refuse.
bool Walker::open_callable(PyObject *value, const NodeType &info, Scalars scalars) {
  if (!is_in_node() || info.callable == CallableKind::None) return false;
  nb::object held = nb::borrow<nb::object>(value);
  if (parts_of(value, info.callable).count == 0 || !holds_node(held)) return false;
  const nb::object &names = part_names(info.callable);
  const CallableParts parts = parts_of(value, info.callable);
  if (parts.count == 0) return false;
  Frame frame = new_frame(names.ptr(), parts.count, value);
  for (size_t i = 0; i < parts.count; ++i) values_.push_back(nb::borrow<nb::object>(parts.items[i]));
  frame.in_callable = true;
  auto constant = static_cast<uint32_t>(def_->constants.size());
  Op op = Op::Method;
  if (info.callable == CallableKind::Partial) {
    op = Op::Partial;
    add_constant(ConstantKind::Type, py::type_of(held));
  } else if (info.callable == CallableKind::Lifted) {
    op = Op::Lifted;
    constant = read_static(nb::borrow<nb::object>(recipe_of(value)));
  }
  add_constant(ConstantKind::PathKeys, names);
  open_container(op, constant, frame, scalars);
  return true;
}

// A Variable of another library: its metadata may change in place, so the structure gets a snapshot.
void Walker::define_variable(uint32_t ref, PyObject *value, const VariableLayout &layout) {
  std::shared_ptr<const DictSnapshot> metadata = layout.snapshot(value);
  if (!metadata->refusal.is_none()) {
    raise_graph_error(current_path(), py::text(metadata->refusal));
  }
  nb::object raw = layout.value.get(value);
  for (const nb::object &refused : layout.refused_values) {
    if (py::has_type(raw.ptr(), refused.ptr()))
      raise_graph_error(current_path(), py::text(layout.refused_value_reason));
  }
  own_leaf(ref, metadata->entries.empty() ? nullptr : metadata->dict.ptr(), raw.ptr());
}

void Walker::own_leaf(uint32_t ref, PyObject *metadata, PyObject *value) {
  if (metadata != nullptr) {
    def_->refs[ref].extra = add_constant(ConstantKind::Metadata, nb::borrow<nb::object>(metadata));
  }
  def_->refs[ref].leaf = def_->n_leaves();
  add_leaf(value, ref);
}

// A static part of a reference.
void Walker::add_extra(uint32_t ref, const nb::object &value) {
  const uint32_t constant = add_constant(ConstantKind::Static, value);
  def_->refs[ref].extra = constant;
  static_hash_ = mix(static_hash_, def_->read(constant));
}

void Walker::define(uint32_t ref, PyObject *value, const NodeType *info) {
  const uint32_t type = type_constant(Py_TYPE(value));
  def_->refs[ref] = {info->kind, type, kNone, kNone, kNone, 0, 0};
  if (info->kind == Kind::Variable) {
    if (const VariableLayout *layout = info->variable_layout()) return define_variable(ref, value, *layout);
    return own_leaf(ref, as_cell(value)->metadata, as_cell(value)->value);
  }
  if (info->kind == Kind::Object) {
    nb::object dict = py::instance_dict(value);
    const NodeLayout *layout = info->node_layout();
    nb::object marks = layout != nullptr ? layout->marks(dict.ptr()) : nb::object();
    if (marks.is_valid() && PyDict_Check(marks.ptr())) {
      def_->refs[ref].extra = add_constant(ConstantKind::Metadata, marks);
    } else if (marks.is_valid()) {
      add_extra(ref, marks);
    }
    open_children(dict.ptr(), ref, *info, marks.ptr());
    if (variables_ == Variables::Leaves && layout == nullptr) guide_by_places(value);
    return;
  }
  nb::dict children;
  try {
    nb::object parts = info->flatten(nb::borrow<nb::object>(value));
    for (nb::handle entry : nb::object(parts[0])) children[nb::object(entry[0])] = nb::object(entry[1]);
    add_extra(ref, nb::object(parts[1]));
  } catch (nb::python_error &error) {
    add_path_note(error, current_path());
    throw;
  }
  open_children(children.ptr(), ref, *info, nullptr);
}

void Walker::visit_reference(PyObject *value, const NodeType *info) {
  auto next = static_cast<uint32_t>(refs.size());
  auto [id, fresh] = ids.insert(value, next);
  scratch_.push_back({Op::Ref, id, kNone});
  if (fresh) {
    refs.push_back(nb::borrow<nb::object>(value));
    // For as long as it is pending it has the looks of a Variable, which leads nowhere.
    def_->refs.push_back({Kind::Variable, kNone, kNone, kNone, kNone, 0, 0});
    if (is_in_callable()) pending_.push_back({id, enclosing_ref()});
  }
  if (is_pending(id) && !is_in_callable()) define(id, value, info);
}

// The innermost reference whose definition is walked.
uint32_t Walker::enclosing_ref() const {
  for (auto frame = frames_.rbegin(); frame != frames_.rend(); ++frame) {
    if (frame->ref != kNone) return frame->ref;
  }
  return kNone;
}

void Walker::define_pending() {
  for (size_t i = 0; i < pending_.size(); ++i) {
    const Pending pending = pending_[i];
    if (!is_pending(pending.ref)) continue;
    defining_ = &pending;
    nb::object object = refs[pending.ref];
    define(pending.ref, object.ptr(), classify(object.ptr()));
    run();
  }
  defining_ = nullptr;
}

void Walker::visit(PyObject *value, Scalars scalars) {
  const NodeType *info = classify(value);
  if (scalars == Scalars::Refused && (is_reference(info->kind) || info->kind == Kind::Array)) refuse_data(value);
  switch (info->kind) {
    case Kind::None:
      scratch_.push_back({Op::None, 0, kNone});
      break;
    case Kind::Variable:
      if (variables_ == Variables::Leaves) {
        visit_variable_leaf(value);
        break;
      }
      [[fallthrough]];
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
      open_dict(Op::Dict, value, nb::object(), scalars);
      break;
    case Kind::Mapping:
      open_mapping(value, *info->mapping_layout(), scalars);
      break;
    case Kind::Pytree:
      // What a partial calls is nothing that JAX would look into.
      if (info->callable == CallableKind::Partial && calls_node(value) && open_callable(value, *info, scalars)) break;
      open_pytree(value, scalars);
      break;
    case Kind::Array:
      add_bare_leaf(value);
      break;
    case Kind::Static:
      if (info->refusal.is_valid()) raise_graph_error(current_path(), py::text(info->refusal));
      if (open_callable(value, *info, scalars)) break;
      if (scalars == Scalars::Leaves || (scalars == Scalars::Numbers && is_number(value))) {
        add_bare_leaf(value);
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
    const bool is_marked = frame.marks != nullptr || frame.statics != nullptr;
    const Scalars scalars = is_marked ? scalars_of_child(frame) : frame.scalars;
    if (frame.guide != nullptr) {
      visit_guided(values_[index].ptr(), scalars);
    } else {
      visit(values_[index].ptr(), scalars);
    }
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
  scratch_.push_back({op, n, keys.is_valid() ? add_keys(keys, keys) - 1 : kNone});
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
  define_pending();
  def_->root_begin = static_cast<uint32_t>(def_->items.size());
  def_->items.insert(def_->items.end(), scratch_.begin(), scratch_.end());
  scratch_.clear();
  refuse_held_nodes();
  g_hint = {def_->items.size(), def_->refs.size(), def_->child_items.size(), def_->constants.size(), leaves.size()};
  def_->finish(static_hash_);
}

void Walker::refuse_held_nodes() const {
  IdTable met;
  for (uint32_t constant : suspects_) {
    nb::object value = def_->constants[constant];
    if (!met.insert(value.ptr(), 0).second) continue;
    std::optional<HeldNode> held = node_held_by(value, ids);
    if (!held) continue;
    const bool is_function = value.type().is(settings().function_type);
    raise_graph_error(
        path_of_static(constant),
        (is_function ? "is a function" : "is a '" + py::type_name(Py_TYPE(value.ptr())) + "' object") +
            " that holds a " + py::type_name(Py_TYPE(held->node.ptr())) + " of the same graph" +
            (held->name.empty() ? "" : " (as '" + held->name + "')") +
            ", which it would go on using where the graph is rebuilt. Store a bound method or a functools.partial over "
            "it instead, or let the function take it as an argument",
        ErrorKind::Static);
  }
}

// Where the static is in the walk, which is complete.
nb::object Walker::path_of_static(uint32_t constant) const {
  Traversal walk(*def_);
  while (walk.next()) {
    if (walk.item().op != Op::Static || walk.item().constant != constant) continue;
    nb::object prefix = def_->root_kind == RootKind::Call ? nb::object(nb::make_tuple()) : path_prefix_;
    return prefix + walk.path_tuple();
  }
  // Below a known reference: its attribute, and those on the way from there.
  nb::object path = nb::make_tuple();
  auto is_it = [constant](const Item &item) { return item.op == Op::Static && item.constant == constant; };
  for (uint32_t r = find_holder(path, is_it); r != kNone;) {
    if (r < known_def_->n_refs()) return path_of_reference(*known_def_, r) + path;
    r = find_holder(path, [r](const Item &item) { return item.op == Op::Ref && item.n == r; });
  }
  return path;
}

// The first reference with such an item in one of its attributes, whose name goes before the path; kNone if none has.
template <typename Predicate>
uint32_t Walker::find_holder(nb::object &path, Predicate &&is_wanted) const {
  for (uint32_t r = 0; r < def_->n_refs(); ++r) {
    for (uint32_t c = 0; c < def_->refs[r].n_children; ++c) {
      for (uint32_t at = def_->child_item(r, c), end = def_->skip(at); at < end; ++at) {
        if (!is_wanted(def_->items[at])) continue;
        nb::object key = nb::borrow<nb::object>(def_->child_key(r, c));
        if (!key.is(node_type(def_->ref_type(r))->transparent)) path = nb::make_tuple(key) + path;
        return r;
      }
    }
  }
  return kNone;
}

// Where the pending reference that is being defined was found. Asked only when the walk fails, whose tables are then
// closed as they are.
nb::object Walker::path_of_pending() const {
  constexpr RefDef closed{Kind::Variable, kNone, kNone, kNone, kNone, 0, 0};
  for (const Frame &frame : frames_) {
    if (frame.ref != kNone) def_->refs[frame.ref] = closed;
  }
  def_->refs[defining_->ref] = closed;
  if (known_def_ != nullptr && defining_->found_in < known_def_->n_refs())
    return path_of_reference(*known_def_, defining_->found_in);
  const size_t root_end = frames_.empty() ? scratch_.size() : frames_.front().items_begin;
  def_->root_begin = static_cast<uint32_t>(def_->items.size());
  def_->items.insert(def_->items.end(), scratch_.begin(), scratch_.begin() + static_cast<std::ptrdiff_t>(root_end));
  return path_of_reference(*def_, defining_->ref);
}

nb::object Walker::current_path() const { return path_to(frames_.size()); }

// Path to what the frame `end` walks; with all frames, to the child being visited.
nb::object Walker::path_to(size_t end) const {
  nb::list path;
  nb::object prefix = path_prefix_;
  if (known_ref_ != kNone) prefix = path_of_reference(*known_def_, known_ref_);
  if (defining_ != nullptr) prefix = path_of_pending();
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

Flat Walker::take() {
  finish();
  return {graphdef, std::move(leaves), std::move(refs), std::move(ids)};
}

Flat flatten(nb::handle root) {
  Walker walker;
  walker.root(root.ptr(), Outside::Graph, nb::make_tuple());
  return walker.take();
}

int Flat::traverse(visitproc visit, void *arg) const {
  Py_VISIT(graphdef.ptr());
  for (const nb::object &leaf : leaves) Py_VISIT(leaf.ptr());
  for (const nb::object &ref : refs) Py_VISIT(ref.ptr());
  return 0;
}

void Flat::clear() {
  // Swapped out first: what is released may run code that looks at this object.
  std::vector<nb::object> dropped_leaves, dropped_refs;
  dropped_leaves.swap(leaves);
  dropped_refs.swap(refs);
  ids.clear();
}

void bind_walk(nb::module_ &m) {
  auto cls = Bound<Flat>::bind(m, "Flat");
  cls.def_prop_ro("graphdef", [](const Flat &flat) { return flat.graphdef; });
  cls.def_prop_ro("leaves", [](const Flat &flat) { return py::to_list(flat.leaves); });
  cls.def_prop_ro("refs", [](const Flat &flat) { return py::to_list(flat.refs); });
  cls.def(
      "ref_id",
      [](const Flat &flat, nb::handle object) -> int64_t {
        uint32_t id = flat.ids.find(object.ptr());
        return id == IdTable::kAbsent ? -1 : static_cast<int64_t>(id);
      },
      nb::arg("obj").none());
  m.def("flatten", &flatten, nb::arg("root").none());
}

}  // namespace treadle
