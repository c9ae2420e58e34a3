// GraphDef: the immutable structure of a graph, as flat tables.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "bound.h"
#include "debug.h"
#include "objects/node_types.h"
#include "statics/reading.h"

namespace treadle {

inline constexpr uint32_t kNone = 0xffffffffu;

// Order: the keys that follow it, in the order in which they were put there; the same tuple where that is sorted.
enum class ConstantKind : uint8_t { Static, Type, Keys, Metadata, Treedef, PathKeys, Order };

// One element of a value expression. Expressions are stored in preorder: a container is followed by its children.
enum class Op : uint8_t {
  Leaf,
  Ref,
  Static,
  None,
  Tuple,
  List,
  Dict,
  NamedTuple,
  Pytree,
  Mapping,
  Method,
  Partial,
  Lifted
};

// What an operation has besides its number. Invariant: the constants lie next to each other, and the last one of an
// operation with children, if it has any, is the tuple of the children's keys.
struct OpInfo {
  const char *name;
  bool has_children;
  uint8_t n_constants;
  ConstantKind constants[3];
};

// By `Op`.
inline constexpr OpInfo kOps[] = {
    {"array", false, 0, {}},
    {"reference", false, 0, {}},
    {"static", false, 1, {ConstantKind::Static}},
    {"None", false, 0, {}},
    {"tuple", true, 0, {}},
    {"list", true, 0, {}},
    {"dict", true, 2, {ConstantKind::Order, ConstantKind::Keys}},
    {"named tuple", true, 2, {ConstantKind::Type, ConstantKind::PathKeys}},
    {"pytree", true, 2, {ConstantKind::Treedef, ConstantKind::PathKeys}},
    {"mapping", true, 3, {ConstantKind::Type, ConstantKind::Order, ConstantKind::Keys}},
    {"bound method", true, 1, {ConstantKind::PathKeys}},
    {"partial", true, 2, {ConstantKind::Type, ConstantKind::PathKeys}},
    {"transformed function", true, 2, {ConstantKind::Static, ConstantKind::PathKeys}},
};

// Callables that are walked like containers: what these lead to has its path elsewhere if it is found elsewhere.
constexpr CallableKind callable_of(Op op) {
  return op == Op::Method    ? CallableKind::Method
         : op == Op::Partial ? CallableKind::Partial
         : op == Op::Lifted  ? CallableKind::Lifted
                             : CallableKind::None;
}

struct Item {
  Op op;
  uint32_t n;         // leaf id, reference id, or number of children
  uint32_t constant;  // the first of the operation's constants, or kNone

  bool operator==(const Item &) const = default;

  const OpInfo &info() const { return kOps[static_cast<size_t>(op)]; }
  uint32_t n_children() const { return info().has_children ? n : 0; }
  // The constant that is the tuple of the children's keys; kNone where these go by position, and without children.
  uint32_t keys() const {
    return info().has_children && info().n_constants > 0 ? constant + info().n_constants - 1 : kNone;
  }
};

// A node or a Variable. Variables own exactly one leaf; nodes own `n_children` expressions.
struct RefDef {
  Kind kind;
  uint32_t type;      // constant: the Python type
  uint32_t extra;     // constant: Variable metadata, Custom node's static part, Object's data marks; kNone if absent
  uint32_t keys;      // constant: sorted tuple of attribute names, behind their order; kNone for Variables
  uint32_t leaf;      // Variables: leaf id
  uint32_t children;  // first entry in `child_items`
  uint32_t n_children;

  bool operator==(const RefDef &) const = default;
};

enum class RootKind : uint8_t { Graph, Call };

// Tables of a graph. Invariant: item, constant and leaf indices are in range, every reference id in an item is smaller
// than refs.size(), each reference's children expressions are contiguous in `items`, and `hash` is set once tables are
// complete.
class GraphDef {
 public:
  GraphDef() = default;
  ~GraphDef();
  GraphDef(const GraphDef &) = delete;
  GraphDef &operator=(const GraphDef &) = delete;

  std::vector<Item> items;
  std::vector<RefDef> refs;
  std::vector<uint32_t> child_items;  // start of each child's expression, per reference
  std::vector<nb::object> constants;
  std::vector<ConstantKind> constant_kinds;
  std::vector<uint32_t> leaf_owner;  // leaf id -> reference id of its Variable, or kNone for a bare array
  uint32_t root_begin = 0;           // the root expression: items[root_begin..end)
  RootKind root_kind = RootKind::Graph;
  size_t hash = 0;
  std::vector<std::pair<uint32_t, Reading>> readings;  // what constants read when the graph was walked, by constant

  uint32_t n_leaves() const { return static_cast<uint32_t>(leaf_owner.size()); }
  uint32_t n_refs() const { return static_cast<uint32_t>(refs.size()); }
  PyObject *constant(uint32_t i) const { return i == kNone ? nullptr : constants[i].ptr(); }
  PyTypeObject *ref_type(uint32_t ref) const { return py::as_type(constants[refs[ref].type].ptr()); }
  // Borrowed: the keys of a container's children, null where these go by position.
  PyObject *child_keys(const Item &item) const { return constant(item.keys()); }
  // Borrowed: the key of a reference's child.
  PyObject *child_key(uint32_t ref, uint32_t child) const {
    return py::tuple_item(constant(refs[ref].keys), static_cast<Py_ssize_t>(child));
  }
  // Borrowed: sorted keys, given their constant, in the order in which they were put there.
  PyObject *order(uint32_t keys) const { return constants[keys - 1].ptr(); }
  uint32_t child_item(uint32_t ref, uint32_t child) const { return child_items[refs[ref].children + child]; }
  // Borrowed: the type and the metadata of the Variable that owns a leaf, null for a bare array and for no metadata.
  PyObject *leaf_type(uint32_t leaf) const { return owned(leaf, &RefDef::type); }
  PyObject *leaf_metadata(uint32_t leaf) const { return owned(leaf, &RefDef::extra); }
  // One past the end of the expression that starts at `begin`.
  uint32_t skip(uint32_t begin) const;

  // Captures what the constant, a static or metadata, reads if it reads something; its hash.
  size_t read(uint32_t constant);
  // The reading of a constant, or null.
  const Reading *reading(uint32_t constant) const;

  // To be called once when the tables are complete, with the combined hash of all static values.
  void finish(size_t statics);
  bool equals(const GraphDef &other) const;

  int traverse(visitproc visit, void *arg) const;
  void clear();

  // Lazily computed and cached; null until asked for.
  struct Cache {
    nb::object paths, ref_paths, path_index, partition;
  };
  mutable Cache cache;

  [[no_unique_address]] Counted<Kept::GraphDef> counted;

 private:
  PyObject *owned(uint32_t leaf, uint32_t RefDef::*field) const {
    return leaf_owner[leaf] == kNone ? nullptr : constant(refs[leaf_owner[leaf]].*field);
  }
};

// A fresh, empty GraphDef object and the tables inside such an object.
inline nb::object new_graphdef() { return Bound<GraphDef>::make(); }
inline GraphDef &graphdef_of(nb::handle object) { return Bound<GraphDef>::of(object); }

// As they are now, by `static_equal`.
bool constant_equal(ConstantKind kind, PyObject *a, PyObject *b);
// As they were when the graphs were walked, which is what decides about retracing.
bool constants_equal(const GraphDef &a, uint32_t i, const GraphDef &b, uint32_t j);

// ---- By theme, in files of their own -------------------------------------------------------------------------------

// differences.cpp: (path, value here, value there) of the first difference; none if equal.
nb::object first_difference(const GraphDef &a, const GraphDef &b);
// text.cpp: one line for each place.
std::string text_of(const GraphDef &def);
// pickling.cpp: what a pickle holds, the argument of `_unpickle_graphdef`.
nb::tuple pickle_state(const GraphDef &def);
// filters.cpp: for each leaf the index of the first of `filters` (compiled, see filters.py) that matches it, or -1.
nb::object partition(const GraphDef &def, nb::tuple filters, nb::handle leaves);
// views.cpp: of the Variable that owns a leaf; None for a bare array.
nb::object type_or_none(const GraphDef &def, uint32_t leaf);
nb::object metadata_or_none(const GraphDef &def, uint32_t leaf);

}  // namespace treadle
