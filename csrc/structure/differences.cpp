#include <algorithm>
#include <optional>
#include <string>

#include "structure/rows.h"

namespace treadle {
namespace {

// Marks on a node's attributes say little to a reader, and the order of what differs is another as well: they count
// only where nothing else differs.
enum class Marks : uint8_t { Ignore, Compare };

// True if both are there and equal, or neither is.
bool same_constant(const GraphDef &a, uint32_t i, const GraphDef &b, uint32_t j) {
  return i == kNone || j == kNone ? i == j : constants_equal(a, i, b, j);
}

// A static by what it is and, where that is what differs, by what it reads.
std::pair<nb::object, nb::object> shown_statics(const GraphDef &was, const Row &a, const GraphDef &is, const Row &b) {
  nb::object there = shown(was, a), here = shown(is, b);
  const Reading *then = was.reading(a.constant), *now = is.reading(b.constant);
  if (a.op != Op::Static || b.op != Op::Static || then == nullptr || now == nullptr) return {there, here};
  auto [before, after] = then->difference(*now);
  if (before.empty() || after.empty()) return {there, here};
  auto with = [](const nb::object &value, const std::string &read) {
    nb::object name = nb::getattr(value, "__qualname__", nb::none());
    return nb::str((py::text(name.is_none() ? nb::repr(value) : nb::str(name)) + " with " + read).c_str());
  };
  return {with(there, before), with(here, after)};
}

// What a message shows for two rows at one path; none if they are equal.
std::optional<std::pair<nb::object, nb::object>> row_difference(const GraphDef &was, const Row &a, const GraphDef &is,
                                                                const Row &b, Marks marks) {
  // Which keys a dict has shows at the keys themselves.
  if (a.op != b.op || a.first != b.first || (a.op != Op::Dict && !same_constant(was, a.constant, is, b.constant))) {
    return shown_statics(was, a, is, b);
  }
  bool ignored = marks == Marks::Ignore && a.marks;
  if (!ignored && !same_constant(was, a.extra, is, b.extra)) {
    auto held = [](const GraphDef &def, uint32_t extra) {
      return extra == kNone ? nb::object(nb::dict()) : nb::borrow<nb::object>(def.constant(extra));
    };
    return std::pair{held(was, a.extra), held(is, b.extra)};
  }
  if (marks == Marks::Compare && a.keys != kNone && b.keys != kNone &&
      !constants_equal(was, a.keys - 1, is, b.keys - 1)) {
    auto ordered = [](const GraphDef &def, uint32_t keys) {
      return nb::str(("the order " + order_text(def, keys)).c_str());
    };
    return std::pair{ordered(was, a.keys), ordered(is, b.keys)};
  }
  if (a.n == b.n || a.op == Op::Dict) return std::nullopt;
  return std::pair{shown(was, a), shown(is, b)};
}

// True if both are at equal paths, given that they were one item ago: only what changed since is compared.
bool still_together(const Traversal &a, const Traversal &b) {
  const std::vector<nb::object> &left = a.path(), &right = b.path();
  if (left.size() != right.size()) return false;
  for (size_t i = std::min(a.kept(), b.kept()); i < left.size(); ++i) {
    if (!py::equal(left[i].ptr(), right[i].ptr())) return false;
  }
  return true;
}

// True if something stands at `path`. Remembers how far the last path agreed, instead of comparing each from its start.
bool shows(const GraphDef &def, const std::vector<nb::object> &path) {
  Traversal walk(def);
  size_t agreed = 0;
  while (walk.next()) {
    const std::vector<nb::object> &here = walk.path();
    agreed = std::min(agreed, walk.kept());
    while (agreed < here.size() && agreed < path.size() && py::equal(here[agreed].ptr(), path[agreed].ptr())) ++agreed;
    if (agreed == here.size() && agreed == path.size()) return true;
  }
  return false;
}

nb::object difference_in_step(const GraphDef &a, const GraphDef &b, Marks marks) {
  Traversal left(a), right(b);
  while (true) {
    bool in_left = left.next(), in_right = right.next();
    if (!in_left && !in_right) return nb::none();
    bool only_left = in_left && !in_right, only_right = in_right && !in_left;
    if (in_left && in_right && !still_together(left, right)) {
      // One side has an entry the other lacks: the one whose path the other side never shows.
      only_left = !shows(b, left.path());
      only_right = !only_left;
    }
    if (only_left) return nb::make_tuple(left.path_tuple(), shown(a, row_at(a, left)), nb::str("<absent>"));
    if (only_right) return nb::make_tuple(right.path_tuple(), nb::str("<absent>"), shown(b, row_at(b, right)));
    if (auto difference = row_difference(a, row_at(a, left), b, row_at(b, right), marks)) {
      return nb::make_tuple(left.path_tuple(), difference->first, difference->second);
    }
  }
}

}  // namespace

nb::object first_difference(const GraphDef &a, const GraphDef &b) {
  if (a.equals(b)) return nb::none();
  nb::object difference = difference_in_step(a, b, Marks::Ignore);
  return difference.is_none() ? difference_in_step(a, b, Marks::Compare) : difference;
}

}  // namespace treadle
