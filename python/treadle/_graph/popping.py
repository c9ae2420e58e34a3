"""Remove Variables from objects, from every node that holds them."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Any, NamedTuple, overload

from treadle import _core
from treadle._graph.filters import Filter, compile_filters, to_predicate
from treadle._graph.state import State
from treadle._objects.node_types import iter_children, node_functions
from treadle._objects.variable_state import state_of_variable
from treadle._objects.variables import Variable
from treadle.errors import GraphError, format_path

Path = tuple[Hashable, ...]


class _Removal(NamedTuple):
    holder: Any
    key: Hashable
    variable: Variable[Any]


@overload
def pop(node: Any, filter: Filter, /) -> State: ...
@overload
def pop(node: Any, a: Filter, b: Filter, /) -> tuple[State, State]: ...
@overload
def pop(node: Any, a: Filter, b: Filter, c: Filter, /) -> tuple[State, State, State]: ...
@overload
def pop(
    node: Any, a: Filter, b: Filter, c: Filter, d: Filter, /, *filters: Filter
) -> tuple[State, ...]: ...
def pop(node: Any, filter: Filter, /, *filters: Filter) -> Any:
    """Remove Variables from objects, and return them as State.

    A shared Variable is removed from every node that holds it, and returned once. All of it
    happens, or nothing.

    Args:
        node: a module, or a pytree that holds some.
        filter: which Variables to remove.
        *filters: more filters, each with a State of its own, first match wins.

    Returns:
        A State for one filter, a tuple of States for several.

    Raises:
        FilterError: filters are out of order.
        GraphError: a Variable lies in a plain tuple, list or other pytree, or is itself the root,
            so that it cannot be removed.
        TraceContextError: a node belongs to another trace level.

    >>> import treadle as nnx
    >>> model = nnx.Dict(weight=nnx.Param(1.0), seen=nnx.Intermediate(2.0))
    >>> nnx.pop(model, nnx.Intermediate).seen.value, list(model)
    (2.0, ['weight'])
    """
    all_filters = (filter, *filters)
    compile_filters(all_filters)
    predicates = [to_predicate(f) for f in all_filters]
    flats: list[dict[Path, Any]] = [{} for _ in predicates]
    chosen: dict[int, bool] = {}
    removals: list[_Removal] = []
    for path, holder, key, variable in _variable_places(node):
        if id(variable) not in chosen:
            group = next((g for g, p in enumerate(predicates) if p(path, variable)), None)
            chosen[id(variable)] = group is not None
            if group is not None:
                flats[group][path] = state_of_variable(variable)
        if not chosen[id(variable)]:
            continue
        if holder is None:
            raise GraphError(
                f"Cannot pop {format_path(path)}: it is not an attribute or item of a node. "
                "Keep such Variables in attributes, or in treadle.Dict and treadle.List."
            )
        removals.append(_Removal(holder, key, variable))
    _remove(removals)
    states = tuple(map(State.from_flat_state, flats))
    return states[0] if not filters else states


def _variable_places(root: Any) -> Iterator[tuple[Path, Any, Hashable, Variable[Any]]]:
    """Every place that holds a Variable: path, the node it is an attribute of (or None), key."""
    seen: set[int] = set()
    pending: list[tuple[Path, Any, Hashable, Any]] = [((), None, None, root)]
    while pending:
        path, holder, key, value = pending.pop()
        if _core.is_variable(value):
            yield path, holder, key, value
            continue
        is_node = _core.is_node(value)
        if is_node:
            if id(value) in seen:
                continue
            seen.add(id(value))
        children = list(iter_children(value))
        next_holder = value if is_node else None
        pending.extend(((*path, k), next_holder, k, child) for k, child in reversed(children))


def _remove(removals: list[_Removal]) -> None:
    for removal in removals:
        _core.check_mutable(removal.holder)
    done: list[_Removal] = []
    try:
        # Backwards, so that list indices stay right.
        for removal in reversed(removals):
            node_functions(removal.holder).pop_key(removal.holder, removal.key)
            done.append(removal)
    except BaseException:
        for holder, key, variable in reversed(done):
            node_functions(holder).set_key(holder, key, variable)
        raise
