// All-or-nothing changes to the caller's objects.
#pragma once

#include <vector>

#include "objects/node_types.h"

namespace treadle {

// Changes made so far, to be taken back if a later one fails. Invariant: until `commit`, undoing `changes_` from the
// last to the first gives what was there before; old values stay alive until the whole change is done, so that no
// destructor runs half-way.
class Transaction {
 public:
  Transaction() = default;
  Transaction(const Transaction &) = delete;
  Transaction &operator=(const Transaction &) = delete;
  ~Transaction();

  void reserve(size_t n) { changes_.reserve(n); }
  void set_value(PyObject *variable, PyObject *value);
  // `metadata` as in a structure: null for none, and nobody else's to change.
  void set_metadata(PyObject *variable, PyObject *metadata);
  // What marks a node's data attributes, as in a structure.
  void set_marks(const nb::object &node, const NodeLayout &layout, PyObject *marks);

  // A null `value` removes the key.
  void set_item(const nb::object &dict, PyObject *key, PyObject *value);

  // Puts the items of a node's `dict` in order: what the layout hides, then those of the tuple `keys`.
  void set_order(const nb::object &dict, PyObject *keys, const NodeLayout *layout);

  // Custom nodes are changed by the user's functions, and taken back by them too.
  void set_custom(const NodeType *type, const nb::object &node, PyObject *key, PyObject *old, PyObject *value);

  void commit() { done_ = true; }

 private:
  struct Change {
    PyObject **slot = nullptr;  // a field of the Variable `owner`, or null
    nb::object owner;           // dict, custom node or Variable
    nb::object key;             // of a dict or custom node; or the slot of `owner`, by its descriptor
    nb::object old;             // null if there was none
    nb::object items;  // of a dict that loses a key or its order: all its items before, which keeps their order
    const NodeType *custom = nullptr;
    bool in_slot = false;
  };

  void swap(PyObject *owner, PyObject *&slot, PyObject *value) {
    Change &change = changes_.emplace_back();
    change.slot = &slot;
    change.owner = nb::borrow<nb::object>(owner);
    change.old = nb::steal<nb::object>(slot);
    Py_XINCREF(value);
    slot = value;
  }

  void set_slot(PyObject *owner, const Slot &slot, PyObject *value);

  static void undo(Change &change) noexcept;

  std::vector<Change> changes_;
  bool done_ = false;
};

}  // namespace treadle
