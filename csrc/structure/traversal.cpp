#include "structure/traversal.h"

namespace treadle {
namespace {

// Names are mostly interned, but strings made at run time are not.
bool is_transparent(PyObject *key, PyObject *transparent) {
  if (key == transparent || transparent == nullptr) return key == transparent;
  return PyUnicode_Check(key) && PyUnicode_Compare(key, transparent) == 0;
}

}  // namespace

std::vector<bool> plainly_reached(const GraphDef &def) {
  bool any = false;
  for (const Item &item : def.items) any = any || callable_of(item.op) != CallableKind::None;
  if (!any) return {};
  std::vector<bool> reached(def.n_refs(), false);
  std::vector<uint32_t> pending;
  auto expression = [&](uint32_t begin) {
    for (uint32_t at = begin, end = def.skip(begin); at < end;) {
      const Item &item = def.items[at];
      if (item.op == Op::Ref && !reached[item.n]) {
        reached[item.n] = true;
        pending.push_back(item.n);
      }
      at = callable_of(item.op) != CallableKind::None ? def.skip(at) : at + 1;
    }
  };
  if (def.root_begin < def.items.size()) expression(def.root_begin);
  while (!pending.empty()) {
    const uint32_t ref = pending.back();
    pending.pop_back();
    for (uint32_t c = 0; c < def.refs[ref].n_children; ++c) expression(def.child_item(ref, c));
  }
  return reached;
}

bool Traversal::next() {
  if (item_ == nullptr) {
    if (def_.items.size() <= def_.root_begin) return false;
    expression(def_.root_begin);
    return true;
  }
  while (!frames_.empty()) {
    Frame &frame = frames_.back();
    if (frame.next == frame.count) {
      uint32_t cursor = frame.cursor;
      bool by_value = frame.ref == kNone;
      path_.resize(frame.path_size);
      frames_.pop_back();
      if (by_value && !frames_.empty() && frames_.back().ref == kNone) frames_.back().cursor = cursor;
      continue;
    }
    uint32_t child = frame.next++;
    path_.resize(frame.path_size);
    kept_ = frame.path_size;
    push_key(frame, child);
    uint32_t at = frame.ref == kNone ? frame.cursor : def_.child_item(frame.ref, child);
    size_t parent = frames_.size() - 1;
    bool opened = expression(at);
    if (!opened && frames_[parent].ref == kNone) frames_[parent].cursor = at + 1;
    return true;
  }
  return false;
}

bool Traversal::enter(uint32_t ref) {
  if (seen_[ref] || def_.refs[ref].kind == Kind::Variable) return false;
  seen_[ref] = true;
  frames_.clear();
  path_.clear();
  item_ = def_.items.data();
  open(ref, false);
  return true;
}

void Traversal::open(uint32_t ref, bool in_callable) {
  const RefDef &def = def_.refs[ref];
  const NodeType *info = node_type(def_.ref_type(ref));
  frames_.push_back({ref, 0, def.n_children, 0, path_.size(), def_.constant(def.keys), info->transparent.ptr(), 0,
                     info->node_layout() != nullptr && info->node_layout()->int_keys, in_callable});
}

bool Traversal::expression(uint32_t at) {
  const Item &item = def_.items[at];
  item_ = &item;
  const bool in_callable = !frames_.empty() && frames_.back().in_callable;
  first_ = item.op == Op::Ref && !seen_[item.n] && !(in_callable && plain_[item.n]);
  if (item.op == Op::Ref) {
    if (!first_) return false;
    seen_[item.n] = true;
    if (def_.refs[item.n].kind == Kind::Variable) return false;
    // The parent continues after the reference, wherever the definition lies.
    if (!frames_.empty() && frames_.back().ref == kNone) frames_.back().cursor = at + 1;
    open(item.n, in_callable);
    return true;
  }
  if (!item.info().has_children) return false;
  uint8_t hide = 0;
  if (def_.root_kind == RootKind::Call && frames_.empty()) hide = 1;
  frames_.push_back({kNone, 0, item.n, at + 1, path_.size(), def_.child_keys(item), nullptr, hide, false,
                     in_callable || callable_of(item.op) != CallableKind::None});
  return true;
}

void Traversal::push_key(const Frame &frame, uint32_t child) {
  if (frame.hide != 0) return;
  if (frame.keys == nullptr) {
    path_.push_back(nb::int_(child));
    return;
  }
  PyObject *key = py::tuple_item(frame.keys, static_cast<Py_ssize_t>(child));
  if (is_transparent(key, frame.transparent)) return;
  path_.push_back(frame.int_keys ? index_or_name(key) : nb::borrow<nb::object>(key));
}

}  // namespace treadle
