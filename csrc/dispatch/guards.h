// Whether a call has the objects of an earlier one, told by looking at these alone.
#pragma once

#include <memory>

#include "graph/walk.h"

namespace treadle {

// The arguments of a call as the interpreter passes them.
struct Arguments {
  PyObject *const *values;
  size_t n_positional;
  PyObject *keyword_names;  // tuple or null
  size_t n_keywords() const {
    return keyword_names == nullptr ? 0 : static_cast<size_t>(py::tuple_size(keyword_names));
  }
};

// Buffers of one call, reused between calls. Invariant: everything gathered is owned, so nothing that Python does while
// the compiled function runs can free it.
struct CallFrame {
  std::vector<PyObject *> leaves;  // borrowed from `owned_leaves`
  std::vector<nb::object> owned_leaves;
  std::vector<nb::object> refs;
  std::vector<PyObject *> outputs;  // borrowed from what the compiled function returned
  std::vector<PyObject *> values;   // arguments with what the function brings along, borrowed from the call and from it
  nb::object keyword_names;         // their names
  // Leaves that the call leaves elsewhere. What is compiled gets them as they are, like those of the first call.
  struct Moved {
    uint32_t leaf;
    nb::object placed;
  };
  std::vector<Moved> moved;
  bool known_top_level = false;  // the guards say that other libraries' Variables were all made outside transforms
  void own(const std::vector<PyObject *> &references);
  void take(Flat &&flat);
  void clear();
};

// What the objects of a walk must be for a call to find what the walk found. Invariant: `addresses_` are where the
// references of `walked` lived then, never followed unless found again in the caller's own attributes. No graph object
// and no array is kept alive. Replaced as a whole, never changed.
class Guards {
 public:
  Guards() = default;
  explicit Guards(const Flat &flat);

  nb::object walked;  // the structure that they are about

  // True if the arguments are the same objects with the same attributes as last time; points the frame at the leaves
  // then. Runs Python only for statics that can change in place, and before anything else is looked at.
  bool verify(const Arguments &arguments, CallFrame &frame) const;
  // Takes ownership of what `verify` found. Must follow it at once.
  void gather(CallFrame &frame) const;

  int traverse(visitproc visit, void *arg) const;

 private:
  bool unstable_statics_hold() const;
  bool match_arguments(const GraphDef &def, const Arguments &arguments, CallFrame &frame) const;
  template <bool kForeign>
  bool match_references(const GraphDef &def, CallFrame &frame) const;
  bool match_foreign_variable(const GraphDef &def, uint32_t ref, CallFrame &frame) const;
  bool match_attributes(const GraphDef &def, uint32_t ref, PyObject *dict, CallFrame &frame) const;
  bool match(const GraphDef &def, uint32_t at, PyObject *value, CallFrame &frame) const;
  bool may_be_scalar(const GraphDef &def, uint32_t at, PyObject *value) const;
  bool match_container(const GraphDef &def, uint32_t &at, PyObject *value, CallFrame &frame, int depth) const;
  bool match_dict(const GraphDef &def, const Item &item, uint32_t &at, PyObject *dict, CallFrame &frame,
                  int depth) const;
  bool match_callable(const GraphDef &def, const Item &item, uint32_t &at, PyObject *value, CallFrame &frame,
                      int depth) const;
  bool match_at(const GraphDef &def, uint32_t &at, PyObject *value, CallFrame &frame, int depth) const;

  // An attribute, in the order they were set: its name, the object it must be, and the expression that tells of others
  // whether they will do, or kNone. Bookkeeping that is free to change expects nothing.
  struct AttributeCheck {
    PyObject *name;
    PyObject *expected;
    uint32_t item;
  };

  // What is compared of another library's Variable or node. The marks and what remembers a Variable's trace are
  // bookkeeping; holding them makes their addresses mean something.
  struct ForeignGuard {
    bool is_foreign = false;
    std::shared_ptr<const Layout> layout;
    const VariableLayout *variable = nullptr;  // in `layout`, or null for a node
    Entries metadata;                          // of the structure's own constant, which keeps them alive
    nb::object trace;
    nb::object marks;
  };

  // Each false if `object` is no longer what `def` says.
  bool guard_attributes(const GraphDef &def, uint32_t ref, PyObject *object, const NodeLayout *layout);
  bool guard_foreign(const GraphDef &def, uint32_t ref, PyObject *object, const NodeType &type);
  bool guard_reference(const GraphDef &def, uint32_t ref);
  void guard_statics(const GraphDef &def);
  void guard_scalars(const GraphDef &def, const std::vector<nb::object> &leaves);
  void guard_arguments(const GraphDef &def);

  bool complete_ = false;
  std::vector<PyObject *> addresses_;
  std::vector<AttributeCheck> attributes_;               // of all nodes, by reference
  std::vector<uint32_t> attributes_end_;                 // where those of each reference end
  std::vector<std::shared_ptr<const KeyOrder>> orders_;  // keep the names alive
  std::vector<ForeignGuard> foreign_;                    // by reference; empty if all are treadle's
  bool foreign_at_top_level_ = true;                     // none of their Variables was made inside a transform
  std::vector<bool> scalars_;                            // leaves that were numbers; empty if none was
  std::vector<uint32_t> unstable_;                       // constants whose value can change in place
  std::vector<uint32_t> argument_items_;                 // expression of each positional argument
  std::vector<uint32_t> keyword_items_;                  // expression of each keyword argument, by sorted name
  nb::object keyword_names_;
};

}  // namespace treadle
