#include "statics/code.h"

#include <algorithm>
#include <string_view>
#include <utility>

#include "bounded_cache.h"
#include "hash.h"
#include "objects/packages.h"

namespace treadle {
namespace {

// What is remembered of code at most: a program has as many functions as it has.
constexpr size_t kMaxCodes = 4096;

// How code says that it imports or looks up variables. One byte in two is an instruction, the other its argument.
struct Instructions {
  nb::object list = nb::module_::import_("dis").attr("get_instructions");
  int import_name = number("IMPORT_NAME"), extended = number("EXTENDED_ARG"), load_global = number("LOAD_GLOBAL");
  int cache = number("CACHE"), load_attribute = number("LOAD_ATTR"), load_method = number("LOAD_METHOD");
  // From 3.12 on the lowest bit of the argument says whether it is a method.
  int attribute_shift = nb::module_::import_("sys").attr("version_info") < nb::make_tuple(3, 12) ? 0 : 1;
  // In bodies of classes.
  int load_name = number("LOAD_NAME"), load_below = number("LOAD_FROM_DICT_OR_GLOBALS");
  // What the arguments of later versions mean is not known: there, each name may be a variable.
  bool are_known = nb::module_::import_("sys").attr("version_info") < nb::make_tuple(3, 14);

  static int number(const char *name) {
    nb::object found = nb::module_::import_("dis").attr("opmap").attr("get")(name, -1);
    return nb::cast<int>(found);
  }
};

const Instructions &instructions() { return py::made_once<Instructions>(); }

// Listing instructions takes long, and most code imports nothing.
void collect_imports(const nb::object &code, Names &names) {
  // An import follows the level of its package, 0 for absolute names, and the names that it takes.
  nb::object level = nb::none(), last = nb::none(), package = nb::str("");
  for (nb::handle instruction : nb::object(instructions().list(code))) {
    const std::string operation = py::text(nb::object(instruction.attr("opname")));
    if (operation == "EXTENDED_ARG") continue;
    nb::object argument = instruction.attr("argval");
    if (operation == "IMPORT_NAME" && (!level.equal(nb::int_(0)) || !is_constant_package(argument)))
      names.imports = true;
    // What is taken from a package may be an inner one without constants, which has a row of its own.
    if (operation == "IMPORT_NAME") package = argument;
    if (operation == "IMPORT_FROM" &&
        !is_constant_package(nb::str((py::text(package) + "." + py::text(argument)).c_str())))
      names.imports = true;
    level = std::exchange(last, argument);
  }
}

// What a code object does with globals, instruction by instruction.
class Loads {
 public:
  explicit Loads(std::vector<nb::object> names)
      : names_(std::move(names)), is_variable_(names_.size(), !instructions().are_known) {}

  void next(int operation, size_t argument) {
    const Instructions &known = instructions();
    if (operation == known.cache || operation == known.extended) return;
    const bool is_attribute = operation == known.load_attribute;
    if ((is_attribute || operation == known.load_method) && !chain_.empty()) {
      const size_t at = is_attribute ? argument >> known.attribute_shift : argument;
      if (at < names_.size()) chain_.push_back(at);
      return;
    }
    end();
    const bool is_global = operation == known.load_global;
    if (!is_global && operation != known.load_name && operation != known.load_below) return;
    const size_t at = is_global ? argument >> 1 : argument;
    if (at >= names_.size()) return;
    is_variable_[at] = true;
    chain_.push_back(at);
  }

  void add_to(Names &names) {
    end();
    for (const std::vector<size_t> &chain : chains_) {
      if (chain.size() == 1) names.whole.push_back(names_[chain[0]]);
      std::vector<nb::object> dotted;
      for (size_t at : chain) dotted.push_back(names_[at]);
      if (chain.size() > 1) names.dotted.push_back(std::move(dotted));
    }
    for (size_t i = 0; i < names_.size(); ++i) {
      if (!instructions().are_known) names.whole.push_back(names_[i]);
      if (is_variable_[i] && is_effectful_builtin(py::text(names_[i]))) names.reaching.push_back(names_[i]);
      (is_variable_[i] ? names.globals : names.attributes).push_back(names_[i]);
    }
    for (const std::vector<nb::object> &dotted : names.dotted) {
      for (size_t i = 1; i < dotted.size(); ++i) names.attributes.push_back(dotted[i]);
    }
  }

 private:
  void end() {
    if (!chain_.empty() && std::find(chains_.begin(), chains_.end(), chain_) == chains_.end())
      chains_.push_back(chain_);
    chain_.clear();
  }

  std::vector<nb::object> names_;
  std::vector<bool> is_variable_;
  std::vector<std::vector<size_t>> chains_;
  std::vector<size_t> chain_;  // the global that was loaded last, and the attributes that were taken of it
};

void collect_loads(const nb::object &code, Names &names) {
  const Instructions &known = instructions();
  nb::object bytes = code.attr("co_code");
  const char *text = PyBytes_AsString(bytes.ptr());
  if (text == nullptr) throw nb::python_error();
  Loads loads(py::to_objects(nb::object(code.attr("co_names"))));
  size_t above = 0;
  bool imports = false;
  for (Py_ssize_t i = 0; i + 1 < PyBytes_Size(bytes.ptr()); i += 2) {
    const int operation = static_cast<unsigned char>(text[i]);
    const size_t argument = above << 8 | static_cast<unsigned char>(text[i + 1]);
    above = operation == known.extended ? argument : 0;
    imports = imports || operation == known.import_name;
    loads.next(operation, argument);
  }
  loads.add_to(names);
  if (imports) collect_imports(code, names);
}

void collect_names(const nb::object &code, Names &names) {
  nb::object code_type = py::type_of(code);
  std::vector<nb::object> waiting{code};
  while (!waiting.empty()) {
    nb::object next = std::move(waiting.back());
    waiting.pop_back();
    collect_loads(next, names);
    for (nb::handle constant : nb::object(next.attr("co_consts"))) {
      // Code of functions that are defined inside.
      if (constant.type().is(code_type)) waiting.push_back(nb::borrow<nb::object>(constant));
    }
  }
}

}  // namespace

bool Names::takes_whole(const nb::object &global) const {
  return std::any_of(whole.begin(), whole.end(), [&](const nb::object &name) { return name.equal(global); });
}

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
