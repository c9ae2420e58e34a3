// What functions read, which decides whether two of them trace to the same program.
#pragma once

#include "objects/node_types.h"
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
  // With `trusts_functions`, all that decides how strict equality is.
  void constant(const nb::object &held, StaticKind kind);
  bool is_constant_object(const nb::object &held) const;
  bool trusts_functions() const { return recorder_.trust() == Trust::SeenFunctions; }

  // Null where something is not there.
  void optional(const nb::object &held) { held.is_valid() ? value(held) : recorder_.identical(held); }
  void method(const nb::object &held, const nb::object &function);
  void equal(const nb::object &held);
  void items(const nb::object &held);
  void globals_read(const nb::object &globals, const nb::object &code);

  Recorder &recorder_;
  IdTable seen_;
};

// True if the function reads something besides its arguments.
bool reads_something(const nb::object &function);

// The reading of the functions together, without any trust; none if some of what they read is unknown.
std::optional<Reading> fingerprint(const nb::tuple &functions);

}  // namespace treadle
