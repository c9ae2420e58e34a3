// What one call site remembers of one structure: guards, gather table, compiled function.
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
  bool known_top_level = false;     // the guards say that other libraries' Variables were all made outside transforms
  void own(const std::vector<PyObject *> &references);
  void take(Flat &&flat);
  void clear();
};

// Invariant: `traced` is the structure that the compiled function was traced for, `walked` an equal one of the objects
// last walked with this plan, which the guards are about; `addresses` are where its references lived then, never
// followed unless found again in the caller's own attributes. No graph object and no array is kept alive.
class Plan {
 public:
  Plan(nb::object call_function, std::vector<uint32_t> donated_leaves, nb::object effects_list)
      : call(std::move(call_function)), donated(std::move(donated_leaves)), traced_effects(std::move(effects_list)) {}

  // Where a function is the same object, equal structures may have read it with different values: a structure is
  // compared with the one that was traced, or the difference would be passed on from call to call.
  nb::object traced, walked;
  nb::object call;
  std::vector<uint32_t> donated;  // leaf ids, ascending
  // List that the first trace puts its Effects into. Traces with the same effects return a plain tuple of leaves, or
  // the leaf where there is one, which costs JAX less than a node of ours; others (another shape, another outcome)
  // return an Outputs with their own.
  nb::object traced_effects;
  nb::object first_effects;  // what the list holds, once it has been read

  int traverse(visitproc visit, void *arg) const;
  // Takes the guards from a walk that gave this plan's structure.
  void remember(const Flat &flat);
  // True if the arguments are the same objects with the same attributes as last time; points the frame at
  // the leaves then. Runs Python
  // only for statics that can change in place, and before anything else is looked at.
  bool verify(const Arguments &arguments, CallFrame &frame) const;
  // Takes ownership of what `verify` found. Must follow it at once.
  void gather(CallFrame &frame) const;

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
    std::shared_ptr<const Layout> layout;
    Entries metadata;  // of the structure's own constant, which keeps them alive
    nb::object trace;
    nb::object marks;
  };

  // What `verify` compares with, replaced as a whole.
  struct Guards {
    bool complete = false;
    std::vector<PyObject *> addresses;
    std::vector<AttributeCheck> attributes;               // of all nodes, by reference
    std::vector<uint32_t> attributes_end;                 // where those of each reference end
    std::vector<std::shared_ptr<const KeyOrder>> orders;  // keep the names alive
    std::vector<ForeignGuard> foreign;                    // by reference; empty if all are treadle's
    bool foreign_at_top_level = true;                     // none of their Variables was made inside a transform
    std::vector<bool> scalars;                            // leaves that were numbers; empty if none was
    std::vector<uint32_t> unstable;                       // constants whose value can change in place
    std::vector<uint32_t> argument_items;                 // expression of each positional argument
    std::vector<uint32_t> keyword_items;                  // expression of each keyword argument, by sorted name
    nb::object keyword_names;
  };
  // Each false if `object` is no longer what `def` says.
  static bool guard_attributes(Guards &guards, const GraphDef &def, uint32_t ref, PyObject *object,
                               const Layout *layout);
  static bool guard_foreign(Guards &guards, const GraphDef &def, uint32_t ref, PyObject *object,
                            const std::shared_ptr<const Layout> &layout);
  static void guard_scalars(Guards &guards, const GraphDef &def, const std::vector<nb::object> &leaves);

  Guards guards_;
  [[maybe_unused, no_unique_address]] Counted<Kept::Plan> counted_;
};

}  // namespace treadle
