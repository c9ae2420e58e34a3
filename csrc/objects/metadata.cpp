#include "objects/metadata.h"

#include "bounded_cache.h"
#include "hash.h"
#include "objects/node_types.h"

namespace treadle {
namespace {

// Distinct contents remembered at most: a program has a few, unless it makes metadata up as it goes.
constexpr size_t kMaxSnapshots = 4096;

// Tuples in metadata nested deeper than this count as values that may refer to anything.
constexpr int kMaxTupleDepth = 16;

// True for constants, as far as their types tell: they lead to none of a caller's objects.
bool refers_to_nothing(PyObject *value, int depth) {
  if (py::is_exact(value, &PyTuple_Type) && depth < kMaxTupleDepth) {
    for (Py_ssize_t i = 0; i < py::tuple_size(value); ++i) {
      if (!refers_to_nothing(py::tuple_item(value, i), depth + 1)) return false;
    }
    return true;
  }
  const NodeType *type = classify(value);
  if (type->kind == Kind::None) return true;
  if (type->kind != Kind::Static) return false;
  return type->static_kind == StaticKind::Simple || type->static_kind == StaticKind::Number ||
         type->static_kind == StaticKind::Frozen;
}

}  // namespace

Entries entries_of(PyObject *dict) {
  Entries entries;
  for (auto entry : py::DictItems(dict)) entries.push_back(entry);
  return entries;
}

bool has_entries(PyObject *dict, const Entries &entries) {
  if (py::dict_size(dict) != static_cast<Py_ssize_t>(entries.size())) return false;
  PyObject *key = nullptr, *value = nullptr;
  Py_ssize_t position = 0;
  for (const auto &[known_key, known_value] : entries) {
    if (!PyDict_Next(dict, &position, &key, &value) || key != known_key || value != known_value) return false;
  }
  return true;
}

std::shared_ptr<const DictSnapshot> snapshot_of(PyObject *dict, const nb::object &judge) {
  static auto *known = new BoundedCache<DictSnapshot>(kMaxSnapshots);
  size_t hash = pointer_hash(judge.ptr());
  for (auto [key, value] : py::DictItems(dict)) hash = mix(mix(hash, pointer_hash(key)), pointer_hash(value));
  auto same = [&](const DictSnapshot &other) { return other.judge.is(judge) && has_entries(dict, other.entries); };
  if (auto found = known->find(hash, same)) return found;
  auto fresh = std::make_shared<DictSnapshot>();
  fresh->dict = py::checked(PyDict_Copy(dict));
  fresh->judge = judge;
  fresh->entries = entries_of(fresh->dict.ptr());
  fresh->refusal = judge.is_valid() ? judge(fresh->dict) : nb::none();
  for (const auto &entry : fresh->entries) {
    if (!refers_to_nothing(entry.second, 0)) return fresh;
  }
  known->add(hash, fresh);
  return fresh;
}

nb::object own_metadata(PyObject *metadata) {
  // Making a dict may run a collection, and with it a finalizer that replaces the metadata.
  nb::object held = nb::borrow<nb::object>(metadata);
  return py::checked(metadata != nullptr ? PyDict_Copy(metadata) : PyDict_New());
}

}  // namespace treadle
