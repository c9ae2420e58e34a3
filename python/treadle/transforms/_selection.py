"""Which leaves of a call are differentiated."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from treadle import _core
from treadle._graph.filters import Filter, OfType
from treadle._objects.variables import Param
from treadle.errors import listed
from treadle.transforms._arguments import Path, normalize_argnums
from treadle.transforms._axes import DiffState
from treadle.transforms._call import Call
from treadle.transforms._messages import part_label, type_of
from treadle.transforms._trees import leaf_paths, tree_flatten

Argnums = int | DiffState | Sequence[int | DiffState]

PARAMETERS: Filter = OfType(Param)
"""The default of `wrt`, told by identity from a filter that somebody gave.

It is about what is inside of nodes: an argument that is itself a Variable was named by its position.
"""

_NONE: Mapping[int, Any] = {}

# Leaves that a message about an empty selection names.
_SHOWN = 8


class Selection:
    """The leaves of a call that are differentiated, and how gradients are made of them.

    Args:
        call: the walked call.
        wanted: position and filter of each argument to differentiate; the filter selects leaves of
            nodes, values outside nodes are always selected.
    """

    __slots__ = ("arguments", "call", "leaves", "positions")

    def __init__(self, call: Call, wanted: Iterable[tuple[int, Filter]]) -> None:
        self.call = call
        by_position = call.argument_items()
        partitions: dict[int, tuple[int, ...]] = {}
        # For each argument its position, its structure and, per item, the object's reference id
        # and leaves.
        self.arguments: list[tuple[int, Any, list[tuple[int | None, list[int]]]]] = []
        chosen: set[int] = set()
        for position, wrt in wanted:
            _, argument, items = by_position[position]
            _, structure = tree_flatten(argument)
            described: list[tuple[int | None, list[int]]] = []
            for is_object, which in items:
                if not is_object:
                    described.append((None, [which]))
                    chosen.add(which)
                    continue
                if wrt is PARAMETERS and _core.is_variable(argument):
                    ids = list(call.graphdef.reachable(which))
                    described.append((which, ids))
                    chosen.update(ids)
                    continue
                if id(wrt) not in partitions:
                    partitions[id(wrt)] = call.partition((wrt,))
                selected = partitions[id(wrt)]
                ids = [leaf for leaf in call.graphdef.reachable(which) if selected[leaf] == 0]
                described.append((which, ids))
                chosen.update(ids)
            self.arguments.append((position, structure, described))
        self.leaves = tuple(sorted(chosen))
        self.positions = {leaf: position for position, leaf in enumerate(self.leaves)}

    def check_not_empty(self, filters: Iterable[Filter]) -> None:
        """Raise a ValueError if `filters`, which made it, leave nothing of what the arguments hold."""
        if self.leaves:
            return
        there = {
            leaf
            for _, _, described in self.arguments
            for ref, _ in described
            if ref is not None
            for leaf in self.call.graphdef.reachable(ref)
        }
        if not there:
            return
        types = self.call.graphdef.leaf_types()

        def shown(leaf: int) -> str:
            return f"{self.call.label(leaf)} ({getattr(types[leaf], '__name__', 'array')})"

        wrt = " and ".join(dict.fromkeys(map(_filter_text, filters)))
        raise ValueError(
            f"{self.call.where}: wrt={wrt} selects nothing to differentiate. The arguments hold "
            f"{listed(sorted(there), _SHOWN, shown)}. Pass a filter that selects some of it, such as wrt=... for "
            "everything, or DiffState(position, filter) in argnums."
        )

    def values(self) -> tuple[Any, ...]:
        """The selected leaves' values."""
        return tuple(self.call.leaves[leaf] for leaf in self.leaves)

    def substitute(self, values: Sequence[Any]) -> list[Any]:
        """All leaves of the call, the selected ones replaced."""
        leaves = list(self.call.leaves)
        for leaf, value in zip(self.leaves, values, strict=True):
            leaves[leaf] = value
        return leaves

    def without_values(self) -> Selection:
        """The same selection for what JAX keeps: it holds no values, and no objects of the call."""
        outline = copy.copy(self)
        outline.call = self.call.outline()  # type: ignore[assignment]
        return outline

    def gather(
        self,
        values: Sequence[Any],
        others: Mapping[int, Any] = _NONE,
        made: Mapping[int, Mapping[Path, Any]] = _NONE,
    ) -> list[Any]:
        """One pytree per argument, nodes in it replaced by States, of values of selected leaves.

        Args:
            values: of the selected leaves.
            others: of other leaves, by leaf.
            made: entries that are no leaves of the call, by the object they are in and their path there.
        """
        gathered = []
        for _, structure, described in self.arguments:
            parts = []
            for ref, ids in described:
                if ref is None:
                    parts.append(values[self.positions[ids[0]]])
                else:
                    there = {leaf: values[self.positions[leaf]] for leaf in ids}
                    parts.append(self.call.state(ref, {**others, **there}, made.get(ref, {})))
            gathered.append(jax.tree_util.tree_unflatten(structure, parts))
        return gathered

    def objects(self) -> Iterator[tuple[Path, int]]:
        """Path and reference id of each object outside others, for all arguments."""
        for position, structure, described in self.arguments:
            for path, (ref, _) in zip(leaf_paths(structure), described, strict=True):
                if ref is not None:
                    yield (position, *path), ref

    def check_dtypes(self, allow_int: bool, holomorphic: bool) -> None:
        """Raise a TypeError naming a selected leaf that cannot be differentiated."""
        for leaf in self.leaves:
            for number, part in enumerate(jax.tree_util.tree_leaves(self.call.leaves[leaf])):
                self._check_dtype(leaf, number, part, allow_int, holomorphic)

    def _check_dtype(
        self, leaf: int, number: int, array: Any, allow_int: bool, holomorphic: bool
    ) -> None:
        dtype = jnp.result_type(array)
        inexact = jnp.issubdtype(dtype, np.inexact)
        if holomorphic and not jnp.issubdtype(dtype, np.complexfloating):
            raise TypeError(
                f"{self.call.where} with holomorphic=True needs complex inputs, "
                f"{self._label(leaf, number)} is {type_of(array)}."
            )
        if not inexact and not allow_int:
            raise TypeError(
                f"{self.call.where} differentiates {self._label(leaf, number)}, which is "
                f"{type_of(array)}: only floating-point and complex values have gradients. "
                "Leave it out of argnums or wrt, or pass allow_int=True."
            )

    def _label(self, leaf: int, number: int) -> str:
        return part_label(self.call.label(leaf), self.call.leaves[leaf], number)


def _filter_text(wrt: Filter) -> str:
    if wrt is PARAMETERS:
        return Param.__name__
    return wrt.__name__ if isinstance(wrt, type) else "..." if wrt is ... else repr(wrt)


def wanted(call: Call, argnums: Argnums, wrt: Filter) -> list[tuple[int, Filter]]:
    """Position and filter of each argument that `argnums` names."""
    entries = list(argnums) if isinstance(argnums, Sequence) else [argnums]
    numbers = [e.argnum if isinstance(e, DiffState) else e for e in entries]
    normal = normalize_argnums(call.name, "argnums", numbers, call.function, len(call.args))
    filters = [e.filter if isinstance(e, DiffState) else wrt for e in entries]
    return list(zip(normal, filters, strict=True))


def checked_argnums(name: str, argnums: Any) -> Argnums:
    """One position or a sequence of them, also where NumPy's are given.

    Raises:
        TypeError: it names no argument.
    """
    if isinstance(argnums, (np.ndarray, np.generic)):
        argnums = argnums.tolist()
    entries = argnums if isinstance(argnums, Sequence) else (argnums,)
    for entry in entries:
        if isinstance(entry, bool) or not (
            isinstance(entry, DiffState) or hasattr(entry, "__index__")
        ):
            raise TypeError(
                f"{name}: argnums takes positions of arguments (int), DiffState(position, filter), "
                f"or a sequence of these; got {entry!r}."
            )
    return argnums
