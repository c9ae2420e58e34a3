#include "graph/rebuild.h"

#include "graph/cells.h"
#include "settings.h"

namespace weft {
namespace {

// A container under construction. Invariant: `target` has room for exactly `count` children.
struct Pending {
  const Item *item;
  nb::object target;  // list, tuple or dict; a list of children for pytrees
  uint32_t filled, count;
};

nb::object start_container(const Item &item) {
  switch (item.op) {
    case Op::Dict:
      return py::checked(PyDict_New());
    case Op::Tuple:
      return py::checked(PyTuple_New(static_cast<Py_ssize_t>(item.n)));
    default:
      return py::checked(PyList_New(static_cast<Py_ssize_t>(item.n)));
  }
}

void add_child(const GraphDef &def, Pending &pending, nb::object child) {
  auto index = static_cast<Py_ssize_t>(pending.filled++);
  switch (pending.item->op) {
    case Op::Dict:
      py::check_status(PyDict_SetItem(pending.target.ptr(), py::tuple_item(def.constant(pending.item->constant), index),
                                      child.ptr()));
      break;
    case Op::Tuple:
      py::tuple_init(pending.target.ptr(), index, child.release().ptr());
      break;
    default:
      py::list_init(pending.target.ptr(), index, child.release().ptr());
  }
}

nb::object finish_container(const GraphDef &def, Pending &pending) {
  switch (pending.item->op) {
    case Op::NamedTuple: {
      // Bypasses a `__new__` of the user's, which may take other arguments than the fields.
      nb::object arguments =
          nb::make_tuple(nb::borrow<nb::object>(def.constant(pending.item->constant)), pending.target);
      nb::object make = nb::borrow<nb::object>(reinterpret_cast<PyObject *>(&PyTuple_Type)).attr("__new__");
      return py::checked(PyObject_CallObject(make.ptr(), arguments.ptr()));
    }
    case Op::Pytree:
      return nb::borrow<nb::object>(def.constant(pending.item->constant)).attr("unflatten")(pending.target);
    default:
      return std::move(pending.target);
  }
}

PyObject *leaf_value(const GraphDef &, const LeafSource &leaves, uint32_t leaf) {
  PyObject *value = leaf < leaves.size() ? leaves[leaf] : nullptr;
  if (value == nullptr) throw nb::value_error("a leaf has no value");
  return value;
}

}  // namespace

nb::object build_expression(const GraphDef &def, uint32_t begin, const LeafSource &leaves,
                            const std::vector<nb::object> &refs) {
  std::vector<Pending> stack;
  for (uint32_t at = begin;; ++at) {
    const Item &item = def.items.at(at);
    nb::object value;
    switch (item.op) {
      case Op::Leaf:
        value = nb::borrow<nb::object>(leaf_value(def, leaves, item.n));
        break;
      case Op::Ref:
        value = refs.at(item.n);
        break;
      case Op::Static:
        value = nb::borrow<nb::object>(def.constant(item.constant));
        break;
      case Op::None:
        value = nb::none();
        break;
      default:
        stack.push_back({&item, start_container(item), 0, item.n});
        if (item.n > 0) continue;
        value = finish_container(def, stack.back());
        stack.pop_back();
    }
    while (!stack.empty()) {
      add_child(def, stack.back(), std::move(value));
      if (stack.back().filled < stack.back().count) break;
      Pending done = std::move(stack.back());
      stack.pop_back();
      value = finish_container(def, done);
    }
    if (stack.empty()) return value;
  }
}

nb::object new_reference(const GraphDef &def, uint32_t ref, PyObject *value, PyObject *trace) {
  const RefDef &row = def.refs[ref];
  switch (row.kind) {
    case Kind::Variable:
      return new_variable(def.ref_type(ref), value, def.constant(row.extra), trace);
    case Kind::Object:
      return new_node(def.ref_type(ref), trace);
    default:
      return node_type(def.ref_type(ref))->create(nb::borrow<nb::object>(def.constant(row.extra)));
  }
}

void fill_node(const GraphDef &def, uint32_t ref, const nb::object &node, const LeafSource &leaves,
               const std::vector<nb::object> &refs) {
  const RefDef &row = def.refs[ref];
  if (row.kind == Kind::Variable) return;
  PyObject *keys = def.constant(row.keys);
  nb::object attributes = row.kind == Kind::Object ? py::checked(PyDict_New()) : nb::object();
  for (uint32_t c = 0; c < row.n_children; ++c) {
    nb::object child = build_expression(def, def.child_items[row.children + c], leaves, refs);
    PyObject *key = py::tuple_item(keys, static_cast<Py_ssize_t>(c));
    if (row.kind == Kind::Object) {
      py::check_status(PyDict_SetItem(attributes.ptr(), key, child.ptr()));
    } else {
      node_type(def.ref_type(ref))->set_key(node, nb::borrow<nb::object>(key), child);
    }
  }
  if (row.kind == Kind::Object) py::check_status(PyObject_GenericSetDict(node.ptr(), attributes.ptr(), nullptr));
}

std::pair<nb::object, std::vector<nb::object>> unflatten(const GraphDef &def, const LeafSource &leaves) {
  if (def.items.size() <= def.root_begin) throw nb::value_error("this GraphDef is empty");
  if (leaves.size() != def.n_leaves()) {
    throw nb::value_error(("this GraphDef has " + std::to_string(def.n_leaves()) + " leaves, but " +
                           std::to_string(leaves.size()) + " values were given")
                              .c_str());
  }
  nb::object trace = current_trace();
  std::vector<nb::object> refs(def.n_refs());
  for (uint32_t r = 0; r < def.n_refs(); ++r) {
    PyObject *value = def.refs[r].kind == Kind::Variable ? leaf_value(def, leaves, def.refs[r].leaf) : nullptr;
    refs[r] = new_reference(def, r, value, trace.ptr());
  }
  for (uint32_t r = 0; r < def.n_refs(); ++r) fill_node(def, r, refs[r], leaves, refs);
  nb::object root = build_expression(def, def.root_begin, leaves, refs);
  return {std::move(root), std::move(refs)};
}

}  // namespace weft
