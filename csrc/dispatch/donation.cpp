#include "dispatch/donation.h"

#include <unordered_map>
#include <unordered_set>

#include "bindings.h"
#include "settings.h"

namespace treadle {
namespace {

bool is_array(PyObject *value) { return py::has_type(value, settings().concrete_array.ptr()); }

bool is_tracer(PyObject *value) { return PyType_IsSubtype(Py_TYPE(value), py::as_type(settings().tracer.ptr())) != 0; }

void add_entries(PyObject *container, std::vector<PyObject *> &entries) {
  if (PyTuple_Check(container)) {
    for (Py_ssize_t i = 0; i < PyTuple_Size(container); ++i) entries.push_back(PyTuple_GetItem(container, i));
  } else if (py::is_exact(container, &PyList_Type)) {
    for (Py_ssize_t i = 0; i < py::list_size(container); ++i) entries.push_back(py::list_item(container, i));
  } else if (py::is_exact(container, &PyDict_Type)) {
    for (auto [key, entry] : py::DictItems(container)) entries.push_back(entry);
  }
}

// Whether something below a Variable's container has another holder than the container. Runs no Python.
bool has_shared_part(PyObject *container) {
  std::vector<PyObject *> waiting;
  std::unordered_set<PyObject *> met{container};
  add_entries(container, waiting);
  while (!waiting.empty()) {
    PyObject *part = waiting.back();
    waiting.pop_back();
    const size_t before = waiting.size();
    add_entries(part, waiting);
    const bool counts = is_array(part) || waiting.size() != before;
    if (counts && (Py_REFCNT(part) > 1 || !met.insert(part).second)) return true;
  }
  return false;
}

bool has_no_other_holder(PyObject *leaf, Py_ssize_t holders) {
  return Py_REFCNT(leaf) <= 1 + holders && (is_array(leaf) || !has_shared_part(leaf));
}

// Where a call has an array.
struct Uses {
  Py_ssize_t in_nodes = 0;
  bool outside = false;
};

bool has_other_owner(PyObject *leaf, const Uses &uses, Py_ssize_t holders) {
  if (is_tracer(leaf)) return false;
  return uses.outside || Py_REFCNT(leaf) > (1 + holders) * uses.in_nodes || (!is_array(leaf) && has_shared_part(leaf));
}

}  // namespace

std::vector<uint32_t> leaf_ids(const nb::object &iterable) {
  std::vector<uint32_t> ids;
  for (nb::handle leaf : iterable) ids.push_back(nb::cast<uint32_t>(leaf));
  return ids;
}

Donation::Donation(std::vector<uint32_t> donated, const GraphDef &def) : leaves(std::move(donated)) {
  in_node.assign(def.n_leaves(), true);
  for (size_t at = def.root_begin; at < def.items.size(); ++at) {
    if (def.items[at].op == Op::Leaf) in_node[def.items[at].n] = false;
  }
}

Separation separate(const Donation &donation, const std::vector<PyObject *> &leaves, Py_ssize_t holders) {
  Separation found;
  // What a node alone holds is met once in a call, so mostly there is nothing to look up.
  bool all_alone = true;
  for (uint32_t leaf : donation.leaves) {
    all_alone = all_alone && donation.in_node[leaf] && has_no_other_holder(leaves[leaf], holders);
  }
  if (all_alone) return found;
  std::unordered_map<PyObject *, Uses> uses;
  std::vector<bool> donated(leaves.size(), false);
  for (uint32_t leaf : donation.leaves) donated[leaf] = true;
  std::unordered_set<PyObject *> used;
  for (size_t leaf = 0; leaf < leaves.size(); ++leaf) {
    Uses &of_array = uses[leaves[leaf]];
    donation.in_node[leaf] ? void(++of_array.in_nodes) : void(of_array.outside = true);
    if (!donated[leaf]) used.insert(leaves[leaf]);
  }
  for (uint32_t leaf : donation.leaves) {
    PyObject *array = leaves[leaf];
    if (donation.in_node[leaf] && has_other_owner(array, uses[array], holders)) {
      found.shared.push_back(leaf);
    } else if (used.insert(array).second) {
      continue;
    }
    found.copied.push_back(leaf);
  }
  return found;
}

void bind_donation(nb::module_ &m) {
  m.def("separate", [](const Flat &flat, const nb::object &ids) {
    std::vector<PyObject *> leaves;
    for (const nb::object &leaf : flat.leaves) leaves.push_back(leaf.ptr());
    // Held by the walk, and by the list that Python has of its leaves.
    const Separation found = separate(Donation(leaf_ids(ids), graphdef_of(flat.graphdef)), leaves, 2);
    nb::list shared, copied;
    for (uint32_t leaf : found.shared) shared.append(leaf);
    for (uint32_t leaf : found.copied) copied.append(leaf);
    return nb::make_tuple(shared, copied);
  });
}

}  // namespace treadle
