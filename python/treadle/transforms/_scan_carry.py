"""Which argument and which part of the result a `scan` carries, as its parameters say."""

from __future__ import annotations

import warnings
from typing import Any

import jax
import numpy as np

from treadle.errors import format_path
from treadle.transforms._axes import Carry, StateAxes
from treadle.transforms._call import Call
from treadle.transforms._frozen import ByDefault
from treadle.transforms._messages import described
from treadle.transforms._new_state import Part
from treadle.transforms._spelling import MapOptions, axis_leaves, has_carry, is_axis
from treadle.transforms._trees import plain_path


def carry_place(out_axes: Any) -> str:
    """Where the first Carry in a pytree of axes is, as the user would write it."""
    entries, _ = jax.tree_util.tree_flatten_with_path(out_axes, is_leaf=is_axis)
    return next(
        format_path(plain_path(path), "out_axes") for path, axis in entries if axis is Carry
    )


def check_carry(options: MapOptions, scan_output: bool) -> None:
    """Raise for parameters that disagree about the carry, or that no result fits.

    Raises:
        TypeError: `carry_argnum` is no int.
        ValueError: the axes or `scan_output` contradict each other.
    """
    in_axes, out_axes = options.in_axes, options.out_axes
    argnum = options.carry_argnum
    if argnum is not None and (
        isinstance(argnum, bool) or not isinstance(argnum, (int, np.integer))
    ):
        raise TypeError(f"scan: carry_argnum is the position of the carry, an int, got {argnum!r}.")
    for axis in axis_leaves(out_axes):
        if axis is None:
            raise ValueError(
                "scan: out_axes has None, but every iteration gives an output. Give the axis to "
                "stack it along, or carry it to have the last one."
            )
    for parameter, axes in (("in_axes", in_axes), ("out_axes", out_axes)):
        if not isinstance(axes, (tuple, list)):
            continue
        carries = [position for position, axis in enumerate(axes) if axis is Carry]
        if len(carries) > 1:
            raise ValueError(
                f"scan: {parameter} has more than one Carry, at {carries}. Give what is carried as "
                "one argument, and return it as one entry, for example in a tuple; for what is to "
                "be sliced or stacked give an axis."
            )
    if not scan_output and out_axes is not Carry and has_carry(out_axes):
        raise ValueError(
            f"scan: out_axes has Carry at {carry_place(out_axes)}, as one part of the result, but "
            "scan_output=False says that the function returns the carry alone. Leave out "
            "scan_output=False, or give out_axes=Carry."
        )
    if {"in_axes", "out_axes"} <= options.given and has_carry(in_axes) != has_carry(out_axes):
        has, lacks = ("in_axes", "out_axes") if has_carry(in_axes) else ("out_axes", "in_axes")
        raise ValueError(
            f"scan: {has} has a Carry, but {lacks} has none. What is carried comes in as one "
            f"argument and is returned as one entry: give both a Carry, or leave out {lacks}."
        )


def carry_position(options: MapOptions, call: Call) -> int | None:
    """Position of the carry among the call's arguments, None if there is none.

    Raises:
        ValueError: `in_axes` marks no one argument as the carry, or not that of `carry_argnum`.
        TypeError: there is no argument at `carry_argnum`.
    """
    in_axes, argnum, count = options.in_axes, options.carry_argnum, len(call.args)
    where = call.where
    given = argnum is not None and not isinstance(argnum, ByDefault)
    if options.has_no_carry:
        return None
    marked = _marked_position(where, in_axes, count)
    if marked is not None:
        if given and argnum not in (marked, marked - count):
            raise ValueError(
                f"{where}: in_axes has its Carry at {marked}, but carry_argnum={argnum}. Give one "
                f"of the two, or carry_argnum={marked}."
            )
        return marked
    if argnum is None:
        return None
    if (
        isinstance(in_axes, tuple)
        and -len(in_axes) <= argnum < len(in_axes)
        and isinstance(in_axes[argnum], StateAxes)
    ):
        if given:
            raise ValueError(
                f"{where}: carry_argnum={argnum} says that this argument is the carry, which is "
                f"carried whole, but in_axes has {in_axes[argnum]!r} for it. Give Carry there, or "
                "leave out carry_argnum."
            )
        return None
    if not -count <= argnum < count:
        needed = argnum + 1 if argnum >= 0 else -argnum
        raise TypeError(
            f"Expected at least {needed} positional arguments, got {count}: {where} has its carry "
            f"at carry_argnum={argnum}."
        )
    return argnum % count


def _marked_position(where: str, in_axes: Any, count: int) -> int | None:
    """Position of the argument that `in_axes` marks as the carry, None if it marks none."""
    if in_axes is Carry:
        if count != 1:
            raise ValueError(
                f"{where}: in_axes=Carry says that the only argument is the carry, but the call "
                f"has {count} positional arguments. Give a tuple with one entry per argument."
            )
        return 0
    if isinstance(in_axes, tuple):
        carries = [position for position, axis in enumerate(in_axes) if axis is Carry]
        if carries:
            return carries[0]
    return None


def warn_of_lost_carry(where: str, in_axes: Any, result: Any) -> None:
    """Warn of a loop that looks as if it had a carry, as it had in the contract's spelling."""
    first = in_axes[0] if isinstance(in_axes, tuple) and in_axes else in_axes
    if first is None and isinstance(result, (tuple, list)) and len(result) == 2:
        warnings.warn(
            f"{where}: in_axes and out_axes are both given without a Carry, so there is no carry: "
            "the first argument is the same in all iterations, and both parts of the pair are "
            "stacked. For a carry put Carry in both, or give carry_argnum=0; without one, put the "
            "first argument elsewhere to be rid of this warning.",
            UserWarning,
            stacklevel=2,
        )


def result_parts(
    where: str, out_axes: Any, carry: int | None, scan_output: bool, result: Any
) -> list[tuple[bool, Part]]:
    """A result in pytree order, as parts that are the carry (True) or are stacked (False).

    Raises:
        TypeError: the result does not have the parts that the parameters speak of.
    """
    if out_axes is Carry:
        return [(True, Part((), result, Carry))]
    if isinstance(out_axes, (tuple, list)) and any(axis is Carry for axis in out_axes):
        if not isinstance(result, (tuple, list)) or len(result) != len(out_axes):
            raise TypeError(
                f"{where}: out_axes has a Carry in a tuple of {len(out_axes)}, so the "
                f"function must return one of that length, but it returned "
                f"{described(result)}."
            )
        return [
            (axis is Carry, Part((i,), value, axis))
            for i, (axis, value) in enumerate(zip(out_axes, result, strict=True))
        ]
    if carry is None:
        return [(False, Part((), result, out_axes))]
    if not scan_output:
        return [(True, Part((), result, Carry))]
    if not isinstance(result, (tuple, list)) or len(result) != 2:
        if has_carry(out_axes):
            raise TypeError(
                f"{where}: out_axes has Carry at {carry_place(out_axes)}, but the carry "
                "of a result is out_axes itself or one entry of a tuple there, and the "
                f"function returned {described(result)}. Return a tuple such as (carry, out), "
                "and give one such as (Carry, 0) as out_axes."
            )
        raise TypeError(
            f"{where}: the function must return a pair (carry, out), but it returned "
            f"{described(result)}. Return (carry, None) when there is nothing to stack, or "
            "pass scan_output=False and return the carry alone."
        )
    return [(True, Part((0,), result[0], Carry)), (False, Part((1,), result[1], out_axes))]
