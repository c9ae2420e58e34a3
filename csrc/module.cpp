// Bindings only: each part of the engine binds itself.
#include "build_info.h"
#include "debug.h"
#include "dispatch/dispatcher.h"
#include "dispatch/outputs.h"
#include "graph/cells.h"
#include "graph/effects.h"
#include "graph/graphdef.h"
#include "graph/node_types.h"
#include "graph/state_pytree.h"
#include "graph/update.h"
#include "graph/variables.h"
#include "settings.h"

NB_MODULE(_core, m) {
  static bool initialized = false;
  if (initialized) weft::refuse_second_import();
  initialized = true;
  // Type objects and registries live as long as the interpreter; leak reports at exit would only be about those.
  nb::set_leak_warnings(false);
  weft::bind_build_info(m);
  weft::bind_settings(m);
  weft::bind_cells(m);
  weft::bind_state_pytree(m);
  weft::bind_node_types(m);
  weft::bind_graphdef(m);
  weft::bind_update(m);
  weft::bind_variables(m);
  weft::bind_effects(m);
  weft::bind_outputs(m);
  weft::bind_dispatcher(m);
  weft::bind_debug(m);
}
