// GraphDef: the immutable structure of a graph, as flat tables.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "debug.h"
#include "graph/node_types.h"
#include "graph/reading.h"
#include "python_compat.h"

namespace treadle {

inline constexpr uint32_t kNone = 0xffffffffu;

// One element of a value expression. Expressions are stored in preorder: a container is followed by its children.
enum class Op : uint8_t { Leaf, Ref, Static, None, Tuple, List, Dict, NamedTuple, Pytree, Mapping };

struct Item {
  Op op;
  uint32_t n;  // leaf id, reference id, or number of children
  uint32_t
      constant;  // Static: value; Dict: sorted keys; NamedTuple, Mapping: type, Pytree: treedef, all followed by keys

  bool operator==(const Item &) const = default;
};

enum class ConstantKind : uint8_t { Static, Type, Keys, Metadata, Treedef, PathKeys };

// A node or a Variable. Variables own exactly one leaf; nodes own `n_children` expressions.
struct RefDef {
  Kind kind;
  uint32_t type;      // constant: the Python type
  uint32_t extra;     // constant: Variable metadata, Custom node's static part, Object's data marks; kNone if absent
  uint32_t keys;      // constant: sorted tuple of attribute names; kNone for Variables
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
  PyTypeObject *ref_type(uint32_t ref) const {
    return reinterpret_cast<PyTypeObject *>(constants[refs[ref].type].ptr());
  }
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
  mutable nb::object paths_cache, ref_paths_cache, path_index_cache, partition_cache;

  [[no_unique_address]] Counted<Kept::GraphDef> counted;
};

// A fresh, empty GraphDef object and the tables inside such an object.
nb::object new_graphdef();
GraphDef &graphdef_of(nb::handle object);

// As they are now, by `static_equal`.
bool constant_equal(ConstantKind kind, PyObject *a, PyObject *b);
// As they were when the graphs were walked, which is what decides about retracing.
bool constants_equal(const GraphDef &a, uint32_t i, const GraphDef &b, uint32_t j);

// The paths of leaves and of references in canonical order: the first way each was reached. Computed apart, because in
// a deep graph the paths of all references are long even where those of the leaves are few.
nb::tuple leaf_paths(const GraphDef &def);
nb::tuple ref_paths(const GraphDef &def);
// The keys of all leaves' paths together, for whoever has to decide whether to make them. Linear.
size_t length_of_leaf_paths(const GraphDef &def);
nb::object path_of_reference(const GraphDef &def, uint32_t ref);

// Paths that share their beginnings: each is one key behind another path, so a path costs the same however long it is,
// until a tuple is made of it. A path is known by a number.
class PathTree {
 public:
  static constexpr uint32_t kRoot = 0;  // the empty path

  uint32_t add(uint32_t parent, nb::object key);
  nb::tuple tuple(uint32_t path) const;

 private:
  struct Step {
    uint32_t parent, length;
    nb::object key;
  };

  uint32_t length(uint32_t path) const { return path == kRoot ? 0 : steps_[path - 1].length; }

  std::vector<Step> steps_;  // by number, from 1 on
};

// The path of each of `wanted` (true by reference id) in `paths`; kNone for the others.
std::vector<uint32_t> paths_of_references(const GraphDef &def, const std::vector<bool> &wanted, PathTree &paths);

// (path, value here, value there) of the first difference; none if equal.
nb::object first_difference(const GraphDef &a, const GraphDef &b);

void bind_graphdef(nb::module_ &m);

}  // namespace treadle
