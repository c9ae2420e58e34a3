// What each part of the engine puts into the module `_core`.
#pragma once

#include "python_compat.h"

namespace treadle {

void bind_build_info(nb::module_ &m);
void bind_settings(nb::module_ &m);
void bind_debug(nb::module_ &m);
void bind_cells(nb::module_ &m);
void bind_variable_cell(nb::module_ &m);
void bind_object_node(nb::module_ &m);
void bind_variable_state(nb::module_ &m);
void bind_cell_pytrees(nb::module_ &m);
void bind_node_types(nb::module_ &m);
void bind_callables(nb::module_ &m);
void bind_variables(nb::module_ &m);
void bind_definitions(nb::module_ &m);
void bind_fingerprints(nb::module_ &m);
void bind_graphdef(nb::module_ &m);
void bind_pickling(nb::module_ &m);
void bind_walk(nb::module_ &m);
void bind_arguments(nb::module_ &m);
void bind_rebuild(nb::module_ &m);
void bind_node_pytrees(nb::module_ &m);
void bind_update(nb::module_ &m);
void bind_effects(nb::module_ &m);
void bind_outputs(nb::module_ &m);
void bind_dispatcher(nb::module_ &m);
void bind_donation(nb::module_ &m);

}  // namespace treadle
