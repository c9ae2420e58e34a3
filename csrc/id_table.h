// Reference ids by object address.
#pragma once

#include <vector>

#include "python_compat.h"

namespace treadle {

// Open addressing over one block of memory: walks look up every object they meet, and a node a entry would dominate
// them. Invariant: the number of slots is a power of two and at least a third of them are empty. Addresses are not
// owned.
class IdTable {
 public:
  static constexpr uint32_t kAbsent = 0xffffffffu;

  // The id of `object`; `fresh` if it had none, which is what it then gets.
  std::pair<uint32_t, bool> insert(PyObject *object, uint32_t fresh) {
    if (3 * (count_ + 1) > 2 * slots_.size()) grow();
    Slot &slot = slots_[position(object)];
    if (slot.object == object) return {slot.id, false};
    slot = {object, fresh};
    ++count_;
    return {fresh, true};
  }

  uint32_t find(PyObject *object) const {
    if (slots_.empty()) return kAbsent;
    const Slot &slot = slots_[position(object)];
    return slot.object == object ? slot.id : kAbsent;
  }

  size_t size() const { return count_; }

  // Room for so many, of an empty table.
  void reserve(size_t count) {
    size_t n = 16;
    while (2 * n < 3 * (count + 1)) n *= 2;
    slots_.resize(n);
  }

  void clear() {
    slots_.clear();
    count_ = 0;
  }

 private:
  struct Slot {
    PyObject *object = nullptr;
    uint32_t id = kAbsent;
  };

  // Where `object` is or belongs.
  size_t position(PyObject *object) const {
    size_t mask = slots_.size() - 1;
    size_t at = (reinterpret_cast<size_t>(object) >> 4) * 0x9e3779b97f4a7c15ULL >> 20 & mask;
    while (slots_[at].object != nullptr && slots_[at].object != object) at = (at + 1) & mask;
    return at;
  }

  void grow() {
    std::vector<Slot> old(slots_.empty() ? 16 : 2 * slots_.size());
    old.swap(slots_);
    for (const Slot &slot : old) {
      if (slot.object != nullptr) slots_[position(slot.object)] = slot;
    }
  }

  std::vector<Slot> slots_;
  size_t count_ = 0;
};

}  // namespace treadle
