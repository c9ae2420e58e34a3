"""flax.nnx objects as treadle's: the one module that knows flax.

Nothing here imports flax: it is asked about a type only when an object of that type exists, and then
the modules that define it have been imported by whoever made it.
"""

from __future__ import annotations

import functools
import sys
import types
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax

from treadle._graph import filters
from treadle._modules import rngs
from treadle._objects import variables
from treadle._objects.descriptions import (
    Description,
    MappingLayout,
    NodeLayout,
    Refused,
    VariableLayout,
)
from treadle.errors import NodeTypeError

__all__ = ["adapt_filter", "describe"]

# Treadle's type for each Variable type of flax; subclasses follow the nearest of them.
_COUNTERPARTS: dict[str, type[Any]] = {
    "Variable": variables.Variable,
    "Param": variables.Param,
    "BatchStat": variables.BatchStat,
    "Cache": variables.Cache,
    "Intermediate": variables.Intermediate,
    "Perturbation": variables.Perturbation,
    "OptState": variables.OptState,
    "OptArray": variables.OptState,
    "OptVariable": variables.OptVariable,
    "RngState": rngs.RngState,
    "RngKey": rngs.RngKey,
    "RngCount": rngs.RngCount,
}

_HIJAX = (
    "is a flax Variable in hijax mode, which lives inside JAX instead of holding an array. Treadle needs "
    "ordinary Variables: make it with hijax=False, and do not set the flag flax_hijax_variable."
)
_REF = (
    "is a flax Variable backed by a jax.Ref (ref mode), which changes in place where treadle cannot see "
    "it. Treadle needs ordinary Variables: make it with ref=False (use_ref=False before flax 0.12.1)."
)
_BRIDGE = (
    "is a flax.nnx.bridge.Module, whose attributes come and go as `setup` runs. Make it an "
    "nnx.Module, or keep nnx.jit for the functions that take it."
)


# From what remembers a trace to JAX's weak reference to it.
_TRACE_PATH = ("_jax_trace", "_trace_ref")
_NODE_STATE, _NODE_MARKS = "_pytree__state", "_pytree__nodes"


class _Library:
    """The parts of the imported flax that descriptions refer to.

    Raises:
        NodeTypeError: flax or jax keeps its traces where this module does not look for them.
    """

    def __init__(self) -> None:
        modules = sys.modules
        variablelib, pytreelib = modules["flax.nnx.variablelib"], modules["flax.nnx.pytreelib"]
        self.variable: type[Any] = variablelib.Variable
        self.node: type[Any] = pytreelib.Pytree
        self.state: type[Any] = modules["flax.nnx.statelib"].State
        self.node_state: Callable[[], Any] = pytreelib.PytreeState
        self.trace_state: Callable[[], Any] = modules["flax.nnx.tracers"].TraceState
        self.hijax_variable: type[Any] | None = getattr(variablelib, "HijaxVariable", None)
        self.bridge_module: type[Any] = modules["flax.nnx.bridge.module"].Module
        if hasattr(jax, "new_ref"):
            # In a trace a tracer would come back.
            with jax.ensure_compile_time_eval():
                self.ref = type(jax.new_ref(0))
        else:
            self.ref = variablelib.ArrayRef
        self.list: type[Any] | None = getattr(modules["flax.nnx.helpers"], "List", None)
        self.frozen_dict: type[Any] = modules["flax.core.frozen_dict"].FrozenDict
        self.spmd = modules["flax.nnx.spmd"]
        # Before flax 0.12.1 the slot had the name that is a deprecated property since.
        self.value = "_raw_value" if hasattr(self.variable, "_raw_value") else "raw_value"
        renamed = isinstance(getattr(self.variable, "sharding_names", None), property)
        self.sharding = "out_sharding" if renamed else "sharding_names"
        marks = modules["flax.nnx"].Module._pytree__nodes
        self.marks_type: Any = None if isinstance(marks, frozenset) else type(marks)
        self._check()

    def _check(self) -> None:
        slots = [
            getattr(self.variable, n, None) for n in (self.value, "_trace_state", "_var_metadata")
        ]
        trace: Any = self.trace_state()
        for name in _TRACE_PATH:
            trace = getattr(trace, name, None)
        if all(isinstance(slot, types.MemberDescriptorType) for slot in slots) and isinstance(
            trace, weakref.ref
        ):
            return
        version = getattr(sys.modules["flax"], "__version__", "of unknown version")
        raise NodeTypeError(
            f"treadle does not know how flax {version} with jax {jax.__version__} lays out its objects. "
            "docs/flax.md lists the versions that work together."
        )


@functools.cache
def _library() -> _Library:
    return _Library()


def describe(kind: type[Any]) -> Description | None:
    """How the engine handles instances of a type; None for types that are none of flax.nnx's."""
    if "flax.nnx" not in sys.modules:
        return None
    library = _library()
    if library.hijax_variable is not None and issubclass(kind, library.hijax_variable):
        return Refused(reason=_HIJAX)
    if issubclass(kind, library.bridge_module):
        return Refused(reason=_BRIDGE)
    if issubclass(kind, library.variable):
        return _describe_variable(library, kind)
    if issubclass(kind, library.node):
        return _describe_node(library, kind)
    if issubclass(kind, library.state):
        return MappingLayout(items="_mapping")
    if kind is library.frozen_dict:
        return MappingLayout(items="_dict", make=kind)
    return None


# -- Variables -----------------------------------------------------------------------------------


def _describe_variable(library: _Library, kind: type[Any]) -> VariableLayout:
    return VariableLayout(
        value=library.value,
        metadata="_var_metadata",
        trace="_trace_state",
        owner_path=_TRACE_PATH,
        make_trace=library.trace_state,
        counterpart=_counterpart(kind),
        refuse=_refuse,
        refused_values=(library.ref,),
        refused_value_reason=_REF,
        sharding=library.sharding,
        add_axis=library.spmd.add_axis,
        remove_axis=library.spmd.remove_axis,
    )


def _counterpart(kind: type[Any]) -> type[Any]:
    for base in kind.__mro__:
        module = base.__module__
        if module.startswith("flax.nnx") and base.__name__ in _COUNTERPARTS:
            return _COUNTERPARTS[base.__name__]
    return variables.Variable


def _refuse(metadata: Mapping[str, Any]) -> str | None:
    if metadata.get("hijax"):
        return _HIJAX
    return _REF if metadata.get("ref") else None


# -- nodes ---------------------------------------------------------------------------------------


def _describe_node(library: _Library, kind: type[Any]) -> NodeLayout:
    marks_type = library.marks_type
    int_keys = library.list is not None and issubclass(kind, library.list)

    def make_marks(marks: dict[str, bool]) -> Any:
        return marks_type(marks, copy=False)

    return NodeLayout(
        state=_NODE_STATE,
        owner_path=("_trace_state", *_TRACE_PATH),
        make_trace=library.node_state,
        marks=_NODE_MARKS,
        marks_field=None if marks_type is None else "_mapping",
        make_marks=None if marks_type is None else make_marks,
        int_keys=int_keys,
        children=functools.partial(_children, int_keys),
        set_key=_set_child,
        pop_key=_pop_child,
    )


def _set_child(node: Any, key: Any, value: Any) -> None:
    if isinstance(key, int):
        node.insert(key, value)
    else:
        setattr(node, key, value)


def _pop_child(node: Any, key: Any) -> None:
    if isinstance(key, int):
        del node[key]
    else:
        delattr(node, key)


def _children(int_keys: bool, node: Any) -> Iterable[tuple[Any, Any]]:
    # Items of a list are attributes named by digits; flax 0.12.0 names them by ints.
    for name in sorted(vars(node).keys() - {_NODE_STATE, _NODE_MARKS}, key=str):
        is_index = int_keys and str(name).isdecimal()
        yield int(name) if is_index else name, vars(node)[name]


# -- filters -------------------------------------------------------------------------------------

# Filter class of flax -> treadle's filter of the same meaning, from an instance.
_FILTERS: dict[str, Callable[[Any], Any]] = {
    "Everything": lambda f: True,
    "Nothing": lambda f: False,
    "WithTag": lambda f: filters.WithTag(f.tag),
    "OfType": lambda f: filters.OfType(f.type),
    "PathContains": lambda f: filters.PathContains(f.key) if getattr(f, "exact", True) else f,
    "Any": lambda f: filters.Any_(*f.predicates),
    "All": lambda f: filters.All(*f.predicates),
    "Not": lambda f: filters.Not(f.predicate),
}


def adapt_filter(filter: Any) -> Any:
    """A filter of flax as treadle's, which need no call for each leaf; others are predicates as they are."""
    kind = type(filter)
    if kind.__module__ != "flax.nnx.filterlib" or kind.__name__ not in _FILTERS:
        return filter
    return _FILTERS[kind.__name__](filter)
