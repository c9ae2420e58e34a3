#include "statics/definitions.h"

#include "bindings.h"
#include "id_table.h"
#include "objects/node_types.h"
#include "objects/packages.h"

namespace treadle {
namespace {

// Classes of nodes, each once.
class Classes {
 public:
  std::vector<nb::object> below(const nb::object &root) {
    add(root);
    while (!open_.empty()) {
      nb::object items = std::move(open_.back());
      open_.pop_back();
      for (Py_ssize_t i = 0; i < py::list_size(items.ptr()); ++i)
        add(nb::borrow<nb::object>(py::list_item(items.ptr(), i)));
    }
    return std::move(found_);
  }

 private:
  // Items are copied: classifying types never met runs code.
  void add(const nb::object &value) {
    const Kind kind = classify(value.ptr())->kind;
    const bool is_sequence = kind == Kind::Tuple || kind == Kind::NamedTuple || kind == Kind::List;
    if (kind != Kind::Object && kind != Kind::Dict && !is_sequence) return;
    if (!met_.insert(value.ptr(), 0).second) return;
    kept_.push_back(value);
    if (is_sequence) return open_.push_back(py::checked(PySequence_List(value.ptr())));
    nb::object dict = kind == Kind::Dict ? value : py::instance_dict(value.ptr());
    open_.push_back(py::checked(PyDict_Values(dict.ptr())));
    if (kind == Kind::Object && types_.insert(py::as_object(Py_TYPE(value.ptr())), 0).second)
      found_.push_back(py::type_of(value));
  }

  IdTable met_, types_;
  std::vector<nb::object> found_, open_;
  std::vector<nb::object> kept_;  // so that their addresses stay theirs
};

bool is_special(const nb::object &name) { return nb::isinstance<nb::str>(name) && py::text(name).starts_with("__"); }

}  // namespace

nb::object definitions_below(const nb::object &root) {
  std::vector<nb::object> defined;
  IdTable met;
  for (const nb::object &type : Classes().below(root)) {
    for (nb::handle base : nb::object(type.attr("__mro__"))) {
      nb::object held = nb::borrow<nb::object>(base);
      if (!met.insert(held.ptr(), 0).second || package_of(held) != nullptr) continue;
      nb::object entries = held.attr("__dict__");
      nb::object names = py::checked(PyMapping_Keys(entries.ptr())),
                 values = py::checked(PyMapping_Values(entries.ptr()));
      for (Py_ssize_t i = 0; i < py::list_size(names.ptr()) && i < py::list_size(values.ptr()); ++i) {
        nb::object name = nb::borrow<nb::object>(py::list_item(names.ptr(), i));
        nb::object value = nb::borrow<nb::object>(py::list_item(values.ptr(), i));
        // What else is special is made with the class, or on the way.
        if (PyCallable_Check(value.ptr()) == 0 && is_special(name)) continue;
        defined.push_back(std::move(name));
        defined.push_back(std::move(value));
      }
    }
  }
  return py::to_tuple(std::move(defined));
}

void bind_definitions(nb::module_ &m) { m.def("definitions_below", &definitions_below, nb::arg("root")); }

}  // namespace treadle
