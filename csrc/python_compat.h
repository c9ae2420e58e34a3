// The one header that knows CPython versions and the limited API.
//
// Everything else includes this file and uses the `py::` helpers below, which are macros where the full API offers them
// and function calls where only the stable ABI is available.
#pragma once

#include <nanobind/nanobind.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#if !defined(Py_LIMITED_API)
#include <structmember.h>
#endif

namespace nb = nanobind;

namespace treadle::py {

#if defined(Py_LIMITED_API)
inline PyObject *tuple_item(PyObject *tuple, Py_ssize_t i) { return PyTuple_GetItem(tuple, i); }
inline PyObject *list_item(PyObject *list, Py_ssize_t i) { return PyList_GetItem(list, i); }
inline Py_ssize_t tuple_size(PyObject *tuple) { return PyTuple_Size(tuple); }
inline Py_ssize_t list_size(PyObject *list) { return PyList_Size(list); }
inline Py_ssize_t dict_size(PyObject *dict) { return PyDict_Size(dict); }
inline void tuple_init(PyObject *tuple, Py_ssize_t i, PyObject *stolen) { PyTuple_SetItem(tuple, i, stolen); }
inline void list_init(PyObject *list, Py_ssize_t i, PyObject *stolen) { PyList_SetItem(list, i, stolen); }
#else
inline PyObject *tuple_item(PyObject *tuple, Py_ssize_t i) { return PyTuple_GET_ITEM(tuple, i); }
inline PyObject *list_item(PyObject *list, Py_ssize_t i) { return PyList_GET_ITEM(list, i); }
inline Py_ssize_t tuple_size(PyObject *tuple) { return PyTuple_GET_SIZE(tuple); }
inline Py_ssize_t list_size(PyObject *list) { return PyList_GET_SIZE(list); }
inline Py_ssize_t dict_size(PyObject *dict) { return PyDict_Size(dict); }
inline void tuple_init(PyObject *tuple, Py_ssize_t i, PyObject *stolen) { PyTuple_SET_ITEM(tuple, i, stolen); }
inline void list_init(PyObject *list, Py_ssize_t i, PyObject *stolen) { PyList_SET_ITEM(list, i, stolen); }
#endif

// Member descriptors were renamed in 3.12, when they joined the stable ABI.
#if defined(Py_T_PYSSIZET)
inline constexpr int kMemberSsize = Py_T_PYSSIZET;
inline constexpr int kMemberReadonly = Py_READONLY;
#else
inline constexpr int kMemberSsize = T_PYSSIZET;
inline constexpr int kMemberReadonly = READONLY;
#endif

#if defined(Py_TPFLAGS_HAVE_VECTORCALL)
inline constexpr unsigned long kHasVectorcall = Py_TPFLAGS_HAVE_VECTORCALL;
#else
inline constexpr unsigned long kHasVectorcall = 1UL << 11;
#endif

// Lets `instance.method(x)` reach the callable without a bound-method object in between.
inline constexpr unsigned long kMethodDescriptor = 1UL << 17;

inline Py_ssize_t vectorcall_nargs(size_t nargsf) {
  return static_cast<Py_ssize_t>(nargsf & ~(static_cast<size_t>(1) << (8 * sizeof(size_t) - 1)));
}

// Steals `object`; a null pointer becomes the pending Python exception.
inline nb::object checked(PyObject *object) {
  if (object == nullptr) throw nb::python_error();
  return nb::steal<nb::object>(object);
}

inline void check_status(int status) {
  if (status < 0) throw nb::python_error();
}

// `==`, where an exception is one.
inline bool equal(PyObject *a, PyObject *b) {
  int result = PyObject_RichCompareBool(a, b, Py_EQ);
  check_status(result);
  return result == 1;
}

// The instance dictionary of `object`. Owned by the object too, so the reference stays valid while the object lives.
inline nb::object instance_dict(PyObject *object) { return checked(PyObject_GenericGetDict(object, nullptr)); }

// A str as UTF-8. Unlike nanobind's conversion it can fail: that one ends the process when memory runs out.
inline std::string text(const nb::object &string) {
  nb::object encoded = checked(PyUnicode_AsEncodedString(string.ptr(), "utf-8", "backslashreplace"));
  return {PyBytes_AsString(encoded.ptr()), static_cast<size_t>(PyBytes_Size(encoded.ptr()))};
}

inline nb::object to_list(const std::vector<nb::object> &values) {
  nb::object list = checked(PyList_New(static_cast<Py_ssize_t>(values.size())));
  for (size_t i = 0; i < values.size(); ++i) {
    list_init(list.ptr(), static_cast<Py_ssize_t>(i), nb::object(values[i]).release().ptr());
  }
  return list;
}

inline bool is_exact(PyObject *object, PyTypeObject *type) { return Py_TYPE(object) == type; }

}  // namespace treadle::py
