"""What `vmap`, `pmap`, `shard_map` and `scan` do to each leaf of a call: one role each."""

from __future__ import annotations

import enum
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import jax
import numpy as np

from treadle._graph.filters import to_filter_spec
from treadle._modules.rngs import RngKey, RngState
from treadle.transforms._axes import Carry
from treadle.transforms._call import Call
from treadle.transforms._messages import part_label, type_of
from treadle.transforms._random_keys import is_kind_of, rng_key_ndim, split_key
from treadle.transforms._spelling import NO_ENTRY, MapOptions, StateEntry


class Role(enum.Enum):
    """What happens to a leaf that is not mapped over an axis."""

    BROADCAST = "broadcast"
    CARRY = "carried"
    KEPT = "kept"  # in a loop: the same in all iterations, but carried if it changes
    SPLIT = "split"  # a random key: each slice gets its own
    COUNT = "counted"  # count of a random stream that is never mapped: it comes out advanced

    def __repr__(self) -> str:
        return self.value


# An axis, or a PartitionSpec, or another role.
AxisRole: TypeAlias = Any


def describe(role: AxisRole) -> str:
    """A role in words."""
    if isinstance(role, Role):
        return "the same in all slices" if role in (Role.BROADCAST, Role.KEPT) else role.value
    return f"mapped over axis {role}" if isinstance(role, int) else f"sharded as {role}"


@dataclass(frozen=True)
class Plan:
    """What a mapping does to the leaves of a call; equal if one body serves.

    Args:
        roles: one per leaf.
        nodes: reference id and entry of each node and Variable among the arguments' items, and what
            the argument is called.
        size: number of slices.
        settings: what else the body depends on.
    """

    roles: tuple[AxisRole, ...]
    nodes: tuple[tuple[int, StateEntry, str], ...] = field(compare=False)
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
        nodes: list[tuple[int, StateEntry, str]] = []
        roles = self._roles(nodes)
        size = self._size(roles, given, parameter) if parameter else 0
        return Plan(roles, tuple(nodes), size)

    def _roles(self, nodes: list[tuple[int, StateEntry, str]]) -> tuple[AxisRole, ...]:
        call = self.call
        roles: list[AxisRole | None] = [None] * call.graphdef.num_leaves
        reached_by: list[str] = [""] * call.graphdef.num_leaves

        def assign(leaf: int, role: AxisRole, argument: str) -> None:
            role = self._checked(leaf, role)
            known = roles[leaf]
            if known is not None and known != role:
                raise ValueError(
                    f"{call.where}: {call.label(leaf)} is reached under two different axes: "
                    f"{describe(known)} through {reached_by[leaf]}, {describe(role)} "
                    f"through {argument}. Give both arguments the same axes, or pass the shared "
                    "object once."
                )
            roles[leaf], reached_by[leaf] = role, argument

        for argument in self.options.arguments(call, self.carry):
            items = zip(argument.entries, argument.items, strict=True)
            for i, (entry, (is_object, number)) in enumerate(items):
                if not is_object:
                    assign(number, _role(entry), argument.label)
                    continue
                nodes.append((number, entry, argument.label))
                reached = call.graphdef.reachable(number)
                for leaf in reached:
                    assign(leaf, self._state_role(leaf, entry), argument.label)
                if argument.plain[i] is not NO_ENTRY:
                    axes = {
                        leaf: roles[leaf]
                        for leaf in reached
                        if not is_kind_of(self._types[leaf], RngState)
                    }
                    self.options.check_plain(call, argument, i, axes)
        return tuple(_role(self.options.unselected) if role is None else role for role in roles)

    def _state_role(self, leaf: int, entry: StateEntry) -> AxisRole:
        is_random = entry.streams != "rules" and is_kind_of(self._types[leaf], RngState)
        if is_random and entry.streams == "split_rngs":
            return self._stream_role(leaf, 0, Role.BROADCAST)
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
            axis = entry.rules[selected[leaf]][1]
        elif entry.required is not None:
            raise ValueError(
                f"{self.call.where}: no filter of {entry.required!r} selects "
                f"{self.call.label(leaf)}. Add one, or `...` as the last."
            )
        else:
            axis = entry.otherwise
        same = Role.KEPT if entry.may_change and self.options.carries else Role.BROADCAST
        if is_random and axis is not Carry:
            return self._stream_role(leaf, axis, same)
        return same if axis is None else _role(axis)

    def _stream_role(self, leaf: int, axis: int | None, same: Role) -> AxisRole:
        """Role of a leaf of a random stream that is under an axis, or None.

        Args:
            leaf: a key or a count.
            axis: what is said about it.
            same: role of what is the same in all slices.
        """
        value = self.call.leaves[leaf]
        is_key = is_kind_of(self._types[leaf], RngKey)
        ndim = rng_key_ndim(value) if is_key else np.ndim(value)
        if ndim == 0:
            if not is_key:
                return Role.COUNT
            splits = axis is not None or self.options.splits_under_none
            if splits and self._is_split(leaf):
                return Role.SPLIT
            return Role.BROADCAST if axis is not None else same
        if axis is None:
            return same
        if ndim == 1:
            return 0
        # Counted from the end an axis of keys would count the words of a legacy one.
        return axis + ndim if -ndim <= axis < 0 else axis

    def _is_split(self, leaf: int) -> bool:
        if self._split is None:
            self._split = self.call.graphdef.partition(
                (to_filter_spec(self.options.split_rngs),), self.call.leaves
            )
        return self._split[leaf] == 0

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
            return f"Correct {where}: None (in a StateAxes, too) is for what is the same in all slices."
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
                f"inferred. Pass {parameter}{self._unmapped(roles)}."
            )
        return next(iter(first)) if given is None else given

    def _unmapped(self, roles: Sequence[AxisRole]) -> str:
        """Examples of leaves to map instead, in words."""
        found = [leaf for leaf, role in enumerate(roles) if role in (Role.BROADCAST, Role.KEPT)]
        if not found:
            return ""
        labels = ", ".join(map(self.call.label, found[:3]))
        return f", or give an axis for one of {labels}{', ...' if len(found) > 3 else ''}"


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
