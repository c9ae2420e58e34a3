#include "effects/effects.h"

#include <unordered_set>

#include "graph/walk.h"
#include "objects/owners.h"
#include "settings.h"
#include "statics/hashing.h"
#include "statics/held.h"
#include "statics/snapshots.h"
#include "structure/paths.h"
#include "structure/traversal.h"

namespace treadle {
namespace {

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
    // Libraries that put attributes in an order of their own as they go do not say anything by it.
    const bool says_something = !same_keys || node_type(before_.ref_type(r))->layout == nullptr;
    if (says_something && !constant_equal(ConstantKind::Order, before_.order(was.keys), after_.order(is.keys)))
      effects_.reordered.push_back(r);
    nb::dict positions;
    if (!same_keys) {
      for (uint32_t c = 0; c < was.n_children; ++c) positions[nb::handle(before_.child_key(r, c))] = nb::int_(c);
    }
    for (uint32_t c = 0; c < is.n_children; ++c) {
      uint32_t old = c;
      if (!same_keys) {
        nb::handle name = after_.child_key(r, c);
        if (!positions.contains(name)) {
          effects_.sets.push_back({r, c});
          continue;
        }
        old = nb::cast<uint32_t>(positions[name]);
        py::check_status(PyDict_DelItem(positions.ptr(), name.ptr()));
      }
      if (!child_continues(before_.child_item(r, old), after_.child_item(r, c))) {
        effects_.sets.push_back({r, c});
      }
    }
    if (same_keys) return;
    for (auto [name, position] : positions) effects_.removals.push_back({r, nb::cast<uint32_t>(position)});
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
    if (was.op == Op::Leaf) return true;
    if (was.n != is.n) return false;
    for (uint32_t i = 0; i < was.info().n_constants; ++i) {
      PyObject *here = before_.constant(was.constant + i), *there = after_.constant(is.constant + i);
      if (here == there) continue;
      if (!constant_equal(was.info().constants[i], here, there)) return false;
      // Of what can change, an equal one is another one.
      if (was.info().constants[i] == ConstantKind::Static && may_change_in_place(there)) return false;
    }
    return true;
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

// The name of what holds a tracer of `trace` among metadata; null if nothing does.
nb::object name_of_tracer(PyObject *metadata, const nb::object &trace) {
  for (nb::handle entry : nb::list(nb::borrow<nb::dict>(metadata).items())) {
    if (holds_tracer(nb::object(entry[1]).ptr(), trace)) return nb::object(entry[0]);
  }
  return {};
}

// Simple ones lead nowhere.
bool may_lead_somewhere(PyObject *value) {
  const NodeType *info = classify(value);
  return info->kind != Kind::Static ||
         (info->static_kind != StaticKind::Simple && info->static_kind != StaticKind::Number &&
          info->static_kind != StaticKind::Frozen);
}

// Where a static is: first in what was known before, by its path there, else in what was returned.
nb::object path_of_static(const Effects &effects, uint32_t constant) {
  const GraphDef &after = effects.after_def();
  auto is_at = [&](const Traversal &walk) { return walk.item().op == Op::Static && walk.item().constant == constant; };
  Traversal walk(after);
  for (uint32_t r = 0; r < effects.n_known(); ++r) {
    if (!walk.enter(r)) continue;
    while (walk.next()) {
      if (is_at(walk)) return path_of_reference(effects.before_def(), r) + walk.path_tuple();
    }
  }
  Traversal result(after);
  while (result.next()) {
    if (is_at(result)) return nb::make_tuple(nb::str("result")) + result.path_tuple();
  }
  return nb::make_tuple();
}

// Statics are part of the structure too.
void refuse_tracers_in_statics(const Effects &effects, const nb::object &trace) {
  const GraphDef &before = effects.before_def(), &after = effects.after_def();
  std::unordered_set<PyObject *> known;  // filled when it is asked for
  for (uint32_t i = 0; i < after.constants.size(); ++i) {
    nb::object value = after.constants[i];
    if (after.constant_kinds[i] != ConstantKind::Static || !may_lead_somewhere(value.ptr())) continue;
    if (known.empty()) {
      for (const nb::object &constant : before.constants) known.insert(constant.ptr());
    }
    // What did not change was there before the trace.
    if (known.count(value.ptr()) != 0 && !may_change_in_place(value.ptr())) continue;
    if (!holds_tracer(value.ptr(), trace)) continue;
    raise_graph_error(path_of_static(effects, i),
                      "is a '" + py::type_name(Py_TYPE(value.ptr())) +
                          "' that holds a traced array, which would outlive the transform; keep arrays in the value "
                          "of a Variable and read them when they are needed");
  }
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
    const bool is_known = r < effects.n_known();
    const nb::object path =
        is_known ? path_of_reference(effects.before_def(), r) : nb::object(path_of_new_reference(effects, r));
    raise_graph_error(path, "holds a traced array in its metadata '" + py::text(nb::str(name)) +
                                "', which would outlive the transform; keep arrays in the "
                                "value of a Variable");
  }
  refuse_tracers_in_statics(effects, trace);
}

// What the function made belongs to the current trace. Any other object that is new in its graph was captured: its
// caller has it, and would get a copy back.
void refuse_captured(const Effects &effects, const std::vector<nb::object> &refs) {
  const GraphDef &after = effects.after_def();
  const nb::object trace = current_trace();
  for (uint32_t r = effects.n_known(); r < after.n_refs(); ++r) {
    const nb::object owner = owner_of(refs[r].ptr(), *node_type(Py_TYPE(refs[r].ptr())));
    if (!owner.is_valid() || owner.is_none() || owner.is(trace)) continue;
    raise_graph_error(
        path_of_new_reference(effects, r),
        "is a captured " + py::type_name(Py_TYPE(refs[r].ptr())) +
            ": it was made outside of this transform, which could give back a copy of it only; pass it as "
            "an argument, or make it inside");
  }
}

}  // namespace

nb::object trace_effects(std::vector<nb::object> refs, nb::object before, const LeafSource &in_leaves,
                         nb::handle result, const std::vector<bool> &keep, std::vector<nb::object> &outputs) {
  Walker walker;
  walker.walk_known(std::move(refs), graphdef_of(before));
  walker.root(result.ptr(), Outside::Call, nb::make_tuple(nb::str("result")));
  walker.finish();
  nb::object object = Bound<Effects>::make();
  Effects &effects = effects_of(object);
  effects.before = std::move(before);
  effects.after = walker.graphdef;
  Comparer(effects, in_leaves, walker.leaves, keep).run();
  effects.finish();
  refuse_captured(effects, walker.refs);
  refuse_tracers(effects);
  for (uint32_t leaf : effects.out_leaf) outputs.push_back(walker.leaves[leaf]);
  effects.find_layouts();
  return object;
}

}  // namespace treadle
