#include "dispatch/guards.h"

#include "objects/callables.h"
#include "objects/cells.h"
#include "settings.h"
#include "statics/hashing.h"
#include "statics/snapshots.h"

namespace treadle {
namespace {

// Arguments nested deeper than this take the warm path, whose walk has no depth limit.
constexpr int kMaxGuardDepth = 100;

bool is_plain_key(PyObject *key) { return py::is_exact(key, &PyUnicode_Type) || py::is_exact(key, &PyLong_Type); }

// Looking up such a dict compares builtin keys only, which runs no Python.
bool has_plain_keys(PyObject *dict) {
  for (auto [key, value] : py::DictItems(dict)) {
    if (!is_plain_key(key)) return false;
  }
  return true;
}

// Every operation here can be checked without running Python.
bool can_guard(const GraphDef &def) {
  for (const Item &item : def.items) {
    if (item.op == Op::Pytree) return false;
    if (item.op != Op::Dict && item.op != Op::Mapping) continue;
    for (nb::handle key : nb::borrow<nb::tuple>(def.child_keys(item))) {
      if (!is_plain_key(key.ptr())) return false;
    }
  }
  for (const RefDef &ref : def.refs) {
    if (ref.kind == Kind::Custom) return false;
  }
  return true;
}

bool same_static(PyObject *known, PyObject *value) {
  if (known == value) return true;
  if (Py_TYPE(known) != Py_TYPE(value)) return false;
  const NodeType *type = known_type(Py_TYPE(value));
  if (type == nullptr || type->kind != Kind::Static || type->static_kind != StaticKind::Simple) return false;
  return static_equal(known, value);
}

// By their pointers.
bool same_names(PyObject *tuple, PyObject *other) {
  if (tuple == other) return true;
  if (py::tuple_size(tuple) != py::tuple_size(other)) return false;
  for (Py_ssize_t i = 0; i < py::tuple_size(tuple); ++i) {
    if (py::tuple_item(tuple, i) != py::tuple_item(other, i)) return false;
  }
  return true;
}

// Runs no Python.
bool same_plain_key(PyObject *known, PyObject *key) {
  return known == key || (Py_TYPE(known) == Py_TYPE(key) && is_plain_key(key) && py::equal(known, key));
}

// True if the dict has the keys in this order, all of them plain.
bool has_plain_keys_in(PyObject *order, PyObject *dict) {
  Py_ssize_t i = 0;
  for (auto [key, value] : py::DictItems(dict)) {
    if (i >= py::tuple_size(order) || !same_plain_key(py::tuple_item(order, i++), key)) return false;
  }
  return i == py::tuple_size(order);
}

// True if `value` is of the type that the operation has as its constant, or of `otherwise` if it has none.
bool is_of_type(const GraphDef &def, const Item &item, PyObject *value, PyTypeObject *otherwise) {
  const bool has_type = item.info().n_constants > 0 && item.info().constants[0] == ConstantKind::Type;
  return has_type ? py::has_type(value, def.constants[item.constant].ptr()) : py::is_exact(value, otherwise);
}

#if PY_VERSION_HEX >= 0x030c0000
// From 3.12 on collections run between bytecodes only, never below a call into the C API that runs no Python.
struct CollectionPause {
  ~CollectionPause() {}
};
#else
// Keeps a collection, and with it finalizers, from running while pointers are borrowed.
class CollectionPause {
 public:
  CollectionPause() : was_enabled_(PyGC_Disable() != 0) {}
  ~CollectionPause() {
    if (was_enabled_) PyGC_Enable();
  }
  CollectionPause(const CollectionPause &) = delete;
  CollectionPause &operator=(const CollectionPause &) = delete;

 private:
  bool was_enabled_;
};
#endif

}  // namespace

void CallFrame::own(const std::vector<PyObject *> &references) {
  owned_leaves.reserve(leaves.size());
  for (PyObject *leaf : leaves) owned_leaves.push_back(nb::borrow<nb::object>(leaf));
  refs.reserve(references.size());
  for (PyObject *reference : references) refs.push_back(nb::borrow<nb::object>(reference));
}

void CallFrame::take(Flat &&flat) {
  owned_leaves = std::move(flat.leaves);
  refs = std::move(flat.refs);
  leaves.clear();
  for (const nb::object &leaf : owned_leaves) leaves.push_back(leaf.ptr());
}

void CallFrame::clear() {
  leaves.clear();
  outputs.clear();
  values.clear();
  moved.clear();
  owned_leaves.clear();
  refs.clear();
  keyword_names.reset();
  known_top_level = false;
}

Guards::Guards(const Flat &flat) : walked(flat.graphdef) {
  const GraphDef &def = graphdef_of(walked);
  complete_ = can_guard(def);
  if (!complete_) return;
  guard_statics(def);
  for (const nb::object &reference : flat.refs) addresses_.push_back(reference.ptr());
  // Code that ran since the walk, or another thread, may have changed an object: then nothing is guarded.
  for (uint32_t r = 0; r < def.n_refs(); ++r) complete_ = guard_reference(def, r) && complete_;
  guard_scalars(def, flat.leaves);
  guard_arguments(def);
}

void Guards::guard_statics(const GraphDef &def) {
  for (uint32_t i = 0; i < def.constants.size(); ++i) {
    PyObject *constant = def.constants[i].ptr();
    const bool is_metadata = def.constant_kinds[i] == ConstantKind::Metadata;
    if (is_metadata ? is_unstable_metadata(constant)
                    : def.constant_kinds[i] == ConstantKind::Static && may_change_in_place(constant)) {
      unstable_.push_back(i);
    }
  }
}

bool Guards::guard_reference(const GraphDef &def, uint32_t r) {
  const NodeType *type = node_type(def.ref_type(r));
  bool as_walked = type->layout == nullptr || guard_foreign(def, r, addresses_[r], *type);
  if (def.refs[r].kind == Kind::Object) {
    as_walked = guard_attributes(def, r, addresses_[r], type->node_layout()) && as_walked;
  }
  attributes_end_.push_back(static_cast<uint32_t>(attributes_.size()));
  return as_walked;
}

bool Guards::guard_foreign(const GraphDef &def, uint32_t r, PyObject *object, const NodeType &type) {
  if (foreign_.empty()) foreign_.resize(def.n_refs());
  ForeignGuard &guard = foreign_[r];
  PyObject *known = def.constant(def.refs[r].extra);
  guard.is_foreign = true;
  guard.layout = type.layout;
  if (const VariableLayout *layout = guard.variable = type.variable_layout()) {
    if (known != nullptr) guard.metadata = entries_of(known);
    guard.trace = layout->trace.get(object);
    if (!layout->owner(object).is(settings().top_trace)) foreign_at_top_level_ = false;
    nb::object metadata = layout->metadata.get(object);
    return PyDict_Check(metadata.ptr()) && has_entries(metadata.ptr(), guard.metadata);
  }
  const NodeLayout *layout = type.node_layout();
  nb::object dict = py::instance_dict(object);
  guard.marks = nb::borrow<nb::object>(layout->marks_object(dict.ptr()));
  return layout->marks(dict.ptr()).ptr() == known;
}

bool Guards::guard_attributes(const GraphDef &def, uint32_t r, PyObject *object, const NodeLayout *layout) {
  const RefDef &ref = def.refs[r];
  auto order = key_order(py::instance_dict(object).ptr(), layout);
  if (!same_names(order->children.ptr(), def.order(ref.keys)) ||
      !same_names(order->sorted.ptr(), def.constant(ref.keys)))
    return false;
  for (size_t i = 0; i < order->inserted.size(); ++i) {
    AttributeCheck check{order->inserted[i].ptr(), nullptr, kNone};
    if (order->rank[i] != kNone) {
      check.item = def.child_item(r, order->rank[i]);
      const Item &item = def.items[check.item];
      if (item.op == Op::Ref) check.expected = addresses_[item.n];
      if (item.op == Op::Static) check.expected = def.constant(item.constant);
      if (item.op == Op::None) check.expected = Py_None;
    } else if (check.name == layout->marks_name.ptr()) {
      check.expected = foreign_[r].marks.ptr();
    }
    attributes_.push_back(check);
  }
  orders_.push_back(std::move(order));
  return true;
}

void Guards::guard_scalars(const GraphDef &def, const std::vector<nb::object> &leaves) {
  for (uint32_t leaf = 0; leaf < def.n_leaves(); ++leaf) {
    if (def.leaf_owner[leaf] != kNone) continue;
    const NodeType *type = known_type(Py_TYPE(leaves[leaf].ptr()));
    if (type == nullptr || type->kind != Kind::Static) continue;
    scalars_.resize(def.n_leaves(), false);
    scalars_[leaf] = true;
  }
}

void Guards::guard_arguments(const GraphDef &def) {
  uint32_t at = def.root_begin + 1;
  uint32_t n_positional = def.items[at++].n;
  for (uint32_t i = 0; i < n_positional; ++i, at = def.skip(at)) argument_items_.push_back(at);
  keyword_names_ = nb::borrow<nb::object>(def.child_keys(def.items[at]));
  uint32_t n_keywords = def.items[at++].n;
  for (uint32_t i = 0; i < n_keywords; ++i, at = def.skip(at)) keyword_items_.push_back(at);
}

int Guards::traverse(visitproc visit, void *arg) const {
  Py_VISIT(walked.ptr());
  for (const ForeignGuard &guard : foreign_) {
    Py_VISIT(guard.trace.ptr());
    Py_VISIT(guard.marks.ptr());
  }
  return 0;
}

bool Guards::unstable_statics_hold() const {
  if (unstable_.empty()) return true;
  nb::object held = walked;
  const GraphDef &def = graphdef_of(held);
  auto checks = unstable_;
  try {
    for (uint32_t constant : checks) {
      nb::object value = def.constants.at(constant);
      const Reading *then = def.reading(constant);
      if (then == nullptr) return false;
      const bool holds = def.constant_kinds[constant] == ConstantKind::Metadata
                             ? metadata_still_reads(value.ptr(), *then)
                             : still_reads(value.ptr(), Unhashable::Refused, *then);
      if (!holds) return false;
    }
  } catch (nb::python_error &error) {
    // The arguments may have nothing to do with it. If they have, the walk says so, with a path.
    if (!error.matches(PyExc_Exception)) throw;
    return false;
  }
  // A hash function that called this very function may have replaced the guards.
  return held.is(walked);
}

bool Guards::verify(const Arguments &arguments, CallFrame &frame) const {
  if (!complete_ || arguments.n_positional != argument_items_.size() ||
      arguments.n_keywords() != keyword_items_.size()) {
    return false;
  }
  if (!unstable_statics_hold()) return false;
  CollectionPause pause;
  const GraphDef &def = *nb::inst_ptr<GraphDef>(walked);
  frame.leaves.assign(def.n_leaves(), nullptr);
  if (!match_arguments(def, arguments, frame)) return false;
  return foreign_.empty() ? match_references<false>(def, frame) : match_references<true>(def, frame);
}

// References are numbered in the order they are first reached, so each was found in the arguments or in an attribute of
// an earlier one before its turn comes: no address is followed that was not just seen.
template <bool kForeign>
bool Guards::match_references(const GraphDef &def, CallFrame &frame) const {
  for (uint32_t r = 0; r < def.n_refs(); ++r) {
    const RefDef &ref = def.refs[r];
    PyObject *object = addresses_[r];
    if (!py::has_type(object, def.constants[ref.type].ptr())) return false;
    const bool is_foreign = kForeign && foreign_[r].is_foreign;
    if (ref.kind == Kind::Object) {
      // The object keeps its dict alive, and nothing runs Python until the frame owns what it gathered.
      PyObject *dict = is_foreign ? py::instance_dict(object).ptr() : as_node(object)->dict;
      if (!match_attributes(def, r, dict, frame)) return false;
    } else if (is_foreign) {
      if (!match_foreign_variable(def, r, frame)) return false;
    } else {
      VariableCell *cell = as_cell(object);
      if (cell->metadata != def.constant(ref.extra)) return false;
      frame.leaves[ref.leaf] = cell->value;
    }
  }
  return true;
}

void Guards::gather(CallFrame &frame) const {
  frame.own(addresses_);
  frame.known_top_level = foreign_at_top_level_;
}

bool Guards::match_arguments(const GraphDef &def, const Arguments &arguments, CallFrame &frame) const {
  for (size_t i = 0; i < arguments.n_positional; ++i) {
    if (!match(def, argument_items_[i], arguments.values[i], frame)) return false;
  }
  for (size_t i = 0; i < keyword_items_.size(); ++i) {
    PyObject *name = py::tuple_item(arguments.keyword_names, static_cast<Py_ssize_t>(i));
    size_t child = 0;
    for (; child < keyword_items_.size(); ++child) {
      PyObject *known = py::tuple_item(keyword_names_.ptr(), static_cast<Py_ssize_t>(child));
      if (known == name || PyUnicode_Compare(known, name) == 0) break;
    }
    if (child == keyword_items_.size()) return false;
    if (!match(def, keyword_items_[child], arguments.values[arguments.n_positional + i], frame)) return false;
  }
  return true;
}

bool Guards::match_foreign_variable(const GraphDef &def, uint32_t r, CallFrame &frame) const {
  const ForeignGuard &guard = foreign_[r];
  PyObject *object = addresses_[r];
  PyObject *metadata = guard.variable->metadata.peek(object), *value = guard.variable->value.peek(object);
  if (metadata == nullptr || value == nullptr || !PyDict_Check(metadata)) return false;
  if (guard.variable->trace.peek(object) != guard.trace.ptr()) return false;
  frame.leaves[def.refs[r].leaf] = value;
  return has_entries(metadata, guard.metadata);
}

bool Guards::match_attributes(const GraphDef &def, uint32_t r, PyObject *dict, CallFrame &frame) const {
  const AttributeCheck *check = attributes_.data() + (r == 0 ? 0 : attributes_end_[r - 1]);
  const AttributeCheck *end = attributes_.data() + attributes_end_[r];
  if (dict == nullptr) return check == end;
  if (py::dict_size(dict) != end - check) return false;
  PyObject *name = nullptr, *value = nullptr;
  for (Py_ssize_t position = 0; check != end; ++check) {
    if (!PyDict_Next(dict, &position, &name, &value) || name != check->name) return false;
    if (value == check->expected) continue;
    if (check->item == kNone ? check->expected != nullptr : !match(def, check->item, value, frame)) return false;
  }
  return true;
}

bool Guards::match(const GraphDef &def, uint32_t at, PyObject *value, CallFrame &frame) const {
  return match_at(def, at, value, frame, 0);
}

// Whether a static `value` can be the leaf at `at`: as an argument, or if it is a number in an attribute marked as data
// that held one before.
bool Guards::may_be_scalar(const GraphDef &def, uint32_t at, PyObject *value) const {
  if (at >= def.root_begin) return true;
  return !scalars_.empty() && scalars_[def.items[at].n] && is_number(value);
}

// Compares the expression at `at` with `value` and moves `at` past it.
bool Guards::match_at(const GraphDef &def, uint32_t &at, PyObject *value, CallFrame &frame, int depth) const {
  const Item &item = def.items[at];
  switch (item.op) {
    case Op::Ref:
      ++at;
      return value == addresses_[item.n];
    case Op::Static:
      ++at;
      return same_static(def.constants[item.constant].ptr(), value);
    case Op::None:
      ++at;
      return value == Py_None;
    case Op::Leaf: {
      ++at;
      if (py::has_type(value, settings().concrete_array.ptr())) {
        frame.leaves[item.n] = value;
        return true;
      }
      const NodeType *type = known_type(Py_TYPE(value));
      // A scalar inside a node is static and makes another structure; among the arguments it is an array's equal.
      if (type == nullptr ||
          (type->kind != Kind::Array && (type->kind != Kind::Static || !may_be_scalar(def, at - 1, value)))) {
        return false;
      }
      frame.leaves[item.n] = value;
      return true;
    }
    default:
      return match_container(def, at, value, frame, depth);
  }
}

bool Guards::match_container(const GraphDef &def, uint32_t &at, PyObject *value, CallFrame &frame, int depth) const {
  if (depth >= kMaxGuardDepth) return false;
  const Item item = def.items[at++];
  const auto n = static_cast<Py_ssize_t>(item.n);
  switch (item.op) {
    case Op::NamedTuple:
    case Op::Tuple:
      if (!is_of_type(def, item, value, &PyTuple_Type) || PyTuple_Size(value) != n) return false;
      for (Py_ssize_t i = 0; i < n; ++i) {
        if (!match_at(def, at, py::tuple_item(value, i), frame, depth + 1)) return false;
      }
      return true;
    case Op::List:
      if (!py::is_exact(value, &PyList_Type) || py::list_size(value) != n) return false;
      for (Py_ssize_t i = 0; i < n; ++i) {
        if (!match_at(def, at, py::list_item(value, i), frame, depth + 1)) return false;
      }
      return true;
    case Op::Mapping: {
      const NodeType *type = known_type(Py_TYPE(value));
      // Null: forgotten while its class is being collected.
      if (!is_of_type(def, item, value, nullptr) || type == nullptr || type->mapping_layout() == nullptr) return false;
      PyObject *dict = type->mapping_layout()->peek_items(value);
      return dict != nullptr && match_dict(def, item, at, dict, frame, depth);
    }
    case Op::Dict:
      return py::is_exact(value, &PyDict_Type) && match_dict(def, item, at, value, frame, depth);
    case Op::Method:
    case Op::Partial:
    case Op::Lifted:
      return match_callable(def, item, at, value, frame, depth);
    default:
      return false;
  }
}

bool Guards::match_callable(const GraphDef &def, const Item &item, uint32_t &at, PyObject *value, CallFrame &frame,
                            int depth) const {
  const NodeType *type = known_type(Py_TYPE(value));
  if (type == nullptr || type->callable != callable_of(item.op)) return false;
  if (item.op == Op::Partial && !is_of_type(def, item, value, nullptr)) return false;
  const CallableParts parts = parts_of(value, type->callable);
  if (parts.count != item.n) return false;
  if (item.op == Op::Lifted && recipe_of(value) != def.constant(item.constant)) return false;
  for (size_t i = 0; i < parts.count; ++i) {
    if (!match_at(def, at, parts.items[i], frame, depth + 1)) return false;
  }
  return true;
}

bool Guards::match_dict(const GraphDef &def, const Item &item, uint32_t &at, PyObject *dict, CallFrame &frame,
                        int depth) const {
  if (py::dict_size(dict) != static_cast<Py_ssize_t>(item.n)) return false;
  PyObject *keys = def.child_keys(item), *order = def.order(item.keys());
  const bool in_node = at <= def.root_begin;
  // From the first key on that is not where it sorts, items are looked up.
  PyObject *next = nullptr, *found = nullptr;
  Py_ssize_t position = 0;
  bool in_order = order == keys;
  if (!in_order && !has_plain_keys_in(order, dict)) return false;
  for (Py_ssize_t i = 0; i < static_cast<Py_ssize_t>(item.n); ++i) {
    PyObject *key = py::tuple_item(keys, i);
    if (in_order && !(PyDict_Next(dict, &position, &next, &found) && next == key)) {
      // A name made at run time is another object.
      in_order = false;
      if (!(in_node ? has_plain_keys_in(order, dict) : has_plain_keys(dict))) return false;
    }
    if (!in_order) found = PyDict_GetItemWithError(dict, key);
    if (found == nullptr) {
      PyErr_Clear();
      return false;
    }
    if (!match_at(def, at, found, frame, depth + 1)) return false;
  }
  return true;
}

}  // namespace treadle
