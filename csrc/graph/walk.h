// Walking objects into a GraphDef, leaves and references.
#pragma once

#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "graph/key_order.h"
#include "id_table.h"
#include "structure/graphdef.h"

namespace treadle {

// Result of a walk. Invariant: `leaves[i]` is the value of leaf i, `refs[r]` the object with reference id r. `refs` are
// owned: a Flat keeps its graph alive, so plans never hold one.
struct Flat {
  nb::object graphdef;
  std::vector<nb::object> leaves;
  std::vector<nb::object> refs;
  IdTable ids;
  [[no_unique_address]] Counted<Kept::Flat> counted = {};

  int traverse(visitproc visit, void *arg) const;
  void clear();
};

// How values outside any node are read: in a call scalars and all unknown objects are leaves for JAX to judge.
enum class Outside : uint8_t { Graph, Call };

// Which values that are no arrays are leaves: none, the numbers (in attributes that are marked as data), or all. Where
// something is marked as static, arrays and references are refused as well.
enum class Scalars : uint8_t { Refused, Static, Numbers, Leaves };

// What Variables are: references with a leaf each, or, as JAX's pytrees have them, leaves that may be met again.
enum class Variables : uint8_t { References, Leaves };

// One walk. Explicit stacks only: depth is bounded by memory, not by the C stack.
class Walker {
 public:
  explicit Walker(Variables variables = Variables::References);

  // The structure walked so far, complete after `finish`.
  nb::object graphdef;

  // Walks the definitions of objects that already have ids 0..n-1 in `before`, in id order: how a call left them.
  void walk_known(std::vector<nb::object> known, const GraphDef &before);
  // Appends to the root expression: a container header whose elements follow, or a whole value.
  void root_container(Op op, uint32_t n, const nb::object &keys);
  void root(PyObject *value, Outside outside, const nb::object &path_prefix);
  void root_static(PyObject *value, const nb::object &path_prefix);
  // Completes the tables.
  void finish();
  // The same, and gives away what was walked.
  Flat take();

  std::vector<nb::object> leaves;
  std::vector<nb::object> refs;
  IdTable ids;

 private:
  struct Frame {
    PyObject *keys;       // borrowed tuple of child keys, or null for positions (kept alive by `def_` constants)
    size_t values_begin;  // children: values_[values_begin + i]
    uint32_t next, count;
    uint32_t ref;           // reference whose definition this is, or kNone for a by-value container
    PyObject *transparent;  // borrowed attribute name that does not show in paths, or null
    size_t items_begin;     // start of this definition in scratch_
    size_t offsets_begin;   // start of its child offsets in offsets_
    Scalars scalars;        // how the children are read
    PyObject *object;       // borrowed: what is being walked, for telling a container that holds itself
    PyObject *marks;        // borrowed from the constants: which attributes are data, or null
    PyObject *statics;      // borrowed likewise: which are static, or null
    bool int_keys;          // names made of digits show as indices
    bool in_node;           // a by-value container in a node
    bool in_callable;       // such a container inside a callable, or that
    const GraphDef *guide;  // borrowed from a node's places: which children are leaves whatever they are, or null
    uint32_t guided;        // which of its references this is, of a node; which of its items, of a container
    uint32_t guide_child, guide_at;  // of a container: a child of that item, and where it is
  };

  void run();
  void visit(PyObject *value, Scalars scalars);
  void visit_reference(PyObject *value, const NodeType *info);
  // pytree.cpp: children of what JAX makes pytrees of.
  void visit_variable_leaf(PyObject *value);
  void guide_by_places(PyObject *node);
  void visit_guided(PyObject *value, Scalars scalars);
  void visit_place(PyObject *value, const GraphDef &guide, uint32_t leaf);
  void mark_children(Frame &frame, const KeyOrder &order, const NodeType &info) const;
  Scalars scalars_of_child(const Frame &frame) const;
  [[noreturn]] void refuse_data(PyObject *value) const;
  static uint32_t place_of_child(Frame &frame);
  void define(uint32_t ref, PyObject *value, const NodeType *info);
  void open(const Frame &frame);
  void open_container(Op op, uint32_t constant, Frame frame, Scalars scalars);
  void open_dict(Op op, PyObject *dict, const nb::object &type, Scalars scalars);
  void open_mapping(PyObject *value, const MappingLayout &layout, Scalars scalars);
  void open_children(PyObject *dict, uint32_t ref, const NodeType &info, PyObject *marks);
  Frame new_frame(PyObject *keys, size_t count, PyObject *object) const;
  uint32_t add_keys(const nb::object &order, const nb::object &keys);
  Frame dict_frame(PyObject *dict, const KeyOrder &order) const;
  bool take_values(PyObject *dict, const KeyOrder &order);
  std::shared_ptr<const KeyOrder> take_sorted(PyObject *dict, const NodeLayout *layout);
  std::shared_ptr<const KeyOrder> sorted_order(PyObject *dict, const NodeLayout *layout);
  void open_sequence(PyObject *value, Op op, Scalars scalars);
  void open_pytree(PyObject *value, Scalars scalars);
  bool open_callable(PyObject *value, const NodeType &info, Scalars scalars);
  void define_variable(uint32_t ref, PyObject *value, const VariableLayout &layout);
  void own_leaf(uint32_t ref, PyObject *metadata, PyObject *value);
  void add_extra(uint32_t ref, const nb::object &value);
  uint32_t read_static(const nb::object &value);
  void add_static(PyObject *value);
  void add_leaf(PyObject *value, uint32_t owner);
  void add_bare_leaf(PyObject *value);
  void close(const Frame &frame);
  bool is_in_node() const { return !frames_.empty() && (frames_.back().in_node || frames_.back().ref != kNone); }
  bool is_in_callable() const { return !frames_.empty() && frames_.back().in_callable; }
  bool is_pending(uint32_t ref) const { return def_->refs[ref].type == kNone; }
  uint32_t enclosing_ref() const;
  void define_pending();
  nb::object path_of_pending() const;
  void refuse_held_nodes() const;
  nb::object path_of_static(uint32_t constant) const;
  template <typename Predicate>
  uint32_t find_holder(nb::object &path, Predicate &&is_wanted) const;
  uint32_t add_constant(ConstantKind kind, nb::object value);
  uint32_t type_constant(PyTypeObject *type);
  nb::object current_path() const;
  nb::object path_to(size_t end) const;

  GraphDef *def_;  // inside `graphdef`
  const GraphDef *known_def_ = nullptr;
  uint32_t known_ref_ = kNone;
  std::vector<Frame> frames_;
  std::vector<nb::object> values_;
  std::vector<Item> scratch_;
  std::vector<uint32_t> offsets_;
  nb::object path_prefix_;
  size_t static_hash_ = 0;

  // References that callables lead to, in the order in which they were met. They are defined where they are found
  // otherwise, which gives them their path, or at the end.
  struct Pending {
    uint32_t ref;
    uint32_t found_in;  // the reference in whose definition the callable is
  };
  std::vector<Pending> pending_;
  const Pending *defining_ = nullptr;
  std::vector<uint32_t> suspects_;  // statics in nodes that may lead to nodes
  const Variables variables_;
  IdTable types_;                            // of references, by their constant
  const PyTypeObject *last_type_ = nullptr;  // the one met last; compared, never followed
  uint32_t last_type_constant_ = kNone;
  IdTable variable_leaves_;
  std::map<std::pair<const GraphDef *, uint32_t>, std::pair<PyObject *, uint32_t>> places_;  // what is there, its leaf
};

Flat flatten(nb::handle root);

}  // namespace treadle
