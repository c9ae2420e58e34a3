#include "graph/update.h"

#include <map>

#include "graph/rebuild.h"
#include "objects/cells.h"
#include "objects/transaction.h"
#include "settings.h"

namespace treadle {
namespace {

struct Place {
  uint32_t ref = kNone;
  uint32_t child = 0;
};

// The attribute whose expression holds each bare leaf; Variables' leaves and leaves outside any node have none.
std::vector<Place> bare_leaf_places(const GraphDef &def) {
  std::vector<Place> places(def.n_leaves());
  for (uint32_t r = 0; r < def.n_refs(); ++r) {
    const RefDef &ref = def.refs[r];
    for (uint32_t c = 0; c < ref.n_children; ++c) {
      uint32_t at = def.child_items[ref.children + c];
      for (uint32_t end = def.skip(at); at < end; ++at) {
        if (def.items[at].op == Op::Leaf) places[def.items[at].n] = {r, c};
      }
    }
  }
  return places;
}

int traverse(PyObject *self, visitproc visit, void *arg) {
  Py_VISIT(Py_TYPE(self));
  if (!nb::inst_ready(self)) return 0;
  Flat *flat = nb::inst_ptr<Flat>(self);
  Py_VISIT(flat->graphdef.ptr());
  for (const nb::object &leaf : flat->leaves) Py_VISIT(leaf.ptr());
  for (const nb::object &ref : flat->refs) Py_VISIT(ref.ptr());
  return 0;
}

int clear(PyObject *self) {
  if (!nb::inst_ready(self)) return 0;
  Flat *flat = nb::inst_ptr<Flat>(self);
  std::vector<nb::object> leaves, refs;
  leaves.swap(flat->leaves);
  refs.swap(flat->refs);
  flat->ids.clear();
  return 0;
}

PyType_Slot flat_slots[] = {
    {Py_tp_traverse, reinterpret_cast<void *>(traverse)}, {Py_tp_clear, reinterpret_cast<void *>(clear)}, {0, nullptr}};

nb::object unflatten_object(nb::handle graphdef, nb::handle leaves) {
  nb::object held = py::checked(PySequence_Tuple(leaves.ptr()));
  LeafSource source;
  for (Py_ssize_t i = 0; i < py::tuple_size(held.ptr()); ++i) source.push_back(py::tuple_item(held.ptr(), i));
  auto [root, refs] = unflatten(graphdef_of(graphdef), source);
  return nb::make_tuple(root, py::to_list(refs));
}

}  // namespace

void set_leaves(const Flat &flat, nb::handle indices, nb::handle values) {
  const GraphDef &def = graphdef_of(flat.graphdef);
  nb::object trace = current_trace();
  nb::object held_values = py::checked(PySequence_Tuple(values.ptr()));
  LeafSource leaves;
  for (const nb::object &leaf : flat.leaves) leaves.push_back(leaf.ptr());
  std::vector<uint32_t> wanted;
  for (nb::handle index : indices) {
    wanted.push_back(nb::cast<uint32_t>(index));
    if (wanted.back() >= def.n_leaves()) throw nb::index_error("no such leaf");
  }
  if (py::tuple_size(held_values.ptr()) != static_cast<Py_ssize_t>(wanted.size())) {
    throw nb::value_error("set_leaves: one value per index is needed");
  }
  std::vector<Place> places;
  std::map<std::pair<uint32_t, uint32_t>, nb::object> attributes;
  for (size_t i = 0; i < wanted.size(); ++i) {
    leaves[wanted[i]] = py::tuple_item(held_values.ptr(), static_cast<Py_ssize_t>(i));
    uint32_t owner = def.leaf_owner[wanted[i]];
    if (owner == kNone) {
      if (places.empty()) places = bare_leaf_places(def);
      Place place = places[wanted[i]];
      if (place.ref == kNone) {
        raise_graph_error(leaf_paths(def)[wanted[i]], "is an array outside any node and cannot be updated in place");
      }
      attributes[{place.ref, place.child}] = nb::object();
      owner = place.ref;
    }
    check_owner(flat.refs.at(owner), trace);
  }
  for (auto &[place, value] : attributes) {
    value = build_expression(def, def.child_items[def.refs[place.first].children + place.second], leaves, flat.refs);
  }
  Transaction transaction;
  for (auto &[place, value] : attributes) {
    const nb::object &node = flat.refs[place.first];
    PyObject *key = py::tuple_item(def.constant(def.refs[place.first].keys), static_cast<Py_ssize_t>(place.second));
    const NodeType *info = node_type(def.ref_type(place.first));
    if (info->kind == Kind::Object) {
      transaction.set_item(py::instance_dict(node.ptr()), key, value.ptr());
    } else {
      nb::object old = build_expression(
          def, def.child_items[def.refs[place.first].children + place.second],
          [&] {
            LeafSource before;
            for (const nb::object &leaf : flat.leaves) before.push_back(leaf.ptr());
            return before;
          }(),
          flat.refs);
      transaction.set_custom(info, node, key, old.ptr(), value.ptr());
    }
  }
  for (uint32_t index : wanted) {
    uint32_t owner = def.leaf_owner[index];
    if (owner != kNone) transaction.set_value(flat.refs[owner].ptr(), leaves[index]);
  }
  transaction.commit();
}

nb::object nest(nb::handle paths, nb::handle values) {
  nb::dict root;
  nb::object held_values = py::checked(PySequence_Tuple(values.ptr()));
  Py_ssize_t i = 0;
  for (nb::handle path : paths) {
    if (!nb::isinstance<nb::tuple>(path) || nb::len(path) == 0)
      throw nb::value_error("a nested entry needs a non-empty path");
    if (i >= py::tuple_size(held_values.ptr())) throw nb::value_error("nest: one value per path is needed");
    nb::object level = root;
    Py_ssize_t last = py::tuple_size(path.ptr()) - 1;
    for (Py_ssize_t k = 0; k < last; ++k) {
      PyObject *key = py::tuple_item(path.ptr(), k);
      PyObject *found = PyDict_GetItemWithError(level.ptr(), key);
      if (found == nullptr) {
        if (PyErr_Occurred()) throw nb::python_error();
        nb::object fresh = py::checked(PyDict_New());
        py::check_status(PyDict_SetItem(level.ptr(), key, fresh.ptr()));
        level = fresh;
      } else if (PyDict_Check(found)) {
        level = nb::borrow<nb::object>(found);
      } else {
        raise_graph_error(nb::borrow<nb::object>(path), "lies below another entry of the same State");
      }
    }
    py::check_status(
        PyDict_SetItem(level.ptr(), py::tuple_item(path.ptr(), last), py::tuple_item(held_values.ptr(), i++)));
  }
  return root;
}

void bind_update(nb::module_ &m) {
  nb::class_<Flat> cls(m, "Flat", nb::type_slots(flat_slots), nb::is_final());
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
  m.def("flatten_call", &flatten_call, nb::arg("args"), nb::arg("kwargs"), nb::arg("static_argnums"),
        nb::arg("static_argnames"));
  m.def("unflatten", &unflatten_object, nb::arg("graphdef"), nb::arg("leaves"));
  m.def("set_leaves", &set_leaves, nb::arg("flat"), nb::arg("indices"), nb::arg("values"));
  m.def("nest", &nest, nb::arg("paths"), nb::arg("values"));
}

}  // namespace treadle
