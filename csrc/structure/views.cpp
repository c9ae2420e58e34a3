#include "structure/graphdef.h"

#include <nanobind/stl/string.h>

#include "bindings.h"
#include "id_table.h"
#include "statics/held.h"
#include "structure/paths.h"

namespace treadle {
namespace {

nb::tuple leaf_refs(const GraphDef &def) {
  std::vector<nb::object> result;
  for (uint32_t owner : def.leaf_owner) result.push_back(nb::int_(owner == kNone ? -1 : static_cast<int64_t>(owner)));
  return py::to_tuple(std::move(result));
}

nb::tuple leaf_types(const GraphDef &def) {
  std::vector<nb::object> result;
  for (uint32_t leaf = 0; leaf < def.n_leaves(); ++leaf) result.push_back(type_or_none(def, leaf));
  return py::to_tuple(std::move(result));
}

nb::tuple leaf_metadata(const GraphDef &def) {
  std::vector<nb::object> result;
  for (uint32_t leaf = 0; leaf < def.n_leaves(); ++leaf) result.push_back(metadata_or_none(def, leaf));
  return py::to_tuple(std::move(result));
}

nb::object path_index(const GraphDef &def) {
  if (!def.cache.path_index.is_valid()) {
    nb::dict index;
    nb::tuple paths = leaf_paths(def);
    for (size_t i = 0; i < paths.size(); ++i) index[paths[i]] = nb::int_(i);
    def.cache.path_index = index;
  }
  return def.cache.path_index;
}

nb::tuple reachable(const GraphDef &def, uint32_t start) {
  if (start >= def.n_refs()) throw nb::index_error("no such reference");
  std::vector<bool> seen(def.n_refs(), false), leaf_seen(def.n_leaves(), false);
  std::vector<uint32_t> pending{start};
  seen[start] = true;
  while (!pending.empty()) {
    const RefDef &ref = def.refs[pending.back()];
    pending.pop_back();
    if (ref.kind == Kind::Variable) leaf_seen[ref.leaf] = true;
    for (uint32_t c = 0; c < ref.n_children; ++c) {
      uint32_t at = def.child_items[ref.children + c];
      for (uint32_t end = def.skip(at); at < end; ++at) {
        const Item &item = def.items[at];
        if (item.op == Op::Leaf) leaf_seen[item.n] = true;
        if (item.op == Op::Ref && !seen[item.n]) {
          seen[item.n] = true;
          pending.push_back(item.n);
        }
      }
    }
  }
  std::vector<nb::object> result;
  for (uint32_t i = 0; i < def.n_leaves(); ++i) {
    if (leaf_seen[i]) result.push_back(nb::int_(i));
  }
  return py::to_tuple(std::move(result));
}

nb::tuple root_items(const GraphDef &def) {
  std::vector<nb::object> result;
  for (size_t at = def.root_begin; at < def.items.size(); ++at) {
    const Item &item = def.items[at];
    if (item.op == Op::Leaf || item.op == Op::Ref) result.push_back(nb::make_tuple(item.op == Op::Ref, item.n));
  }
  return py::to_tuple(std::move(result));
}

// Each once, in the order in which they are met.
nb::tuple callables(const GraphDef &def) {
  std::vector<nb::object> met, result;
  for (uint32_t r = 0; r < def.n_refs(); ++r) met.push_back(py::type_object(def.ref_type(r)));
  for (size_t i = 0; i < def.constants.size(); ++i) {
    nb::object constant = def.constants[i];
    if (def.constant_kinds[i] == ConstantKind::Static || def.constant_kinds[i] == ConstantKind::Metadata)
      collect_callables(constant.ptr(), met);
  }
  IdTable seen;
  for (nb::object &callable : met) {
    if (seen.insert(callable.ptr(), 0).second) result.push_back(std::move(callable));
  }
  return py::to_tuple(std::move(result));
}

}  // namespace

nb::object type_or_none(const GraphDef &def, uint32_t leaf) {
  PyObject *type = def.leaf_type(leaf);
  return type != nullptr ? nb::borrow<nb::object>(type) : nb::none();
}

nb::object metadata_or_none(const GraphDef &def, uint32_t leaf) {
  if (def.leaf_owner[leaf] == kNone) return nb::none();
  PyObject *metadata = def.leaf_metadata(leaf);
  return metadata != nullptr ? nb::borrow<nb::object>(metadata) : nb::object(nb::dict());
}

void bind_graphdef(nb::module_ &m) {
  auto cls = Bound<GraphDef>::bind(m, "GraphDef");
  cls.def_prop_ro("num_leaves", &GraphDef::n_leaves);
  cls.def_prop_ro("num_refs", &GraphDef::n_refs);
  cls.def("paths", &leaf_paths);
  cls.def("paths_length", &length_of_leaf_paths);
  cls.def("ref_paths", &ref_paths);
  cls.def(
      "ref_path",
      [](const GraphDef &def, uint32_t ref) {
        if (ref >= def.n_refs()) throw nb::index_error("no such reference");
        return path_of_reference(def, ref);
      },
      nb::arg("ref"));
  cls.def("leaf_refs", &leaf_refs);
  cls.def("leaf_types", &leaf_types);
  cls.def("leaf_metadata", &leaf_metadata);
  cls.def("path_index", &path_index);
  cls.def("partition", &partition, nb::arg("filters"), nb::arg("leaves"));
  cls.def("reachable", &reachable, nb::arg("ref"));
  cls.def("root_items", &root_items);
  cls.def("callables", &callables);
  cls.def("difference", &first_difference, nb::arg("other"));
  cls.def("__hash__", [](const GraphDef &def) { return static_cast<Py_ssize_t>(def.hash >> 1); });
  cls.def(
      "__eq__",
      [](const GraphDef &def, nb::handle other) -> nb::object {
        if (!Bound<GraphDef>::is(other)) return nb::borrow<nb::object>(Py_NotImplemented);
        return nb::bool_(def.equals(graphdef_of(other)));
      },
      nb::arg("other").none());
  cls.def("__repr__", &text_of);
  cls.def(
      "__deepcopy__", [](nb::handle self, nb::handle) { return nb::borrow<nb::object>(self); }, nb::arg("memo").none());
  cls.def("__copy__", [](nb::handle self) { return nb::borrow<nb::object>(self); });
  cls.def("__reduce__", [](const GraphDef &def) {
    return nb::make_tuple(nb::module_::import_("treadle._core").attr("_unpickle_graphdef"),
                          nb::make_tuple(pickle_state(def)));
  });
  bind_pickling(m);
}

}  // namespace treadle
