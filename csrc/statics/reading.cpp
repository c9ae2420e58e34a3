#include "statics/reading.h"

namespace treadle {

nb::object Recorder::sorted_names(const nb::object &dict) {
  nb::object names = py::checked(PyDict_Keys(dict.ptr()));
  if (PyList_Sort(names.ptr()) < 0) {
    // Names that do not compare, which only odd code puts there, stay in the order in which they are.
    if (!PyErr_ExceptionMatches(PyExc_TypeError)) throw nb::python_error();
    PyErr_Clear();
  }
  return names;
}

// Outside of what was skipped, parts were compared in step. Inside, nothing is known to be the same.
bool Reading::is_same_place(const std::vector<Skipped> &skipped, uint32_t here, uint32_t there) {
  uint32_t end = 0, other_end = 0;
  for (const Skipped &s : skipped) {
    if (here < s.begin) break;
    if (here < s.end) return here == s.begin && there == s.other_begin;
    end = s.end;
    other_end = s.other_end;
  }
  return there >= other_end && here - end == there - other_end;
}

bool Reading::is_same_part(const Part &a, const Part &b) {
  if (a.kind != b.kind || a.itself != b.itself) return false;
  if (a.n != b.n && a.kind != PartKind::Seen) return false;
  switch (a.kind) {
    case PartKind::Scalar:
      return a.value.is(b.value) || scalars_equal(a.value.ptr(), b.value.ptr());
    case PartKind::Equal:
      if (a.hash != b.hash || !a.value.type().is(b.value.type())) return false;
      return a.value.is(b.value) || py::equal(a.value.ptr(), b.value.ptr());
    case PartKind::Unknown:
      return false;
    case PartKind::Seen:
    case PartKind::Function:
    case PartKind::Partial:
      return true;
    case PartKind::Same:
    case PartKind::Sequence:
    case PartKind::Mapping:
    case PartKind::Method:
    case PartKind::Object:
      return a.value.is(b.value);
  }
  return false;
}

void Recorder::compare(const Reading::Part &part) {
  taken_ = false;
  if (!agrees_) return;
  agrees_ = at_ < expected_->parts_.size();
  if (!agrees_) return;
  const Reading::Part &expected = expected_->parts_[at_];
  const bool trusted = at_++ < trusted_end_;
  agrees_ =
      Reading::is_same_part(expected, part) || (trusted && expected.kind == part.kind && part.kind == Part::Unknown);
  if (!agrees_) return;
  const bool taken = expected_->takes(expected, part, trusted);
  if (part.kind == Part::Function) taken_ = taken;
  if (part.kind == Part::Partial && taken && !trusted) trusted_end_ = expected.end;
  // Of a comparison, all positions are those of what is expected.
  if (part.kind == Part::Seen) agrees_ = taken || expected.n == part.n;
}

bool Recorder::skips(size_t at) {
  if (!taken_) return false;
  at_ = expected_->parts_[at].end;
  return true;
}

std::optional<std::pair<uint32_t, uint32_t>> Reading::mismatch(const Reading &other) const {
  // Functions taken at their word, where something inside may differ after all, and how far a partial is.
  std::vector<Skipped> skipped;
  uint32_t trusted_end = 0;
  uint32_t i = 0, j = 0;
  while (i < parts_.size() && j < other.parts_.size()) {
    const Part &a = parts_[i], &b = other.parts_[j];
    const std::pair<uint32_t, uint32_t> here{i, j};
    const bool trusted = i < trusted_end, taken = takes(a, b, trusted);
    const bool is_unknown = a.kind == PartKind::Unknown && b.kind == a.kind;
    if (!is_same_part(a, b) && !(trusted && is_unknown)) return here;
    if (a.kind == PartKind::Seen && !taken && !is_same_place(skipped, a.n, b.n)) return here;
    if (a.kind == PartKind::Partial && taken && !trusted) trusted_end = a.end;
    if (a.kind == PartKind::Function && taken) {
      skipped.push_back({i, a.end, j, b.end});
      i = a.end;
      j = b.end;
      continue;
    }
    ++i;
    ++j;
  }
  if (i == parts_.size() && j == other.parts_.size()) return std::nullopt;
  return std::pair<uint32_t, uint32_t>{i, j};
}

std::string Reading::described(uint32_t part) const {
  if (part >= parts_.size()) return "";
  const Part &p = parts_[part];
  switch (p.kind) {
    case PartKind::Scalar:
    case PartKind::Equal:
      return py::text(nb::repr(p.value));
    case PartKind::Unknown:
      return "a " + py::text(nb::object(p.value.attr("__qualname__"))) + " that may have changed";
    case PartKind::Sequence:
    case PartKind::Mapping:
      return "a " + py::text(nb::object(p.value.attr("__qualname__"))) + " of length " + std::to_string(p.n);
    case PartKind::Function:
      return py::text(nb::object(p.value.attr("__qualname__")));
    default:
      return p.value.is_valid() ? py::text(nb::repr(p.value)) : "";
  }
}

std::pair<std::string, std::string> Reading::difference(const Reading &other) const {
  auto where = mismatch(other);
  // At the beginning it is the value itself that differs.
  if (!where || where->first == 0) return {};
  return {described(where->first), other.described(where->second)};
}

int Reading::traverse(visitproc visit, void *arg) const {
  for (const Part &part : parts_) Py_VISIT(part.value.ptr());
  return 0;
}

}  // namespace treadle
