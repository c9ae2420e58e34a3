// Nodes as JAX's pytrees: the children are the distinct Variables and bare arrays of the whole graph below, the rest is
// structure, a GraphDef whose leaves are the children.
//
// JAX puts anything where children were, and wants it back where it put it. A node that was made of such keeps its
// `places`: the structure that it was made by and its reference therein. While its attributes still follow that
// structure, what is found where a leaf was is a leaf.
#include "bindings.h"
#include "errors.h"
#include "graph/rebuild.h"
#include "graph/walk.h"
#include "objects/callables.h"
#include "objects/cells.h"
#include "structure/traversal.h"

namespace treadle {
namespace {

// Where `key` is in a tuple, most likely at `guess`; kNone if nowhere.
uint32_t position_of(PyObject *key, PyObject *keys, uint32_t guess) {
  const auto count = static_cast<uint32_t>(py::tuple_size(keys));
  auto is_at = [&](uint32_t i) {
    PyObject *known = py::tuple_item(keys, static_cast<Py_ssize_t>(i));
    return known == key || py::equal(known, key);
  };
  if (guess < count && is_at(guess)) return guess;
  for (uint32_t i = 0; i < count; ++i) {
    if (is_at(i)) return i;
  }
  return kNone;
}

}  // namespace

void Walker::visit_variable_leaf(PyObject *value) {
  auto [leaf, fresh] = variable_leaves_.insert(value, def_->n_leaves());
  scratch_.push_back({Op::Leaf, leaf, kNone});
  if (fresh) add_leaf(value, kNone);
}

// Of a node whose frame was opened last.
void Walker::guide_by_places(PyObject *node) {
  PyObject *places = as_node(node)->places;
  if (places == nullptr) return;
  frames_.back().guide = &graphdef_of(py::tuple_item(places, 0));
  frames_.back().guided = nb::cast<uint32_t>(nb::handle(py::tuple_item(places, 1)));
}

// Where the guide has the child that is visited next, or kNone.
uint32_t Walker::place_of_child(Frame &frame) {
  const GraphDef &guide = *frame.guide;
  const bool of_node = frame.ref != kNone;
  const uint32_t count = of_node ? guide.refs[frame.guided].n_children : guide.items[frame.guided].n_children();
  PyObject *known =
      of_node ? guide.constant(guide.refs[frame.guided].keys) : guide.child_keys(guide.items[frame.guided]);
  uint32_t child = frame.next - 1;
  if (known != nullptr && frame.keys != nullptr) {
    PyObject *key = py::tuple_item(frame.keys, child);
    child = position_of(key, known, child);
  }
  if (child >= count) return kNone;
  if (of_node) return guide.child_item(frame.guided, child);
  // Both have their keys in one order, so that children are looked for from the first to the last.
  for (; frame.guide_child < child; ++frame.guide_child) frame.guide_at = guide.skip(frame.guide_at);
  return frame.guide_child == child ? frame.guide_at : kNone;
}

void Walker::visit_guided(PyObject *value, Scalars scalars) {
  const GraphDef &guide = *frames_.back().guide;
  const uint32_t place = place_of_child(frames_.back());
  if (place == kNone) return visit(value, scalars);
  const Item &item = guide.items[place];
  // A part of the graph that was put there since is no stand-in for a leaf: JAX, which would go on into it, knows
  // neither what is shared with the rest nor a cycle.
  if (item.op == Op::Leaf && (classify(value)->kind == Kind::Variable || !holds_node(nb::borrow<nb::object>(value))))
    return visit_place(value, guide, item.n);
  const size_t depth = frames_.size();
  visit(value, scalars);
  if (frames_.size() == depth) return;
  // A container of the same sort, which comes with its children in the guide. A node has places of its own.
  Frame &opened = frames_.back();
  if (opened.ref != kNone || scratch_[opened.items_begin - 1].op != item.op) return;
  opened.guide = &guide;
  opened.guided = place;
  opened.guide_child = 0;
  opened.guide_at = place + 1;
}

void Walker::visit_place(PyObject *value, const GraphDef &guide, uint32_t leaf) {
  if (classify(value)->kind == Kind::Variable) return visit_variable_leaf(value);
  // What was shared stays so as long as nobody put something else at one of its places.
  auto [known, fresh] = places_.try_emplace({&guide, leaf}, value, def_->n_leaves());
  const auto [there, number] = known->second;
  if (!fresh && there == value) {
    scratch_.push_back({Op::Leaf, number, kNone});
  } else {
    add_bare_leaf(value);
  }
}

namespace {

nb::object pair(nb::object first, nb::object second) {
  nb::object made = py::checked(PyTuple_New(2));
  py::tuple_init(made.ptr(), 0, first.release().ptr());
  py::tuple_init(made.ptr(), 1, second.release().ptr());
  return made;
}

PyObject *flatten_node(PyObject *, PyObject *node) {
  return guarded([&] {
    Walker walker(Variables::Leaves);
    walker.root(node, Outside::Graph, nb::make_tuple());
    walker.finish();
    nb::object children = py::checked(PyList_New(static_cast<Py_ssize_t>(walker.leaves.size())));
    for (size_t i = 0; i < walker.leaves.size(); ++i)
      py::list_init(children.ptr(), static_cast<Py_ssize_t>(i), walker.leaves[i].release().ptr());
    return pair(std::move(children), std::move(walker.graphdef));
  });
}

bool has_shared_leaves(const GraphDef &def) {
  size_t places = 0;
  for (const Item &item : def.items) places += item.op == Op::Leaf ? 1 : 0;
  return places > def.n_leaves();
}

// Whether a walk of what is made of these children finds them, without being told.
bool finds_children(const GraphDef &def, const LeafSource &children) {
  bool all_variables = true;
  PyTypeObject *last = nullptr;
  for (PyObject *child : children) {
    if (Py_TYPE(child) == last) continue;
    const Kind kind = classify(child)->kind;
    if (kind != Kind::Variable && kind != Kind::Array) return false;
    if (kind != Kind::Variable) all_variables = false;
    last = Py_TYPE(child);
  }
  return all_variables || !has_shared_leaves(def);
}

PyObject *unflatten_node(PyObject *, PyObject *const *args, Py_ssize_t count) {
  return guarded([&] {
    if (count != 2) throw nb::type_error("expected structure and children");
    nb::object held = py::checked(PySequence_Tuple(args[1]));
    LeafSource children;
    children.reserve(static_cast<size_t>(py::tuple_size(held.ptr())));
    for (Py_ssize_t i = 0; i < py::tuple_size(held.ptr()); ++i) children.push_back(py::tuple_item(held.ptr(), i));
    nb::object graphdef = nb::borrow<nb::object>(args[0]);
    const GraphDef &def = graphdef_of(graphdef);
    auto [root, refs] = unflatten(def, children);
    if (finds_children(def, children)) return root;
    for (uint32_t ref = 0; ref < def.n_refs(); ++ref) {
      if (!PyType_IsSubtype(Py_TYPE(refs[ref].ptr()), object_node_type)) continue;
      replace(as_node(refs[ref].ptr())->places, pair(graphdef, nb::int_(ref)).ptr());
    }
    return root;
  });
}

// The path of each child: the first where it is shared, of those without callables if there are such.
PyObject *child_paths(PyObject *, PyObject *structure) {
  return guarded([&] {
    const GraphDef &def = graphdef_of(structure);
    std::vector<nb::object> paths(def.n_leaves());
    std::vector<bool> plain(def.n_leaves(), false);
    Traversal walk(def);
    while (walk.next()) {
      const Item &item = walk.item();
      if (item.op != Op::Leaf || plain[item.n]) continue;
      plain[item.n] = !walk.in_callable();
      if (plain[item.n] || !paths[item.n].is_valid()) paths[item.n] = walk.path_tuple();
    }
    return py::to_list(paths);
  });
}

PyMethodDef functions[] = {
    {"_flatten_node", flatten_node, METH_O, "(children, structure) of a node."},
    {"_unflatten_node", reinterpret_cast<PyCFunction>(reinterpret_cast<void *>(unflatten_node)), METH_FASTCALL,
     "A node from structure and children."},
    {"_child_paths", child_paths, METH_O, "The path of each child of a structure."},
};

}  // namespace

void bind_node_pytrees(nb::module_ &m) {
  for (PyMethodDef &function : functions) py::add_function(m, function);
}

}  // namespace treadle
