// What functions read, which decides whether two of them trace to the same program.
#pragma once

#include "objects/node_types.h"
#include "statics/code.h"
#include "statics/reading.h"

namespace treadle {

// Records functions and partials, and what is found inside of them: less is taken for granted there, since a new
// function may find something else under the same name.
class FunctionReader {
 public:
  explicit FunctionReader(Recorder &recorder) : recorder_(recorder) {}

  // Runs code of the user's types, which hashes what has a hash.
  void value(const nb::object &held);
  void function(const nb::object &held);
  void partial(const nb::object &held);

 private:
  // With `holds_containers`, all that decides how strict equality is.
  void constant(const nb::object &held, StaticKind kind);
  bool is_constant_object(const nb::object &held) const;
  bool holds_containers() const { return recorder_.trust() == Trust::Itself; }
  void object(const nb::object &held);
  void users_object(const nb::object &held);
  void set(const nb::object &held);
  void type(const nb::object &held);
  void member(const nb::object &held);
  void read_by(const nb::object &function);
  void definitions(const nb::object &type);
  void definition(const nb::object &entry);
  void builtin(const nb::object &held);
  void transformed(const nb::object &held);
  bool starts(const nb::object &held);

  // Null where something is not there.
  void optional(const nb::object &held) { held.is_valid() ? value(held) : recorder_.identical(held); }
  void method(const nb::object &held, const nb::object &function);
  void equal(const nb::object &held);
  void items(const nb::object &held);
  void inner_modules(const nb::object &found, const Names &read);
  void module(const nb::object &held, const nb::object &name, const Names &read);
  void globals_read(const nb::object &globals, const nb::object &code);

  Recorder &recorder_;
  IdTable seen_;
  uint32_t functions_ = 0;  // around what is read
  size_t begin_ = 0;        // the first part of the function or partial that is read
};

// True if the function reads something besides its arguments.
bool reads_something(const nb::object &function);

// The reading of the functions together, without any trust; none if some of what they read is unknown.
std::optional<Reading> fingerprint(const nb::tuple &functions);

}  // namespace treadle
