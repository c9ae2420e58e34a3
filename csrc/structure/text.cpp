#include "structure/rows.h"

namespace treadle {

std::string text_of(const GraphDef &def) {
  std::string text = "GraphDef(" + std::to_string(def.n_refs()) + " references, " + std::to_string(def.n_leaves()) +
                     " leaves, hash=" + std::to_string(def.hash % 0xffffff) + ")";
  // The path as text, and how long it was at each key: only what changes from line to line is made anew.
  std::string path;
  std::vector<size_t> before_key;
  Traversal walk(def);
  while (walk.next()) {
    if (walk.kept() < before_key.size()) {
      path.resize(before_key[walk.kept()]);
      before_key.resize(walk.kept());
    }
    for (size_t i = before_key.size(); i < walk.path().size(); ++i) {
      before_key.push_back(path.size());
      path += (path.empty() ? "" : ".") + py::text(nb::str(walk.path()[i]));
    }
    Row row = row_at(def, walk);
    nb::object what = shown(def, row);
    text += "\n  ";
    text += path.empty() ? "<root>" : path;
    text += ": ";
    text += row.op == Op::Static ? py::text(nb::repr(what))
            : row.op == Op::Ref && row.first
                ? py::type_name(py::as_type(what.ptr())) + " #" + std::to_string(row.n)
                : py::text(nb::str(what)) + (row.op == Op::Ref ? " #" + std::to_string(row.n) : "");
    if (row.keys != kNone && !py::equal(def.order(row.keys), def.constant(row.keys)))
      text += " (order: " + order_text(def, row.keys) + ")";
    if (row.extra != kNone && !row.marks) text += " " + py::text(nb::repr(nb::handle(def.constant(row.extra))));
  }
  return text;
}

}  // namespace treadle
