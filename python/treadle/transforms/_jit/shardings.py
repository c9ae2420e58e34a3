"""`in_shardings` and `out_shardings` of a jitted function, by leaf."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from jax.core import Tracer

from treadle import _core
from treadle.errors import format_path
from treadle.transforms._arguments import Function, function_name
from treadle.transforms._axes import StateSharding
from treadle.transforms._call import Call
from treadle.transforms._companions import apart
from treadle.transforms._trees import spread_prefix, tree_flatten


def leaf_shardings(
    function: Function,
    prefix: Any,
    static: frozenset[int],
    graphdef: _core.GraphDef,
    leaves: Sequence[Any],
) -> tuple[Any, ...]:
    """What `in_shardings` says about each leaf of a call; None where it says nothing.

    Args:
        function: the user's function.
        prefix: `in_shardings`.
        static: positions of the static arguments, which have no entry.
        graphdef: structure of the call.
        leaves: its leaves.

    Raises:
        ValueError: it does not fit the arguments.
    """
    (args, kwargs), _ = _core.unflatten(graphdef, leaves)
    given, companions = apart(kwargs)
    if given:
        raise ValueError(
            f"jit: in_shardings of {function_name(function)} says nothing about the "
            f"keyword argument{'' if len(given) == 1 else 's'} {', '.join(sorted(given))}. "
            f"Pass all arguments by position, or place them with jax.device_put."
        )
    call = Call("jit", function, args, companions, static)
    args = tuple(a for i, a in enumerate(args) if i not in static)
    if isinstance(prefix, list):
        prefix = tuple(prefix)
    entries = spread_prefix(
        prefix, args, "jit: in_shardings (for the arguments that are not static)", _is_sharding
    )
    spread: list[Any] = [None] * graphdef.num_leaves
    # Companions come last, and have no entries.
    for entry, (is_ref, index) in zip(entries, graphdef.root_items(), strict=not companions):
        for leaf in graphdef.reachable(index) if is_ref else (index,):
            sharding = _sharding_of(call, leaf, entry)
            if spread[leaf] is not None and sharding is not None and spread[leaf] != sharding:
                raise ValueError(
                    f"jit: in_shardings gives {call.label(leaf)}, which is shared between "
                    f"arguments, two shardings: {spread[leaf]} and {sharding}. Give both "
                    f"arguments the same."
                )
            spread[leaf] = sharding if spread[leaf] is None else spread[leaf]
    return tuple(spread)


def keep_shardings(
    graphdef: _core.GraphDef, refs: Sequence[Any], values: Sequence[Any], shardings: Sequence[Any]
) -> None:
    """Let state that changed leave with the sharding that it came with."""
    for leaf, ref in enumerate(graphdef.leaf_refs()):
        if ref < 0 or shardings[leaf] is None:
            continue
        variable = refs[ref]
        value = _core.raw_value(variable)
        if value is not values[leaf]:
            _core.set_raw_value(variable, _placed(value, shardings[leaf]))


def shard_result(function: Function, prefix: Any, result: Any) -> Any:
    """The result of `function` where `out_shardings` wants it.

    Raises:
        ValueError: it does not fit the result, or a shape.
    """
    entries = spread_prefix(prefix, result, "jit: out_shardings", _is_sharding)
    leaves, treedef = tree_flatten(result)
    for i, (leaf, entry) in enumerate(zip(leaves, entries, strict=True)):
        if entry is None:
            continue
        if not _core.is_node(leaf):
            leaves[i] = _place_result(result, i, leaf, entry)
            continue
        call = Call("jit", function, (leaf,), {})
        chosen = [(j, _sharding_of(call, j, entry)) for j in range(len(call.leaves))]
        chosen = [(j, sharding) for j, sharding in chosen if sharding is not None]
        paths = call.graphdef.paths()
        _core.set_leaves(
            call.flat,
            [j for j, _ in chosen],
            [_place_result(result, i, call.leaves[j], to, paths[j][1:]) for j, to in chosen],
        )
    return jax.tree_util.tree_unflatten(treedef, leaves)


def place_value(value: Any, sharding: Any) -> Any:
    """A value of a Variable where `in_shardings` wants it, in a trace or outside of one."""
    if isinstance(value, Tracer) or not isinstance(sharding, jax.sharding.Sharding):
        return _placed(value, sharding)
    return jax.device_put(value, sharding)


def is_placed_like(value: Any, placed: Any) -> bool:
    """Whether an array is already where `placed`, which was made of it, is."""
    if not (_is_concrete(value) and _is_concrete(placed)):
        return value is placed
    was, now = value.sharding, placed.sharding
    return (
        type(was) is type(now)
        and was.memory_kind == now.memory_kind
        and was.is_equivalent_to(now, value.ndim)
    )


def _is_concrete(value: Any) -> bool:
    return isinstance(value, jax.Array) and not isinstance(value, Tracer)


def _sharding_of(call: Call, leaf: int, entry: Any) -> Any:
    if not isinstance(entry, StateSharding):
        return entry
    group = call.partition(entry.filters)[leaf]
    return None if group < 0 else entry.shardings[group]


def _is_sharding(entry: Any) -> bool:
    kinds = (StateSharding, jax.sharding.Sharding, jax.sharding.PartitionSpec)
    return entry is None or isinstance(entry, kinds)


def _place_result(
    result: Any, output: int, value: Any, sharding: Any, path: tuple[Any, ...] = ()
) -> Any:
    """A leaf where out_shardings wants it: below the node `output` of the result if it has a path."""
    try:
        return _placed(value, sharding)
    except ValueError as error:
        found = jax.tree_util.tree_flatten_with_path(result, is_leaf=_core.is_node)[0]
        where = format_path(path, "result" + jax.tree_util.keystr(found[output][0]))
        raise ValueError(f"jit: out_shardings cannot place {where}: {error}") from error


def _placed(value: Any, sharding: Any) -> Any:
    """`value` with a sharding, in the memory that the sharding names.

    Raises:
        ValueError: the shape does not fit.
    """
    if not isinstance(sharding, jax.sharding.Sharding):
        return jax.lax.with_sharding_constraint(value, sharding)
    usual = next(iter(sharding.device_set)).default_memory().kind
    # A constraint leaves the memory out, and passes over axes that cannot be divided as it says.
    placed = jax.lax.with_sharding_constraint(value, sharding.with_memory_kind(usual))
    sharding.shard_shape(placed.shape)
    return placed if sharding.memory_kind in (None, usual) else jax.device_put(placed, sharding)
