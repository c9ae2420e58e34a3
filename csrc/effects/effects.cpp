#include "effects/effects.h"

#include <utility>

#include "bindings.h"
#include "settings.h"
#include "structure/paths.h"

namespace treadle {
namespace {

std::vector<bool> keep_mask(nb::handle keep, size_t n) {
  if (nb::isinstance<nb::bool_>(keep)) return std::vector<bool>(n, nb::cast<bool>(keep));
  std::vector<bool> mask;
  for (nb::handle entry : keep) mask.push_back(nb::cast<bool>(entry));
  if (mask.size() != n) throw nb::value_error("trace_effects: one keep flag per leaf is needed");
  return mask;
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

}  // namespace

int Effects::traverse(visitproc visit, void *arg) const {
  Py_VISIT(before.ptr());
  Py_VISIT(after.ptr());
  return 0;
}

bool Effects::equals(const Effects &other) const {
  return origins == other.origins && input_of == other.input_of && out_leaf == other.out_leaf &&
         changed_values == other.changed_values && changed_metadata == other.changed_metadata && sets == other.sets &&
         removals == other.removals && reordered == other.reordered && before_def().equals(other.before_def()) &&
         after_def().equals(other.after_def());
}

void Effects::find_layouts() {
  bool any = false;
  for (uint32_t r : changed_values) {
    layouts.push_back(node_type(before_def().ref_type(r))->layout);
    any = any || layouts.back() != nullptr;
  }
  if (!any) layouts.clear();
}

void bind_effects(nb::module_ &m) {
  auto cls = Bound<Effects>::bind(m, "Effects");
  cls.def_prop_ro("num_out", &Effects::n_out);
  cls.def_prop_ro("before", [](const Effects &effects) { return effects.before; });
  cls.def_prop_ro("changes_structure", [](const Effects &effects) { return !effects.values_only(); });
  cls.def("same_as", &Effects::equals, nb::arg("other"));
  cls.def("outputs", &output_rows);
  cls.def("output_types", &output_types);
  cls.def("output_metadata", &output_metadata);

  m.def(
      "trace_effects",
      [](nb::handle refs, nb::object graphdef, nb::handle in_leaves, nb::handle result, nb::handle keep) {
        std::vector<nb::object> inputs = py::to_objects(in_leaves), outputs;
        const GraphDef &def = graphdef_of(graphdef);
        if (inputs.size() != def.n_leaves()) throw nb::value_error("trace_effects: one value per leaf is needed");
        std::vector<nb::object> objects = py::to_objects(refs);
        if (objects.size() != def.n_refs()) throw nb::value_error("trace_effects: one object per reference is needed");
        nb::object effects = trace_effects(std::move(objects), graphdef, borrowed(inputs), result,
                                           keep_mask(keep, inputs.size()), outputs);
        return nb::make_tuple(effects, py::to_list(outputs));
      },
      nb::arg("inner_refs"), nb::arg("graphdef"), nb::arg("in_leaves"), nb::arg("result").none(), nb::arg("keep"));
  m.def(
      "apply_effects",
      [](nb::handle effects, nb::handle refs, nb::handle in_leaves, nb::handle out_leaves) {
        std::vector<nb::object> objects = py::to_objects(refs), inputs = py::to_objects(in_leaves),
                                outputs = py::to_objects(out_leaves);
        const GraphDef &before = effects_of(effects).before_def();
        require_references(before, objects);
        if (inputs.size() != before.n_leaves()) throw nb::value_error("apply_effects: one value per leaf is needed");
        return apply_effects(effects_of(effects), objects, borrowed(inputs), borrowed(outputs));
      },
      nb::arg("effects"), nb::arg("refs"), nb::arg("in_leaves"), nb::arg("out_leaves"));
}

}  // namespace treadle
