"""Split objects into structure and leaves, put them together again, read and write their leaves.

The walk and the rebuild are C++ (`_core`). Each function checks everything before it changes
anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from types import GenericAlias
from typing import TYPE_CHECKING, Any, TypeVar, overload

import jax
import numpy as np

from treadle import _bootstrap as _bootstrap
from treadle import _core
from treadle._core import GraphDef
from treadle._graph.filters import Filter, group_leaves
from treadle._graph.leaves import Metadata, build, leaves_by_path, shared_leaves
from treadle._graph.references import RefMap
from treadle._graph.state import State, gather
from treadle._public import publish
from treadle.errors import GraphError, TraceContextError, located

N = TypeVar("N")

GraphDef.__doc__ = """The structure of objects without their leaves: immutable, hashable, picklable.

Types, attribute names, static values, Variable types and metadata, and which references are shared
are part of it; array values, shapes and dtypes are not. Equal structures share compiled functions.
A JAX pytree without leaves, so it can be passed through JAX transforms.

>>> import treadle as nnx
>>> nnx.graphdef(nnx.Dict(a=1)) == nnx.graphdef(nnx.Dict(a=1)) != nnx.graphdef(nnx.Dict(a=2))
True
"""

if not TYPE_CHECKING:
    # What `split` is annotated with, `GraphDef[Model]`, can then be written anywhere.
    GraphDef.__class_getitem__ = classmethod(GenericAlias)

__all__ = [
    "clone",
    "flatten",
    "graphdef",
    "is_graph_node",
    "merge",
    "split",
    "state",
    "unflatten",
    "update",
    "variables",
]

# A GraphDef is all structure: passed through a JAX transform it is static data.
jax.tree_util.register_pytree_node(GraphDef, lambda graph: ((), graph), lambda graph, _: graph)


def is_graph_node(obj: Any, /) -> bool:
    """Whether `obj` is a node: an `Object`, or of a type given to `register_graph_node_type`.

    Variables, arrays and plain containers are not nodes.

    >>> import treadle as nnx
    >>> nnx.is_graph_node(nnx.Module()), nnx.is_graph_node(nnx.Param(1.0)), nnx.is_graph_node([])
    (True, False, False)
    """
    return _core.is_node(obj) and not _core.is_variable(obj)


def walk(node: Any) -> _core.Flat:
    if node is None or (not _core.is_node(node) and jax.tree_util.all_leaves([node])):
        raise GraphError(
            f"Expected a module, a Variable, or a pytree that holds some, got {node!r} "
            f"of type {type(node).__name__}."
        )
    return _core.flatten(node)


def states_of(flat: _core.Flat, filters: Sequence[Filter]) -> tuple[State, ...]:
    if not filters:
        return (State._from_leaves(flat.graphdef, None, flat.leaves),)
    leaves = flat.leaves
    groups = group_leaves(flat.graphdef, leaves, filters)
    return tuple(
        State._from_leaves(flat.graphdef, group, gather(leaves, group)) for group in groups[:-1]
    )


@overload
def split(node: N, filter: Filter = ..., /) -> tuple[GraphDef[N], State]: ...
@overload
def split(node: N, a: Filter, b: Filter, /) -> tuple[GraphDef[N], State, State]: ...
@overload
def split(
    node: N, a: Filter, b: Filter, c: Filter, /
) -> tuple[GraphDef[N], State, State, State]: ...
@overload
def split(node: N, /, *filters: Filter) -> tuple[GraphDef[N], *tuple[State, ...]]: ...
def split(node: Any, /, *filters: Filter) -> tuple[Any, ...]:
    """Split objects into their structure and their leaves.

    Args:
        node: a module, a Variable, or any pytree that holds some.
        *filters: one State is made for each, of the leaves it selects, first match wins. Together
            they must select all leaves; ``...`` as the last one selects what is left.

    Returns:
        ``(graphdef, state)`` without filters, else ``(graphdef, state_0, state_1, ...)``.

    Raises:
        FilterError: filters are out of order, or leaves remain that none selects.
        GraphError: something in the graph cannot be walked, such as an unhashable static attribute.

    >>> import treadle as nnx
    >>> model = nnx.BatchNorm(3, rngs=nnx.Rngs(0))
    >>> graphdef, params, stats = nnx.split(model, nnx.Param, nnx.BatchStat)
    >>> list(params), list(stats)
    (['bias', 'scale'], ['mean', 'var'])
    """
    flat = walk(node)
    return (flat.graphdef, *states_of(flat, filters))


def merge(graphdef: GraphDef[N], state: Any, /, *states: Any) -> N:
    """Build new objects from a structure and its leaves: the inverse of `split`.

    Args:
        graphdef: the structure.
        state: a State, or nested mapping of values as `State.to_pure_dict` gives.
        *states: more of them; together they must have exactly the leaves of `graphdef`.

    Returns:
        New objects of the structure `graphdef`; what was shared is shared again.

    Raises:
        StateError: leaves are missing, or there are entries that `graphdef` has no place for.
        LeafTypeError: an entry is of another Variable type than `graphdef` says.

    >>> import treadle as nnx
    >>> model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    >>> copy = nnx.merge(*nnx.split(model))
    >>> copy is model, copy.kernel.value is model.kernel.value
    (False, True)
    """
    return build(graphdef, (state, *states))[0]


def update(node: Any, state: Any, /, *states: Any) -> None:
    """Put leaves into existing objects. All of it happens, or nothing.

    Args:
        node: what to change: a module, a Variable, or a pytree that holds some.
        state: a State, or a nested mapping of values. Leaves without an entry stay as they are;
            the others are replaced, by values of another shape too.
        *states: more of them; later ones win.

    Raises:
        StateError: there are entries that the graph has no place for.
        LeafTypeError: an entry is of another Variable type, or not an array where there is one.
        TraceContextError: a Variable belongs to another trace level.

    >>> import jax, jax.numpy as jnp
    >>> import treadle as nnx
    >>> model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    >>> nnx.update(model, jax.tree.map(jnp.zeros_like, nnx.state(model)))
    >>> float(model.kernel.value.sum())
    0.0
    """
    flat = walk(node)
    everything = (state, *states)
    by_id = shared_leaves(flat.graphdef, everything)
    new_metadata: dict[int, Metadata] = {}
    if by_id is None:
        by_id, new_metadata = leaves_by_path(flat.graphdef, everything, flat.leaves)
    owners = flat.graphdef.leaf_refs() if new_metadata else ()
    try:
        for i in new_metadata:
            _core.check_mutable(flat.refs[owners[i]])
        _core.set_leaves(flat, list(by_id), list(by_id.values()))
    except TraceContextError as error:
        raise _located(error, flat, by_id) from None
    for i, metadata in new_metadata.items():
        _core.set_metadata(flat.refs[owners[i]], metadata)


def _located(error: TraceContextError, flat: _core.Flat, leaves: Iterable[int]) -> Exception:
    """The error with the path of the first of these leaves whose Variable cannot be changed."""
    owners = flat.graphdef.leaf_refs()
    for i in sorted(leaves):
        try:
            if owners[i] >= 0:
                _core.check_mutable(flat.refs[owners[i]])
        except TraceContextError:
            return located(error, flat.graphdef.paths()[i])
    return error


@overload
def state(node: Any, filter: Filter = ..., /) -> State: ...
@overload
def state(node: Any, a: Filter, b: Filter, /) -> tuple[State, State]: ...
@overload
def state(node: Any, a: Filter, b: Filter, c: Filter, /) -> tuple[State, State, State]: ...
@overload
def state(
    node: Any, a: Filter, b: Filter, c: Filter, d: Filter, /, *filters: Filter
) -> tuple[State, ...]: ...
def state(node: Any, /, *filters: Filter) -> Any:
    """The leaves of objects, without their structure.

    Args:
        node: a module, a Variable, or a pytree that holds some.
        *filters: as for `split`, but leaves that none selects are left out.

    Returns:
        A State without filters or for one filter, a tuple of States for several.

    Raises:
        FilterError: filters are out of order.

    >>> import treadle as nnx
    >>> model = nnx.BatchNorm(3, rngs=nnx.Rngs(0))
    >>> list(nnx.state(model, nnx.Param))
    ['bias', 'scale']
    """
    flat = walk(node)
    states = states_of(flat, (*filters, ...) if filters and ... not in filters else filters)
    if not filters:
        return states[0]
    states = states[: len(filters)]
    return states[0] if len(states) == 1 else states


def variables(node: Any, /, *filters: Filter) -> Any:
    """Another name of `state`.

    >>> import treadle as nnx
    >>> list(nnx.variables(nnx.BatchNorm(3, rngs=nnx.Rngs(0)), nnx.Param))
    ['bias', 'scale']
    """
    return state(node, *filters)


def graphdef(node: N, /) -> GraphDef[N]:
    """The structure of objects, without their leaves.

    Two objects have equal structures exactly if a transform may use one compiled function for both
    (as far as shapes and dtypes agree).

    >>> import treadle as nnx
    >>> a, b = nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.Linear(2, 3, rngs=nnx.Rngs(1))
    >>> nnx.graphdef(a) == nnx.graphdef(b)
    True
    """
    return walk(node).graphdef


def clone(node: N, /, *, arrays: bool = False) -> N:
    """New objects of the same structure with the same leaves.

    Args:
        node: a node, or a pytree with nodes.
        arrays: copy the arrays as well. Those that a clone shares are not donated by `jit`.

    >>> import treadle as nnx
    >>> model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    >>> copy = nnx.clone(model)
    >>> copy.bias.value += 1
    >>> float(model.bias.value.sum())
    0.0
    """
    flat = walk(node)
    leaves = jax.tree_util.tree_map(_copied, flat.leaves) if arrays else flat.leaves
    return _core.unflatten(flat.graphdef, leaves)[0]


def _copied(leaf: Any) -> Any:
    return leaf.copy() if isinstance(leaf, (jax.Array, np.ndarray)) else leaf


def flatten(node: N, /) -> tuple[GraphDef[N], State, RefMap]:
    """As `split` without filters, and also say which object has which reference id.

    >>> import treadle as nnx
    >>> model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    >>> graphdef, state, refs = nnx.flatten(model)
    >>> [type(obj).__name__ for obj in refs]
    ['Linear', 'Param', 'Param']
    """
    flat = walk(node)
    return flat.graphdef, State._from_leaves(flat.graphdef, None, flat.leaves), RefMap(flat.refs)


def unflatten(graphdef: GraphDef[N], state: Any, /, *states: Any) -> tuple[N, RefMap]:
    """As `merge`, and also say which new object has which reference id.

    Raises:
        StateError, LeafTypeError: as for `merge`.

    >>> import treadle as nnx
    >>> model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    >>> graphdef, state, refs = nnx.flatten(model)
    >>> copy, copy_refs = nnx.unflatten(graphdef, state)
    >>> copy_refs[refs.id_of(model.kernel)] is copy.kernel
    True
    """
    root, refs, _ = build(graphdef, (state, *states))
    return root, RefMap(refs)


publish(__all__, globals())
