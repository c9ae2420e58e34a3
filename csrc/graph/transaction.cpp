#include "graph/transaction.h"

#include "settings.h"

namespace weft {

void check_owner(const nb::object &object, const nb::object &trace) {
  const NodeType *info = node_type(Py_TYPE(object.ptr()));
  PyObject *owner = info->kind == Kind::Variable ? as_cell(object.ptr())->trace
                    : info->kind == Kind::Object ? as_node(object.ptr())->trace
                                                 : nullptr;
  if (owner != nullptr && owner != trace.ptr()) check_trace(owner, object.ptr());
}

Transaction::~Transaction() {
  if (done_) return;
  nb::error_scope pending;
  for (auto change = changes_.rbegin(); change != changes_.rend(); ++change) undo(*change);
}

void Transaction::set_item(const nb::object &dict, PyObject *key, PyObject *value) {
  PyObject *old = PyDict_GetItemWithError(dict.ptr(), key);
  if (old == nullptr && PyErr_Occurred()) throw nb::python_error();
  Change change{nullptr, dict, nb::borrow<nb::object>(key), nb::borrow<nb::object>(old), nb::object()};
  if (value == nullptr) change.items = py::checked(PyDict_Copy(dict.ptr()));
  changes_.push_back(change);
  py::check_status(value != nullptr ? PyDict_SetItem(dict.ptr(), key, value) : PyDict_DelItem(dict.ptr(), key));
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
    } else if (change.custom != nullptr) {
      if (change.old.is_valid()) {
        change.custom->set_key(change.owner, change.key, change.old);
      } else {
        change.custom->pop_key(change.owner, change.key);
      }
    } else if (change.items.is_valid()) {
      PyDict_Clear(change.owner.ptr());
      if (PyDict_Update(change.owner.ptr(), change.items.ptr()) < 0) PyErr_Clear();
    } else if (change.old.is_valid()) {
      PyDict_SetItem(change.owner.ptr(), change.key.ptr(), change.old.ptr());
    } else if (PyDict_DelItem(change.owner.ptr(), change.key.ptr()) < 0) {
      PyErr_Clear();
    }
  } catch (const std::exception &) {
    // The error that made the change fail is the one to report.
  }
}

}  // namespace weft
