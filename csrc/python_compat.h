// The one header that knows CPython versions and the limited API.
//
// Everything else includes this file and uses the `py::` helpers below, which are macros where the full API offers them
// and function calls where only the stable ABI is available.
#pragma once

#include <nanobind/nanobind.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
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

// ---- Types and objects ---------------------------------------------------------------------------------------------

inline PyObject *as_object(PyTypeObject *type) { return reinterpret_cast<PyObject *>(type); }
inline PyTypeObject *as_type(PyObject *type) { return reinterpret_cast<PyTypeObject *>(type); }
inline bool is_exact(PyObject *object, PyTypeObject *type) { return Py_TYPE(object) == type; }
inline bool has_type(PyObject *object, PyObject *type) { return Py_TYPE(object) == as_type(type); }
inline nb::object type_object(PyTypeObject *type) { return nb::borrow<nb::object>(as_object(type)); }
inline nb::object type_of(nb::handle object) { return type_object(Py_TYPE(object.ptr())); }
// Of a class whose metaclass may say something else than a str.
inline std::string type_name(PyTypeObject *type) {
  nb::object name = checked(PyObject_GetAttrString(as_object(type), "__name__"));
  return text(checked(PyObject_Str(name.ptr())));
}

template <typename Slot>
Slot type_slot(PyTypeObject *type, int id) {
  return reinterpret_cast<Slot>(PyType_GetSlot(type, id));
}

template <typename T>
PyType_Slot slot(int id, T *value) {
  return {id, reinterpret_cast<void *>(value)};
}

// For types that are laid out here: instances with their fields null, and what ends a deallocator.
inline PyObject *allocate(PyTypeObject *type) {
  PyObject *self = type_slot<allocfunc>(type, Py_tp_alloc)(type, 0);
  if (self == nullptr) throw nb::python_error();
  return self;
}
inline void free_instance(PyObject *self) {
  PyTypeObject *type = Py_TYPE(self);
  type_slot<freefunc>(type, Py_tp_free)(self);
  Py_DECREF(type);
}

// For `tp_traverse`: the type, and what the instance owns (null or not).
template <typename... Owned>
int visit_all(PyObject *self, visitproc visit, void *arg, Owned... owned) {
  int stopped = visit(as_object(Py_TYPE(self)), arg);
  ((stopped = stopped == 0 && owned != nullptr ? visit(owned, arg) : stopped), ...);
  return stopped;
}

// Puts a type that is laid out here into the module, for the life of the interpreter.
inline PyTypeObject *add_type(nb::module_ &m, PyType_Spec &spec, const char *name) {
  nb::object type = checked(PyType_FromSpec(&spec));
  m.attr(name) = type;
  return as_type(type.release().ptr());
}

// A module's plain C function, where argument conversion would cost too much.
inline void add_function(nb::module_ &m, PyMethodDef &method) {
  nb::object module_name = m.attr("__name__");
  m.attr(method.ml_name) = checked(PyCFunction_NewEx(&method, nullptr, module_name.ptr()));
}

// A function that pickles name, by module and name: its public place, which imports it from `attribute` here.
inline void add_unpickling(nb::module_ &m, PyMethodDef &method, const char *attribute) {
  nb::str module_name("treadle.pickles");
  m.attr(attribute) = checked(PyCFunction_NewEx(&method, nullptr, module_name.ptr()));
}

// ---- Constants that Python makes -----------------------------------------------------------------------------------

// Made when first asked for, never freed. Making it runs Python: the lock of a static variable would be held while
// another thread runs, which might wait for it with the interpreter's own lock in hand.
template <typename T>
const T &made_once() {
  static const T *made = nullptr;
  if (made == nullptr) {
    auto fresh = std::make_unique<const T>();
    if (made == nullptr) made = fresh.release();
  }
  return *made;
}

// ---- Names ---------------------------------------------------------------------------------------------------------

inline nb::object intern(const char *name) { return checked(PyUnicode_InternFromString(name)); }
// A name as it is found in dicts by its pointer; what is no exact str, or null, as it is.
inline nb::object interned(nb::object name) {
  PyObject *owned = name.release().ptr();
  if (owned != nullptr && PyUnicode_CheckExact(owned)) PyUnicode_InternInPlace(&owned);
  return nb::steal<nb::object>(owned);
}

// ---- Containers ----------------------------------------------------------------------------------------------------

// What a dict has under `key`; null if nothing.
inline nb::object dict_get(PyObject *dict, PyObject *key) {
  PyObject *found = PyDict_GetItemWithError(dict, key);
  if (found == nullptr && PyErr_Occurred()) throw nb::python_error();
  return nb::borrow<nb::object>(found);
}

// The entries of a dict in its order, borrowed. A loop over them that changes the dict misses some.
class DictItems {
 public:
  explicit DictItems(PyObject *dict) : dict_(dict) {}
  struct End {};
  class Iterator {
   public:
    explicit Iterator(PyObject *dict) : dict_(dict) { ++*this; }
    std::pair<PyObject *, PyObject *> operator*() const { return {key_, value_}; }
    Iterator &operator++() {
      more_ = PyDict_Next(dict_, &position_, &key_, &value_) != 0;
      return *this;
    }
    bool operator!=(End) const { return more_; }

   private:
    PyObject *dict_, *key_ = nullptr, *value_ = nullptr;
    Py_ssize_t position_ = 0;
    bool more_ = false;
  };
  Iterator begin() const { return Iterator(dict_); }
  End end() const { return {}; }

 private:
  PyObject *dict_;
};

inline nb::object to_list(const std::vector<nb::object> &values) {
  nb::object list = checked(PyList_New(static_cast<Py_ssize_t>(values.size())));
  for (size_t i = 0; i < values.size(); ++i) {
    list_init(list.ptr(), static_cast<Py_ssize_t>(i), nb::object(values[i]).release().ptr());
  }
  return list;
}

inline nb::tuple to_tuple(std::vector<nb::object> values) {
  nb::object tuple = checked(PyTuple_New(static_cast<Py_ssize_t>(values.size())));
  for (size_t i = 0; i < values.size(); ++i) {
    tuple_init(tuple.ptr(), static_cast<Py_ssize_t>(i), values[i].release().ptr());
  }
  return nb::steal<nb::tuple>(tuple.release());
}

inline std::vector<nb::object> to_objects(nb::handle iterable) {
  std::vector<nb::object> result;
  for (nb::handle item : iterable) result.push_back(nb::borrow<nb::object>(item));
  return result;
}

}  // namespace treadle::py
