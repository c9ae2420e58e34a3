"""Object-graph transforms over JAX: modules with identity at the cost of hand-written `jax.jit`.

This is the table of contents: every public name, `import weft as nnx` reads naturally. Layers and
training come when first asked for, so that importing weft stays quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING
from typing import Any as _Anything

from weft import _requirements as _requirements
from weft import errors as errors
from weft import spmd as spmd
from weft._version import __version__ as __version__
from weft.containers import Dict as Dict
from weft.containers import List as List
from weft.containers import Sequential as Sequential
from weft.context import GraphUpdates as GraphUpdates
from weft.context import UpdateContext as UpdateContext
from weft.errors import FilterError as FilterError
from weft.errors import GraphError as GraphError
from weft.errors import LeafTypeError as LeafTypeError
from weft.errors import NodeTypeError as NodeTypeError
from weft.errors import StateError as StateError
from weft.errors import StaticError as StaticError
from weft.errors import TraceContextError as TraceContextError
from weft.filters import All as All
from weft.filters import Any_ as Any  # noqa: F401
from weft.filters import Filter as Filter
from weft.filters import Not as Not
from weft.filters import OfType as OfType
from weft.filters import PathContains as PathContains
from weft.filters import WithTag as WithTag
from weft.filters import to_filter_spec as to_filter_spec
from weft.filters import to_predicate as to_predicate
from weft.graph import GraphDef as GraphDef
from weft.graph import RefMap as RefMap
from weft.graph import call as call
from weft.graph import clone as clone
from weft.graph import flatten as flatten
from weft.graph import graphdef as graphdef
from weft.graph import is_graph_node as is_graph_node
from weft.graph import iter_graph as iter_graph
from weft.graph import merge as merge
from weft.graph import pop as pop
from weft.graph import split as split
from weft.graph import state as state
from weft.graph import unflatten as unflatten
from weft.graph import update as update
from weft.module import Module as Module
from weft.module import Object as Object
from weft.module import first_from as first_from
from weft.node_types import register_graph_node_type as register_graph_node_type
from weft.rngs import RngCount as RngCount
from weft.rngs import RngKey as RngKey
from weft.rngs import Rngs as Rngs
from weft.rngs import RngState as RngState
from weft.rngs import RngStream as RngStream
from weft.spmd import PARTITION_NAME as PARTITION_NAME
from weft.spmd import get_named_sharding as get_named_sharding
from weft.spmd import get_partition_spec as get_partition_spec
from weft.spmd import logical_axis_rules as logical_axis_rules
from weft.spmd import with_partitioning as with_partitioning
from weft.spmd import with_sharding_constraint as with_sharding_constraint
from weft.state import FlatState as FlatState
from weft.state import State as State
from weft.variables import BatchStat as BatchStat
from weft.variables import Cache as Cache
from weft.variables import Intermediate as Intermediate
from weft.variables import OptState as OptState
from weft.variables import OptVariable as OptVariable
from weft.variables import Param as Param
from weft.variables import Perturbation as Perturbation
from weft.variables import Variable as Variable
from weft.variables import VariableMetadata as VariableMetadata
from weft.variables import VariableState as VariableState
from weft.variables import with_metadata as with_metadata

if TYPE_CHECKING:
    from weft.nn import *  # noqa: F403
    from weft.training import *  # noqa: F403
    from weft.transforms import *  # noqa: F403

# Packages whose public names (`__all__`) belong here too, and are imported when first used.
_LAZY = ("weft.transforms", "weft.nn", "weft.training")


def __getattr__(name: str) -> _Anything:
    if not name.startswith("_"):
        for package in _LAZY:
            if package == f"weft.{name}":
                return importlib.import_module(package)
            module = importlib.import_module(package)
            if name in getattr(module, "__all__", ()):
                found = globals()[name] = getattr(module, name)
                return found
    raise AttributeError(f"module 'weft' has no attribute {name!r}")


def __dir__() -> list[str]:
    lazy = [
        name
        for package in _LAZY
        for name in getattr(importlib.import_module(package), "__all__", ())
    ]
    return sorted({*globals(), *lazy})
