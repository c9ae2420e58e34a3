#include "dispatch/plan.h"

#include "objects/cells.h"
#include "settings.h"
#include "statics/statics.h"

namespace treadle {
namespace {

// Arguments nested deeper than this take the warm path, whose walk has no depth limit.
constexpr int kMaxGuardDepth = 100;

bool is_plain_key(PyObject *key) { return py::is_exact(key, &PyUnicode_Type) || py::is_exact(key, &PyLong_Type); }

// Looking up such a dict compares builtin keys only, which runs no Python.
bool has_plain_keys(PyObject *dict) {
  PyObject *key = nullptr, *value = nullptr;
  Py_ssize_t position = 0;
  while (PyDict_Next(dict, &position, &key, &value)) {
    if (!is_plain_key(key)) return false;
  }
  return true;
}

// Every operation here can be checked without running Python.
bool can_guard(const GraphDef &def) {
  for (const Item &item : def.items) {
    if (item.op == Op::Pytree) return false;
    if (item.op == Op::Dict || item.op == Op::Mapping) {
      PyObject *keys = def.constant(item.op == Op::Dict ? item.constant : item.constant + 1);
      for (Py_ssize_t i = 0; i < py::tuple_size(keys); ++i) {
        if (!is_plain_key(py::tuple_item(keys, i))) return false;
      }
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
  owned_leaves.clear();
  refs.clear();
  known_top_level = false;
}

bool Plan::guard_foreign(Guards &guards, const GraphDef &def, uint32_t r, PyObject *object,
                         const std::shared_ptr<const Layout> &layout) {
  if (guards.foreign.empty()) guards.foreign.resize(def.n_refs());
  ForeignGuard &guard = guards.foreign[r];
  PyObject *walked = def.constant(def.refs[r].extra);
  guard.layout = layout;
  if (def.refs[r].kind == Kind::Variable) {
    if (walked != nullptr) guard.metadata = entries_of(walked);
    guard.trace = layout->trace.get(object);
    if (!layout->owner(object, true).is(settings().top_trace)) guards.foreign_at_top_level = false;
    nb::object metadata = layout->metadata.get(object);
    return PyDict_Check(metadata.ptr()) && has_entries(metadata.ptr(), guard.metadata);
  }
  nb::object dict = py::instance_dict(object);
  guard.marks = nb::borrow<nb::object>(layout->marks_object(dict.ptr()));
  return layout->marks(dict.ptr()).ptr() == walked;
}

bool Plan::guard_attributes(Guards &guards, const GraphDef &def, uint32_t r, PyObject *object, const Layout *layout) {
  const RefDef &ref = def.refs[r];
  auto order = key_order(py::instance_dict(object).ptr(), layout);
  PyObject *keys = def.constant(ref.keys);
  if (py::tuple_size(order->sorted.ptr()) != static_cast<Py_ssize_t>(ref.n_children)) return false;
  for (uint32_t i = 0; i < ref.n_children; ++i) {
    if (py::tuple_item(order->sorted.ptr(), i) != py::tuple_item(keys, i)) return false;
  }
  for (size_t i = 0; i < order->inserted.size(); ++i) {
    AttributeCheck check{order->inserted[i].ptr(), nullptr, kNone};
    if (order->rank[i] != kNone) {
      check.item = def.child_items[ref.children + order->rank[i]];
      const Item &item = def.items[check.item];
      if (item.op == Op::Ref) check.expected = guards.addresses[item.n];
      if (item.op == Op::Static) check.expected = def.constant(item.constant);
      if (item.op == Op::None) check.expected = Py_None;
    } else if (check.name == layout->marks_name.ptr()) {
      check.expected = guards.foreign[r].marks.ptr();
    }
    guards.attributes.push_back(check);
  }
  guards.orders.push_back(std::move(order));
  return true;
}

void Plan::guard_scalars(Guards &guards, const GraphDef &def, const std::vector<nb::object> &leaves) {
  for (uint32_t leaf = 0; leaf < def.n_leaves(); ++leaf) {
    if (def.leaf_owner[leaf] != kNone) continue;
    const NodeType *type = known_type(Py_TYPE(leaves[leaf].ptr()));
    if (type == nullptr || type->kind != Kind::Static) continue;
    guards.scalars.resize(def.n_leaves(), false);
    guards.scalars[leaf] = true;
  }
}

void Plan::remember(const Flat &flat) {
  // Built aside: hashing statics runs user code, which may call this very function and come here again.
  Guards fresh;
  const GraphDef &def = graphdef_of(flat.graphdef);
  fresh.complete = can_guard(def);
  if (fresh.complete) {
    for (uint32_t i = 0; i < def.constants.size(); ++i) {
      PyObject *constant = def.constants[i].ptr();
      const bool is_metadata = def.constant_kinds[i] == ConstantKind::Metadata;
      if (is_metadata ? is_unstable_metadata(constant)
                      : def.constant_kinds[i] == ConstantKind::Static && may_change_in_place(constant)) {
        fresh.unstable.push_back(i);
      }
    }
    for (const nb::object &reference : flat.refs) fresh.addresses.push_back(reference.ptr());
    for (uint32_t r = 0; r < def.n_refs(); ++r) {
      PyObject *object = fresh.addresses[r];
      std::shared_ptr<const Layout> layout = node_type(def.ref_type(r))->layout;
      // Code that ran since the walk, or another thread, may have changed the object: then nothing is guarded.
      bool as_walked = layout == nullptr || guard_foreign(fresh, def, r, object, layout);
      if (def.refs[r].kind == Kind::Object) {
        as_walked = guard_attributes(fresh, def, r, object, layout.get()) && as_walked;
      }
      fresh.attributes_end.push_back(static_cast<uint32_t>(fresh.attributes.size()));
      fresh.complete = fresh.complete && as_walked;
    }
    guard_scalars(fresh, def, flat.leaves);
    uint32_t at = def.root_begin + 1;
    uint32_t n_positional = def.items[at++].n;
    for (uint32_t i = 0; i < n_positional; ++i, at = def.skip(at)) fresh.argument_items.push_back(at);
    fresh.keyword_names = nb::borrow<nb::object>(def.constant(def.items[at].constant));
    uint32_t n_keywords = def.items[at++].n;
    for (uint32_t i = 0; i < n_keywords; ++i, at = def.skip(at)) fresh.keyword_items.push_back(at);
  }
  nb::object old = walked;
  walked = flat.graphdef;
  std::swap(guards_, fresh);
}

int Plan::traverse(visitproc visit, void *arg) const {
  Py_VISIT(traced.ptr());
  Py_VISIT(walked.ptr());
  Py_VISIT(call.ptr());
  Py_VISIT(traced_effects.ptr());
  Py_VISIT(first_effects.ptr());
  for (const ForeignGuard &guard : guards_.foreign) {
    Py_VISIT(guard.trace.ptr());
    Py_VISIT(guard.marks.ptr());
  }
  return 0;
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

bool Plan::unstable_statics_hold() const {
  if (guards_.unstable.empty()) return true;
  nb::object held = walked;
  const GraphDef &def = graphdef_of(held);
  auto checks = guards_.unstable;
  try {
    for (uint32_t constant : checks) {
      nb::object value = def.constants.at(constant);
      const Reading now = def.constant_kinds[constant] == ConstantKind::Metadata
                              ? Reading::of_metadata(value.ptr())
                              : Reading(value.ptr(), Unhashable::Refused);
      const Reading *then = def.reading(constant);
      if (then == nullptr || !now.equals(*then)) return false;
    }
  } catch (nb::python_error &error) {
    // The arguments may have nothing to do with it. If they have, the walk says so, with a path.
    if (!error.matches(PyExc_Exception)) throw;
    return false;
  }
  // A hash function that called this very plan may have replaced its guards.
  return held.is(walked);
}

bool Plan::verify(const Arguments &arguments, CallFrame &frame) const {
  if (!guards_.complete || arguments.n_positional != guards_.argument_items.size() ||
      arguments.n_keywords() != guards_.keyword_items.size()) {
    return false;
  }
  if (!unstable_statics_hold()) return false;
  CollectionPause pause;
  const GraphDef &def = *nb::inst_ptr<GraphDef>(walked);
  frame.leaves.assign(def.n_leaves(), nullptr);
  if (!match_arguments(def, arguments, frame)) return false;
  return guards_.foreign.empty() ? match_references<false>(def, frame) : match_references<true>(def, frame);
}

// References are numbered in the order they are first reached, so each was found in the arguments or in an attribute of
// an earlier one before its turn comes: no address is followed that was not just seen.
template <bool kForeign>
bool Plan::match_references(const GraphDef &def, CallFrame &frame) const {
  for (uint32_t r = 0; r < def.n_refs(); ++r) {
    const RefDef &ref = def.refs[r];
    PyObject *object = guards_.addresses[r];
    if (reinterpret_cast<PyObject *>(Py_TYPE(object)) != def.constants[ref.type].ptr()) return false;
    const bool is_foreign = kForeign && guards_.foreign[r].layout != nullptr;
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

void Plan::gather(CallFrame &frame) const {
  frame.own(guards_.addresses);
  frame.known_top_level = guards_.foreign_at_top_level;
}

bool Plan::match_arguments(const GraphDef &def, const Arguments &arguments, CallFrame &frame) const {
  for (size_t i = 0; i < arguments.n_positional; ++i) {
    if (!match(def, guards_.argument_items[i], arguments.values[i], frame)) return false;
  }
  for (size_t i = 0; i < guards_.keyword_items.size(); ++i) {
    PyObject *name = py::tuple_item(arguments.keyword_names, static_cast<Py_ssize_t>(i));
    size_t child = 0;
    for (; child < guards_.keyword_items.size(); ++child) {
      PyObject *known = py::tuple_item(guards_.keyword_names.ptr(), static_cast<Py_ssize_t>(child));
      if (known == name || PyUnicode_Compare(known, name) == 0) break;
    }
    if (child == guards_.keyword_items.size()) return false;
    if (!match(def, guards_.keyword_items[child], arguments.values[arguments.n_positional + i], frame)) return false;
  }
  return true;
}

bool Plan::match_foreign_variable(const GraphDef &def, uint32_t r, CallFrame &frame) const {
  const ForeignGuard &guard = guards_.foreign[r];
  PyObject *object = guards_.addresses[r];
  PyObject *metadata = guard.layout->metadata.peek(object), *value = guard.layout->value.peek(object);
  if (metadata == nullptr || value == nullptr || !PyDict_Check(metadata)) return false;
  if (guard.layout->trace.peek(object) != guard.trace.ptr()) return false;
  frame.leaves[def.refs[r].leaf] = value;
  return has_entries(metadata, guard.metadata);
}

bool Plan::match_attributes(const GraphDef &def, uint32_t r, PyObject *dict, CallFrame &frame) const {
  const AttributeCheck *check = guards_.attributes.data() + (r == 0 ? 0 : guards_.attributes_end[r - 1]);
  const AttributeCheck *end = guards_.attributes.data() + guards_.attributes_end[r];
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

bool Plan::match(const GraphDef &def, uint32_t at, PyObject *value, CallFrame &frame) const {
  return match_at(def, at, value, frame, 0);
}

// Whether a static `value` can be the leaf at `at`: as an argument, or if it is a number in an attribute marked as data
// that held one before.
bool Plan::may_be_scalar(const GraphDef &def, uint32_t at, PyObject *value) const {
  if (at >= def.root_begin) return true;
  return !guards_.scalars.empty() && guards_.scalars[def.items[at].n] && is_number(value);
}

// Compares the expression at `at` with `value` and moves `at` past it.
bool Plan::match_at(const GraphDef &def, uint32_t &at, PyObject *value, CallFrame &frame, int depth) const {
  const Item &item = def.items[at];
  switch (item.op) {
    case Op::Ref:
      ++at;
      return value == guards_.addresses[item.n];
    case Op::Static:
      ++at;
      return same_static(def.constants[item.constant].ptr(), value);
    case Op::None:
      ++at;
      return value == Py_None;
    case Op::Leaf: {
      ++at;
      if (reinterpret_cast<PyObject *>(Py_TYPE(value)) == settings().concrete_array.ptr()) {
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

bool Plan::match_container(const GraphDef &def, uint32_t &at, PyObject *value, CallFrame &frame, int depth) const {
  if (depth >= kMaxGuardDepth) return false;
  const Item item = def.items[at++];
  auto n = static_cast<Py_ssize_t>(item.n);
  switch (item.op) {
    case Op::NamedTuple:
      if (reinterpret_cast<PyObject *>(Py_TYPE(value)) != def.constants[item.constant].ptr()) return false;
      [[fallthrough]];
    case Op::Tuple:
      if (item.op == Op::Tuple && !py::is_exact(value, &PyTuple_Type)) return false;
      if (PyTuple_Size(value) != n) return false;
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
    case Op::Mapping:
      if (reinterpret_cast<PyObject *>(Py_TYPE(value)) != def.constants[item.constant].ptr()) return false;
      if (const NodeType *type = known_type(Py_TYPE(value)); type == nullptr || !type->layout) {
        return false;  // forgotten while its class is being collected
      } else {
        value = type->layout->peek_items(value);
      }
      if (value == nullptr) return false;
      [[fallthrough]];
    case Op::Dict: {
      if (!py::is_exact(value, &PyDict_Type) || py::dict_size(value) != n) return false;
      PyObject *keys = def.constants[item.op == Op::Dict ? item.constant : item.constant + 1].ptr();
      // Most dicts were filled in sorted order; from the first key that was not on, items are looked up.
      PyObject *next = nullptr, *found = nullptr;
      Py_ssize_t position = 0;
      bool in_order = true;
      for (Py_ssize_t i = 0; i < n; ++i) {
        PyObject *key = py::tuple_item(keys, i);
        if (in_order && !(PyDict_Next(value, &position, &next, &found) && next == key)) {
          in_order = false;
          if (!has_plain_keys(value)) return false;
        }
        if (!in_order) found = PyDict_GetItemWithError(value, key);
        if (found == nullptr) {
          PyErr_Clear();
          return false;
        }
        if (!match_at(def, at, found, frame, depth + 1)) return false;
      }
      return true;
    }
    default:
      return false;
  }
}

}  // namespace treadle
