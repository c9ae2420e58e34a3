#include "structure/graphdef.h"

#include <cstring>
#include <string>

#include "objects/cells.h"
#include "structure/paths.h"

namespace treadle {
namespace {

enum class Test : uint8_t { True, False, Type, Tag, Path, Any, All, Not, Call };

// A filter as a tree of tests. Invariant: `operands` is used by Any, All and Not only, `argument` by the others.
struct Filter {
  Test test = Test::False;
  nb::object argument;
  std::vector<Filter> operands;

  bool needs_path() const {
    if (test == Test::Path || test == Test::Call) return true;
    for (const Filter &operand : operands) {
      if (operand.needs_path()) return true;
    }
    return false;
  }
  // Matches may depend on values only through user predicates and through the types of bare arrays.
  bool depends_on_values() const {
    if (test == Test::Call) return true;
    for (const Filter &operand : operands) {
      if (operand.depends_on_values()) return true;
    }
    return false;
  }
};

// Filters nest as deep as people write them; the bound only keeps a made-up spec from exhausting the C stack.
constexpr int kMaxFilterDepth = 200;

Filter compile(nb::handle spec, int depth) {
  struct Name {
    const char *name;
    Test test;
  };
  static constexpr Name names[] = {{"true", Test::True}, {"false", Test::False}, {"type", Test::Type},
                                   {"tag", Test::Tag},   {"path", Test::Path},   {"any", Test::Any},
                                   {"all", Test::All},   {"not", Test::Not},     {"call", Test::Call}};
  if (depth > kMaxFilterDepth) throw nb::value_error("filter nested too deeply");
  if (!nb::isinstance<nb::tuple>(spec) || nb::len(spec) == 0 || !nb::isinstance<nb::str>(nb::object(spec[0]))) {
    throw nb::type_error("a compiled filter is a tuple that starts with a name");
  }
  nb::str kind = nb::str(nb::object(spec[0]));
  for (const Name &entry : names) {
    if (std::strcmp(entry.name, kind.c_str()) != 0) continue;
    Filter filter;
    filter.test = entry.test;
    if (entry.test == Test::True || entry.test == Test::False) return filter;
    if (nb::len(spec) != 2) throw nb::type_error("a compiled filter has one argument");
    filter.argument = spec[1];
    if (entry.test == Test::Not) filter.operands.push_back(compile(filter.argument, depth + 1));
    if (entry.test == Test::Any || entry.test == Test::All) {
      for (nb::handle operand : filter.argument) filter.operands.push_back(compile(operand, depth + 1));
    }
    if (entry.test == Test::Type && !PyType_Check(filter.argument.ptr())) {
      throw nb::type_error("a type filter needs a type");
    }
    return filter;
  }
  throw nb::type_error("unknown filter");
}

struct Leaf {
  PyTypeObject *type;  // Variable type, null for a bare array
  PyObject *metadata;  // null when empty
  nb::object path;     // null unless a filter needs it
  nb::object value;
};

bool is_true(const nb::object &object) {
  int result = PyObject_IsTrue(object.ptr());
  py::check_status(result);
  return result == 1;
}

// A Variable type of another library counts as treadle's type of the same meaning, too.
bool is_kind_of(PyTypeObject *type, PyTypeObject *wanted) {
  if (PyType_IsSubtype(type, wanted)) return true;
  const VariableLayout *layout = node_type(type)->variable_layout();
  return layout != nullptr && PyType_IsSubtype(py::as_type(layout->counterpart.ptr()), wanted);
}

bool matches(const Filter &filter, const Leaf &leaf) {
  switch (filter.test) {
    case Test::True:
      return true;
    case Test::False:
      return false;
    case Test::Type: {
      PyTypeObject *wanted = py::as_type(filter.argument.ptr());
      if (leaf.type != nullptr) return is_kind_of(leaf.type, wanted);
      int result = PyObject_IsInstance(leaf.value.ptr(), filter.argument.ptr());
      py::check_status(result);
      return result == 1;
    }
    case Test::Tag: {
      nb::object tag =
          nb::borrow<nb::object>(leaf.metadata != nullptr ? PyDict_GetItemString(leaf.metadata, "tag") : nullptr);
      return tag.is_valid() && py::equal(tag.ptr(), filter.argument.ptr());
    }
    case Test::Path: {
      int result = PySequence_Contains(leaf.path.ptr(), filter.argument.ptr());
      py::check_status(result);
      return result == 1;
    }
    case Test::Any:
      for (const Filter &operand : filter.operands) {
        if (matches(operand, leaf)) return true;
      }
      return false;
    case Test::All:
      for (const Filter &operand : filter.operands) {
        if (!matches(operand, leaf)) return false;
      }
      return true;
    case Test::Not:
      return !matches(filter.operands[0], leaf);
    case Test::Call: {
      nb::object seen = leaf.type == nullptr
                            ? leaf.value
                            : new_variable_state(py::as_object(leaf.type), leaf.value.ptr(), leaf.metadata);
      return is_true(filter.argument(leaf.path, seen));
    }
  }
  return false;
}

}  // namespace

nb::object partition(const GraphDef &def, nb::tuple filters, nb::handle leaves) {
  std::vector<Filter> compiled;
  bool paths_needed = false, cacheable = true;
  for (nb::handle spec : filters) {
    compiled.push_back(compile(spec, 0));
    paths_needed = paths_needed || compiled.back().needs_path();
    cacheable = cacheable && !compiled.back().depends_on_values();
  }
  for (uint32_t owner : def.leaf_owner) cacheable = cacheable && owner != kNone;
  if (cacheable && def.cache.partition.is_valid()) {
    nb::object known = py::dict_get(def.cache.partition.ptr(), filters.ptr());
    if (known.is_valid()) return known;
  }
  // Predicates may run any code: everything they could take away is held here.
  nb::object values = py::checked(PySequence_Tuple(leaves.ptr()));
  if (py::tuple_size(values.ptr()) != static_cast<Py_ssize_t>(def.n_leaves())) {
    throw nb::value_error("partition: one value per leaf is needed");
  }
  nb::object paths = paths_needed ? nb::object(leaf_paths(def)) : nb::object();
  nb::object result = py::checked(PyTuple_New(static_cast<Py_ssize_t>(def.n_leaves())));
  for (uint32_t i = 0; i < def.n_leaves(); ++i) {
    auto index = static_cast<Py_ssize_t>(i);
    Leaf leaf{py::as_type(def.leaf_type(i)), def.leaf_metadata(i), nb::object(),
              nb::borrow<nb::object>(py::tuple_item(values.ptr(), index))};
    if (paths_needed) leaf.path = nb::borrow<nb::object>(py::tuple_item(paths.ptr(), index));
    long group = -1;
    for (size_t f = 0; f < compiled.size() && group < 0; ++f) {
      if (matches(compiled[f], leaf)) group = static_cast<long>(f);
    }
    py::tuple_init(result.ptr(), index, py::checked(PyLong_FromLong(group)).release().ptr());
  }
  if (cacheable) {
    if (!def.cache.partition.is_valid()) def.cache.partition = nb::dict();
    py::check_status(PyDict_SetItem(def.cache.partition.ptr(), filters.ptr(), result.ptr()));
  }
  return result;
}

}  // namespace treadle
