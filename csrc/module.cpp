// Bindings only: each part of the engine binds itself.
#include "bindings.h"
#include "settings.h"

NB_MODULE(_core, m) {
  static bool initialized = false;
  if (initialized) treadle::refuse_second_import();
  initialized = true;
  // Type objects and registries live as long as the interpreter; leak reports at exit would only be about those.
  nb::set_leak_warnings(false);
  treadle::bind_build_info(m);
  treadle::bind_settings(m);
  treadle::bind_cells(m);
  treadle::bind_cell_pytrees(m);
  treadle::bind_node_types(m);
  treadle::bind_callables(m);
  treadle::bind_variables(m);
  treadle::bind_definitions(m);
  treadle::bind_fingerprints(m);
  treadle::bind_graphdef(m);
  treadle::bind_walk(m);
  treadle::bind_arguments(m);
  treadle::bind_rebuild(m);
  treadle::bind_node_pytrees(m);
  treadle::bind_update(m);
  treadle::bind_effects(m);
  treadle::bind_outputs(m);
  treadle::bind_dispatcher(m);
  treadle::bind_donation(m);
  treadle::bind_debug(m);
}
