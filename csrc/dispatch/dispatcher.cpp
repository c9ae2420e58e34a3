#include <chrono>
#include <memory>

#include "bindings.h"
#include "dispatch/outputs.h"
#include "dispatch/plan.h"
#include "effects/effects.h"
#include "errors.h"
#include "graph/arguments.h"
#include "settings.h"

namespace treadle {
namespace {

// What a call cost, for the profiling tool. Times in nanoseconds.
struct Timings {
  int64_t verify = 0, gather = 0, dispatch = 0, scatter = 0;
  bool wanted = false;
  int64_t found = 0;  // when the guards held
  size_t leaves_in = 0, leaves_out = 0;
  const char *call_class = "";
};

// Nodes that the function brings along: each call has them as arguments by name, unless its caller gives others.
// Invariant: `names_` is a tuple with the name of each.
class Companions {
 public:
  Companions() : names_(nb::make_tuple()) {}
  explicit Companions(nb::handle by_name) {
    std::vector<nb::object> names;
    for (auto [name, node] : py::DictItems(by_name.ptr())) {
      names.push_back(nb::borrow<nb::object>(name));
      nodes_.push_back(nb::borrow<nb::object>(node));
    }
    names_ = py::to_tuple(std::move(names));
  }

  bool empty() const { return nodes_.empty(); }

  // The arguments of a call and these; the frame holds what is put together.
  Arguments with(const Arguments &arguments, CallFrame &frame) const {
    const size_t n_keywords = arguments.n_keywords();
    frame.values.assign(arguments.values, arguments.values + arguments.n_positional + n_keywords);
    if (n_keywords == 0) {
      for (const nb::object &node : nodes_) frame.values.push_back(node.ptr());
      frame.keyword_names = names_;
    } else {
      std::vector<nb::object> names = py::to_objects(arguments.keyword_names);
      for (size_t i = 0; i < nodes_.size(); ++i) {
        PyObject *name = py::tuple_item(names_.ptr(), static_cast<Py_ssize_t>(i));
        if (is_among(arguments, name)) continue;
        names.push_back(nb::borrow<nb::object>(name));
        frame.values.push_back(nodes_[i].ptr());
      }
      frame.keyword_names = py::to_tuple(std::move(names));
    }
    return {frame.values.data(), arguments.n_positional, frame.keyword_names.ptr()};
  }

  int traverse(visitproc visit, void *arg) const {
    for (const nb::object &node : nodes_) Py_VISIT(node.ptr());
    return 0;
  }

 private:
  static bool is_among(const Arguments &arguments, PyObject *name) {
    for (size_t i = 0; i < arguments.n_keywords(); ++i) {
      if (PyUnicode_Compare(py::tuple_item(arguments.keyword_names, static_cast<Py_ssize_t>(i)), name) == 0)
        return true;
    }
    return false;
  }

  nb::object names_;
  std::vector<nb::object> nodes_;
};

// What a jitted function knows. Invariant: `spare_frame` is null while a call uses it.
struct DispatcherState {
  explicit DispatcherState(size_t capacity) : plans(capacity) {}

  nb::object
      api;  // plan(graphdef, leaves), on_error(graphdef, leaves, error), on_copies(graphdef, ids, arrays), copy(array)
  StaticArguments statics;
  Companions companions;
  PlanCache plans;
  uint64_t hot = 0, warm = 0, cold = 0;
  std::unique_ptr<CallFrame> spare_frame;  // buffers of the last call
  [[no_unique_address]] Counted<Kept::Dispatcher> counted;
};

struct Dispatcher {
  PyObject_HEAD vectorcallfunc vectorcall;
  PyObject *dict;
  PyObject *weak_references;
  DispatcherState *state;
};

Dispatcher *as_dispatcher(PyObject *self) { return reinterpret_cast<Dispatcher *>(self); }

DispatcherState &state_of(PyObject *self) {
  DispatcherState *state = as_dispatcher(self)->state;
  if (state == nullptr || !state->api.is_valid()) throw std::runtime_error("this jitted function was not initialized");
  return *state;
}

// The function's spare frame, or a new one for calls within calls; given back when the call ends.
class FrameLease {
 public:
  explicit FrameLease(DispatcherState &state) : state_(state), frame_(std::move(state.spare_frame)) {
    if (frame_ == nullptr) frame_ = std::make_unique<CallFrame>();
  }
  ~FrameLease() {
    frame_->clear();
    state_.spare_frame = std::move(frame_);
  }
  FrameLease(const FrameLease &) = delete;
  FrameLease &operator=(const FrameLease &) = delete;
  CallFrame &operator*() { return *frame_; }

 private:
  DispatcherState &state_;
  std::unique_ptr<CallFrame> frame_;
};

int64_t now() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

// Structure never seen: the Python side traces it.
PlanRef make_plan(DispatcherState &state, const Flat &flat) {
  nb::object made = state.api.attr("plan")(flat.graphdef, py::to_list(flat.leaves));
  // Another thread, or the traced function itself, may have come first.
  if (PlanRef plan = state.plans.find(graphdef_of(flat.graphdef))) return plan;
  std::optional<Placement> placement;
  if (!nb::object(made[5]).is_none()) placement.emplace(leaf_ids(made[4]), nb::object(made[5]));
  auto plan = std::make_shared<Plan>(flat.graphdef, made[0], leaf_ids(made[1]), made[2], std::move(placement));
  state.plans.add(plan);
  return plan;
}

// The Python side may know a better error than the one at hand, naming the argument or leaf to blame.
[[noreturn]] void rethrow_explained(const DispatcherState &state, const nb::object &graphdef,
                                    const std::vector<nb::object> &leaves, nb::python_error &error) {
  if (!error.matches(PyExc_Exception)) throw std::move(error);
  nb::object value = nb::borrow<nb::object>(error.value());
  nb::object better = state.api.attr("on_error")(graphdef, py::to_list(leaves), value);
  if (better.is_none()) throw std::move(error);
  PyErr_SetObject(py::as_object(Py_TYPE(better.ptr())), better.ptr());
  throw nb::python_error();
}

Flat walk(const DispatcherState &state, const Arguments &arguments) {
  try {
    return flatten_arguments(arguments.values, arguments.n_positional, arguments.keyword_names, state.statics);
  } catch (nb::python_error &error) {
    rethrow_explained(state, nb::none(), {}, error);
  }
}

PlanRef walk_and_find(DispatcherState &state, const Arguments &arguments, CallFrame &frame, Timings &timings) {
  Flat flat = walk(state, arguments);
  PlanRef plan = state.plans.find(graphdef_of(flat.graphdef));
  if (plan != nullptr) {
    ++state.warm;
    timings.call_class = "warm";
  } else {
    ++state.cold;
    timings.call_class = "cold";
    plan = make_plan(state, flat);
  }
  plan->remember(flat);
  frame.take(std::move(flat));
  return plan;
}

PlanRef find_plan(DispatcherState &state, const Arguments &arguments, CallFrame &frame, Timings &timings) {
  for (size_t i = 0; i < state.plans.recent().size(); ++i) {
    PlanRef plan = state.plans.recent()[i];
    if (!plan->guards.verify(arguments, frame)) continue;
    if (timings.wanted) timings.found = now();
    plan->guards.gather(frame);
    ++state.hot;
    timings.call_class = "hot";
    return plan;
  }
  return walk_and_find(state, arguments, frame, timings);
}

// What somebody else holds, or the call itself uses twice, is copied instead of given away.
void separate_donated(DispatcherState &state, const Plan &plan, CallFrame &frame) {
  const Separation found = separate(plan.donation, frame.leaves, 1);
  if (!found.shared.empty()) {
    nb::list leaves, arrays;
    for (uint32_t leaf : found.shared) {
      leaves.append(leaf);
      arrays.append(frame.owned_leaves[leaf]);
    }
    state.api.attr("on_copies")(plan.traced, leaves, arrays);
  }
  try {
    for (uint32_t leaf : found.copied) {
      frame.owned_leaves[leaf] = state.api.attr("copy")(frame.owned_leaves[leaf]);
      frame.leaves[leaf] = frame.owned_leaves[leaf].ptr();
    }
  } catch (nb::python_error &error) {
    rethrow_explained(state, plan.guards.walked, frame.owned_leaves, error);
  }
}

nb::object call_compiled(DispatcherState &state, Plan &plan, CallFrame &frame) {
  try {
    if (plan.placement.has_value()) plan.placement->enter(frame);
    return py::checked(PyObject_Vectorcall(plan.call.ptr(), frame.leaves.data(), frame.leaves.size(), nullptr));
  } catch (nb::python_error &error) {
    rethrow_explained(state, plan.guards.walked, frame.owned_leaves, error);
  }
}

// What a compiled call gave: the effects, and what owns the output leaves (a tuple, or the one leaf there is).
struct Returned {
  nb::object effects, leaves;

  Returned(Plan &plan, nb::object &&object) {
    if (is_outputs(object)) {
      Outputs &outputs = outputs_of(object);
      effects = outputs.effects;
      leaves = outputs.leaves;
      recycle_outputs(std::move(object));
      return;
    }
    if (!plan.first_effects.is_valid()) {
      PyObject *first = PyList_GetItem(plan.traced_effects.ptr(), 0);
      if (first == nullptr) throw nb::python_error();
      effects_of(first);
      plan.first_effects = nb::borrow<nb::object>(first);
    }
    effects = plan.first_effects;
    leaves = std::move(object);
  }

  // The leaves, borrowed.
  void list(std::vector<PyObject *> &out) const {
    if (!py::is_exact(leaves.ptr(), &PyTuple_Type)) {
      out.push_back(leaves.ptr());
      return;
    }
    auto n = static_cast<size_t>(py::tuple_size(leaves.ptr()));
    out.resize(n);
    for (size_t i = 0; i < n; ++i) out[i] = py::tuple_item(leaves.ptr(), static_cast<Py_ssize_t>(i));
  }
};

// The whole of a call: verify, gather, call, scatter; the one way out is `walk_and_find`.
nb::object invoke(DispatcherState &state, const Arguments &given, Timings &timings) {
  const bool timed = timings.wanted;
  int64_t start = timed ? now() : 0;
  FrameLease lease(state);
  CallFrame &frame = *lease;
  const Arguments arguments = state.companions.empty() ? given : state.companions.with(given, frame);
  PlanRef plan = find_plan(state, arguments, frame, timings);
  state.plans.use(plan);
  if (!plan->donation.empty()) separate_donated(state, *plan, frame);
  int64_t verified = timed ? now() : 0;
  nb::object object = call_compiled(state, *plan, frame);
  int64_t called = timed ? now() : 0;
  Returned returned(*plan, std::move(object));
  returned.list(frame.outputs);
  const Effects &effects = *nb::inst_ptr<Effects>(returned.effects);
  nb::object result = apply_effects(effects, frame.refs, frame.leaves, frame.outputs, frame.known_top_level);
  if (plan->placement.has_value()) plan->placement->leave(effects, frame);
  if (timed) {
    timings.leaves_in = frame.leaves.size();
    timings.leaves_out = frame.outputs.size();
  }
  frame.clear();
  if (timed) {
    int64_t end = now();
    // A walk finds and gathers at once.
    if (timings.found == 0) timings.found = verified;
    timings.verify = timings.found - start;
    timings.gather = verified - timings.found;
    timings.dispatch = called - verified;
    timings.scatter = end - called;
  }
  return result;
}

PyObject *dispatcher_call(PyObject *self, PyObject *const *values, size_t nargsf, PyObject *keyword_names) {
  return guarded([&] {
    DispatcherState &state = state_of(self);
    nb::object keep = nb::borrow<nb::object>(self);
    Timings timings;
    Arguments arguments{values, static_cast<size_t>(py::vectorcall_nargs(nargsf)), keyword_names};
    return invoke(state, arguments, timings);
  });
}

PyObject *dispatcher_new(PyTypeObject *type, PyObject *, PyObject *) {
  PyObject *self = py::type_slot<allocfunc>(type, Py_tp_alloc)(type, 0);
  if (self == nullptr) return nullptr;
  as_dispatcher(self)->vectorcall = dispatcher_call;
  return self;
}

int dispatcher_init(PyObject *self, PyObject *args, PyObject *kwargs) {
  PyObject *api = nullptr, *positions = nullptr, *names = nullptr, *companions = nullptr;
  Py_ssize_t capacity = 0;
  static const char *const keywords[] = {"api", "static_argnums", "static_argnames", "capacity", "companions", nullptr};
  if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOn|O!:Dispatcher", const_cast<char **>(keywords), &api, &positions,
                                   &names, &capacity, &PyDict_Type, &companions)) {
    return -1;
  }
  if (capacity < 1) {
    PyErr_SetString(PyExc_ValueError, "Dispatcher: capacity must be at least 1");
    return -1;
  }
  return guarded([&] {
    auto state = std::make_unique<DispatcherState>(static_cast<size_t>(capacity));
    state->api = nb::borrow<nb::object>(api);
    state->statics = static_arguments(positions, names);
    if (companions != nullptr) state->companions = Companions(companions);
    // A call in progress works on the state there is.
    if (as_dispatcher(self)->state != nullptr) throw std::runtime_error("this jitted function is initialized already");
    as_dispatcher(self)->state = state.release();
    return 0;
  });
}

int dispatcher_traverse(PyObject *self, visitproc visit, void *arg) {
  Dispatcher *dispatcher = as_dispatcher(self);
  Py_VISIT(Py_TYPE(self));
  Py_VISIT(dispatcher->dict);
  if (dispatcher->state == nullptr) return 0;
  Py_VISIT(dispatcher->state->api.ptr());
  if (int found = dispatcher->state->companions.traverse(visit, arg)) return found;
  for (const PlanRef &plan : dispatcher->state->plans.all()) {
    if (int found = plan->traverse(visit, arg)) return found;
  }
  return 0;
}

int dispatcher_clear(PyObject *self) {
  Dispatcher *dispatcher = as_dispatcher(self);
  Py_CLEAR(dispatcher->dict);
  if (dispatcher->state != nullptr) {
    nb::object api = std::move(dispatcher->state->api);
    Companions companions = std::exchange(dispatcher->state->companions, Companions());
    dispatcher->state->plans.clear();
  }
  return 0;
}

void dispatcher_dealloc(PyObject *self) {
  PyObject_GC_UnTrack(self);
  Dispatcher *dispatcher = as_dispatcher(self);
  if (dispatcher->weak_references != nullptr) PyObject_ClearWeakRefs(self);
  Py_CLEAR(dispatcher->dict);
  delete dispatcher->state;
  dispatcher->state = nullptr;
  py::free_instance(self);
}

// As a method: `instance.step` is bound to the instance.
PyObject *dispatcher_get(PyObject *self, PyObject *instance, PyObject *) {
  if (instance == nullptr || instance == Py_None) {
    Py_INCREF(self);
    return self;
  }
  return guarded([&] {
    nb::object method = settings().method_type;
    return method(nb::borrow<nb::object>(self), nb::borrow<nb::object>(instance));
  });
}

// What is not an attribute of its own is asked of the Python side: lower, trace, eval_shape, retraces, ...
PyObject *dispatcher_getattro(PyObject *self, PyObject *name) {
  PyObject *found = PyObject_GenericGetAttr(self, name);
  if (found != nullptr || !PyErr_ExceptionMatches(PyExc_AttributeError)) return found;
  Dispatcher *dispatcher = as_dispatcher(self);
  if (dispatcher->state == nullptr || !dispatcher->state->api.is_valid()) return nullptr;
  PyErr_Clear();
  return PyObject_GetAttr(dispatcher->state->api.ptr(), name);
}

// Names the user's function, or for an object that can be called its type.
PyObject *dispatcher_repr(PyObject *self) {
  return guarded([&]() -> PyObject * {
    nb::object keep = nb::borrow<nb::object>(self);
    nb::object wrapped = nb::getattr(keep, "__wrapped__", nb::none());
    if (wrapped.is_none()) return PyUnicode_FromFormat("<treadle.jit at %p>", self);
    nb::object name = nb::getattr(wrapped, "__qualname__", nb::none());
    if (!PyUnicode_Check(name.ptr())) name = wrapped.type().attr("__qualname__");
    return PyUnicode_FromFormat("<treadle.jit of %S at %p>", name.ptr(), self);
  });
}

// What it has of its own, and what the Python side says that it has for users.
PyObject *dispatcher_dir(PyObject *self, PyObject *) {
  return guarded([&]() -> PyObject * {
    nb::list names(nb::handle(reinterpret_cast<PyObject *>(&PyBaseObject_Type)).attr("__dir__")(nb::handle(self)));
    for (nb::handle name : nb::getattr(state_of(self).api, "attributes", nb::make_tuple())) names.append(name);
    return names.release().ptr();
  });
}

// (args, kwargs) -> (result, timings)
PyObject *dispatcher_timed(PyObject *self, PyObject *args) {
  PyObject *positional = nullptr, *keywords = nullptr;
  if (!PyArg_ParseTuple(args, "O!O!:_timed", &PyTuple_Type, &positional, &PyDict_Type, &keywords)) return nullptr;
  return guarded([&] {
    UnpackedCall call(positional, keywords);
    nb::object keep = nb::borrow<nb::object>(self);
    Timings timings;
    timings.wanted = true;
    nb::object result =
        invoke(state_of(self), {call.values.data(), call.n_positional, call.keyword_names.ptr()}, timings);
    nb::dict report;
    report["verify"] = timings.verify;
    report["gather"] = timings.gather;
    report["dispatch"] = timings.dispatch;
    report["scatter"] = timings.scatter;
    report["leaves_in"] = timings.leaves_in;
    report["leaves_out"] = timings.leaves_out;
    report["call_class"] = timings.call_class;
    return nb::make_tuple(result, report);
  });
}

PyObject *dispatcher_clear_cache(PyObject *self, PyObject *) {
  if (as_dispatcher(self)->state != nullptr) as_dispatcher(self)->state->plans.clear();
  Py_RETURN_NONE;
}

PyObject *dispatcher_counts(PyObject *self, void *) {
  return guarded([&] {
    const DispatcherState &state = state_of(self);
    nb::dict counts;
    counts["hot"] = state.hot;
    counts["warm"] = state.warm;
    counts["cold"] = state.cold;
    counts["plans"] = state.plans.all().size();
    return counts;
  });
}

// The structures with a plan, oldest use first.
PyObject *dispatcher_structures(PyObject *self, void *) {
  return guarded([&] {
    nb::list structures;
    std::vector<PlanRef> plans = state_of(self).plans.all();
    for (const PlanRef &plan : plans) structures.append(plan->traced);
    return structures;
  });
}

PyMemberDef members[] = {
    {"__vectorcalloffset__", py::kMemberSsize, offsetof(Dispatcher, vectorcall), py::kMemberReadonly, nullptr},
    {"__dictoffset__", py::kMemberSsize, offsetof(Dispatcher, dict), py::kMemberReadonly, nullptr},
    {"__weaklistoffset__", py::kMemberSsize, offsetof(Dispatcher, weak_references), py::kMemberReadonly, nullptr},
    {nullptr, 0, 0, 0, nullptr}};

PyGetSetDef getset[] = {{"__dict__", PyObject_GenericGetDict, PyObject_GenericSetDict, nullptr, nullptr},
                        {"_counts", dispatcher_counts, nullptr, "Calls by class, and plans held.", nullptr},
                        {"_structures", dispatcher_structures, nullptr, "The structures with a plan.", nullptr},
                        {nullptr, nullptr, nullptr, nullptr, nullptr}};

PyMethodDef methods[] = {{"_timed", dispatcher_timed, METH_VARARGS, "Call with (args, kwargs) and report times."},
                         {"__dir__", dispatcher_dir, METH_NOARGS, "Names of attributes."},
                         {"_clear_plans", dispatcher_clear_cache, METH_NOARGS, "Forget every structure."},
                         {nullptr, nullptr, 0, nullptr}};

PyType_Slot slots[] = {py::slot(Py_tp_new, dispatcher_new),
                       py::slot(Py_tp_init, dispatcher_init),
                       py::slot(Py_tp_traverse, dispatcher_traverse),
                       py::slot(Py_tp_clear, dispatcher_clear),
                       py::slot(Py_tp_dealloc, dispatcher_dealloc),
                       py::slot(Py_tp_repr, dispatcher_repr),
                       py::slot(Py_tp_call, PyVectorcall_Call),
                       py::slot(Py_tp_descr_get, dispatcher_get),
                       py::slot(Py_tp_getattro, dispatcher_getattro),
                       py::slot(Py_tp_members, members),
                       py::slot(Py_tp_getset, getset),
                       py::slot(Py_tp_methods, methods),
                       {0, nullptr}};

PyType_Spec spec = {"treadle._core.Dispatcher", sizeof(Dispatcher), 0,
                    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | py::kHasVectorcall | py::kMethodDescriptor, slots};

}  // namespace

void bind_dispatcher(nb::module_ &m) {
  PyTypeObject *type = py::add_type(m, spec, "Dispatcher");
  // Instances say what was jitted, as functions that transforms give do.
  nb::setattr(py::as_object(type), "_lifted_", nb::bool_(true));
}

}  // namespace treadle
