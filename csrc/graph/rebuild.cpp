#include "graph/rebuild.h"

#include "bindings.h"
#include "objects/callables.h"
#include "objects/cells.h"
#include "settings.h"

namespace treadle {
namespace {

// A container under construction. Invariant: `target` has room for exactly `count` children.
struct Pending {
  const Item *item;
  nb::object target;  // list, tuple or dict; a list of children for pytrees
  uint32_t filled, count;
};

// Has the keys in their order, with nothing under them yet: putting values there leaves the order as it is.
void reserve_keys(const GraphDef &def, uint32_t keys, const nb::object &dict) {
  PyObject *order = def.order(keys);
  if (order == def.constant(keys)) return;
  for (Py_ssize_t i = 0; i < py::tuple_size(order); ++i) {
    py::check_status(PyDict_SetItem(dict.ptr(), py::tuple_item(order, i), Py_None));
  }
}

// A node's children as they were put there. Empty where looking for it would take longer than reserving their keys.
std::vector<uint32_t> filling_order(const GraphDef &def, uint32_t ref) {
  constexpr Py_ssize_t kMaxLookedFor = 32;
  PyObject *order = def.order(def.refs[ref].keys), *keys = def.constant(def.refs[ref].keys);
  const Py_ssize_t n = py::tuple_size(keys);
  if (order == keys || n > kMaxLookedFor) return {};
  std::vector<uint32_t> children;
  for (Py_ssize_t i = 0; i < n; ++i) {
    Py_ssize_t c = 0;
    while (c < n && py::tuple_item(keys, c) != py::tuple_item(order, i)) ++c;
    if (c == n) return {};
    children.push_back(static_cast<uint32_t>(c));
  }
  return children;
}

nb::object start_container(const GraphDef &def, const Item &item) {
  switch (item.op) {
    case Op::Dict:
    case Op::Mapping: {
      nb::object dict = py::checked(PyDict_New());
      reserve_keys(def, item.keys(), dict);
      return dict;
    }
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
    case Op::Mapping: {
      PyObject *key = py::tuple_item(def.child_keys(*pending.item), index);
      py::check_status(PyDict_SetItem(pending.target.ptr(), key, child.ptr()));
      break;
    }
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
      nb::object make = py::type_object(&PyTuple_Type).attr("__new__");
      return py::checked(PyObject_CallObject(make.ptr(), arguments.ptr()));
    }
    case Op::Mapping: {
      PyTypeObject *type = py::as_type(def.constant(pending.item->constant));
      return node_type(type)->mapping_layout()->made(type, pending.target);
    }
    case Op::Method:
    case Op::Partial:
    case Op::Lifted:
      return make_callable(callable_of(pending.item->op), nb::borrow<nb::object>(def.constant(pending.item->constant)),
                           py::to_objects(pending.target));
    case Op::Pytree:
      return nb::borrow<nb::object>(def.constant(pending.item->constant)).attr("unflatten")(pending.target);
    default:
      return std::move(pending.target);
  }
}

PyObject *leaf_value(const LeafSource &leaves, uint32_t leaf) {
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
        value = nb::borrow<nb::object>(leaf_value(leaves, item.n));
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
        stack.push_back({&item, start_container(def, item), 0, item.n});
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

nb::object new_reference(const GraphDef &def, uint32_t ref, PyObject *value, Owner &owner) {
  const RefDef &row = def.refs[ref];
  PyTypeObject *type = def.ref_type(ref);
  const NodeType *info = node_type(type);
  switch (row.kind) {
    case Kind::Variable:
      return new_variable(type, value, def.constant(row.extra), owner);
    case Kind::Object:
      return info->layout ? bare_instance(type) : new_node(type, owner.trace());
    default:
      return info->create(nb::borrow<nb::object>(def.constant(row.extra)));
  }
}

void fill_node(const GraphDef &def, uint32_t ref, const nb::object &node, const LeafSource &leaves,
               const std::vector<nb::object> &refs) {
  const RefDef &row = def.refs[ref];
  if (row.kind == Kind::Variable) return;
  const NodeType *info = node_type(def.ref_type(ref));
  nb::object attributes = py::checked(PyDict_New());
  const NodeLayout *layout = info->node_layout();
  if (layout != nullptr) {
    // Plain Python objects may keep attributes inside the object, where replacing the dict would miss them.
    attributes = py::instance_dict(node.ptr());
    py::check_status(PyDict_SetItem(attributes.ptr(), layout->state_name.ptr(), layout->memory.make().ptr()));
    if (row.extra != kNone) {
      nb::object marks = layout->marks_from(def.constant(row.extra));
      py::check_status(PyDict_SetItem(attributes.ptr(), layout->marks_name.ptr(), marks.ptr()));
    }
  }
  const std::vector<uint32_t> order = filling_order(def, ref);
  if (order.empty()) reserve_keys(def, row.keys, attributes);
  for (uint32_t i = 0; i < row.n_children; ++i) {
    const uint32_t c = order.empty() ? i : order[i];
    nb::object child = build_expression(def, def.child_item(ref, c), leaves, refs);
    py::check_status(PyDict_SetItem(attributes.ptr(), def.child_key(ref, c), child.ptr()));
  }
  if (row.kind == Kind::Custom) {
    for (auto [key, child] : py::DictItems(attributes.ptr())) {
      info->set_key(node, nb::borrow<nb::object>(key), nb::borrow<nb::object>(child));
    }
  } else if (layout == nullptr) {
    py::check_status(PyObject_GenericSetDict(node.ptr(), attributes.ptr(), nullptr));
  }
}

std::pair<nb::object, std::vector<nb::object>> unflatten(const GraphDef &def, const LeafSource &leaves) {
  if (def.items.size() <= def.root_begin) throw nb::value_error("this GraphDef is empty");
  if (leaves.size() != def.n_leaves()) {
    throw nb::value_error(("this GraphDef has " + std::to_string(def.n_leaves()) + " leaves, but " +
                           std::to_string(leaves.size()) + " values were given")
                              .c_str());
  }
  Owner owner(current_trace());
  std::vector<nb::object> refs(def.n_refs());
  for (uint32_t r = 0; r < def.n_refs(); ++r) {
    PyObject *value = def.refs[r].kind == Kind::Variable ? leaf_value(leaves, def.refs[r].leaf) : nullptr;
    refs[r] = new_reference(def, r, value, owner);
  }
  for (uint32_t r = 0; r < def.n_refs(); ++r) fill_node(def, r, refs[r], leaves, refs);
  nb::object root = build_expression(def, def.root_begin, leaves, refs);
  return {std::move(root), std::move(refs)};
}

LeafSource borrowed(const std::vector<nb::object> &objects) {
  LeafSource source;
  source.reserve(objects.size());
  for (const nb::object &object : objects) source.push_back(object.ptr());
  return source;
}

void bind_rebuild(nb::module_ &m) {
  m.def(
      "unflatten",
      [](nb::handle graphdef, nb::handle leaves) {
        std::vector<nb::object> held = py::to_objects(leaves);
        auto [root, refs] = unflatten(graphdef_of(graphdef), borrowed(held));
        return nb::make_tuple(root, py::to_list(refs));
      },
      nb::arg("graphdef"), nb::arg("leaves"));
}

}  // namespace treadle
