#include "objects/transaction.h"

#include "objects/cells.h"

namespace treadle {
namespace {

// Of two dicts with the same keys.
bool same_order(PyObject *dict, PyObject *other) {
  PyObject *key = nullptr, *value = nullptr;
  Py_ssize_t position = 0;
  for (auto [known, held] : py::DictItems(dict)) {
    if (!PyDict_Next(other, &position, &key, &value) || key != known) return false;
  }
  return true;
}

}  // namespace

Transaction::~Transaction() {
  if (done_) return;
  nb::error_scope pending;
  for (auto change = changes_.rbegin(); change != changes_.rend(); ++change) undo(*change);
}

void Transaction::set_value(PyObject *variable, PyObject *value) {
  if (const VariableLayout *layout = node_type(Py_TYPE(variable))->variable_layout()) {
    set_slot(variable, layout->value, value);
  } else {
    swap(variable, as_cell(variable)->value, value);
  }
}

void Transaction::set_metadata(PyObject *variable, PyObject *metadata) {
  if (const VariableLayout *layout = node_type(Py_TYPE(variable))->variable_layout()) {
    set_slot(variable, layout->metadata, own_metadata(metadata).ptr());
  } else {
    swap(variable, as_cell(variable)->metadata, metadata);
  }
}

void Transaction::set_marks(const nb::object &node, const NodeLayout &layout, PyObject *marks) {
  nb::object value = marks != nullptr ? layout.marks_from(marks) : nb::object();
  set_item(py::instance_dict(node.ptr()), layout.marks_name.ptr(), value.ptr());
}

void Transaction::set_slot(PyObject *owner, const Slot &slot, PyObject *value) {
  Change &change = changes_.emplace_back();
  change.owner = nb::borrow<nb::object>(owner);
  change.key = slot.descriptor();
  change.old = slot.get(owner);
  change.in_slot = true;
  slot.set(owner, value);
}

void Transaction::set_item(const nb::object &dict, PyObject *key, PyObject *value) {
  Change change{nullptr, dict, nb::borrow<nb::object>(key), py::dict_get(dict.ptr(), key), nb::object()};
  if (value == nullptr) change.items = py::checked(PyDict_Copy(dict.ptr()));
  changes_.push_back(change);
  py::check_status(value != nullptr ? PyDict_SetItem(dict.ptr(), key, value) : PyDict_DelItem(dict.ptr(), key));
}

void Transaction::set_order(const nb::object &dict, PyObject *keys, const NodeLayout *layout) {
  nb::object before = py::checked(PyDict_Copy(dict.ptr())), after = py::checked(PyDict_New());
  for (auto [key, value] : py::DictItems(before.ptr())) {
    if (layout != nullptr && layout->hides(key)) py::check_status(PyDict_SetItem(after.ptr(), key, value));
  }
  for (Py_ssize_t i = 0; i < py::tuple_size(keys); ++i) {
    nb::object value = py::dict_get(before.ptr(), py::tuple_item(keys, i));
    if (value.is_valid()) py::check_status(PyDict_SetItem(after.ptr(), py::tuple_item(keys, i), value.ptr()));
  }
  // Another thread may have put something there that the call knows nothing of.
  py::check_status(PyDict_Merge(after.ptr(), before.ptr(), 0));
  if (same_order(before.ptr(), after.ptr())) return;
  Change &change = changes_.emplace_back();
  change.owner = dict;
  change.items = before;
  // Nothing is released: both copies hold all of it.
  PyDict_Clear(dict.ptr());
  py::check_status(PyDict_Update(dict.ptr(), after.ptr()));
}

void Transaction::set_custom(const NodeType *type, const nb::object &node, PyObject *key, PyObject *old,
                             PyObject *value) {
  nb::object name = nb::borrow<nb::object>(key);
  Change change{nullptr, node, name, nb::borrow<nb::object>(old), nb::object()};
  change.custom = type;
  changes_.push_back(change);
  if (value != nullptr) {
    type->set_key(node, name, nb::borrow<nb::object>(value));
  } else {
    type->pop_key(node, name);
  }
}

void Transaction::undo(Change &change) noexcept {
  try {
    if (change.slot != nullptr) {
      nb::object current = nb::steal<nb::object>(*change.slot);
      *change.slot = change.old.release().ptr();
    } else if (change.in_slot) {
      change.key.attr("__set__")(change.owner, change.old);
    } else if (change.custom != nullptr) {
      if (change.old.is_valid()) {
        change.custom->set_key(change.owner, change.key, change.old);
      } else {
        change.custom->pop_key(change.owner, change.key);
      }
    } else if (change.items.is_valid()) {
      PyDict_Clear(change.owner.ptr());
      PyDict_Update(change.owner.ptr(), change.items.ptr());
    } else if (change.old.is_valid()) {
      PyDict_SetItem(change.owner.ptr(), change.key.ptr(), change.old.ptr());
    } else {
      PyDict_DelItem(change.owner.ptr(), change.key.ptr());
    }
  } catch (const std::exception &) {
  }
  // The error that made the change fail is the one to report.
  PyErr_Clear();
}

}  // namespace treadle
