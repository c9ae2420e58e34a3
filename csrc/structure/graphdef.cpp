#include "structure/graphdef.h"

#include <algorithm>

#include "deferred_release.h"
#include "statics/hashing.h"
#include "statics/snapshots.h"

namespace treadle {
namespace {

// Hashes of objects that stay where they are meanwhile, most of which are asked for again and again.
class ContentHashes {
 public:
  size_t of(PyObject *value) {
    Known &known = known_[pointer_hash(value) % kSize];
    if (known.object != value) known = {value, content_hash(value)};
    return known.hash;
  }

 private:
  struct Known {
    PyObject *object = nullptr;
    size_t hash = 0;
  };
  static constexpr size_t kSize = 64;
  Known known_[kSize];
};

}  // namespace

uint32_t GraphDef::skip(uint32_t begin) const {
  uint64_t open = 1;
  uint32_t at = begin;
  for (; open > 0; --open) open += items[at++].n_children();
  return at;
}

GraphDef::~GraphDef() {
  // What they refer to lives on in the constants, whose release is not bounded by the C stack: a static may be another
  // GraphDef, which holds another one.
  readings.clear();
  for (nb::object &constant : constants) release_nested(constant.release().ptr());
}

void GraphDef::finish(size_t statics) {
  size_t seed = mix(static_cast<size_t>(root_kind), statics);
  for (const Item &item : items) seed = mix(seed, (static_cast<size_t>(item.op) << 32) | item.n);
  // References share the constants of their types: which of them is whose is in the numbers.
  for (const RefDef &ref : refs) {
    seed = mix(seed, (static_cast<size_t>(ref.type) << 40) ^ (static_cast<size_t>(ref.kind) << 32) ^ ref.n_children);
  }
  ContentHashes known;
  for (size_t i = 0; i < constants.size(); ++i) {
    PyObject *constant = constants[i].ptr();
    switch (constant_kinds[i]) {
      case ConstantKind::Type:
        seed = mix(seed, pointer_hash(constant));
        break;
      case ConstantKind::Order:
        seed = mix(seed, known.of(constant));
        break;
      case ConstantKind::Metadata:
        seed = mix(seed, read(static_cast<uint32_t>(i)));
        break;
      case ConstantKind::Static:
      case ConstantKind::Keys:     // follow from their order
      case ConstantKind::Treedef:  // aux data need not be hashable; equality decides
      case ConstantKind::PathKeys:
        break;
    }
  }
  std::sort(readings.begin(), readings.end(), [](const auto &a, const auto &b) { return a.first < b.first; });
  hash = seed;
}

size_t GraphDef::read(uint32_t constant) {
  nb::object value = constants[constant];
  if (constant_kinds[constant] == ConstantKind::Metadata) {
    if (!has_metadata_reading(value.ptr())) return metadata_hash(value.ptr());
    readings.emplace_back(constant, metadata_snapshot(value.ptr()));
  } else {
    if (!has_reading(value.ptr())) return static_hash(value.ptr());
    readings.emplace_back(constant, snapshot(value.ptr(), Unhashable::Refused));
  }
  return readings.back().second.hash();
}

const Reading *GraphDef::reading(uint32_t constant) const {
  auto found = std::lower_bound(readings.begin(), readings.end(), constant,
                                [](const auto &entry, uint32_t wanted) { return entry.first < wanted; });
  return found != readings.end() && found->first == constant ? &found->second : nullptr;
}

bool constants_equal(const GraphDef &a, uint32_t i, const GraphDef &b, uint32_t j) {
  const Reading *read_a = a.reading(i), *read_b = b.reading(j);
  if (read_a != nullptr && read_b != nullptr) return read_a->equals(*read_b);
  if (read_a != nullptr || read_b != nullptr || a.constant_kinds[i] != b.constant_kinds[j]) return false;
  return constant_equal(a.constant_kinds[i], a.constant(i), b.constant(j));
}

bool constant_equal(ConstantKind kind, PyObject *a, PyObject *b) {
  if (a == b) return true;
  switch (kind) {
    case ConstantKind::Static:
      return static_equal(a, b);
    case ConstantKind::Type:
      return false;
    case ConstantKind::Metadata:
      return metadata_equal(a, b);
    case ConstantKind::Keys:
    case ConstantKind::Order:
    case ConstantKind::Treedef:
      return py::equal(a, b);
    case ConstantKind::PathKeys:
      return true;
  }
  return false;
}

bool GraphDef::equals(const GraphDef &other) const {
  if (this == &other) return true;
  if (hash != other.hash || root_kind != other.root_kind || root_begin != other.root_begin || items != other.items ||
      refs != other.refs || child_items != other.child_items || leaf_owner != other.leaf_owner ||
      constant_kinds != other.constant_kinds) {
    return false;
  }
  for (size_t i = 0; i < constants.size(); ++i) {
    if (!constants_equal(*this, static_cast<uint32_t>(i), other, static_cast<uint32_t>(i))) return false;
  }
  return true;
}

int GraphDef::traverse(visitproc visit, void *arg) const {
  for (const nb::object &constant : constants) Py_VISIT(constant.ptr());
  for (const auto &entry : readings) {
    if (int stop = entry.second.traverse(visit, arg)) return stop;
  }
  for (const nb::object *made : {&cache.paths, &cache.ref_paths, &cache.path_index, &cache.partition})
    Py_VISIT(made->ptr());
  return 0;
}

void GraphDef::clear() {
  // Swapped out first: dropping constants can run code that looks at this object.
  std::vector<nb::object> dropped;
  dropped.swap(constants);
  std::vector<std::pair<uint32_t, Reading>> dropped_readings;
  dropped_readings.swap(readings);
  items.clear();
  refs.clear();
  child_items.clear();
  leaf_owner.clear();
  constant_kinds.clear();
  root_begin = 0;
  Cache dropped_cache;
  std::swap(dropped_cache, cache);
}

}  // namespace treadle
