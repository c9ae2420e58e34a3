#include "structure/rows.h"

namespace treadle {

Row row_at(const GraphDef &def, const Traversal &walk) {
  const Item &item = walk.item();
  Row row{item.op, item.n, walk.first()};
  if (item.op == Op::Leaf) row.n = 0;
  if (item.info().n_constants > 0) row.constant = item.constant;
  if (item.op == Op::Dict || item.op == Op::Mapping) row.keys = item.keys();
  if (item.op == Op::Ref) {
    const RefDef &ref = def.refs[item.n];
    row.constant = ref.type;
    row.marks = ref.kind == Kind::Object;
    if (row.first) {
      row.extra = ref.extra;
      row.keys = ref.keys;
    }
  }
  return row;
}

std::string order_text(const GraphDef &def, uint32_t keys) {
  std::string text;
  for (Py_ssize_t i = 0; i < py::tuple_size(def.order(keys)); ++i) {
    text += (i > 0 ? ", " : "") + py::text(nb::str(nb::handle(py::tuple_item(def.order(keys), i))));
  }
  return text;
}

nb::object shown(const GraphDef &def, const Row &row) {
  auto text = [](const std::string &value) -> nb::object { return nb::str(value.c_str()); };
  const char *name = kOps[static_cast<size_t>(row.op)].name;
  switch (row.op) {
    case Op::Leaf:
    case Op::None:
    case Op::Dict:
    case Op::Method:
      return text(name);
    case Op::Tuple:
    case Op::List:
      return text(std::string(name) + " of length " + std::to_string(row.n));
    case Op::Ref:
      if (!row.first) return text("shared " + py::type_name(py::as_type(def.constant(row.constant))));
      break;
    case Op::Lifted:
      return nb::borrow<nb::object>(py::tuple_item(def.constant(row.constant), 0));
    default:
      break;
  }
  return nb::borrow<nb::object>(def.constant(row.constant));
}

}  // namespace treadle
