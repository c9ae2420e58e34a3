"""The parameters that say what is mapped over which axis, brought into one form.

There are two spellings. In today's, plain entries of `in_axes` and `out_axes` speak of nodes as they
do of arrays. In the contract's, `state_axes` and `split_rngs` speak of the state of nodes, and the
entries of arrays only. `StateAxes` in a node's place comes before either. Which spelling a call is
in depends on which parameters are given: `MapOptions.speaks_of_nodes`, `MapOptions.has_no_carry`.

Both end here: one axis for each array outside nodes, one `StateEntry` for the state of each node.
What the spellings mean is said in this file and nowhere else.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jax.sharding import PartitionSpec

from treadle import _core
from treadle._graph.filters import Filter, compile_filters, to_filter_spec
from treadle.errors import format_path
from treadle.transforms._arguments import (
    Function,
    Path,
    argument_label,
    function_name,
    is_companion,
)
from treadle.transforms._axes import ByFilter, Carry, StateAxes
from treadle.transforms._call import Call, Items
from treadle.transforms._companions import apart
from treadle.transforms._frozen import DEFAULT_STATE_AXES, NO_METADATA
from treadle.transforms._places import by_place, has_place, places
from treadle.transforms._trees import spread_prefix, tree_leaves

_CONTRACT_ONLY = frozenset(
    {"state_axes", "split_rngs", "in_axes_kwargs", "carry_argnum", "scan_output"}
)
"""Parameters that code written for the contract has and today's has not."""


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
        otherwise: what holds for leaves that no filter selects.
        required: the entry as it was given, if it must select all leaves of an argument.
        streams: what random streams follow: the rules to the letter; ``"entry"``, scalar keys split
            under an axis and the same in all slices under None; or ``"split_rngs"`` alone.
        may_change: in a loop, state under None that changes is carried.
    """

    rules: tuple[tuple[Filter, Any], ...]
    otherwise: Any = None
    required: ByFilter | None = None
    streams: Literal["rules", "entry", "split_rngs"] = "rules"
    may_change: bool = False


class Argument(NamedTuple):
    """What is said about one argument of a call."""

    which: int | str
    """Its position or keyword."""
    label: str
    entries: list[Any]
    """What holds for each item: a `StateEntry` for an object, an axis for an array."""
    plain: list[Any]
    """The plain entry that stands exactly at an object and does not speak of it, else `NO_ENTRY`."""
    items: Items


NO_ENTRY = object()


@dataclass(frozen=True)
class MapOptions:
    """The parameters that the mapping transforms share, as the user gave them.

    Args:
        name: the transform.
        given: names of the parameters that are given, even if they equal their defaults.
        carries: whether it carries leaves, among them those of which nothing is said.
        of_class: whether it is a lifted class, whose module is argument 0.
        input_state_axes: axes of the state that comes in, where they differ from those of new state.
    """

    name: str
    given: frozenset[str] = frozenset()
    in_axes: Any = 0
    in_axes_kwargs: Any = 0
    out_axes: Any = 0
    state_axes: Mapping[Filter, int | None] = DEFAULT_STATE_AXES
    split_rngs: Any = ...
    transform_metadata: Mapping[str, Any] = NO_METADATA
    carry_argnum: int | None = None
    carries: bool = False
    of_class: bool = False
    input_state_axes: Mapping[Filter, int | None] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.in_axes, list):
            object.__setattr__(self, "in_axes", tuple(self.in_axes))
        for parameter in ("in_axes", "in_axes_kwargs", "out_axes"):
            tree = jax.tree_util.tree_map(_plain_int, getattr(self, parameter), is_leaf=is_axis)
            object.__setattr__(self, parameter, tree)
            for axis in axis_leaves(tree):
                self._check_axis(parameter, axis)
        self._check_state_axes()
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

    def _check_state_axes(self) -> None:
        if not isinstance(self.state_axes, Mapping):
            raise TypeError(
                f"{self.name}: state_axes maps filters to an int or None, got "
                f"{self.state_axes!r}. Give {{}} to map no state, {{...: 0}} to map all."
            )
        compile_filters(tuple(self.state_axes))
        checked = {filter_: _plain_int(axis) for filter_, axis in self.state_axes.items()}
        for filter_, axis in checked.items():
            if not (axis is None or is_int(axis)):
                raise TypeError(
                    f"{self.name}: state_axes maps filters to an int or None, "
                    f"got {axis!r} for {filter_!r}."
                )
        if any(axis is not self.state_axes[filter_] for filter_, axis in checked.items()):
            object.__setattr__(self, "state_axes", checked)

    # -- what an entry means -----------------------------------------------------------------------

    @functools.cached_property
    def speaks_of_nodes(self) -> bool:
        """Whether plain entries speak of nodes too, rather than `state_axes`: today's spelling."""
        if self.of_class or "state_axes" in self.given:
            return False
        return not self.carries or self.has_no_carry or self._marks_state

    @functools.cached_property
    def _marks_state(self) -> bool:
        """Whether a Carry or StateAxes is anywhere."""
        trees = (self.in_axes, self.in_axes_kwargs, self.out_axes)
        return any(axis is Carry or isinstance(axis, StateAxes) for axis in axis_leaves(trees))

    @functools.cached_property
    def has_no_carry(self) -> bool:
        """Whether this is a loop without a carry, a map.

        Both axes are given, without a Carry, and no parameter that code for the contract has.
        """
        return (
            self.carries
            and not self.of_class
            and {"in_axes", "out_axes"} <= self.given
            and not has_carry((self.in_axes, self.out_axes))
            and not self.given & _CONTRACT_ONLY
        )

    @property
    def unselected(self) -> Any:
        """What holds for state of which nothing is said."""
        return Carry if self.carries else None

    def state_entry(self, axis: Any) -> StateEntry:
        """What an entry of `in_axes` or `out_axes` means for the state of a node in its place."""
        if axis is Carry:
            return StateEntry(((..., Carry),))
        if isinstance(axis, ByFilter):
            return StateEntry(
                tuple(axis.items()), self.unselected, axis, streams="entry", may_change=True
            )
        if not self.speaks_of_nodes:
            axes = self.state_axes if self.input_state_axes is None else self.input_state_axes
            return StateEntry(tuple(axes.items()), self.unselected, streams="split_rngs")
        return StateEntry(((..., axis),), streams="entry", may_change=True)

    @property
    def companion_entry(self) -> StateEntry:
        """What holds for a node that the function brings along, of which no parameter speaks."""
        if self.carries:
            return StateEntry(((..., Carry),))
        return StateEntry(((..., None),), streams="entry", may_change=True)

    def speaks_of(self, axis: Any) -> bool:
        """Whether an entry of given `out_axes` says where state is that the function returns."""
        return "out_axes" in self.given and (self.speaks_of_nodes or isinstance(axis, ByFilter))

    @functools.cached_property
    def new_state(self) -> StateEntry | None:
        """What holds for all new state, if it does not depend on where that is."""
        if self.speaks_of_nodes or self._marks_state:
            return None
        return StateEntry(tuple(self.state_axes.items()), self.unselected, streams="split_rngs")

    @property
    def splits_under_none(self) -> bool:
        """Whether streams under None are split as well if `split_rngs` selects them."""
        return "split_rngs" in self.given

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

    def check_plain(
        self, call: Call, argument: Argument, item: int, axes: Mapping[int, Any]
    ) -> None:
        """Raise a ValueError if a plain entry, which does not speak of nodes, says otherwise.

        Args:
            call: the call.
            argument: the argument with the entry.
            item: which of its items has it.
            axes: for each leaf of the node that is no random state its axis.
        """
        entry = argument.plain[item]
        if entry is NO_ENTRY:
            return
        parameter = "in_axes" if isinstance(argument.which, int) else "in_axes_kwargs"
        what = f"{call.where}: {parameter} has {entry} for {argument.label}"
        if entry is None:
            is_module = self.of_class and argument.which == 0
            if axes and "state_axes" not in self.given and not is_module:
                raise ValueError(
                    f"{what}, a node, but its state follows state_axes, which is not given and maps "
                    f"all state over axis 0, {call.label(next(iter(axes)))} among it. Give state_axes "
                    "(None there is for what is the same in all slices), or StateAxes for "
                    f"{argument.label}."
                )
            return
        known = {*self.state_axes.values(), *axes.values()}
        if entry != 0 and entry not in known and not self._names_an_axis(call, entry, axes):
            raise ValueError(
                f"{what}, a node, but its state follows state_axes={_shown(self.state_axes)}. Give "
                f"the axis there, or StateAxes for {argument.label}."
            )

    @staticmethod
    def _names_an_axis(call: Call, entry: int, axes: Mapping[int, Any]) -> bool:
        """Whether a negative entry is the axis of some leaf, counted from its end."""
        return entry < 0 and any(
            isinstance(axis, int) and axis == entry + np.ndim(call.leaves[leaf])
            for leaf, axis in axes.items()
        )

    # -- arguments that take their places ----------------------------------------------------------

    def arrange(
        self, function: Function, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
        """The arguments of a call, with keywords and defaults in places that `in_axes` speaks of.

        Raises:
            ValueError: the function has no signature, or `in_axes_kwargs` says otherwise.
        """
        in_axes = self.in_axes
        if not isinstance(in_axes, tuple) or len(in_axes) <= len(args):
            return args, kwargs
        where = f"{self.name} of {function_name(function)}"
        parameters = places(function)
        if parameters is None:
            raise ValueError(
                f"{where}: in_axes has {len(in_axes)} entries, the call has {len(args)} positional "
                "arguments, and the function has no signature that says which keywords and "
                "defaults take the other places. Pass all of them by position."
            )
        placed, left = by_place(parameters, len(in_axes), args, dict(kwargs))
        if "in_axes_kwargs" in self.given:
            for position in range(len(args), len(placed)):
                name = parameters[position].name
                if name in kwargs:
                    self._check_agreement(where, name, in_axes[position])
        return placed, left

    def _check_agreement(self, where: str, name: str, axis: Any) -> None:
        by_keyword = self.in_axes_kwargs
        if isinstance(by_keyword, Mapping) and not is_axis(by_keyword):
            if name not in by_keyword:
                return
            by_keyword = by_keyword[name]
        if by_keyword != axis:
            raise ValueError(
                f"{where}: in_axes has {axis!r} for {name}, in whose place the keyword is, but "
                f"in_axes_kwargs has {by_keyword!r} for it. Give one of the two."
            )

    def _keyword_axes(self, call: Call) -> dict[str, list[Any]]:
        """For each keyword argument the axes of its items."""
        kwargs, _ = apart(call.kwargs)
        axes: dict[str, list[Any]] = {}
        if kwargs and not (
            isinstance(self.in_axes, tuple) or self.of_class or self.given & _CONTRACT_ONLY
        ):
            for parameter in places(call.function) or ():
                if parameter.name in kwargs and has_place(parameter, parameter.name):
                    value = kwargs.pop(parameter.name)
                    axes[parameter.name] = [self.in_axes] * len(tree_leaves(value))
        by_keyword = self.in_axes_kwargs
        if isinstance(by_keyword, Mapping) and not is_axis(by_keyword):
            # Those that took their places are not keywords any more.
            placed = {
                parameter.name for parameter in (places(call.function) or ())[: len(call.args)]
            }
            by_keyword = {k: v for k, v in by_keyword.items() if k in kwargs or k not in placed}
        spread = iter(spread_prefix(by_keyword, kwargs, f"{call.where}: in_axes_kwargs", is_axis))
        for name, value in sorted(kwargs.items()):
            axes[name] = [next(spread) for _ in tree_leaves(value)]
        return axes

    def _plain_entries(self, prefix: Any, value: Any) -> list[Any]:
        """For each item of an argument the entry that stands exactly there, if it is a plain one."""
        plain: list[Any] = []

        def add(entry: Any, subtree: Any) -> None:
            exact = _core.is_node(subtree) and (entry is None or is_int(entry))
            plain.extend([entry if exact else NO_ENTRY] * len(tree_leaves(subtree)))

        jax.tree_util.tree_map(add, prefix, value, is_leaf=is_axis)
        return plain

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
        by_keyword = self._keyword_axes(call)
        for which, value, items in call.argument_items():
            label = argument_label(call.function, (which,))
            if which in call.static:
                continue
            if is_companion(which):
                yield Argument(which, label, [self.companion_entry], [NO_ENTRY], items)
                continue
            exact: Any = NO_ENTRY
            if isinstance(which, str):
                axes = by_keyword[which]
                if isinstance(self.in_axes_kwargs, dict):
                    exact = self.in_axes_kwargs.get(which, NO_ENTRY)
            else:
                entry = in_axes[which] if isinstance(in_axes, tuple) else in_axes
                what = f"{call.where}: the in_axes entry for {label}"
                axes = spread_prefix(entry, value, what, is_axis)
                exact = entry if isinstance(in_axes, tuple) else NO_ENTRY
            if which == carry:
                axes = [Carry] * len(items)
            silent = self.speaks_of_nodes or which == carry or exact is NO_ENTRY
            plain = [NO_ENTRY] * len(items) if silent else self._plain_entries(exact, value)
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
            yield Argument(which, label, described, plain, items)


def _plain_int(axis: Any) -> Any:
    """NumPy's integers, and our own defaults, as plain ints."""
    if type(axis) is int or isinstance(axis, bool) or not isinstance(axis, (int, np.integer)):
        return axis
    return operator.index(axis)


def _shown(axes: Mapping[Filter, Any]) -> str:
    return repr(StateAxes(axes)).removeprefix("StateAxes(").removesuffix(")")


def _stray_carry_message(call: Call, leaf: int, which: int | str) -> str:
    parameter = "in_axes" if isinstance(which, int) else "in_axes_kwargs"
    return (
        f"{call.where}: {parameter} has Carry for {call.label(leaf)}, an array outside any "
        "node that is not in the carry argument, so the function cannot return its next value. "
        "Put it in the carry argument, for example in a tuple, or give an axis for it, or None "
        "for the same in all iterations."
    )
