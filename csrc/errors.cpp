#include "errors.h"

#include <new>
#include <stdexcept>
#include <typeinfo>

namespace treadle {
namespace {

PyObject *type_of(nb::exception_type type) {
  switch (type) {
    case nb::exception_type::stop_iteration:
      return PyExc_StopIteration;
    case nb::exception_type::index_error:
      return PyExc_IndexError;
    case nb::exception_type::key_error:
      return PyExc_KeyError;
    case nb::exception_type::value_error:
      return PyExc_ValueError;
    case nb::exception_type::buffer_error:
      return PyExc_BufferError;
    case nb::exception_type::import_error:
      return PyExc_ImportError;
    case nb::exception_type::attribute_error:
      return PyExc_AttributeError;
    default:
      return PyExc_TypeError;
  }
}

}  // namespace

void set_pending_error() {
  try {
    throw;
  } catch (nb::python_error &error) {
    error.restore();
  } catch (const nb::builtin_exception &error) {
    PyErr_SetString(type_of(error.type()), error.what());
  } catch (const std::bad_alloc &) {
    PyErr_NoMemory();
  } catch (const std::bad_cast &) {
    PyErr_SetString(PyExc_TypeError, "an argument has the wrong type, or is out of range");
  } catch (const std::out_of_range &error) {
    PyErr_SetString(PyExc_IndexError, error.what());
  } catch (const std::exception &error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
}

void raise_expected(PyObject *type) {
  throw nb::type_error(("expected a " + py::type_name(py::as_type(type))).c_str());
}

}  // namespace treadle
