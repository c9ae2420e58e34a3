// Classes bound by nanobind whose instances hold references.
#pragma once

#include <utility>

#include "errors.h"

namespace treadle {

// The Python side of `T`, which says what it holds by `traverse`, and lets go of it in `clear` where cycles may not be
// broken elsewhere. Invariant: `type` is set by `bind`, once, and never freed.
template <typename T>
class Bound {
 public:
  static nb::class_<T> bind(nb::module_ &m, const char *name) {
    static PyType_Slot slots[] = {py::slot(Py_tp_traverse, traverse), py::slot(Py_tp_clear, clear), {0, nullptr}};
    nb::class_<T> bound(m, name, nb::type_slots(slots), nb::is_final());
    type = nb::object(bound).release().ptr();
    return bound;
  }

  template <typename... Arguments>
  static nb::object make(Arguments &&...arguments) {
    nb::object object = nb::inst_alloc(type);
    new (nb::inst_ptr<T>(object)) T{std::forward<Arguments>(arguments)...};
    nb::inst_mark_ready(object);
    return object;
  }

  static bool is(nb::handle object) { return py::has_type(object.ptr(), type); }

  static T &of(nb::handle object) {
    if (!is(object) || !nb::inst_ready(object)) raise_expected(type);
    return *nb::inst_ptr<T>(object);
  }

 private:
  static int traverse(PyObject *self, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(self));
    return nb::inst_ready(self) ? nb::inst_ptr<T>(self)->traverse(visit, arg) : 0;
  }

  static int clear(PyObject *self) {
    if constexpr (requires(T &held) { held.clear(); }) {
      if (nb::inst_ready(self)) nb::inst_ptr<T>(self)->clear();
    }
    return 0;
  }

  static inline PyObject *type = nullptr;
};

}  // namespace treadle
