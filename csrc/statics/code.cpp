#include "statics/code.h"

#include <string_view>
#include <utility>

#include "bounded_cache.h"
#include "hash.h"
#include "objects/packages.h"

namespace treadle {
namespace {

// What is remembered of code at most: a program has as many functions as it has.
constexpr size_t kMaxCodes = 4096;

// How code says that it imports or calls what leads to other variables.
struct Instructions {
  nb::object list = nb::module_::import_("dis").attr("get_instructions");
  int import_name = nb::cast<int>(nb::module_::import_("dis").attr("opmap")["IMPORT_NAME"]);

  // The second and third in bodies of classes.
  static bool loads_global(std::string_view operation) {
    return operation == "LOAD_GLOBAL" || operation == "LOAD_NAME" || operation == "LOAD_FROM_DICT_OR_GLOBALS";
  }

  static bool is_reaching(std::string_view name) {
    for (std::string_view known : {"globals", "locals", "vars", "eval", "exec", "__import__"}) {
      if (name == known) return true;
    }
    return false;
  }
};

const Instructions &instructions() { return py::made_once<Instructions>(); }

// Listing instructions takes long, and most code does nothing to list them for. One byte in two is an instruction.
bool is_to_be_listed(const nb::object &code) {
  nb::object bytes = code.attr("co_code");
  const char *text = PyBytes_AsString(bytes.ptr());
  if (text == nullptr) throw nb::python_error();
  for (Py_ssize_t i = 0; i < PyBytes_Size(bytes.ptr()); i += 2) {
    if (static_cast<unsigned char>(text[i]) == instructions().import_name) return true;
  }
  for (nb::handle name : nb::object(code.attr("co_names"))) {
    if (Instructions::is_reaching(py::text(nb::borrow<nb::object>(name)))) return true;
  }
  return false;
}

void collect_instructions(const nb::object &code, Names &names) {
  // An import follows the level of its package, 0 for absolute names, and the names that it takes.
  nb::object level = nb::none(), last = nb::none();
  for (nb::handle instruction : nb::object(instructions().list(code))) {
    const std::string operation = py::text(nb::object(instruction.attr("opname")));
    if (operation == "EXTENDED_ARG") continue;
    nb::object argument = instruction.attr("argval");
    if (operation == "IMPORT_NAME") {
      if (!level.equal(nb::int_(0)) || !is_constant_package(argument)) names.imports = true;
    } else if (Instructions::loads_global(operation) && Instructions::is_reaching(py::text(argument))) {
      names.reaching.push_back(argument);
    }
    level = std::exchange(last, argument);
  }
}

void collect_names(const nb::object &code, Names &names) {
  nb::object code_type = py::type_of(code);
  std::vector<nb::object> waiting{code};
  while (!waiting.empty()) {
    nb::object next = std::move(waiting.back());
    waiting.pop_back();
    for (nb::handle name : nb::object(next.attr("co_names"))) {
      names.globals.push_back(nb::borrow<nb::object>(name));
    }
    if (is_to_be_listed(next)) collect_instructions(next, names);
    for (nb::handle constant : nb::object(next.attr("co_consts"))) {
      // Code of functions that are defined inside.
      if (constant.type().is(code_type)) waiting.push_back(nb::borrow<nb::object>(constant));
    }
  }
}

}  // namespace

std::shared_ptr<const Names> names_read(const nb::object &globals, const nb::object &code) {
  static auto *known = new BoundedCache<Names>(kMaxCodes);
  const size_t hash = pointer_hash(code.ptr());
  if (auto found = known->find(hash, [&](const Names &names) { return names.code.is(code); })) return found;
  auto read = std::make_shared<Names>();
  read->code = code;
  nb::object module = py::dict_get(globals.ptr(), py::intern("__name__").ptr());
  if (!module.is_valid() || !is_constant_package(module)) collect_names(code, *read);
  known->add(hash, read);
  return read;
}

}  // namespace treadle
