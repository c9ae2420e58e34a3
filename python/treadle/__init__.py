"""Object-graph transforms over JAX: modules with identity at the cost of hand-written `jax.jit`.

This is the table of contents: every public name, `import treadle as nnx` reads naturally. Layers and
training come when first asked for, so that importing treadle stays quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING
from typing import Any as _Anything

from treadle import _requirements as _requirements
from treadle import errors as errors
from treadle import spmd as spmd
from treadle._version import __version__ as __version__
from treadle.containers import Dict as Dict
from treadle.containers import List as List
from treadle.containers import Sequential as Sequential
from treadle.context import GraphUpdates as GraphUpdates
from treadle.context import UpdateContext as UpdateContext
from treadle.errors import FilterError as FilterError
from treadle.errors import GraphError as GraphError
from treadle.errors import LeafTypeError as LeafTypeError
from treadle.errors import NodeTypeError as NodeTypeError
from treadle.errors import StateError as StateError
from treadle.errors import StaticError as StaticError
from treadle.errors import TraceContextError as TraceContextError
from treadle.filters import All as All
from treadle.filters import Any_ as Any  # noqa: F401
from treadle.filters import Filter as Filter
from treadle.filters import Not as Not
from treadle.filters import OfType as OfType
from treadle.filters import PathContains as PathContains
from treadle.filters import WithTag as WithTag
from treadle.filters import to_filter_spec as to_filter_spec
from treadle.filters import to_predicate as to_predicate
from treadle.graph import GraphDef as GraphDef
from treadle.graph import RefMap as RefMap
from treadle.graph import call as call
from treadle.graph import clone as clone
from treadle.graph import flatten as flatten
from treadle.graph import graphdef as graphdef
from treadle.graph import is_graph_node as is_graph_node
from treadle.graph import iter_graph as iter_graph
from treadle.graph import merge as merge
from treadle.graph import pop as pop
from treadle.graph import split as split
from treadle.graph import state as state
from treadle.graph import unflatten as unflatten
from treadle.graph import update as update
from treadle.module import Module as Module
from treadle.module import Object as Object
from treadle.module import first_from as first_from
from treadle.node_types import register_graph_node_type as register_graph_node_type
from treadle.rngs import RngCount as RngCount
from treadle.rngs import RngKey as RngKey
from treadle.rngs import Rngs as Rngs
from treadle.rngs import RngState as RngState
from treadle.rngs import RngStream as RngStream
from treadle.spmd import PARTITION_NAME as PARTITION_NAME
from treadle.spmd import get_named_sharding as get_named_sharding
from treadle.spmd import get_partition_spec as get_partition_spec
from treadle.spmd import logical_axis_rules as logical_axis_rules
from treadle.spmd import with_partitioning as with_partitioning
from treadle.spmd import with_sharding_constraint as with_sharding_constraint
from treadle.state import FlatState as FlatState
from treadle.state import State as State
from treadle.variables import BatchStat as BatchStat
from treadle.variables import Cache as Cache
from treadle.variables import Intermediate as Intermediate
from treadle.variables import OptState as OptState
from treadle.variables import OptVariable as OptVariable
from treadle.variables import Param as Param
from treadle.variables import Perturbation as Perturbation
from treadle.variables import Variable as Variable
from treadle.variables import VariableMetadata as VariableMetadata
from treadle.variables import VariableState as VariableState
from treadle.variables import with_metadata as with_metadata

if TYPE_CHECKING:
    from treadle.nn import *  # noqa: F403
    from treadle.training import *  # noqa: F403
    from treadle.transforms import *  # noqa: F403

# Packages whose public names (`__all__`) belong here too, and are imported when first used.
_LAZY = ("treadle.transforms", "treadle.nn", "treadle.training")


def __getattr__(name: str) -> _Anything:
    if not name.startswith("_"):
        for package in _LAZY:
            if package == f"treadle.{name}":
                return importlib.import_module(package)
            module = importlib.import_module(package)
            if name in getattr(module, "__all__", ()):
                found = globals()[name] = getattr(module, name)
                return found
    raise AttributeError(f"module 'treadle' has no attribute {name!r}")


def __dir__() -> list[str]:
    lazy = [
        name
        for package in _LAZY
        for name in getattr(importlib.import_module(package), "__all__", ())
    ]
    return sorted({*globals(), *lazy})
