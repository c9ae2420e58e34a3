"""Object-graph transforms over JAX: modules with identity at the cost of hand-written `jax.jit`.

This is the table of contents: every public name, `import treadle as nnx` reads naturally. Most names
are imported when they are first asked for, so that importing treadle stays quick.
"""

from __future__ import annotations

import typing as _typing
from importlib import import_module as _import_module

from treadle import _requirements as _requirements  # first: says why the rest cannot be imported
from treadle import errors
from treadle._core import GraphDef
from treadle._graph.filters import (
    All,
    Filter,
    Not,
    OfType,
    PathContains,
    WithTag,
    to_filter_spec,
    to_predicate,
)
from treadle._graph.filters import Any_ as Any
from treadle._graph.splitting import (
    clone,
    flatten,
    graphdef,
    is_graph_node,
    merge,
    split,
    state,
    unflatten,
    update,
    variables,
)
from treadle._graph.state import State
from treadle._objects.axis_names import PARTITION_NAME
from treadle._objects.marks import data, dataclass, is_data, static
from treadle._objects.variables import (
    BatchStat,
    Cache,
    Intermediate,
    OptState,
    OptVariable,
    Param,
    Perturbation,
    Variable,
    VariableMetadata,
    VariableState,
    with_metadata,
)
from treadle._public import later as _later
from treadle._public import publish as _publish
from treadle._version import __version__
from treadle.errors import (
    CapturedNodeWarning,
    DonationWarning,
    FilterError,
    GraphError,
    LeafTypeError,
    NodeTypeError,
    StateError,
    StaticError,
    TraceContextError,
)

if _typing.TYPE_CHECKING:
    from treadle import nn, spmd, training, transforms
    from treadle._graph.calling import call
    from treadle._graph.context import GraphUpdates, UpdateContext
    from treadle._graph.flat_state import (
        FlatState,
        filter_state,
        from_flat_state,
        map_state,
        merge_state,
        split_state,
        to_flat_state,
    )
    from treadle._graph.looking import find_duplicates, iter_graph
    from treadle._graph.mapping import map
    from treadle._graph.popping import pop
    from treadle._graph.pure import (
        as_pure,
        pure,
        replace_by_pure_dict,
        restore_int_paths,
        to_pure_dict,
    )
    from treadle._graph.references import RefMap
    from treadle._modules.containers import Dict, List, Sequential
    from treadle._modules.module import (
        Module,
        Object,
        Pytree,
        first_from,
        iter_children,
        iter_modules,
    )
    from treadle._modules.rngs import RngCount, RngKey, Rngs, RngState, RngStream
    from treadle._modules.views import view, view_info, with_attributes
    from treadle._objects.node_types import register_graph_node_type
    from treadle._objects.variable_names import (
        register_variable_name,
        variable_name_from_type,
        variable_type_from_name,
    )
    from treadle._sharding.partitions import (
        get_named_sharding,
        get_partition_spec,
        logical_axis_rules,
        with_partitioning,
        with_sharding_constraint,
    )
    from treadle.nn import *
    from treadle.nn.activations import *  # not all checkers see that `nn` has them
    from treadle.training import *
    from treadle.transforms import *

__all__ = [
    "PARTITION_NAME",
    "All",
    "Any",
    "BatchNorm",
    "BatchStat",
    "Cache",
    "CapturedNodeWarning",
    "Carry",
    "Conv",
    "ConvTranspose",
    "CustomVjp",
    "Dict",
    "DiffState",
    "DonationWarning",
    "Dropout",
    "Einsum",
    "Embed",
    "Filter",
    "FilterError",
    "FlatState",
    "Grad",
    "GraphDef",
    "GraphError",
    "GraphUpdates",
    "GroupNorm",
    "InstanceNorm",
    "Intermediate",
    "Jit",
    "JitWrapped",
    "LayerNorm",
    "LeafTypeError",
    "LiftedConstructor",
    "Linear",
    "LinearGeneral",
    "List",
    "Metric",
    "ModelAndOptimizer",
    "Module",
    "MultiHeadAttention",
    "MultiMetric",
    "NodeTypeError",
    "Not",
    "Object",
    "OfType",
    "OptState",
    "OptVariable",
    "Optimizer",
    "Param",
    "PathContains",
    "Perturbation",
    "Profile",
    "Pytree",
    "RMSNorm",
    "RefMap",
    "Remat",
    "Retrace",
    "RngCount",
    "RngKey",
    "RngState",
    "RngStream",
    "Rngs",
    "Scan",
    "Sequential",
    "SplitBackups",
    "State",
    "StateAxes",
    "StateError",
    "StateSharding",
    "StaticError",
    "TooManyTracesError",
    "TraceContextError",
    "UpdateContext",
    "Variable",
    "VariableMetadata",
    "VariableState",
    "Vmap",
    "WithTag",
    "__version__",
    "activations",
    "as_pure",
    "avg_pool",
    "cached_partial",
    "call",
    "celu",
    "checkify",
    "clone",
    "combine_masks",
    "cond",
    "custom_vjp",
    "data",
    "dataclass",
    "dot_product_attention",
    "dot_product_attention_weights",
    "elu",
    "errors",
    "eval_shape",
    "explain_retraces",
    "filter_state",
    "find_duplicates",
    "first_from",
    "flatten",
    "fori_loop",
    "fork_rngs",
    "from_flat_state",
    "gelu",
    "get_named_sharding",
    "get_partition_spec",
    "glu",
    "grad",
    "graphdef",
    "hard_sigmoid",
    "hard_silu",
    "hard_swish",
    "hard_tanh",
    "identity",
    "initializers",
    "is_data",
    "is_graph_node",
    "iter_children",
    "iter_graph",
    "iter_modules",
    "jacfwd",
    "jacrev",
    "jit",
    "jvp",
    "leaky_relu",
    "log_sigmoid",
    "log_softmax",
    "logical_axis_rules",
    "logsumexp",
    "make_attention_mask",
    "make_causal_mask",
    "map",
    "map_state",
    "max_pool",
    "max_traces",
    "merge",
    "merge_state",
    "metrics",
    "min_pool",
    "nn",
    "one_hot",
    "pmap",
    "pop",
    "profile",
    "promote_dtype",
    "pure",
    "register_graph_node_type",
    "register_variable_name",
    "relu",
    "relu6",
    "remat",
    "replace_by_pure_dict",
    "reseed",
    "restore_int_paths",
    "restore_rngs",
    "scan",
    "selu",
    "shard_map",
    "sigmoid",
    "silu",
    "soft_sign",
    "softmax",
    "softplus",
    "split",
    "split_rngs",
    "split_state",
    "spmd",
    "standardize",
    "state",
    "static",
    "swish",
    "switch",
    "tanh",
    "to_filter_spec",
    "to_flat_state",
    "to_predicate",
    "to_pure_dict",
    "training",
    "transforms",
    "unflatten",
    "update",
    "value_and_grad",
    "variable_name_from_type",
    "variable_type_from_name",
    "variables",
    "view",
    "view_info",
    "vjp",
    "vmap",
    "while_loop",
    "with_attributes",
    "with_metadata",
    "with_partitioning",
    "with_sharding_constraint",
]

# Packages whose public names belong here too, and are imported when first used.
_LAZY = ("treadle.transforms", "treadle.nn", "treadle.training")

# Modules of this package that are, with the public names in each.
_HOMES = {
    "spmd": ("spmd",),
    "_graph.calling": ("call",),
    "_graph.context": ("GraphUpdates", "UpdateContext"),
    "_graph.flat_state": (
        "FlatState",
        "filter_state",
        "from_flat_state",
        "map_state",
        "merge_state",
        "split_state",
        "to_flat_state",
    ),
    "_graph.looking": ("find_duplicates", "iter_graph"),
    "_graph.mapping": ("map",),
    "_graph.popping": ("pop",),
    "_graph.pure": ("as_pure", "pure", "replace_by_pure_dict", "restore_int_paths", "to_pure_dict"),
    "_graph.references": ("RefMap",),
    "_modules.containers": ("Dict", "List", "Sequential"),
    "_modules.module": (
        "Module",
        "Object",
        "Pytree",
        "first_from",
        "iter_children",
        "iter_modules",
    ),
    "_modules.rngs": ("RngCount", "RngKey", "Rngs", "RngState", "RngStream"),
    "_modules.views": ("view", "view_info", "with_attributes"),
    "_objects.node_types": ("register_graph_node_type",),
    "_objects.variable_names": (
        "register_variable_name",
        "variable_name_from_type",
        "variable_type_from_name",
    ),
    "_sharding.partitions": (
        "get_named_sharding",
        "get_partition_spec",
        "logical_axis_rules",
        "with_partitioning",
        "with_sharding_constraint",
    ),
}

_publish((name for name in __all__ if name in globals()), globals())


if not _typing.TYPE_CHECKING:  # or a misspelt name would be Any
    _own, _ = _later(__name__, __all__, _HOMES)
    _homed = frozenset(name for names in _HOMES.values() for name in names)

    def __getattr__(name: str) -> _typing.Any:
        if name in __all__ and name not in _homed:
            for place in _LAZY:
                package = _import_module(place)
                if package.__name__ == f"treadle.{name}":
                    return package
                if name in package.__all__:
                    found = globals()[name] = getattr(package, name)
                    return found
        return _own(name)


def __dir__() -> list[str]:
    return [*__all__, *(name for name in globals() if name.startswith("__"))]
