// The canonical order of a structure.
#pragma once

#include <vector>

#include "structure/graphdef.h"

namespace treadle {

// By reference id, whether a way that passes no callable leads there. Empty if all are reached so.
std::vector<bool> plainly_reached(const GraphDef &def);

// Depth-first over the expressions of a GraphDef in canonical order, item by item, so that two can go in step. Keeps
// the path that leads to the item; a reference's definition is entered at its first occurrence, and inside a callable
// only if there is no other.
class Traversal {
 public:
  explicit Traversal(const GraphDef &def) : def_(def), plain_(plainly_reached(def)), seen_(def.n_refs(), false) {}

  // Goes to the next item; false after the last.
  bool next();

  // Begins anew with what a node holds; false for a Variable, and for a node that was entered before.
  bool enter(uint32_t ref);

  const Item &item() const { return *item_; }
  // True where a reference is entered, as opposed to shared.
  bool first() const { return first_; }
  // True for an item that is part of a callable; of one without children.
  bool in_callable() const { return !frames_.empty() && frames_.back().in_callable; }
  const std::vector<nb::object> &path() const { return path_; }
  // How many leading keys of the path were there at the previous item too; at most one key is new.
  size_t kept() const { return kept_; }
  nb::tuple path_tuple() const { return py::to_tuple(path_); }

 private:
  struct Frame {
    uint32_t ref;  // kNone for a by-value container
    uint32_t next, count;
    uint32_t cursor;  // by-value: where the next child's expression starts
    size_t path_size;
    PyObject *keys;  // borrowed from the constants, or null for positions
    PyObject *transparent;
    uint8_t hide;  // levels of a call's root, whose own positions do not show
    bool int_keys;
    bool in_callable;
  };

  // Stops at the item at `at`; true if a frame was opened for its children.
  bool expression(uint32_t at);
  void open(uint32_t ref, bool in_callable);
  void push_key(const Frame &frame, uint32_t child);

  const GraphDef &def_;
  const Item *item_ = nullptr;  // among those of `def_`, which are complete; null before the first
  bool first_ = false;
  size_t kept_ = 0;
  const std::vector<bool> plain_;
  std::vector<bool> seen_;
  std::vector<Frame> frames_;
  std::vector<nb::object> path_;
};

}  // namespace treadle
