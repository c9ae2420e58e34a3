#include "settings.h"

#include "bindings.h"

namespace treadle {
namespace {

// Never freed: module teardown may run destructors that still need the error types.
Settings *g_settings = nullptr;

nb::object setting(const nb::kwargs &options, const char *name) {
  if (!options.contains(name)) throw nb::value_error((std::string("configure: missing setting ") + name).c_str());
  return nb::borrow<nb::object>(options[name]);
}

void configure(const nb::kwargs &options) {
  // References to the settings are held while Python runs, so they are never exchanged.
  if (g_settings != nullptr) refuse_second_import();
  auto fresh = std::make_unique<Settings>();
  fresh->graph_error = setting(options, "graph_error");
  fresh->trace_error = setting(options, "trace_error");
  fresh->flatten_one_level = setting(options, "pytree_registry").attr("flatten_one_level_with_keys");
  fresh->tree_flatten = setting(options, "tree_flatten");
  fresh->is_array = setting(options, "is_array");
  fresh->adapt = setting(options, "adapt");
  nb::object source = setting(options, "trace_source");
  fresh->trace_owner = source[0];
  fresh->trace_attribute = source[1];
  fresh->tracer = setting(options, "tracer");
  fresh->concrete_array = setting(options, "concrete_array");
  fresh->variable_state_repr = setting(options, "variable_state_repr");
  fresh->same = setting(options, "same");
  fresh->value_key = setting(options, "value_key");
  fresh->register_pytree = setting(options, "register_pytree");
  fresh->mark_type = setting(options, "mark_type");
  fresh->field_type = nb::module_::import_("dataclasses").attr("Field");
  fresh->unmarked = setting(options, "unmarked");
  fresh->forget_marks = setting(options, "forget_marks");
  nb::module_ types = nb::module_::import_("types");
  fresh->function_type = types.attr("FunctionType");
  fresh->method_type = types.attr("MethodType");
  fresh->partial_type = nb::module_::import_("functools").attr("partial");
  fresh->enum_type = nb::module_::import_("enum").attr("Enum");
  fresh->object_new = nb::module_::import_("builtins").attr("object").attr("__new__");
  g_settings = fresh.release();
  g_settings->top_trace = current_trace();
}

}  // namespace

const Settings &settings() {
  if (g_settings == nullptr) {
    throw std::runtime_error("treadle._core is not configured: import treadle, not treadle._core");
  }
  return *g_settings;
}

void refuse_second_import() {
  throw nb::import_error(
      "treadle cannot be imported a second time in one process: its types are registered with JAX already. "
      "Restart Python, or keep treadle's modules in sys.modules");
}

void bind_settings(nb::module_ &m) { m.def("configure", &configure); }

void raise_graph_error(const nb::object &path, const std::string &reason, ErrorKind kind) {
  nb::str text(reason.data(), reason.size());
  nb::object error = settings().graph_error(text, path, kind == ErrorKind::Static);
  PyErr_SetObject(py::as_object(Py_TYPE(error.ptr())), error.ptr());
  throw nb::python_error();
}

nb::object current_trace() {
  const Settings &s = settings();
  nb::object trace = py::checked(PyObject_GetAttr(s.trace_owner.ptr(), s.trace_attribute.ptr()));
  if (trace.is_none()) return trace;
  return py::checked(PyWeakref_NewRef(trace.ptr(), nullptr));
}

void check_trace(PyObject *owner, PyObject *object, PyObject *part, const char *kind) {
  nb::object now = current_trace();
  if (owner == now.ptr() || owner == nullptr) return;
  nb::object name = py::type_of(object).attr("__name__");
  nb::object what =
      part == nullptr ? nb::object(nb::str("")) : py::checked(PyUnicode_FromFormat(" (its %s %R)", kind, part));
  PyErr_Format(settings().trace_error.ptr(),
               "Cannot mutate '%S' from different trace level%S: it was made outside of the function that is being "
               "transformed, or inside of one that has ended. Pass it to that function as an argument, or return it.",
               name.ptr(), what.ptr());
  throw nb::python_error();
}

}  // namespace treadle
