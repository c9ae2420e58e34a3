#include "graph/holders.h"

#include <vector>

#include "objects/node_types.h"
#include "objects/packages.h"
#include "settings.h"
#include "statics/code.h"

namespace treadle {
namespace {

// Objects looked at for one static: each walk does it again.
constexpr size_t kMaxObjects = 1000;

struct Names {
  nb::object closure = py::intern("__closure__"), defaults = py::intern("__defaults__"),
             keyword_defaults = py::intern("__kwdefaults__"), dict = py::intern("__dict__"),
             code = py::intern("__code__"), globals = py::intern("__globals__"), cell = py::intern("cell_contents"),
             free_variables = py::intern("co_freevars"), variables = py::intern("co_varnames"),
             n_arguments = py::intern("co_argcount");
};

const Names &names() { return py::made_once<Names>(); }

nb::object get(const nb::object &object, const nb::object &name) {
  return py::checked(PyObject_GetAttr(object.ptr(), name.ptr()));
}

// Invariant: all that was met is owned, so that addresses stay theirs.
class Search {
 public:
  explicit Search(const IdTable &ids) : ids_(ids) {}

  std::optional<HeldNode> run(const nb::object &value) {
    add(value, "");
    for (size_t i = 0; i < met_.size() && met_.size() < kMaxObjects; ++i) {
      HeldNode at = met_[i];
      if (ids_.find(at.node.ptr()) != IdTable::kAbsent) return at;
      open(at);
    }
    return std::nullopt;
  }

 private:
  void add(const nb::object &value, const std::string &name) {
    if (may_hold_node(value.ptr()) && seen_.insert(value.ptr(), 0).second) met_.push_back({value, name});
  }

  // Names that lead to the value itself are those that its author knows.
  std::string name_of(nb::handle name, const HeldNode &holder) const {
    const bool is_first = met_.front().node.is(holder.node);
    return is_first && name.is_valid() && nb::isinstance<nb::str>(name) ? py::text(nb::borrow<nb::object>(name))
                                                                        : holder.name;
  }

  void open(const HeldNode &at) {
    const NodeType *info = known_type(Py_TYPE(at.node.ptr()));
    if (info != nullptr && (is_reference(info->kind) || info->kind == Kind::Array)) return;
    if (at.node.type().is(settings().function_type)) return function(at);
    if (py::is_exact(at.node.ptr(), &PyDict_Type)) return items(at.node, at);
    // What known packages make of functions refers to the package's own books, too.
    const Package *package = package_of(py::type_of(at.node));
    if (package == nullptr || package->stateless != Stateless::All) return referents(at);
    nb::object attributes = nb::getattr(at.node, names().dict, nb::none());
    if (py::is_exact(attributes.ptr(), &PyDict_Type)) return items(attributes, at);
    referents(at);
  }

  void items(const nb::object &dict, const HeldNode &holder) {
    for (auto [key, value] : py::DictItems(dict.ptr())) {
      add(nb::borrow<nb::object>(value), name_of(key, holder));
      if (met_.size() >= kMaxObjects) return;
    }
  }

  void function(const HeldNode &at) {
    nb::object code = get(at.node, names().code), closure = get(at.node, names().closure),
               defaults = get(at.node, names().defaults), keyword_defaults = get(at.node, names().keyword_defaults);
    nb::object free_variables = get(code, names().free_variables);
    for (Py_ssize_t i = 0; !closure.is_none() && i < py::tuple_size(closure.ptr()); ++i) {
      nb::object cell = nb::borrow<nb::object>(py::tuple_item(closure.ptr(), i));
      nb::object content = nb::getattr(cell, names().cell, nb::object());
      if (content.is_valid()) add(content, name_of(py::tuple_item(free_variables.ptr(), i), at));
    }
    if (!defaults.is_none()) {
      nb::object variables = get(code, names().variables);
      const auto first = nb::cast<Py_ssize_t>(get(code, names().n_arguments)) - py::tuple_size(defaults.ptr());
      for (Py_ssize_t i = 0; i < py::tuple_size(defaults.ptr()); ++i) {
        add(nb::borrow<nb::object>(py::tuple_item(defaults.ptr(), i)),
            name_of(first < 0 ? nb::handle() : nb::handle(py::tuple_item(variables.ptr(), first + i)), at));
      }
    }
    if (!keyword_defaults.is_none()) items(keyword_defaults, at);
    items(get(at.node, names().dict), at);
    // Other globals would lead everywhere.
    nb::object globals = get(at.node, names().globals);
    for (const nb::object &name : names_read(globals, code)->globals) {
      nb::object found = py::dict_get(globals.ptr(), name.ptr());
      if (found.is_valid() && ids_.find(found.ptr()) != IdTable::kAbsent) add(found, name_of(name, at));
    }
  }

  // What the garbage collector knows of an object, its attributes by name.
  void referents(const HeldNode &at) {
    PyObject *object = at.node.ptr();
    std::vector<nb::object> found;
    auto traverse = py::type_slot<traverseproc>(Py_TYPE(object), Py_tp_traverse);
    if (traverse == nullptr) return;
    traverse(
        object,
        [](PyObject *referent, void *held) {
          static_cast<std::vector<nb::object> *>(held)->push_back(nb::borrow<nb::object>(referent));
          return 0;
        },
        &found);
    nb::object attributes = nb::getattr(at.node, names().dict, nb::none());
    if (py::is_exact(attributes.ptr(), &PyDict_Type)) items(attributes, at);
    for (const nb::object &referent : found) add(referent, at.name);
  }

  const IdTable &ids_;
  std::vector<HeldNode> met_;
  IdTable seen_;
};

}  // namespace

bool may_hold_node(PyObject *value) {
  if ((PyType_GetFlags(Py_TYPE(value)) & Py_TPFLAGS_HAVE_GC) == 0) return false;
  return !PyType_Check(value) && PyObject_TypeCheck(value, &PyModule_Type) == 0;
}

std::optional<HeldNode> node_held_by(const nb::object &value, const IdTable &ids) { return Search(ids).run(value); }

}  // namespace treadle
