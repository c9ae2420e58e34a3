"""The parameters that say what is mapped over which axis, brought into one form.

There are two spellings: `in_axes` with `state_axes` and `split_rngs`, and `StateAxes`, `Carry` and
plain axes that speak of nodes too. Both end here: one axis for each array outside nodes, one
`StateEntry` for the state of each node. What the spellings mean is said in this file and nowhere
else.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import PartitionSpec

from treadle._graph.filters import Filter, compile_filters, to_filter_spec
from treadle.errors import format_path
from treadle.transforms._arguments import Path, argument_label
from treadle.transforms._axes import ByFilter, Carry, StateAxes
from treadle.transforms._call import Call, Items
from treadle.transforms._frozen import DEFAULT_STATE_AXES, NO_METADATA
from treadle.transforms._trees import spread_prefix


def is_axis(value: Any) -> bool:
    """True for what stands for one whole entry in a pytree of axes."""
    return value is None or value is Carry or isinstance(value, (ByFilter, PartitionSpec))


def axis_leaves(axes: Any) -> list[Any]:
    """All entries of a pytree of axes."""
    return jax.tree_util.tree_leaves(axes, is_leaf=is_axis)


def has_carry(axes: Any) -> bool:
    """Whether a Carry stands anywhere in a pytree of axes."""
    return any(axis is Carry for axis in axis_leaves(axes))


def is_int(axis: Any) -> bool:
    """Whether an entry is the number of an axis."""
    return isinstance(axis, int) and not isinstance(axis, bool)


@dataclass(frozen=True)
class StateEntry:
    """What is said about the state of one node.

    Args:
        rules: filters with what holds for the leaves that they select first: an axis, None for the
            same in all slices, Carry, or a spec.
        otherwise: what holds for new leaves that no filter selects.
        required: the entry as it was given, if it must select all leaves of an argument.
        streams: random streams are not mapped by the rules: they are split, or the keys that they
            hold are mapped.
    """

    rules: tuple[tuple[Filter, Any], ...]
    otherwise: Any = None
    required: ByFilter | None = None
    streams: bool = False


Argument = tuple["int | str", str, list[Any], Items]
"""Position or keyword, name, what holds for each item (a StateEntry for an object), the items."""


@dataclass(frozen=True)
class MapOptions:
    """The parameters that the mapping transforms share, as the user gave them.

    Args:
        name: the transform.
        carries: whether it carries leaves, among them those of which nothing is said.
        input_state_axes: axes of the state that comes in, where they differ from those of new state.
    """

    name: str
    in_axes: Any = 0
    in_axes_kwargs: Any = 0
    out_axes: Any = 0
    state_axes: Mapping[Filter, int | None] = DEFAULT_STATE_AXES
    split_rngs: Any = ...
    transform_metadata: Mapping[str, Any] = NO_METADATA
    carry_argnum: int | None = None
    carries: bool = False
    input_state_axes: Mapping[Filter, int | None] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.in_axes, list):
            object.__setattr__(self, "in_axes", tuple(self.in_axes))
        for parameter in ("in_axes", "in_axes_kwargs", "out_axes"):
            for axis in axis_leaves(getattr(self, parameter)):
                self._check_axis(parameter, axis)
        compile_filters(tuple(self.state_axes))
        for filter_, axis in self.state_axes.items():
            if not (axis is None or is_int(axis)):
                raise TypeError(
                    f"{self.name}: state_axes maps filters to an int or None, "
                    f"got {axis!r} for {filter_!r}."
                )
        to_filter_spec(self.split_rngs)

    def _check_axis(self, parameter: str, axis: Any) -> None:
        if not self.carries and (
            axis is Carry or (isinstance(axis, StateAxes) and Carry in axis.axes)
        ):
            raise TypeError(f"{self.name}: {parameter} has a Carry, which only scan has.")
        if not (axis is None or axis is Carry or isinstance(axis, StateAxes) or is_int(axis)):
            raise TypeError(
                f"{self.name}: {parameter} takes ints, None, StateAxes, or a pytree of these, "
                f"got {axis!r}."
            )

    # -- what an entry means -----------------------------------------------------------------------

    @functools.cached_property
    def speaks_of_nodes(self) -> bool:
        """Whether `in_axes` and `out_axes` speak of nodes too, rather than `state_axes`."""
        if self.state_axes != DEFAULT_STATE_AXES:
            return False
        trees = (self.in_axes, self.in_axes_kwargs, self.out_axes)
        return any(axis is Carry or isinstance(axis, StateAxes) for axis in axis_leaves(trees))

    @property
    def unselected(self) -> Any:
        """What holds for state of which nothing is said."""
        return Carry if self.carries else None

    def state_entry(self, axis: Any) -> StateEntry:
        """What an entry of `in_axes` or `out_axes` means for the state of a node in its place."""
        if axis is Carry:
            return StateEntry(((..., Carry),))
        if isinstance(axis, ByFilter):
            return StateEntry(tuple(axis.items()), self.unselected, required=axis)
        if not self.speaks_of_nodes:
            axes = self.state_axes if self.input_state_axes is None else self.input_state_axes
            return StateEntry(tuple(axes.items()), self.unselected, streams=True)
        return StateEntry(((..., axis),), streams=axis is not None)

    @functools.cached_property
    def new_state(self) -> StateEntry | None:
        """What holds for all new state, if it does not depend on where that is."""
        if self.speaks_of_nodes:
            return None
        return StateEntry(tuple(self.state_axes.items()), self.unselected, streams=True)

    def array_axis(self, axis: Any, label: str) -> Any:
        """What an entry of `in_axes` means for an array outside any node, that is not carried."""
        if isinstance(axis, ByFilter):
            raise ValueError(
                f"{axis!r} is given for {label}, which holds an array outside any node. Give an "
                "int or None for it."
            )
        return axis

    def result_axis(self, axis: Any, path: Path) -> Any:
        """What an entry of `out_axes` means for an array outside any node, that is not carried."""
        label = format_path(path, "the result")
        if axis is Carry:
            raise ValueError(
                f"out_axes has Carry for {label}, an array outside any node that is not in the "
                "carry. Carry is out_axes itself or one entry of a tuple there: return the array "
                "in the carry, or give the axis to stack it along."
            )
        if isinstance(axis, ByFilter):
            raise ValueError(
                f"out_axes has {axis!r} for {label}, an array outside any node, which filters say "
                "nothing about. Give one axis (or spec) for it."
            )
        return axis

    def candidates(self, roles: Sequence[Any]) -> tuple[Any, ...]:
        """Every axis that an output of the call may get; None is one of them."""
        axes: set[int] = {0, *(role for role in roles if isinstance(role, int))}
        for entry in (
            *axis_leaves((self.in_axes, self.in_axes_kwargs, self.out_axes)),
            *self.state_axes.values(),
        ):
            entries = entry.axes if isinstance(entry, StateAxes) else (entry,)
            axes.update(axis for axis in entries if isinstance(axis, int))
        return (None, *sorted(axes))

    # -- entries for the arguments of a call -------------------------------------------------------

    def arguments(self, call: Call, carry: int | None) -> Iterator[Argument]:
        """What holds for each item of each argument; the argument at `carry` is carried whole.

        Raises:
            ValueError: the axes do not fit the arguments.
        """
        in_axes = self.in_axes
        if isinstance(in_axes, tuple) and len(in_axes) != len(call.args):
            raise ValueError(
                f"{call.where}: in_axes has {len(in_axes)} entries, the call has {len(call.args)} "
                "positional arguments. Give one entry per positional argument (self included), or "
                "one for all."
            )
        # The entries for keyword arguments are a prefix of them together.
        kwargs = dict(call.kwargs)
        by_keyword = iter(
            spread_prefix(self.in_axes_kwargs, kwargs, f"{call.where}: in_axes_kwargs", is_axis)
        )
        for which, value, items in call.argument_items():
            label = argument_label(call.function, (which,))
            if which in call.static:
                continue
            if isinstance(which, str):
                axes = [next(by_keyword) for _ in items]
            else:
                entry = in_axes[which] if isinstance(in_axes, tuple) else in_axes
                what = f"{call.where}: the in_axes entry for {label}"
                axes = spread_prefix(entry, value, what, is_axis)
            if which == carry:
                axes = [Carry] * len(items)
            described = []
            for axis, (is_object, number) in zip(axes, items, strict=True):
                if is_object:
                    described.append(self.state_entry(axis))
                    continue
                if axis is Carry and which != carry:
                    raise ValueError(_stray_carry_message(call, number, which))
                try:
                    described.append(self.array_axis(axis, label))
                except ValueError as error:
                    raise ValueError(f"{call.where}: {error}") from None
            yield which, label, described, items


def _stray_carry_message(call: Call, leaf: int, which: int | str) -> str:
    parameter = "in_axes" if isinstance(which, int) else "in_axes_kwargs"
    return (
        f"{call.where}: {parameter} has Carry for {call.label(leaf)}, an array outside any "
        "node that is not in the carry argument, so the function cannot return its next value. "
        "Put it in the carry argument, for example in a tuple, or give an axis for it, or None "
        "for the same in all iterations."
    )
