"""Remove Variables from objects, from every node that holds them."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import Any, NamedTuple, overload

from treadle import _core
from treadle._graph.filters import Filter, compile_filters, needs_path, predicate_of
from treadle._graph.state import State
from treadle._objects.node_types import iter_children, node_functions
from treadle._objects.variable_state import state_of_variable
from treadle._objects.variables import Variable
from treadle._public import publish
from treadle.errors import GraphError, TraceContextError, format_path, located

__all__ = ["pop"]

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
    specs = compile_filters(all_filters)
    predicates = list(map(predicate_of, specs))
    looks_at_path = any(map(needs_path, specs))
    flats: list[dict[Path, Any]] = [{} for _ in predicates]
    chosen: dict[int, bool] = {}
    removals: list[_Removal] = []
    for keys, holder, variable in _variable_places(node):
        if id(variable) not in chosen:
            path = tuple(keys) if looks_at_path else ()
            group = next((g for g, p in enumerate(predicates) if p(path, variable)), None)
            chosen[id(variable)] = group is not None
            if group is not None:
                flats[group][tuple(keys)] = state_of_variable(variable)
        if not chosen[id(variable)]:
            continue
        if holder is None:
            raise GraphError(
                f"Cannot pop {format_path(keys)}: it is not an attribute or item of a node. "
                "Keep such Variables in attributes, or in treadle.Dict and treadle.List."
            )
        try:
            _core.check_mutable(holder)
        except TraceContextError as error:
            raise located(error, keys[:-1]) from None
        removals.append(_Removal(holder, keys[-1], variable))
    _remove(removals)
    states = tuple(map(State.from_flat_state, flats))
    return states[0] if not filters else states


def _variable_places(root: Any) -> Iterator[tuple[Sequence[Hashable], Any, Variable[Any]]]:
    """Every place that holds a Variable: the keys to it, the node it is a child of (or None).

    The keys are one list for all places, to be copied where needed.
    """
    seen: set[int] = set()
    keys: list[Hashable] = []
    if _core.is_variable(root):
        yield keys, None, root
        return
    entered = [_entered(root, seen)]
    while entered:
        holder, children = entered[-1]
        for key, child in children:
            keys.append(key)
            if not _core.is_variable(child):
                entered.append(_entered(child, seen))
                break
            yield keys, holder, child
            keys.pop()
        else:
            entered.pop()
            if keys:
                keys.pop()


def _entered(value: Any, seen: set[int]) -> tuple[Any, Iterator[tuple[Hashable, Any]]]:
    """`value` if it is a node, and its children, which a node shows once only."""
    if not _core.is_node(value):
        return None, iter(list(iter_children(value)))
    if id(value) in seen:
        return value, iter(())
    seen.add(id(value))
    return value, iter(list(iter_children(value)))


def _remove(removals: list[_Removal]) -> None:
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


publish(__all__, globals())
