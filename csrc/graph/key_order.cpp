#include "graph/key_order.h"

#include <array>
#include <unordered_map>
#include <utility>

#include "bounded_cache.h"
#include "hash.h"
#include "objects/cells.h"

namespace treadle {
namespace {

// Insertion orders remembered at most. A program has as many as it has kinds of modules; the bound only matters for
// graphs whose attribute names are made up at run time.
constexpr size_t kMaxKeyOrders = 4096;

std::vector<nb::object> dict_keys(PyObject *dict) {
  std::vector<nb::object> keys;
  keys.reserve(static_cast<size_t>(py::dict_size(dict)));
  for (auto [key, value] : py::DictItems(dict)) keys.push_back(nb::borrow<nb::object>(key));
  return keys;
}

bool has_keys_in_order(PyObject *dict, const std::vector<nb::object> &keys) {
  if (py::dict_size(dict) != static_cast<Py_ssize_t>(keys.size())) return false;
  PyObject *key = nullptr, *value = nullptr;
  Py_ssize_t position = 0;
  for (const nb::object &known : keys) {
    if (!PyDict_Next(dict, &position, &key, &value) || key != known.ptr()) return false;
  }
  return true;
}

// Sorts like Python's `sorted`; keys that do not compare raise its TypeError.
std::shared_ptr<const KeyOrder> sort_keys(std::vector<nb::object> keys, const NodeLayout *layout) {
  // Indices and names do not compare; a layout that has both puts indices first.
  nb::object list = py::checked(PyList_New(0)), indices = py::checked(PyList_New(0));
  for (const nb::object &key : keys) {
    if (layout != nullptr && layout->hides(key.ptr())) continue;
    bool is_index = layout != nullptr && layout->int_keys && py::is_exact(key.ptr(), &PyLong_Type);
    py::check_status(PyList_Append(is_index ? indices.ptr() : list.ptr(), key.ptr()));
  }
  py::check_status(PyList_Sort(list.ptr()));
  if (py::list_size(indices.ptr()) > 0) {
    py::check_status(PyList_Sort(indices.ptr()));
    py::check_status(PyList_SetSlice(list.ptr(), 0, 0, indices.ptr()));
  }
  auto order = std::make_shared<KeyOrder>();
  order->sorted = py::checked(PyList_AsTuple(list.ptr()));
  std::unordered_map<PyObject *, uint32_t> rank;
  for (Py_ssize_t i = 0; i < py::tuple_size(order->sorted.ptr()); ++i) {
    rank[py::tuple_item(order->sorted.ptr(), i)] = static_cast<uint32_t>(i);
  }
  for (Py_ssize_t i = 0; i < py::tuple_size(order->sorted.ptr()) && layout == nullptr; ++i) {
    PyObject *key = py::tuple_item(order->sorted.ptr(), i);
    if (!PyUnicode_Check(key)) continue;
    if (PyUnicode_CompareWithASCIIString(key, kDataNames) == 0) order->data_names = static_cast<uint32_t>(i);
    if (PyUnicode_CompareWithASCIIString(key, kStaticNames) == 0) order->static_names = static_cast<uint32_t>(i);
  }
  std::vector<nb::object> children;
  bool in_order = true;
  for (const nb::object &key : keys) {
    auto place = rank.find(key.ptr());
    order->rank.push_back(place != rank.end() ? place->second : kNone);
    if (place == rank.end()) continue;
    in_order = in_order && place->second == children.size();
    children.push_back(key);
  }
  order->children = in_order ? order->sorted : nb::object(py::to_tuple(std::move(children)));
  order->inserted = std::move(keys);
  order->layout = layout;
  return order;
}

// The order that dicts with these keys share; null if some of them are not names.
std::shared_ptr<const KeyOrder> known_order(PyObject *dict, const NodeLayout *layout) {
  static auto *known = new BoundedCache<KeyOrder>(kMaxKeyOrders);
  size_t hash = static_cast<size_t>(py::dict_size(dict)) + pointer_hash(layout);
  for (auto [key, value] : py::DictItems(dict)) {
    if (!py::is_exact(key, &PyUnicode_Type)) return nullptr;
    hash = mix(hash, pointer_hash(key));
  }
  auto same = [&](const KeyOrder &order) { return order.layout == layout && has_keys_in_order(dict, order.inserted); };
  if (auto found = known->find(hash, same)) return found;
  auto order = sort_keys(dict_keys(dict), layout);
  known->add(hash, order);
  return order;
}

// Where the order found last for a dict of this beginning is kept.
std::shared_ptr<const KeyOrder> &recent_order(PyObject *dict) {
  constexpr size_t kRecent = 256;
  static auto *recent = new std::array<std::shared_ptr<const KeyOrder>, kRecent>();
  // Two keys tell the parameters of most layers apart.
  PyObject *first = nullptr, *second = nullptr, *value = nullptr;
  Py_ssize_t position = 0;
  if (PyDict_Next(dict, &position, &first, &value)) PyDict_Next(dict, &position, &second, &value);
  const size_t hash =
      pointer_hash(first) ^ (3 * pointer_hash(second)) ^ (static_cast<size_t>(py::dict_size(dict)) * 31);
  return (*recent)[(hash ^ (hash >> 8)) % kRecent];
}

}  // namespace

std::shared_ptr<const KeyOrder> key_order(PyObject *dict, const NodeLayout *layout) {
  std::shared_ptr<const KeyOrder> order = known_order(dict, layout);
  if (order == nullptr) return sort_keys(dict_keys(dict), layout);
  // Let go of last.
  std::shared_ptr<const KeyOrder> before = std::exchange(recent_order(dict), order);
  return order;
}

std::shared_ptr<const KeyOrder> likely_order(PyObject *dict, const NodeLayout *layout) {
  const std::shared_ptr<const KeyOrder> &order = recent_order(dict);
  return order != nullptr && order->layout == layout ? order : nullptr;
}

}  // namespace treadle
