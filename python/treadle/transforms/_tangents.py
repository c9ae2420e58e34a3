"""Tangents and cotangents of the selected leaves of a call, as a user gives them."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from treadle import _core
from treadle.transforms._arguments import Path, argument_label
from treadle.transforms._call import Outline
from treadle.transforms._messages import part_label, returned, structure_text, type_of
from treadle.transforms._selection import Selection
from treadle.transforms._trees import leaf_paths

_NONE: Mapping[int, Container[Path]] = {}


def scatter(
    selection: Selection,
    trees: Sequence[Any],
    values: Sequence[Any],
    what: str,
    *,
    add_up: bool,
    beside: Mapping[int, Container[Path]] = _NONE,
) -> tuple[Any, ...]:
    """Tangents of the selected leaves, from one pytree per argument as `gather` makes them.

    What is missing is zero. What is given for a leaf in two places (a shared Variable) is added
    up, or must be the same object.

    Args:
        selection: the leaves.
        trees: what is given; None in it counts as missing.
        values: the selected leaves' values.
        what: `trees` in words, for messages.
        add_up: `trees` are gradients: add up what is given twice, and let JAX judge the dtypes,
            as it lets gradients have another one.
        beside: for each object paths where `trees` may have entries that nobody asks for.

    Raises:
        ValueError: `trees` does not fit the arguments.
        TypeError: an entry is not an array, or of another dtype than its leaf.
    """
    call = selection.call
    # A value may be a pytree, so each has a list of arrays.
    flat = [jax.tree_util.tree_flatten(value) for value in values]
    found: list[list[Any]] = [[None] * len(arrays) for arrays, _ in flat]
    places: dict[tuple[int, int], Path] = {}
    for place, leaf, value in _entries(selection, trees, what, beside):
        position = selection.positions[leaf]
        arrays, structure = flat[position]
        try:
            entries = structure.flatten_up_to(value)
        except ValueError as error:
            raise ValueError(
                f"{call.where}: {what} must have the structure of {call.label(leaf)}, "
                f"which is {structure_text(values[position])}. {error}"
            ) from error
        known = found[position]
        for number, (array, entry) in enumerate(zip(arrays, entries, strict=True)):
            if entry is None or (add_up and not _has_gradient(array)):
                continue  # JAX does not look at gradients of integers.
            problem = _misfit(array, entry, any_dtype=add_up)
            if problem is not None:
                kind, text = problem
                label = part_label(_place(call, place), values[position], number)
                raise kind(f"{call.where}: {what} must fit {label}, which is {text}")
            if known[number] is None:
                known[number] = entry
                places[position, number] = place
            elif add_up:
                known[number] = known[number] + entry
            elif known[number] is not entry:
                first, second = (
                    part_label(_place(call, which), values[position], number)
                    for which in (places[position, number], place)
                )
                raise ValueError(
                    f"{call.where}: {first} and {second} are one and the same, but {what} "
                    "have a different entry for each. Pass the shared object once, or give its "
                    "tangent in one place and None in the other."
                )
    return tuple(
        jax.tree_util.tree_unflatten(
            structure,
            [
                zero_tangent(array) if entry is None else entry
                for array, entry in zip(arrays, entries, strict=True)
            ],
        )
        for (arrays, structure), entries in zip(flat, found, strict=True)
    )


def _place(call: Outline, path: Path) -> str:
    return argument_label(call.function, path)


def _entries(
    selection: Selection,
    trees: Sequence[Any],
    what: str,
    beside: Mapping[int, Container[Path]],
) -> Iterator[tuple[Path, int, Any]]:
    """Path from the arguments, leaf and value of each entry of `trees` that is not None."""
    for (position, structure, items), tree in zip(selection.arguments, trees, strict=True):
        if tree is None:
            continue
        try:
            parts = structure.flatten_up_to(tree)
        except ValueError as error:
            raise ValueError(
                f"{selection.call.where}: {what} must have the structure of the arguments, with a "
                f"State for each node. {error}"
            ) from error
        paths = leaf_paths(structure)
        for start, (ref, ids), part in zip(paths, items, parts, strict=True):
            if part is None:
                continue
            place = (position, *start)
            if ref is None:
                yield place, ids[0], part
                continue
            paths_beside = beside.get(ref, ())
            found = _entries_of_state(selection, ref, ids, part, what, paths_beside)
            for path, leaf, entry in found:
                yield (*place, *path), leaf, entry


def _entries_of_state(
    selection: Selection,
    ref: int,
    ids: Sequence[int],
    state: Any,
    what: str,
    beside: Container[Path],
) -> Iterator[tuple[Path, int, Any]]:
    paths = selection.call.relative_paths(ref)
    by_path = {paths[leaf]: leaf for leaf in ids}
    for path, entry in _state_entries(state, by_path):
        if path in beside:
            continue
        if path not in by_path:
            raise ValueError(
                f"{selection.call.where}: {what} has an entry at {path!r} that is not a "
                "differentiated leaf of the argument. "
                f"Differentiated: {sorted(map(str, by_path))}."
            )
        if entry is not None:
            yield path, by_path[path], entry


def _state_entries(
    state: Any, leaves: Container[Path], path: Path = ()
) -> Iterator[tuple[Path, Any]]:
    """Path and bare value of each entry of a State or of nested dicts; a single value is at ().

    What is at a path in `leaves` is one entry: the value of a Variable may be a mapping itself.
    """
    if isinstance(state, Mapping) and path not in leaves:
        for key, entry in state.items():
            yield from _state_entries(entry, leaves, (*path, key))
    else:
        yield path, _bare(state)


def _bare(entry: Any) -> Any:
    if _core.is_variable(entry):
        return _core.raw_value(entry)
    return entry.value if isinstance(entry, _core.VariableState) else entry


def zero_tangent(array: Any) -> Any:
    """Zero of the tangent space of `array`: ``float0`` where it has no derivative."""
    if _has_gradient(array):
        return jnp.zeros_like(array)
    return np.zeros(np.shape(array), jax.dtypes.float0)


def _has_gradient(array: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(array), np.inexact)


def _misfit(
    array: Any, tangent: Any, any_dtype: bool
) -> tuple[type[TypeError] | type[ValueError], str] | None:
    """Why `tangent` cannot be one of `array`: the exception to raise and what to say, or None."""
    if isinstance(tangent, jax.custom_derivatives.SymbolicZero):
        return None
    expected = jax.typeof(array)
    try:
        given = jax.typeof(tangent)
    except (TypeError, ValueError):
        return TypeError, (
            f"{type_of(expected)}; got {returned(tangent)}. Give an array, or None for zero."
        )
    if np.shape(given) != np.shape(expected):
        return ValueError, (
            f"{type_of(expected)}; got {type_of(given)}. Give an array of shape "
            f"{np.shape(expected)}, or None for zero."
        )
    dtype = expected.dtype if _has_gradient(array) else jax.dtypes.float0
    if any_dtype or given.dtype == dtype:
        return None
    if dtype is jax.dtypes.float0:
        advice = "It has no derivative: give None."
    else:
        advice = f"Cast it to {dtype}, or give None for zero."
    return TypeError, f"{type_of(expected)}; got {type_of(given)}. {advice}"
