// One line of a structure, for people and for comparing two line by line.
#pragma once

#include <string>

#include "structure/traversal.h"

namespace treadle {

// What stands at one place of a structure, but for the path: in a deep graph all paths together are far larger than the
// graph. Equal rows at equal places mean equal structures.
struct Row {
  Op op;
  uint32_t n;  // reference id, child count
  bool first;
  uint32_t constant = kNone;  // compared
  uint32_t extra = kNone;     // Variable metadata, Custom static part or data marks
  bool marks = false;         // the extra is data marks
  uint32_t keys = kNone;      // of what has sorted keys
};

Row row_at(const GraphDef &def, const Traversal &walk);

// The keys, given their constant, in the order in which they were put there.
std::string order_text(const GraphDef &def, uint32_t keys);

// What a message shows for a row.
nb::object shown(const GraphDef &def, const Row &row);

}  // namespace treadle
