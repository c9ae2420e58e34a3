#include "dispatch/placement.h"

#include <algorithm>

#include "objects/cells.h"
#include "objects/owners.h"
#include "objects/transaction.h"
#include "settings.h"

namespace treadle {
namespace {

// Equal shardings are different objects where different programs made them.
constexpr size_t kMaxKnown = 8;

bool is_array(PyObject *value) { return py::has_type(value, settings().concrete_array.ptr()); }

bool is_tracer(PyObject *value) { return PyType_IsSubtype(Py_TYPE(value), py::as_type(settings().tracer.ptr())) != 0; }

nb::object sharding_of(PyObject *array) { return py::checked(PyObject_GetAttr(array, py::intern("sharding").ptr())); }

nb::object value_of(const nb::object &variable) {
  const VariableLayout *layout = node_type(Py_TYPE(variable.ptr()))->variable_layout();
  return layout != nullptr ? layout->value.get(variable.ptr()) : nb::borrow<nb::object>(as_cell(variable.ptr())->value);
}

}  // namespace

bool Placement::is_due(const CallFrame &frame) const {
  for (size_t i = 0; i < leaves_.size(); ++i) {
    PyObject *value = frame.leaves[leaves_[i]];
    if (known_[i].empty() || is_tracer(value)) return true;
    if (!is_array(value)) continue;
    const nb::object sharding = sharding_of(value);
    if (std::none_of(known_[i].begin(), known_[i].end(), [&](const nb::object &one) { return one.is(sharding); })) {
      return true;
    }
  }
  return false;
}

void Placement::learn(size_t i, PyObject *value) {
  nb::object sharding = is_array(value) ? sharding_of(value) : nb::none();
  std::vector<nb::object> &known = known_[i];
  if (std::any_of(known.begin(), known.end(), [&](const nb::object &one) { return one.is(sharding); })) return;
  if (known.size() >= kMaxKnown) known.erase(known.begin());
  known.push_back(std::move(sharding));
}

void Placement::enter(CallFrame &frame) {
  if (!is_due(frame)) return;
  const std::vector<nb::object> placed = py::to_objects(place_(py::to_list(frame.owned_leaves)));
  if (placed.size() != frame.leaves.size()) throw nb::value_error("a leaf went missing while leaves were placed");
  for (size_t i = 0; i < leaves_.size(); ++i) {
    const uint32_t leaf = leaves_[i];
    learn(i, placed[leaf].ptr());
    if (placed[leaf].ptr() != frame.leaves[leaf]) frame.moved.push_back({leaf, placed[leaf]});
  }
}

void Placement::leave_out_changed(const Effects &effects) {
  // Those leave the program as they should be.
  const GraphDef &before = effects.before_def();
  std::vector<bool> changed(before.n_refs(), false);
  for (uint32_t ref : effects.changed_values) changed[ref] = true;
  std::vector<uint32_t> leaves;
  std::vector<std::vector<nb::object>> known;
  for (size_t i = 0; i < leaves_.size(); ++i) {
    if (changed[before.leaf_owner[leaves_[i]]]) continue;
    leaves.push_back(leaves_[i]);
    known.push_back(std::move(known_[i]));
  }
  leaves_.swap(leaves);
  known_.swap(known);
  knows_changed_ = true;
}

void Placement::leave(const Effects &effects, CallFrame &frame) {
  if (!knows_changed_) leave_out_changed(effects);
  if (frame.moved.empty()) return;
  const nb::object trace = current_trace();
  Transaction transaction;
  for (const CallFrame::Moved &moved : frame.moved) {
    const nb::object &variable = frame.refs[effects.before_def().leaf_owner[moved.leaf]];
    const nb::object owner = owner_of(variable.ptr(), *node_type(Py_TYPE(variable.ptr())));
    // Another trace's can be read here, and stays as it is.
    if (owner.is_valid() && !owner.is(trace)) continue;
    if (value_of(variable).ptr() == frame.leaves[moved.leaf]) transaction.set_value(variable.ptr(), moved.placed.ptr());
  }
  transaction.commit();
}

int Placement::traverse(visitproc visit, void *arg) const {
  Py_VISIT(place_.ptr());
  return 0;
}

}  // namespace treadle
