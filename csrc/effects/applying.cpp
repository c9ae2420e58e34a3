#include "effects/effects.h"

#include "objects/cells.h"
#include "objects/transaction.h"
#include "settings.h"

namespace treadle {
namespace {

PyObject *origin_value(const LeafOrigin &origin, const LeafSource &in_leaves, const LeafSource &out_leaves) {
  const LeafSource &source = origin.is_output ? out_leaves : in_leaves;
  if (origin.index >= source.size()) throw nb::value_error("apply_effects: too few leaves");
  return source[origin.index];
}

LeafSource leaf_values(const Effects &effects, const LeafSource &in_leaves, const LeafSource &out_leaves) {
  LeafSource values;
  values.reserve(effects.origins.size());
  for (const LeafOrigin &origin : effects.origins) values.push_back(origin_value(origin, in_leaves, out_leaves));
  return values;
}

void scatter_values(const Effects &effects, const std::vector<nb::object> &refs, const LeafSource &in_leaves,
                    const LeafSource &out_leaves, Transaction &transaction) {
  const GraphDef &after = effects.after_def();
  for (uint32_t r : effects.changed_values) {
    transaction.set_value(refs[r].ptr(), origin_value(effects.origins[after.refs[r].leaf], in_leaves, out_leaves));
  }
}

// Raises unless every changed Variable was made at the current trace level. That the arrays are concrete tells nothing
// about the level: `grad` and `vmap` compute at once what does not depend on their arguments.
void check_changed_values(const Effects &effects, const std::vector<nb::object> &refs, const nb::object &trace,
                          bool known_top_level) {
  const bool foreign_hold = known_top_level && trace.is(settings().top_trace);
  for (size_t i = 0; i < effects.changed_values.size(); ++i) {
    const nb::object &variable = refs[effects.changed_values[i]];
    const bool holds = effects.layout(i) != nullptr ? foreign_hold : as_cell(variable.ptr())->trace == trace.ptr();
    if (!holds) check_owner(variable, trace);
  }
}

// The hot form: nothing can fail once the result is built, so values are exchanged directly.
nb::object apply_values(const Effects &effects, const std::vector<nb::object> &refs, const LeafSource &in_leaves,
                        const LeafSource &out_leaves) {
  const GraphDef &after = effects.after_def();
  nb::object result;
  const Item &root = after.items[after.root_begin];
  if (root.op == Op::None) {
    result = nb::none();
  } else if (root.op == Op::Leaf) {
    result = nb::borrow<nb::object>(origin_value(effects.origins[root.n], in_leaves, out_leaves));
  } else {
    LeafSource leaves(after.n_leaves(), nullptr);
    for (uint32_t leaf : effects.result_leaves)
      leaves[leaf] = origin_value(effects.origins[leaf], in_leaves, out_leaves);
    result = build_expression(after, after.root_begin, leaves, refs);
  }
  // Old values go only when all are replaced: their destructors may run code that looks at the graph.
  std::vector<nb::object> dropped;
  dropped.reserve(effects.changed_values.size());
  for (size_t i = 0; i < effects.changed_values.size(); ++i) {
    uint32_t r = effects.changed_values[i];
    PyObject *value = origin_value(effects.origins[after.refs[r].leaf], in_leaves, out_leaves);
    if (const VariableLayout *layout = effects.layout(i)) {
      // A slot of the right type takes any object, so this cannot fail either; nor does one that was emptied meanwhile.
      dropped.push_back(nb::borrow<nb::object>(layout->value.peek(refs[r].ptr())));
      layout->value.set(refs[r].ptr(), value);
      continue;
    }
    VariableCell *cell = as_cell(refs[r].ptr());
    dropped.push_back(nb::steal<nb::object>(cell->value));
    Py_INCREF(value);
    cell->value = value;
  }
  return result;
}

// What was there in its order, and then what was added in the order in which it came.
nb::object order_kept(const GraphDef &before, const GraphDef &after, uint32_t r) {
  nb::object was = nb::borrow<nb::object>(before.order(before.refs[r].keys)),
             is = nb::borrow<nb::object>(after.order(after.refs[r].keys));
  nb::object added = py::checked(PyDict_New());
  for (nb::handle name : is) py::check_status(PyDict_SetItem(added.ptr(), name.ptr(), Py_None));
  std::vector<nb::object> names;
  for (nb::handle name : was) {
    if (!py::dict_get(added.ptr(), name.ptr()).is_valid()) continue;
    py::check_status(PyDict_DelItem(added.ptr(), name.ptr()));
    names.push_back(nb::borrow<nb::object>(name));
  }
  for (auto [name, none] : py::DictItems(added.ptr())) names.push_back(nb::borrow<nb::object>(name));
  return py::to_tuple(std::move(names));
}

// What was added comes last, as it does without a transform; a node that is in another order still is put in order.
void reorder(const GraphDef &before, const GraphDef &after, uint32_t r, const nb::object &node,
             Transaction &transaction) {
  const NodeType *info = node_type(after.ref_type(r));
  PyObject *order = after.order(after.refs[r].keys);
  if (info->kind == Kind::Object) {
    nb::object wanted = info->layout ? order_kept(before, after, r) : nb::borrow<nb::object>(order);
    transaction.set_order(py::instance_dict(node.ptr()), wanted.ptr(), info->node_layout());
    return;
  }
  std::vector<std::pair<nb::object, nb::object>> children;
  bool in_order = true;
  for (nb::handle entry : nb::object(nb::object(info->flatten(node))[0])) {
    const auto i = static_cast<Py_ssize_t>(children.size());
    children.emplace_back(nb::object(entry[0]), nb::object(entry[1]));
    in_order =
        in_order && i < py::tuple_size(order) && py::equal(py::tuple_item(order, i), children.back().first.ptr());
  }
  if (in_order) return;
  for (Py_ssize_t i = 0; i < py::tuple_size(order); ++i) {
    for (const auto &[key, child] : children) {
      if (!py::equal(key.ptr(), py::tuple_item(order, i))) continue;
      transaction.set_custom(info, node, key.ptr(), child.ptr(), nullptr);
      transaction.set_custom(info, node, key.ptr(), nullptr, child.ptr());
      break;
    }
  }
}

nb::object apply_structure(const Effects &effects, const std::vector<nb::object> &known, const LeafSource &in_leaves,
                           const LeafSource &out_leaves, const nb::object &trace) {
  const GraphDef &before = effects.before_def(), &after = effects.after_def();
  LeafSource leaves = leaf_values(effects, in_leaves, out_leaves);
  std::vector<nb::object> refs = known;
  Owner owner(trace);
  for (uint32_t r = effects.n_known(); r < after.n_refs(); ++r) {
    PyObject *value = after.refs[r].kind == Kind::Variable ? leaves[after.refs[r].leaf] : nullptr;
    refs.push_back(new_reference(after, r, value, owner));
  }
  for (uint32_t r = effects.n_known(); r < after.n_refs(); ++r) fill_node(after, r, refs[r], leaves, refs);
  std::vector<nb::object> values;
  for (const AttributeChange &set : effects.sets) {
    values.push_back(build_expression(after, after.child_item(set.ref, set.child), leaves, refs));
  }
  nb::object result = build_expression(after, after.root_begin, leaves, refs);

  // From here on the caller's objects change.
  Transaction transaction;
  auto change = [&](uint32_t r, PyObject *key, PyObject *value) {
    const NodeType *info = node_type(after.ref_type(r));
    if (info->kind == Kind::Object) {
      transaction.set_item(py::instance_dict(refs[r].ptr()), key, value);
      return;
    }
    nb::object old;
    for (nb::handle entry : nb::object(nb::object(info->flatten(refs[r]))[0])) {
      if (py::equal(nb::object(entry[0]).ptr(), key)) old = entry[1];
    }
    transaction.set_custom(info, refs[r], key, old.ptr(), value);
  };
  for (size_t i = 0; i < effects.sets.size(); ++i)
    change(effects.sets[i].ref, after.child_key(effects.sets[i].ref, effects.sets[i].child), values[i].ptr());
  for (const AttributeChange &removal : effects.removals)
    change(removal.ref, before.child_key(removal.ref, removal.child), nullptr);
  for (uint32_t r : effects.reordered) reorder(before, after, r, refs[r], transaction);
  for (uint32_t r : effects.changed_metadata) {
    PyObject *extra = after.constant(after.refs[r].extra);
    if (after.refs[r].kind == Kind::Variable) {
      transaction.set_metadata(refs[r].ptr(), extra);
    } else {
      transaction.set_marks(refs[r], *node_type(after.ref_type(r))->node_layout(), extra);
    }
  }
  scatter_values(effects, refs, in_leaves, out_leaves, transaction);
  transaction.commit();
  return result;
}

}  // namespace

nb::object apply_effects(const Effects &effects, const std::vector<nb::object> &refs, const LeafSource &in_leaves,
                         const LeafSource &out_leaves, bool known_top_level) {
  if (refs.size() != effects.n_known() || out_leaves.size() != effects.n_out()) {
    throw nb::value_error("apply_effects: wrong number of references or output leaves");
  }
  if (effects.values_only() && effects.changed_values.empty())
    return apply_values(effects, refs, in_leaves, out_leaves);
  nb::object trace = current_trace();
  check_changed_values(effects, refs, trace, known_top_level);
  if (effects.values_only()) return apply_values(effects, refs, in_leaves, out_leaves);
  for (const auto *nodes : {&effects.changed_metadata, &effects.reordered}) {
    for (uint32_t r : *nodes) check_owner(refs[r], trace);
  }
  for (const auto *changes : {&effects.sets, &effects.removals}) {
    for (const AttributeChange &change : *changes) check_owner(refs[change.ref], trace);
  }
  return apply_structure(effects, refs, in_leaves, out_leaves, trace);
}

}  // namespace treadle
