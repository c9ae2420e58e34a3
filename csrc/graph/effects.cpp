#include "graph/effects.h"

#include <unordered_set>

#include "graph/cells.h"
#include "graph/statics.h"
#include "graph/transaction.h"
#include "settings.h"

namespace treadle {
namespace {

nb::object *g_effects_type = nullptr;

// Compares how a call left its references with how it found them, and decides where every leaf comes from.
class Comparer {
 public:
  Comparer(Effects &effects, const LeafSource &in_leaves, const std::vector<nb::object> &after_leaves,
           const std::vector<bool> &keep)
      : effects_(effects),
        before_(effects.before_def()),
        after_(effects.after_def()),
        in_leaves_(in_leaves),
        after_leaves_(after_leaves),
        keep_(keep),
        placed_(after_.n_leaves(), false) {
    effects_.origins.assign(after_.n_leaves(), {false, 0});
    effects_.input_of.assign(after_.n_leaves(), kNone);
  }

  void run() {
    for (uint32_t r = 0; r < before_.n_refs(); ++r) reference(r);
    for (uint32_t leaf = 0; leaf < after_.n_leaves(); ++leaf) {
      if (!placed_[leaf]) output(leaf);
    }
    for (size_t at = after_.root_begin; at < after_.items.size(); ++at) {
      if (after_.items[at].op == Op::Ref) effects_.result_has_refs = true;
      if (after_.items[at].op == Op::Leaf) effects_.result_leaves.push_back(after_.items[at].n);
    }
  }

 private:
  void reference(uint32_t r) {
    const RefDef &was = before_.refs[r], &is = after_.refs[r];
    if (before_.constant(was.type) != after_.constant(is.type)) {
      raise_graph_error(path_of_reference(before_, r),
                        "changed its class inside a transform, which cannot be carried over");
    }
    if (was.kind == Kind::Variable) {
      if (!continues(was.leaf, is.leaf)) effects_.changed_values.push_back(r);
      if (!metadata_equal(before_.constant(was.extra), after_.constant(is.extra)))
        effects_.changed_metadata.push_back(r);
      return;
    }
    if (was.kind == Kind::Custom && !static_equal(before_.constant(was.extra), after_.constant(is.extra))) {
      raise_graph_error(
          path_of_reference(before_, r),
          "is a registered node whose static part changed inside a transform; keep what changes in children");
    }
    if (was.kind == Kind::Object && !marks_equal(was, is)) effects_.changed_metadata.push_back(r);
    attributes(r, was, is);
  }

  bool marks_equal(const RefDef &was, const RefDef &is) const {
    if (was.extra == kNone || is.extra == kNone) return was.extra == is.extra;
    return constant_equal(before_.constant_kinds[was.extra], before_.constant(was.extra), after_.constant(is.extra));
  }

  void attributes(uint32_t r, const RefDef &was, const RefDef &is) {
    bool same_keys = constant_equal(ConstantKind::Keys, before_.constant(was.keys), after_.constant(is.keys));
    nb::dict positions;
    if (!same_keys) {
      for (uint32_t c = 0; c < was.n_children; ++c) positions[key(before_, was, c)] = nb::int_(c);
    }
    for (uint32_t c = 0; c < is.n_children; ++c) {
      uint32_t old = c;
      if (!same_keys) {
        nb::handle name = key(after_, is, c);
        if (!positions.contains(name)) {
          effects_.sets.push_back({r, c});
          continue;
        }
        old = nb::cast<uint32_t>(positions[name]);
        py::check_status(PyDict_DelItem(positions.ptr(), name.ptr()));
      }
      if (!child_continues(before_.child_items[was.children + old], after_.child_items[is.children + c])) {
        effects_.sets.push_back({r, c});
      }
    }
    if (same_keys) return;
    for (auto [name, position] : positions) effects_.removals.push_back({r, nb::cast<uint32_t>(position)});
  }

  static nb::handle key(const GraphDef &def, const RefDef &ref, uint32_t child) {
    return py::tuple_item(def.constant(ref.keys), static_cast<Py_ssize_t>(child));
  }

  // True if the expression is the same and all its leaves stay.
  bool child_continues(uint32_t was, uint32_t is) {
    uint32_t was_end = before_.skip(was), is_end = after_.skip(is);
    if (was_end - was != is_end - is) return false;
    for (uint32_t i = 0; was + i < was_end; ++i) {
      if (!same_item(before_.items[was + i], after_.items[is + i])) return false;
    }
    bool all = true;
    for (uint32_t i = 0; was + i < was_end; ++i) {
      const Item &old = before_.items[was + i];
      if (old.op == Op::Leaf && !continues(old.n, after_.items[is + i].n)) all = false;
    }
    return all;
  }

  bool same_item(const Item &was, const Item &is) const {
    if (was.op != is.op) return false;
    switch (was.op) {
      case Op::Leaf:
      case Op::None:
        return true;
      case Op::Ref:
      case Op::Tuple:
      case Op::List:
        return was.n == is.n;
      case Op::Static:
      case Op::Dict:
      case Op::NamedTuple:
      case Op::Pytree:
        return was.n == is.n && constant_equal(before_.constant_kinds[was.constant], before_.constant(was.constant),
                                               after_.constant(is.constant));
      case Op::Mapping:
        return was.n == is.n && before_.constant(was.constant) == after_.constant(is.constant) &&
               constant_equal(ConstantKind::Keys, before_.constant(was.constant + 1), after_.constant(is.constant + 1));
    }
    return false;
  }

  // Records that leaf `is` stands where input leaf `was` stood; true if it still holds that input.
  bool continues(uint32_t was, uint32_t is) {
    effects_.input_of[is] = was;
    placed_[is] = true;
    if (keep_[was] && after_leaves_[is].ptr() == in_leaves_[was]) {
      effects_.origins[is] = {false, was};
      return true;
    }
    output(is);
    return false;
  }

  void output(uint32_t leaf) {
    effects_.origins[leaf] = {true, effects_.n_out()};
    effects_.out_leaf.push_back(leaf);
  }

  Effects &effects_;
  const GraphDef &before_, &after_;
  const LeafSource &in_leaves_;
  const std::vector<nb::object> &after_leaves_;
  const std::vector<bool> &keep_;
  std::vector<bool> placed_;
};

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
  const std::shared_ptr<const Layout> *layouts = effects.layouts.empty() ? nullptr : effects.layouts.data();
  for (size_t i = 0; i < effects.changed_values.size(); ++i) {
    const nb::object &variable = refs[effects.changed_values[i]];
    const bool holds =
        layouts != nullptr && layouts[i] != nullptr ? foreign_hold : as_cell(variable.ptr())->trace == trace.ptr();
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
  const std::shared_ptr<const Layout> *layouts = effects.layouts.empty() ? nullptr : effects.layouts.data();
  for (size_t i = 0; i < effects.changed_values.size(); ++i) {
    uint32_t r = effects.changed_values[i];
    PyObject *value = origin_value(effects.origins[after.refs[r].leaf], in_leaves, out_leaves);
    if (const Layout *layout = layouts != nullptr ? layouts[i].get() : nullptr) {
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
    values.push_back(
        build_expression(after, after.child_items[after.refs[set.ref].children + set.child], leaves, refs));
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
  auto key_at = [](const GraphDef &def, const AttributeChange &at) {
    return py::tuple_item(def.constant(def.refs[at.ref].keys), static_cast<Py_ssize_t>(at.child));
  };
  for (size_t i = 0; i < effects.sets.size(); ++i)
    change(effects.sets[i].ref, key_at(after, effects.sets[i]), values[i].ptr());
  for (const AttributeChange &removal : effects.removals) change(removal.ref, key_at(before, removal), nullptr);
  for (uint32_t r : effects.changed_metadata) {
    PyObject *extra = after.constant(after.refs[r].extra);
    if (after.refs[r].kind == Kind::Variable) {
      transaction.set_metadata(refs[r].ptr(), extra);
    } else {
      transaction.set_marks(refs[r], *node_type(after.ref_type(r))->layout, extra);
    }
  }
  scatter_values(effects, refs, in_leaves, out_leaves, transaction);
  transaction.commit();
  return result;
}

// ---- descriptions for Python ----------------------------------------------------------------------------------------

// Paths of the leaves of `after` that continue no input: below the attribute that was set, the result's by position;
// kNone where there is none. Tuples are left to the caller, since in a deep graph few of the paths are asked for.
std::vector<uint32_t> new_leaf_paths(const Effects &effects, PathTree &tree) {
  const GraphDef &before = effects.before_def(), &after = effects.after_def();
  std::vector<uint32_t> leaf_path(after.n_leaves(), kNone);
  std::vector<bool> defined(after.n_refs(), false), changed(before.n_refs(), false);
  for (const AttributeChange &set : effects.sets) changed[set.ref] = true;
  std::vector<uint32_t> ref_path = paths_of_references(before, changed, tree);
  ref_path.resize(after.n_refs(), kNone);
  auto expression = [&](uint32_t begin, uint32_t base) {
    struct Level {
      const Item *item;
      uint32_t next;
      uint32_t path;
    };
    std::vector<Level> levels;
    uint32_t end = after.skip(begin);
    for (uint32_t at = begin; at < end; ++at) {
      while (!levels.empty() && levels.back().next == levels.back().item->n) levels.pop_back();
      const Item &item = after.items[at];
      uint32_t path = base;
      if (!levels.empty()) {
        Level &level = levels.back();
        uint32_t index = level.next++;
        if (item.op == Op::Static || item.op == Op::None) continue;
        PyObject *keys = level.item->op == Op::Dict  ? after.constant(level.item->constant)
                         : level.item->op > Op::Dict ? after.constant(level.item->constant + 1)
                                                     : nullptr;
        path = tree.add(level.path, keys != nullptr
                                        ? nb::borrow<nb::object>(py::tuple_item(keys, static_cast<Py_ssize_t>(index)))
                                        : nb::object(nb::int_(index)));
      }
      if (item.op == Op::Leaf) leaf_path[item.n] = path;
      if (item.op == Op::Ref && ref_path[item.n] == kNone) ref_path[item.n] = path;
      if (item.op >= Op::Tuple) levels.push_back({&item, 0, path});
    }
  };
  auto define = [&](uint32_t r) {
    const RefDef &ref = after.refs[r];
    if (ref.kind == Kind::Variable) {
      leaf_path[ref.leaf] = ref_path[r];
      return;
    }
    if (ref_path[r] == kNone) return;
    const NodeType *info = node_type(after.ref_type(r));
    bool int_keys = info->layout && info->layout->int_keys;
    for (uint32_t c = 0; c < ref.n_children; ++c) {
      PyObject *key = py::tuple_item(after.constant(ref.keys), static_cast<Py_ssize_t>(c));
      uint32_t path = ref_path[r];
      if (key != info->transparent.ptr()) {
        path = tree.add(path, int_keys ? index_or_name(key) : nb::borrow<nb::object>(key));
      }
      expression(after.child_items[ref.children + c], path);
    }
  };
  for (uint32_t r = 0; r < effects.n_known(); ++r) {
    if (changed[r]) define(r);
  }
  expression(after.root_begin, PathTree::kRoot);
  // New references get their path from whoever reaches them first; one pass per generation of new references.
  for (bool progress = true; progress;) {
    progress = false;
    for (uint32_t r = effects.n_known(); r < after.n_refs(); ++r) {
      if (defined[r] || ref_path[r] == kNone) continue;
      defined[r] = progress = true;
      define(r);
    }
  }
  return leaf_path;
}

nb::object outputs(const Effects &effects) {
  const GraphDef &after = effects.after_def();
  PathTree tree;
  std::vector<uint32_t> new_paths = new_leaf_paths(effects, tree);
  std::vector<bool> in_result(after.n_leaves(), false);
  std::vector<uint32_t> position(after.n_leaves(), 0);
  uint32_t count = 0;
  for (size_t at = after.root_begin; at < after.items.size(); ++at) {
    if (after.items[at].op != Op::Leaf) continue;
    in_result[after.items[at].n] = true;
    position[after.items[at].n] = count++;
  }
  nb::list rows;
  for (uint32_t leaf : effects.out_leaf) {
    uint32_t known = effects.input_of[leaf];
    nb::object path = known != kNone ? nb::object(leaf_paths(effects.before_def())[known])
                                     : tree.tuple(new_paths[leaf] != kNone ? new_paths[leaf] : PathTree::kRoot);
    if (in_result[leaf]) {
      rows.append(nb::make_tuple("result", position[leaf], path));
    } else if (known != kNone) {
      rows.append(nb::make_tuple("leaf", known, path));
    } else {
      rows.append(nb::make_tuple("new", -1, path));
    }
  }
  return nb::tuple(rows);
}

nb::object output_types(const Effects &effects) {
  const GraphDef &after = effects.after_def();
  nb::list rows;
  for (uint32_t leaf : effects.out_leaf) {
    uint32_t owner = after.leaf_owner[leaf];
    rows.append(owner == kNone ? nb::none() : nb::borrow<nb::object>(after.constant(after.refs[owner].type)));
  }
  return nb::tuple(rows);
}

nb::object output_metadata(const Effects &effects) {
  const GraphDef &after = effects.after_def();
  nb::list rows;
  for (uint32_t leaf : effects.out_leaf) {
    uint32_t owner = after.leaf_owner[leaf];
    PyObject *metadata = owner == kNone ? nullptr : after.constant(after.refs[owner].extra);
    if (owner == kNone) {
      rows.append(nb::none());
    } else {
      rows.append(metadata != nullptr ? nb::borrow<nb::object>(metadata) : nb::object(nb::dict()));
    }
  }
  return nb::tuple(rows);
}

nb::object final_leaves(const Effects &effects) {
  std::vector<LeafOrigin> finals;
  for (uint32_t i = 0; i < effects.before_def().n_leaves(); ++i) finals.push_back({false, i});
  for (size_t leaf = 0; leaf < effects.origins.size(); ++leaf) {
    if (effects.input_of[leaf] != kNone) finals[effects.input_of[leaf]] = effects.origins[leaf];
  }
  nb::list rows;
  for (const LeafOrigin &origin : finals) rows.append(nb::make_tuple(origin.is_output, origin.index));
  return nb::tuple(rows);
}

int traverse(PyObject *self, visitproc visit, void *arg) {
  Py_VISIT(Py_TYPE(self));
  if (!nb::inst_ready(self)) return 0;
  Effects *effects = nb::inst_ptr<Effects>(self);
  Py_VISIT(effects->before.ptr());
  Py_VISIT(effects->after.ptr());
  return 0;
}

PyType_Slot effects_slots[] = {{Py_tp_traverse, reinterpret_cast<void *>(traverse)}, {0, nullptr}};

std::vector<nb::object> to_objects(nb::handle sequence) {
  std::vector<nb::object> result;
  for (nb::handle item : sequence) result.push_back(nb::borrow<nb::object>(item));
  return result;
}

LeafSource borrow_all(const std::vector<nb::object> &objects) {
  LeafSource source;
  source.reserve(objects.size());
  for (const nb::object &object : objects) source.push_back(object.ptr());
  return source;
}

// What follows reads each object's memory as the structure says that it is laid out. Calls of jitted functions need not
// ask: their guards or their walk have.
void require_references(const GraphDef &def, const std::vector<nb::object> &refs) {
  if (refs.size() != def.n_refs()) throw nb::value_error("apply_effects: one object per reference is needed");
  auto name = [](PyTypeObject *type) {
    return py::text(nb::str(nb::handle(reinterpret_cast<PyObject *>(type)).attr("__name__")));
  };
  for (uint32_t r = 0; r < def.n_refs(); ++r) {
    PyTypeObject *found = Py_TYPE(refs[r].ptr()), *expected = def.ref_type(r);
    if (found == expected) continue;
    raise_graph_error(path_of_reference(def, r), "is a " + name(expected) +
                                                     " in the structure that was changed, but a " + name(found) +
                                                     " is to be changed now");
  }
}

std::vector<bool> keep_mask(nb::handle keep, size_t n) {
  if (nb::isinstance<nb::bool_>(keep)) return std::vector<bool>(n, nb::cast<bool>(keep));
  std::vector<bool> mask;
  for (nb::handle entry : keep) mask.push_back(nb::cast<bool>(entry));
  if (mask.size() != n) throw nb::value_error("trace_effects: one keep flag per leaf is needed");
  return mask;
}

}  // namespace

bool Effects::equals(const Effects &other) const {
  return origins == other.origins && input_of == other.input_of && out_leaf == other.out_leaf &&
         changed_values == other.changed_values && changed_metadata == other.changed_metadata && sets == other.sets &&
         removals == other.removals && before_def().equals(other.before_def()) && after_def().equals(other.after_def());
}

void Effects::find_layouts() {
  bool any = false;
  for (uint32_t r : changed_values) {
    layouts.push_back(node_type(before_def().ref_type(r))->layout);
    any = any || layouts.back() != nullptr;
  }
  if (!any) layouts.clear();
}

nb::object new_effects() {
  nb::object object = nb::inst_alloc(*g_effects_type);
  new (nb::inst_ptr<Effects>(object)) Effects();
  nb::inst_mark_ready(object);
  return object;
}

Effects &effects_of(nb::handle object) {
  if (!object.type().is(*g_effects_type) || !nb::inst_ready(object)) throw nb::type_error("expected an Effects");
  return *nb::inst_ptr<Effects>(object);
}

// The name of what holds a tracer of `trace` among metadata, in containers too; null if nothing does.
nb::object name_of_tracer(PyObject *metadata, const nb::object &trace) {
  auto *tracer = reinterpret_cast<PyTypeObject *>(settings().tracer.ptr());
  struct Open {
    nb::object name, value;
  };
  std::vector<Open> open;
  std::unordered_set<PyObject *> met;  // containers may hold themselves
  auto add = [&](const nb::object &name, nb::handle value) { open.push_back({name, nb::borrow<nb::object>(value)}); };
  for (auto [name, value] : nb::borrow<nb::dict>(metadata)) add(nb::borrow<nb::object>(name), value);
  while (!open.empty()) {
    Open at = std::move(open.back());
    open.pop_back();
    if (PyType_IsSubtype(Py_TYPE(at.value.ptr()), tracer)) {
      if (nb::getattr(at.value, "_trace", nb::none()).is(trace)) return at.name;
    } else if (!met.insert(at.value.ptr()).second) {
      continue;
    } else if (py::is_exact(at.value.ptr(), &PyDict_Type)) {
      for (nb::handle value : nb::list(at.value.attr("values")())) add(at.name, value);
    } else if (py::is_exact(at.value.ptr(), &PyList_Type) || py::is_exact(at.value.ptr(), &PyTuple_Type)) {
      for (nb::handle value : nb::list(at.value)) add(at.name, value);
    }
  }
  return {};
}

// Metadata are part of the structure: nothing carries an array out of the trace for them.
void refuse_tracers(const Effects &effects) {
  const GraphDef &after = effects.after_def();
  std::vector<uint32_t> fresh = effects.changed_metadata;
  for (uint32_t r = effects.n_known(); r < after.n_refs(); ++r) fresh.push_back(r);
  const Settings &s = settings();
  nb::object trace = py::checked(PyObject_GetAttr(s.trace_owner.ptr(), s.trace_attribute.ptr()));
  for (uint32_t r : fresh) {
    if (after.refs[r].kind != Kind::Variable || after.refs[r].extra == kNone) continue;
    nb::object name = name_of_tracer(after.constant(after.refs[r].extra), trace);
    if (!name.is_valid()) continue;
    const GraphDef &numbered = r < effects.n_known() ? effects.before_def() : after;
    raise_graph_error(path_of_reference(numbered, r), "holds a traced array in its metadata '" +
                                                          py::text(nb::str(name)) +
                                                          "', which would outlive the transform; keep arrays in the "
                                                          "value of a Variable");
  }
}

nb::object trace_effects(std::vector<nb::object> refs, nb::object before, const LeafSource &in_leaves,
                         nb::handle result, const std::vector<bool> &keep, std::vector<nb::object> &outputs) {
  Walker walker;
  walker.walk_known(std::move(refs), graphdef_of(before));
  walker.root(result.ptr(), Outside::Call, nb::make_tuple(nb::str("result")));
  walker.finish();
  nb::object object = new_effects();
  Effects &effects = effects_of(object);
  effects.before = std::move(before);
  effects.after = walker.graphdef;
  Comparer(effects, in_leaves, walker.leaves, keep).run();
  effects.finish();
  refuse_tracers(effects);
  for (uint32_t leaf : effects.out_leaf) outputs.push_back(walker.leaves[leaf]);
  effects.find_layouts();
  return object;
}

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
  for (uint32_t r : effects.changed_metadata) check_owner(refs[r], trace);
  for (const auto *changes : {&effects.sets, &effects.removals}) {
    for (const AttributeChange &change : *changes) check_owner(refs[change.ref], trace);
  }
  return apply_structure(effects, refs, in_leaves, out_leaves, trace);
}

void bind_effects(nb::module_ &m) {
  nb::class_<Effects> cls(m, "Effects", nb::type_slots(effects_slots), nb::is_final());
  g_effects_type = new nb::object(cls);
  cls.def_prop_ro("num_out", &Effects::n_out);
  cls.def_prop_ro("before", [](const Effects &effects) { return effects.before; });
  cls.def_prop_ro("changes_structure", [](const Effects &effects) { return !effects.values_only(); });
  cls.def("same_as", &Effects::equals, nb::arg("other"));
  cls.def("outputs", &outputs);
  cls.def("output_types", &output_types);
  cls.def("output_metadata", &output_metadata);
  cls.def("final_leaves", &final_leaves);

  m.def(
      "trace_effects",
      [](nb::handle refs, nb::object graphdef, nb::handle in_leaves, nb::handle result, nb::handle keep) {
        std::vector<nb::object> inputs = to_objects(in_leaves), outputs;
        const GraphDef &def = graphdef_of(graphdef);
        if (inputs.size() != def.n_leaves()) throw nb::value_error("trace_effects: one value per leaf is needed");
        std::vector<nb::object> objects = to_objects(refs);
        if (objects.size() != def.n_refs()) throw nb::value_error("trace_effects: one object per reference is needed");
        nb::object effects = trace_effects(std::move(objects), graphdef, borrow_all(inputs), result,
                                           keep_mask(keep, inputs.size()), outputs);
        nb::list leaves;
        for (nb::object &output : outputs) leaves.append(std::move(output));
        return nb::make_tuple(effects, leaves);
      },
      nb::arg("inner_refs"), nb::arg("graphdef"), nb::arg("in_leaves"), nb::arg("result").none(), nb::arg("keep"));
  m.def(
      "apply_effects",
      [](nb::handle effects, nb::handle refs, nb::handle in_leaves, nb::handle out_leaves) {
        std::vector<nb::object> objects = to_objects(refs), inputs = to_objects(in_leaves),
                                outputs = to_objects(out_leaves);
        const GraphDef &before = effects_of(effects).before_def();
        require_references(before, objects);
        if (inputs.size() != before.n_leaves()) throw nb::value_error("apply_effects: one value per leaf is needed");
        return apply_effects(effects_of(effects), objects, borrow_all(inputs), borrow_all(outputs));
      },
      nb::arg("effects"), nb::arg("refs"), nb::arg("in_leaves"), nb::arg("out_leaves"));
}

}  // namespace treadle
