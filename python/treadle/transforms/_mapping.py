"""What `vmap`, `scan` and `pmap` do to each leaf: mapped, broadcast, carried, or a key to split.

Both spellings end here: `in_axes` with `state_axes` and `split_rngs`, and `StateAxes` and `Carry`
inside `in_axes`. The outcome is one role per leaf.
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from treadle import _core
from treadle._graph.filters import Filter, compile_filters, to_filter_spec, to_predicate
from treadle._modules.rngs import RngCount, RngKey, RngState
from treadle._objects import variables
from treadle.errors import format_path
from treadle.transforms._lift import (
    Call,
    Function,
    Path,
    argument_label,
    function_name,
    part_label,
    plain_path,
    spread_prefix,
    tree_leaves,
    type_of,
)
from treadle.transforms.axes import ByFilter, Carry, StateAxes


class FrozenDict(Mapping[Any, Any]):
    """An immutable, hashable mapping, equal to any mapping with the same entries."""

    __slots__ = ("_entries",)

    def __init__(self, entries: Mapping[Any, Any]) -> None:
        self._entries = dict(entries)

    def __getitem__(self, key: Any) -> Any:
        return self._entries[key]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mapping) and self._entries == dict(other)

    def __hash__(self) -> int:
        return hash(tuple(self._entries.items()))

    def __repr__(self) -> str:
        return f"FrozenDict({self._entries!r})"

    def __reduce__(self) -> Any:
        return FrozenDict, (self._entries,)


DEFAULT_STATE_AXES: Mapping[Filter, int | None] = FrozenDict({...: 0})
NO_METADATA: Mapping[str, Any] = FrozenDict({})


class ByDefault(int):
    """A parameter's default, equal to the plain int, that shows that nobody gave the parameter."""

    __slots__ = ()


class Role(enum.Enum):
    """What happens to a leaf that is not mapped over an axis."""

    BROADCAST = "broadcast"
    CARRY = "carried"
    SPLIT = "split"  # a random key: each slice gets its own
    COUNT = "counted"  # count of a random stream: broadcast in, the last one comes out

    def __repr__(self) -> str:
        return self.value


AxisRole: TypeAlias = int | Role


def is_axis(value: Any) -> bool:
    """True for what stands for one whole entry in a pytree of axes."""
    return value is None or value is Carry or isinstance(value, (ByFilter, PartitionSpec))


def has_carry(axes: Any) -> bool:
    """Whether a Carry stands anywhere in a pytree of axes."""
    return any(axis is Carry for axis in jax.tree_util.tree_leaves(axes, is_leaf=is_axis))


def describe_role(role: AxisRole) -> str:
    """A role in words."""
    if isinstance(role, Role):
        return role.value
    return f"mapped over axis {role}" if isinstance(role, int) else f"sharded as {role}"


@dataclass(frozen=True)
class MapOptions:
    """The parameters that the mapping transforms share, as the user gave them."""

    name: str
    in_axes: Any = 0
    in_axes_kwargs: Any = 0
    out_axes: Any = 0
    state_axes: Mapping[Filter, int | None] = field(default_factory=lambda: DEFAULT_STATE_AXES)
    split_rngs: Any = ...
    transform_metadata: Mapping[str, Any] = field(default_factory=lambda: NO_METADATA)
    carry_argnum: int | None = None
    unselected: Role = Role.BROADCAST
    # Axes of the state that comes in, where they differ from those of new state.
    input_state_axes: Mapping[Filter, int | None] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.in_axes, list):
            object.__setattr__(self, "in_axes", tuple(self.in_axes))
        for parameter in ("in_axes", "in_axes_kwargs", "out_axes"):
            for axis in jax.tree_util.tree_leaves(getattr(self, parameter), is_leaf=is_axis):
                self._check_axis(parameter, axis)
        compile_filters(tuple(self.state_axes))
        for filter_, axis in self.state_axes.items():
            if not (axis is None or (isinstance(axis, int) and not isinstance(axis, bool))):
                raise TypeError(
                    f"{self.name}: state_axes maps filters to an int or None, "
                    f"got {axis!r} for {filter_!r}."
                )
        to_filter_spec(self.split_rngs)

    def _check_axis(self, parameter: str, axis: Any) -> None:
        if self.unselected is not Role.CARRY and (
            axis is Carry or (isinstance(axis, StateAxes) and Carry in axis.axes)
        ):
            raise TypeError(f"{self.name}: {parameter} has a Carry, which only scan has.")
        if axis is None or axis is Carry or isinstance(axis, StateAxes):
            return
        if isinstance(axis, int) and not isinstance(axis, bool):
            return
        raise TypeError(
            f"{self.name}: {parameter} takes ints, None, StateAxes, or a pytree of these, "
            f"got {axis!r}."
        )

    @functools.cached_property
    def later_spelling(self) -> bool:
        """Whether `in_axes` and `out_axes` speak of nodes too, rather than `state_axes`."""
        if self.state_axes != DEFAULT_STATE_AXES:
            return False
        trees = (self.in_axes, self.in_axes_kwargs, self.out_axes)
        return any(
            axis is Carry or isinstance(axis, StateAxes)
            for axis in jax.tree_util.tree_leaves(trees, is_leaf=is_axis)
        )


class Resolver:
    """Finds the role of each leaf of a call."""

    def __init__(self, call: Call, options: MapOptions) -> None:
        self.call = call
        self.options = options
        self.where = f"{options.name} of {function_name(call.function)}"
        graphdef = call.graphdef
        self.types = graphdef.leaf_types()
        self._by_filters: dict[int, tuple[int, ...]] = {}
        self._contract: list[AxisRole] | None = None
        self._split: tuple[int, ...] | None = None

    def roles(self) -> tuple[AxisRole, ...]:
        """One role per leaf of the call.

        Raises:
            ValueError: axes do not fit the arguments, an axis is out of bounds, or a leaf is
                reached under two roles.
        """
        call, options = self.call, self.options
        roles: list[AxisRole | None] = [None] * call.graphdef.num_leaves
        reached_by: list[str] = [""] * call.graphdef.num_leaves

        def assign(leaf: int, role: AxisRole, argument: str) -> None:
            known = roles[leaf]
            if known is not None and known != role:
                raise ValueError(
                    f"{self.where}: {call.label(leaf)} is reached under two different axes: "
                    f"{describe_role(known)} through {reached_by[leaf]}, {describe_role(role)} "
                    f"through {argument}. Give both arguments the same axes, or pass the shared "
                    "object once."
                )
            roles[leaf], reached_by[leaf] = role, argument

        for which, axes, items in self._arguments():
            label = argument_label(call.function, (which,))
            is_carry = which == options.carry_argnum
            if is_carry:
                axes = [Carry] * len(items)
            for axis, (is_object, number) in zip(axes, items, strict=True):
                if is_object:
                    for leaf in call.graphdef.reachable(number):
                        assign(leaf, self._node_role(leaf, axis), label)
                elif axis is Carry and not is_carry:
                    raise ValueError(self._stray_carry_message(number, which))
                else:
                    assign(number, self._value_role(axis, label), label)
        return tuple(
            options.unselected if role is None else self._checked(leaf, role)
            for leaf, role in enumerate(roles)
        )

    def _checked(self, leaf: int, role: AxisRole) -> AxisRole:
        """The role, its axis counted from the front where the value is one array.

        The arrays of a pytree may differ in rank, so there a negative axis stays what it is: each
        array's own, which JAX counts from its end.
        """
        if not isinstance(role, int):
            return role
        value = self.call.leaves[leaf]
        for number, part in enumerate(jax.tree_util.tree_leaves(value)):
            ndim = _ndim(part)
            if not -ndim <= role < ndim:
                label = part_label(self.call.label(leaf), value, number)
                raise ValueError(
                    f"{self.where}: axis {role} is out of bounds for {label}, which is "
                    f"{type_of(part)}. {self._remedy(leaf)}"
                )
            if part is value:
                return role % ndim
        return role

    def _remedy(self, leaf: int) -> str:
        """How to have a leaf not mapped."""
        where = (
            "in_axes_kwargs" if isinstance(self.call.graphdef.paths()[leaf][0], str) else "in_axes"
        )
        if len(self.call.graphdef.paths()[leaf]) < 2 or self._is_value(leaf):
            return f"Correct {where}, or give None there for what is not mapped."
        if self.options.later_spelling:
            return f"Correct {where}: None (in a StateAxes, too) is for what is not mapped."
        return (
            "The state of nodes follows state_axes: give None there for what is not mapped, {} to "
            f"map no state, or StateAxes in {where}."
        )

    def _is_value(self, leaf: int) -> bool:
        return (False, leaf) in self.call.graphdef.root_items()

    def _arguments(self) -> list[tuple[int | str, list[Any], Sequence[tuple[bool, int]]]]:
        call, options = self.call, self.options
        in_axes = options.in_axes
        if isinstance(in_axes, tuple) and len(in_axes) != len(call.args):
            raise ValueError(
                f"{self.where}: in_axes has {len(in_axes)} entries, the call has {len(call.args)} "
                "positional arguments. Give one entry per positional argument (self included), or "
                "one for all."
            )
        found = []
        described = [*call.args, *(call.kwargs[name] for name in sorted(call.kwargs))]
        axes_of_kwargs = self._keyword_axes()
        for (which, items), value in zip(call.argument_items(), described, strict=True):
            if which in call.static:
                axes = []
            elif isinstance(which, int):
                entry = in_axes[which] if isinstance(in_axes, tuple) else in_axes
                what = (
                    f"{self.where}: the in_axes entry for {argument_label(call.function, (which,))}"
                )
                axes = spread_prefix(entry, value, what, is_axis)
            else:
                axes = axes_of_kwargs[which]
            found.append((which, axes, items))
        return found

    def _keyword_axes(self) -> dict[str, list[Any]]:
        kwargs = dict(self.call.kwargs)
        spread = spread_prefix(
            self.options.in_axes_kwargs, kwargs, f"{self.where}: in_axes_kwargs", is_axis
        )
        axes: dict[str, list[Any]] = {}
        start = 0
        for name in sorted(kwargs):
            stop = start + len(tree_leaves(kwargs[name]))
            axes[name] = spread[start:stop]
            start = stop
        return axes

    def _stray_carry_message(self, leaf: int, which: int | str) -> str:
        parameter = "in_axes" if isinstance(which, int) else "in_axes_kwargs"
        return (
            f"{self.where}: {parameter} has Carry for {self.call.label(leaf)}, an array outside any "
            "node that is not in the carry argument, so the function cannot return its next value. "
            "Put it in the carry argument, for example in a tuple, or give an axis for it, or None "
            "for the same in all iterations."
        )

    def _value_role(self, axis: Any, label: str) -> AxisRole:
        if axis is None:
            return Role.BROADCAST
        if axis is Carry:
            return Role.CARRY
        if isinstance(axis, StateAxes):
            raise ValueError(
                f"{self.where}: {axis!r} is given for {label}, which holds an array outside any "
                "node. Give an int or None for it."
            )
        return axis

    def _node_role(self, leaf: int, axis: Any) -> AxisRole:
        if axis is Carry:
            return Role.CARRY
        if isinstance(axis, StateAxes):
            return self._state_axes_role(leaf, axis)
        if not self.options.later_spelling:
            return self._contract_role(leaf)
        if axis is None:
            return self._broadcast(leaf)
        return self._rng_role(leaf) if self._is_rng(leaf) else axis

    def _is_rng(self, leaf: int) -> bool:
        kind = self.types[leaf]
        return is_kind_of(kind, RngState)

    def _broadcast(self, leaf: int) -> Role:
        kind = self.types[leaf]
        return Role.COUNT if is_kind_of(kind, RngCount) else Role.BROADCAST

    def _selected(self, leaf: int, entry: ByFilter) -> Any:
        """What a `StateAxes` or its like has for a leaf."""
        selected = self._by_filters.get(id(entry))
        if selected is None:
            selected = self._by_filters[id(entry)] = self.call.partition(entry.filters)
        if selected[leaf] < 0:
            raise ValueError(
                f"{self.where}: no filter of {entry!r} selects {self.call.label(leaf)}. "
                "Add one, or `...` as the last."
            )
        return entry.entries[selected[leaf]]

    def _state_axes_role(self, leaf: int, axes: StateAxes) -> AxisRole:
        axis = self._selected(leaf, axes)
        if axis is None:
            return self._broadcast(leaf)
        return Role.CARRY if axis is Carry else axis

    def _contract_role(self, leaf: int) -> AxisRole:
        if self._contract is None:
            self._contract = self._contract_roles()
        return self._contract[leaf]

    def _contract_roles(self) -> list[AxisRole]:
        options = self.options
        state_axes = options.input_state_axes
        if state_axes is None:
            state_axes = options.state_axes
        axes = tuple(state_axes.values())
        selected = self.call.partition(tuple(state_axes)) if axes else ()
        roles: list[AxisRole] = []
        for leaf in range(self.call.graphdef.num_leaves):
            if self._is_rng(leaf):
                roles.append(self._rng_role(leaf))
            elif not axes or selected[leaf] < 0:
                roles.append(options.unselected)
            else:
                axis = axes[selected[leaf]]
                roles.append(Role.BROADCAST if axis is None else axis)
        return roles

    def _rng_role(self, leaf: int) -> AxisRole:
        kind, value = self.types[leaf], self.call.leaves[leaf]
        if not is_kind_of(kind, RngKey):
            return 0 if np.ndim(value) > 0 else Role.COUNT
        if rng_key_ndim(value) > 0:
            return 0
        if self._split is None:
            self._split = self.call.graphdef.partition(
                (to_filter_spec(self.options.split_rngs),), self.call.leaves
            )
        return Role.SPLIT if self._split[leaf] == 0 else Role.BROADCAST

    # -- sizes ---------------------------------------------------------------------------------

    def size(self, roles: Sequence[AxisRole], given: int | None, parameter: str) -> int:
        """Number of slices: `given`, or what the mapped leaves say.

        Raises:
            ValueError: sizes disagree, or there is nothing to infer them from.
        """
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
                    if not first or self._is_value(named):
                        named = leaf
                    label = part_label(self.call.label(leaf), value, number)
                    first[size] = f"{label} has {size} along axis {role}"
        if given is not None and any(size != given for size in first):
            wrong = next(text for size, text in first.items() if size != given)
            raise ValueError(
                f"{self.where}: {parameter}={given}, but {wrong}. Correct {parameter}, or the axis "
                f"of that argument. {self._remedy(named)}"
            )
        if len(first) > 1:
            raise ValueError(
                f"{self.where}: sizes of mapped axes disagree: {'; '.join(first.values())}. All "
                f"mapped axes must have one size. {self._remedy(named)}"
            )
        if given is not None:
            return given
        if not first:
            raise ValueError(
                f"{self.where}: nothing is mapped over an axis, so the number of slices cannot be "
                f"inferred. Pass {parameter}."
            )
        return next(iter(first))


def _ndim(array: Any) -> int:
    """Number of axes, 0 for what is not an array."""
    ndim = getattr(array, "ndim", None)
    if ndim is None:
        try:
            ndim = np.ndim(array)
        except Exception:
            ndim = 0
    return ndim


def rng_key_ndim(value: Any) -> int:
    """Number of axes of an array of keys, not counting the words of a legacy ``uint32`` key."""
    dtype = getattr(value, "dtype", None)
    is_typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    return np.ndim(value) - (0 if is_typed else 1)


def is_kind_of(kind: type[Any] | None, treadle_kind: type[Any]) -> bool:
    """Whether a leaf's Variable type (None for bare arrays) means what a type of treadle's does."""
    return kind is not None and issubclass(_core.counterpart(kind), treadle_kind)


def split_key(key: Any, size: int) -> Any:
    """The keys of the slices: ``jax.random.split(key, size)``."""
    return jax.random.split(key, size)


# -- what comes out --------------------------------------------------------------------------------


def candidate_axes(options: MapOptions, roles: Sequence[AxisRole]) -> tuple[int | None, ...]:
    """Every axis that an output of the call may get; None is one of them."""
    axes: set[int] = {0, *(role for role in roles if isinstance(role, int))}
    trees = (options.in_axes, options.in_axes_kwargs, options.out_axes)
    for entry in (
        *jax.tree_util.tree_leaves(trees, is_leaf=is_axis),
        *options.state_axes.values(),
    ):
        entries = entry.axes if isinstance(entry, StateAxes) else (entry,)
        axes.update(axis for axis in entries if isinstance(axis, int))
    return (None, *sorted(axes))


def output_label(function: Function, kind: str, path: Path) -> str:
    """Where an output leaf is, as the user would write it."""
    if kind == "result":
        return format_path(path, "the result")
    return argument_label(function, path)


def restore_keys(
    graphdef: _core.GraphDef, refs: Sequence[Any], leaves: Sequence[Any], split: Sequence[int]
) -> None:
    """Undo what the function did to split keys, so that they do not come out."""
    owners = graphdef.leaf_refs()
    for leaf in split:
        variable = refs[owners[leaf]]
        if _core.raw_value(variable) is not leaves[leaf]:
            _core.set_raw_value(variable, leaves[leaf])


@dataclass(frozen=True)
class Part:
    """A part of a function's result that has its own entry in out_axes.

    Args:
        path: from the result to the part.
        value: the part.
        axes: the out_axes entry; a pytree prefix of `value`.
    """

    path: Path
    value: Any
    axes: Any


class NewState:
    """Axis of each leaf that comes out of the function, new state included.

    Args:
        options: the transform's parameters.
        function: the user's function, which has run.
        graphdef: structure of the call.
        leaves: what the call was rebuilt over.
        refs: the rebuilt objects.
        arguments: the rebuilt (args, kwargs).
        result: what the function returned.
        parts: the parts of the result that are mapped, in pytree order.
    """

    def __init__(
        self,
        options: MapOptions,
        function: Function,
        graphdef: _core.GraphDef,
        leaves: Sequence[Any],
        refs: Sequence[Any],
        arguments: tuple[tuple[Any, ...], dict[str, Any]],
        result: Any,
        parts: Sequence[Part],
    ) -> None:
        self.options = options
        self.where = f"{options.name} of {function_name(function)}"
        self._graphdef, self._leaves, self._refs = graphdef, leaves, refs
        self._arguments = arguments
        self._rules = _rules(options.state_axes.items())
        self._later = options.later_spelling
        self.value_axes: list[Any] = []
        nodes: list[tuple[Any, Any]] = []
        for part in parts:
            axes = spread_prefix(part.axes, part.value, f"{self.where}: out_axes", is_axis)
            found, _ = jax.tree_util.tree_flatten_with_path(part.value, is_leaf=_core.is_node)
            for (path, leaf), axis in zip(found, axes, strict=True):
                if _core.is_node(leaf):
                    nodes.append((leaf, axis))
                    continue
                if isinstance(axis, ByFilter) or axis is Carry:
                    at = (*part.path, *plain_path(path))
                    raise ValueError(self._no_array_axis_message(axis, at))
                self.value_axes.append(axis)
        self._node_paths: list[tuple[Path, Any]] = []
        if self._later and nodes:
            walked = _core.flatten_call((result,), {}, frozenset(), frozenset())
            paths = walked.graphdef.ref_paths()
            self._node_paths = [(paths[walked.ref_id(node)][1:], axis) for node, axis in nodes]

    def _no_array_axis_message(self, axis: Any, path: Path) -> str:
        label = format_path(path, "the result")
        if axis is Carry:
            return (
                f"{self.where}: out_axes has Carry for {label}, an array outside any node that is "
                "not in the carry. Carry is out_axes itself or one entry of a tuple there: return "
                "the array in the carry, or give the axis to stack it along."
            )
        return (
            f"{self.where}: out_axes has {axis!r} for {label}, an array outside any node, which "
            "filters say nothing about. Give one axis (or spec) for it."
        )

    def new_axes(self, effects: _core.Effects, out: Sequence[Any]) -> dict[int, Any]:
        """Axis (None, or Carry) of each new leaf among the outputs, by output number."""
        types, metadata = effects.output_types(), effects.output_metadata()
        outputs = effects.outputs()
        in_arguments = self._new_in_arguments(outputs)
        axes: dict[int, Any] = {}
        for i, (kind, _, path) in enumerate(outputs):
            if kind == "new":
                entry = self.entry(path, in_result=in_arguments <= 0)
                in_arguments -= 1
                axes[i] = self.axis(entry, path, types[i], metadata[i], out[i])
        return axes

    def _new_in_arguments(self, outputs: Sequence[tuple[str, int, Path]]) -> int:
        """How many of the new leaves hang on arguments; these are numbered before the others."""
        if not self._later or not any(kind == "new" for kind, _, _ in outputs):
            return 0
        effects, _ = _core.trace_effects(self._refs, self._graphdef, self._leaves, None, True)
        return sum(kind == "new" for kind, _, _ in effects.outputs())

    def entry(self, path: Path, *, in_result: bool) -> Any:
        """What in_axes or out_axes says about the node that new state at `path` belongs to."""
        if not self._later:
            return None
        if in_result:
            return next((axis for at, axis in self._node_paths if path[: len(at)] == at), None)
        options = self.options
        which = path[0]
        if which == options.carry_argnum:
            return Carry
        args, kwargs = self._arguments
        if isinstance(which, int):
            value, axes = args[which], options.in_axes
            axes = axes[which] if isinstance(axes, tuple) else axes
        else:
            value, axes = kwargs[str(which)], options.in_axes_kwargs
            axes = axes[which] if isinstance(axes, Mapping) and not is_axis(axes) else axes
        if is_axis(axes) or isinstance(axes, int):
            return axes
        # Several nodes in one argument: the entry is the one of the node on the way to `path`.
        walked = _core.flatten_call((value,), {}, frozenset(), frozenset())
        paths = walked.graphdef.ref_paths()
        spread = spread_prefix(axes, value, self.where, is_axis)
        for node, axis in zip(tree_leaves(value), spread, strict=True):
            if _core.is_node(node):
                at = paths[walked.ref_id(node)][1:]
                if path[1 : 1 + len(at)] == at:
                    return axis
        return None

    def axis(
        self, entry: Any, path: Path, kind: type[Any] | None, metadata: Any, value: Any
    ) -> Any:
        """Axis (None, or Carry) of a new leaf that belongs to a node with `entry`."""
        variable = value if kind is None else _core.VariableState(kind, value, **(metadata or {}))
        chosen: Any = Carry if self.options.unselected is Role.CARRY else None
        for matches, axis in self._rules_for(entry):
            if matches(path, variable):
                chosen = axis
                break
        if is_kind_of(kind, RngState) and isinstance(chosen, int):
            # Keys have no axes of their own, so theirs comes first whatever axis arrays get.
            return 0
        return chosen

    def _rules_for(self, entry: Any) -> Sequence[tuple[Callable[..., bool], Any]]:
        if not self._later:
            return self._rules
        if isinstance(entry, ByFilter):
            return _rules(zip(entry.filters, entry.entries, strict=True))
        return _rules([(..., entry)])


def _rules(entries: Iterable[tuple[Filter, Any]]) -> list[tuple[Callable[..., bool], Any]]:
    return [(to_predicate(filter_), axis) for filter_, axis in entries]


class AxisNames:
    """Keeps the names of mapped axes in Variables' metadata right: off inside, on outside."""

    def __init__(
        self, options: MapOptions, graphdef: _core.GraphDef, roles: Sequence[AxisRole]
    ) -> None:
        self.metadata = options.transform_metadata
        # (reference, axis) of each mapped Variable.
        self.mapped: list[tuple[int, int]] = []
        if self.metadata:
            owners = graphdef.leaf_refs()
            self.mapped = [
                (owners[leaf], role)
                for leaf, role in enumerate(roles)
                if isinstance(role, int) and owners[leaf] >= 0
            ]

    def remove(self, refs: Sequence[Any]) -> None:
        """Take the names off the rebuilt Variables."""
        for ref, index in self.mapped:
            variable = refs[ref]
            at = _outer_axis(index, _core.raw_value(variable))
            variables.remove_axis(variable, at, self.metadata)

    def add(self, refs: Sequence[Any], arguments: Any, result: Any, new: NewState) -> None:
        """Put the names on mapped Variables and on those that the function made."""
        if not self.metadata:
            return
        for ref, index in self.mapped:
            variable = refs[ref]
            at = _outer_axis(index, _core.raw_value(variable))
            variables.add_axis(variable, at, self.metadata)
        known = {id(ref) for ref in refs}
        walked = _core.flatten((*arguments, result))
        paths, owners = walked.graphdef.paths(), walked.graphdef.leaf_refs()
        for leaf, owner in enumerate(owners):
            variable = walked.refs[owner] if owner >= 0 else None
            if variable is None or id(variable) in known:
                continue
            in_result, path = paths[leaf][0] == 2, paths[leaf][1:]
            entry = new.entry(path, in_result=in_result)
            value = _core.raw_value(variable)
            axis = new.axis(entry, path, type(variable), _core.metadata(variable), value)
            if isinstance(axis, int):
                variables.add_axis(variable, _outer_axis(axis, value), self.metadata)


def _outer_axis(axis: int, value: Any) -> int:
    """An axis that `value`, as it is inside, has outside; from the front if its arrays allow it."""
    if axis >= 0:
        return axis
    ranks = {_ndim(part) + 1 for part in jax.tree_util.tree_leaves(value)}
    return axis % ranks.pop() if len(ranks) == 1 else axis
