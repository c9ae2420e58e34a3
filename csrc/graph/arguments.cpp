#include "graph/arguments.h"

#include <algorithm>
#include <utility>

#include "bindings.h"

namespace treadle {

bool StaticArguments::has_position(size_t i) const {
  return std::binary_search(positions.begin(), positions.end(), static_cast<uint32_t>(i));
}

bool StaticArguments::has_name(PyObject *name) const {
  for (const nb::object &known : names) {
    if (known.ptr() == name || py::equal(known.ptr(), name)) return true;
  }
  return false;
}

StaticArguments static_arguments(nb::handle positions, nb::handle names) {
  StaticArguments statics;
  for (nb::handle position : positions) statics.positions.push_back(nb::cast<uint32_t>(position));
  std::sort(statics.positions.begin(), statics.positions.end());
  statics.names = py::to_objects(names);
  return statics;
}

Flat flatten_arguments(PyObject *const *values, size_t n_positional, PyObject *keyword_names,
                       const StaticArguments &statics) {
  Walker walker;
  graphdef_of(walker.graphdef).root_kind = RootKind::Call;
  size_t n_keywords = keyword_names != nullptr ? static_cast<size_t>(py::tuple_size(keyword_names)) : 0;
  walker.root_container(Op::Tuple, 2, nb::object());
  walker.root_container(Op::Tuple, static_cast<uint32_t>(n_positional), nb::object());
  auto add = [&](PyObject *value, bool is_static, const nb::object &label) {
    nb::object prefix = nb::make_tuple(label);
    if (is_static) {
      walker.root_static(value, prefix);
    } else {
      walker.root(value, Outside::Call, prefix);
    }
  };
  for (size_t i = 0; i < n_positional; ++i) add(values[i], statics.has_position(i), nb::int_(i));
  std::vector<std::pair<PyObject *, PyObject *>> keywords;
  for (size_t i = 0; i < n_keywords; ++i) {
    keywords.emplace_back(py::tuple_item(keyword_names, static_cast<Py_ssize_t>(i)), values[n_positional + i]);
  }
  std::sort(keywords.begin(), keywords.end(),
            [](const auto &a, const auto &b) { return PyUnicode_Compare(a.first, b.first) < 0; });
  std::vector<nb::object> names;
  for (const auto &[name, value] : keywords) names.push_back(nb::borrow<nb::object>(name));
  walker.root_container(Op::Dict, static_cast<uint32_t>(n_keywords), py::to_tuple(std::move(names)));
  for (const auto &[name, value] : keywords) add(value, statics.has_name(name), nb::borrow<nb::object>(name));
  return walker.take();
}

UnpackedCall::UnpackedCall(nb::handle args, nb::handle kwargs)
    : positional_(py::checked(PySequence_Tuple(args.ptr()))), keywords_(py::checked(PyDict_New())) {
  py::check_status(PyDict_Update(keywords_.ptr(), kwargs.ptr()));
  n_positional = static_cast<size_t>(py::tuple_size(positional_.ptr()));
  for (size_t i = 0; i < n_positional; ++i) {
    values.push_back(py::tuple_item(positional_.ptr(), static_cast<Py_ssize_t>(i)));
  }
  nb::list names;
  for (auto [key, value] : py::DictItems(keywords_.ptr())) {
    if (!PyUnicode_Check(key)) throw nb::type_error("keyword names must be strings");
    names.append(nb::borrow<nb::object>(key));
    values.push_back(value);
  }
  keyword_names = nb::tuple(names);
}

void bind_arguments(nb::module_ &m) {
  m.def(
      "flatten_call",
      [](nb::handle args, nb::handle kwargs, nb::handle static_argnums, nb::handle static_argnames) {
        UnpackedCall call(args, kwargs);
        return flatten_arguments(call.values.data(), call.n_positional, call.keyword_names.ptr(),
                                 static_arguments(static_argnums, static_argnames));
      },
      nb::arg("args"), nb::arg("kwargs"), nb::arg("static_argnums"), nb::arg("static_argnames"));
}

}  // namespace treadle
