#include "graph/update.h"

#include <map>

#include "bindings.h"
#include "graph/rebuild.h"
#include "objects/owners.h"
#include "objects/transaction.h"
#include "settings.h"
#include "structure/paths.h"

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
      uint32_t at = def.child_item(r, c);
      for (uint32_t end = def.skip(at); at < end; ++at) {
        if (def.items[at].op == Op::Leaf) places[def.items[at].n] = {r, c};
      }
    }
  }
  return places;
}

}  // namespace

void set_leaves(const Flat &flat, nb::handle indices, nb::handle values) {
  const GraphDef &def = graphdef_of(flat.graphdef);
  nb::object trace = current_trace();
  nb::object held_values = py::checked(PySequence_Tuple(values.ptr()));
  const LeafSource before = borrowed(flat.leaves);
  LeafSource leaves = before;
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
    value = build_expression(def, def.child_item(place.first, place.second), leaves, flat.refs);
  }
  Transaction transaction;
  for (auto &[place, value] : attributes) {
    const nb::object &node = flat.refs[place.first];
    PyObject *key = def.child_key(place.first, place.second);
    const NodeType *info = node_type(def.ref_type(place.first));
    if (info->kind == Kind::Object) {
      transaction.set_item(py::instance_dict(node.ptr()), key, value.ptr());
    } else {
      nb::object old = build_expression(def, def.child_item(place.first, place.second), before, flat.refs);
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
      nb::object found = py::dict_get(level.ptr(), key);
      if (!found.is_valid()) {
        found = nb::dict();
        py::check_status(PyDict_SetItem(level.ptr(), key, found.ptr()));
      } else if (!PyDict_Check(found.ptr())) {
        raise_graph_error(nb::borrow<nb::object>(path), "lies below another entry of the same State");
      }
      level = found;
    }
    py::check_status(
        PyDict_SetItem(level.ptr(), py::tuple_item(path.ptr(), last), py::tuple_item(held_values.ptr(), i++)));
  }
  return root;
}

void bind_update(nb::module_ &m) {
  m.def("set_leaves", &set_leaves, nb::arg("flat"), nb::arg("indices"), nb::arg("values"));
  m.def("nest", &nest, nb::arg("paths"), nb::arg("values"));
}

}  // namespace treadle
