"""What `vmap`, `pmap`, `shard_map` and `scan` do to each leaf of a call: one role each."""

from __future__ import annotations

import enum
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import jax
import numpy as np

from treadle._graph.filters import to_filter_spec
from treadle._modules.rngs import RngCount, RngKey, RngState
from treadle.transforms._axes import Carry
from treadle.transforms._call import Call
from treadle.transforms._messages import part_label, type_of
from treadle.transforms._random_keys import is_kind_of, rng_key_ndim, split_key
from treadle.transforms._spelling import MapOptions, StateEntry


class Role(enum.Enum):
    """What happens to a leaf that is not mapped over an axis."""

    BROADCAST = "broadcast"
    CARRY = "carried"
    SPLIT = "split"  # a random key: each slice gets its own
    COUNT = "counted"  # count of a random stream: broadcast in, the last one comes out

    def __repr__(self) -> str:
        return self.value


# An axis, or a PartitionSpec, or another role.
AxisRole: TypeAlias = Any


def _describe(role: AxisRole) -> str:
    if isinstance(role, Role):
        return role.value
    return f"mapped over axis {role}" if isinstance(role, int) else f"sharded as {role}"


@dataclass(frozen=True)
class Plan:
    """What a mapping does to the leaves of a call; equal if one body serves.

    Args:
        roles: one per leaf.
        entries: what holds for each item of each argument.
        size: number of slices.
        settings: what else the body depends on.
    """

    roles: tuple[AxisRole, ...]
    entries: Mapping[int | str, Sequence[Any]] = field(compare=False)
    size: int = field(default=0, compare=False)
    settings: Hashable = None

    def of(self, *wanted: AxisRole) -> tuple[int, ...]:
        """Ids of the leaves with one of the roles; `int` stands for all axes."""
        return tuple(
            leaf
            for leaf, role in enumerate(self.roles)
            if role in wanted or (int in wanted and isinstance(role, int))
        )

    def slices(self, leaves: Sequence[Any]) -> tuple[Any, ...]:
        """The leaves as they are mapped: keys to split are split."""
        return tuple(
            split_key(leaf, self.size) if role is Role.SPLIT else leaf
            for leaf, role in zip(leaves, self.roles, strict=True)
        )


class Resolver:
    """Finds the role of each leaf of a call.

    Args:
        call: the call.
        options: the transform's parameters.
        carry: position of the argument that is carried.
    """

    def __init__(self, call: Call, options: MapOptions, carry: int | None = None) -> None:
        self.call = call
        self.options = options
        self.carry = carry
        self._types = call.graphdef.leaf_types()
        self._selected: dict[StateEntry, Sequence[int]] = {}
        self._split: tuple[int, ...] | None = None

    def plan(self, given: int | None = None, parameter: str = "") -> Plan:
        """Roles, and the number of slices, which the user calls `parameter`.

        Raises:
            ValueError: axes do not fit the arguments, an axis is out of bounds, a leaf is
                reached under two roles, or sizes disagree or cannot be inferred.
        """
        entries: dict[int | str, Sequence[Any]] = {}
        roles = self._roles(entries)
        size = self._size(roles, given, parameter) if parameter else 0
        return Plan(roles, entries, size)

    def _roles(self, entries: dict[int | str, Sequence[Any]]) -> tuple[AxisRole, ...]:
        call = self.call
        roles: list[AxisRole | None] = [None] * call.graphdef.num_leaves
        reached_by: list[str] = [""] * call.graphdef.num_leaves

        def assign(leaf: int, role: AxisRole, argument: str) -> None:
            known = roles[leaf]
            if known is not None and known != role:
                raise ValueError(
                    f"{call.where}: {call.label(leaf)} is reached under two different axes: "
                    f"{_describe(known)} through {reached_by[leaf]}, {_describe(role)} "
                    f"through {argument}. Give both arguments the same axes, or pass the shared "
                    "object once."
                )
            roles[leaf], reached_by[leaf] = role, argument

        for which, label, described, items in self.options.arguments(call, self.carry):
            entries[which] = described
            for entry, (is_object, number) in zip(described, items, strict=True):
                if is_object:
                    for leaf in call.graphdef.reachable(number):
                        assign(leaf, self._state_role(leaf, entry), label)
                else:
                    assign(number, _role(entry), label)
        return tuple(
            _role(self.options.unselected) if role is None else self._checked(leaf, role)
            for leaf, role in enumerate(roles)
        )

    def _state_role(self, leaf: int, entry: StateEntry) -> AxisRole:
        kind = self._types[leaf]
        if entry.streams and is_kind_of(kind, RngState):
            return self._stream_role(leaf)
        selected = self._selected.get(entry)
        if selected is None:
            filters = tuple(filter_ for filter_, _ in entry.rules)
            everywhere = not filters or filters[0] is ...
            selected = self._selected[entry] = (
                [0 if filters else -1] * len(self._types)
                if everywhere
                else self.call.partition(filters)
            )
        if selected[leaf] >= 0:
            role = _role(entry.rules[selected[leaf]][1])
            is_count = role is Role.BROADCAST and is_kind_of(kind, RngCount)
            return Role.COUNT if is_count else role
        if entry.required is not None:
            raise ValueError(
                f"{self.call.where}: no filter of {entry.required!r} selects "
                f"{self.call.label(leaf)}. Add one, or `...` as the last."
            )
        return _role(entry.otherwise)

    def _stream_role(self, leaf: int) -> AxisRole:
        value = self.call.leaves[leaf]
        if not is_kind_of(self._types[leaf], RngKey):
            return 0 if np.ndim(value) > 0 else Role.COUNT
        if rng_key_ndim(value) > 0:
            return 0
        if self._split is None:
            self._split = self.call.graphdef.partition(
                (to_filter_spec(self.options.split_rngs),), self.call.leaves
            )
        return Role.SPLIT if self._split[leaf] == 0 else Role.BROADCAST

    def _checked(self, leaf: int, role: AxisRole) -> AxisRole:
        """The role, its axis counted from the front where the value is one array.

        The arrays of a pytree may differ in rank, so there a negative axis stays what it is: each
        array's own, which JAX counts from its end.
        """
        if not isinstance(role, int):
            return role
        value = self.call.leaves[leaf]
        for number, part in enumerate(jax.tree_util.tree_leaves(value)):
            ndim = rank(part)
            if not -ndim <= role < ndim:
                label = part_label(self.call.label(leaf), value, number)
                raise ValueError(
                    f"{self.call.where}: axis {role} is out of bounds for {label}, which is "
                    f"{type_of(part)}. {self._remedy(leaf)}"
                )
            if part is value:
                return role % ndim
        return role

    def _remedy(self, leaf: int) -> str:
        """How to have a leaf not mapped."""
        path = self.call.graphdef.paths()[leaf]
        where = "in_axes_kwargs" if isinstance(path[0], str) else "in_axes"
        if len(path) < 2 or self._is_array(leaf):
            return f"Correct {where}, or give None there for what is not mapped."
        if self.options.speaks_of_nodes:
            return f"Correct {where}: None (in a StateAxes, too) is for what is not mapped."
        return (
            "The state of nodes follows state_axes: give None there for what is not mapped, {} to "
            f"map no state, or StateAxes in {where}."
        )

    def _is_array(self, leaf: int) -> bool:
        """Whether a leaf is an array outside any node."""
        return (False, leaf) in self.call.graphdef.root_items()

    def _size(self, roles: Sequence[AxisRole], given: int | None, parameter: str) -> int:
        """Number of slices: `given`, or what the mapped leaves say."""
        where = self.call.where
        first: dict[int, str] = {}
        named = 0
        for leaf, role in enumerate(roles):
            if not isinstance(role, int):
                continue
            value = self.call.leaves[leaf]
            for number, part in enumerate(jax.tree_util.tree_leaves(value)):
                size = np.shape(part)[role]
                if size not in first:
                    # Of several, the remedy for state is the less obvious one.
                    if not first or self._is_array(named):
                        named = leaf
                    label = part_label(self.call.label(leaf), value, number)
                    first[size] = f"{label} has {size} along axis {role}"
        if given is not None and any(size != given for size in first):
            wrong = next(text for size, text in first.items() if size != given)
            raise ValueError(
                f"{where}: {parameter}={given}, but {wrong}. Correct {parameter}, or the axis "
                f"of that argument. {self._remedy(named)}"
            )
        if len(first) > 1:
            raise ValueError(
                f"{where}: sizes of mapped axes disagree: {'; '.join(first.values())}. All "
                f"mapped axes must have one size. {self._remedy(named)}"
            )
        if given is None and not first:
            raise ValueError(
                f"{where}: nothing is mapped over an axis, so the number of slices cannot be "
                f"inferred. Pass {parameter}."
            )
        return next(iter(first)) if given is None else given


def _role(axis: Any) -> AxisRole:
    """The role that an entry gives to a leaf by itself."""
    return Role.BROADCAST if axis is None else Role.CARRY if axis is Carry else axis


def rank(array: Any) -> int:
    """Number of axes, 0 for what is not an array."""
    ndim = getattr(array, "ndim", None)
    if ndim is None:
        try:
            ndim = np.ndim(array)
        except Exception:
            ndim = 0
    return ndim
