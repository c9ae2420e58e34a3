"""Names of mapped axes in Variables' sharding metadata: off inside, on outside."""

from __future__ import annotations

from typing import Any

import jax

from treadle import _core
from treadle._objects import variables
from treadle.transforms._call import Outline
from treadle.transforms._inside import Inside
from treadle.transforms._new_state import NewState
from treadle.transforms._roles import Plan, rank


class AxisNames:
    """Keeps the names of mapped axes in Variables' metadata right.

    Args:
        metadata: what names the axis, for `Variable.add_axis` and `Variable.remove_axis`.
        outline: the call's structure.
        plan: what is mapped.
    """

    def __init__(self, metadata: Any, outline: Outline, plan: Plan) -> None:
        self.metadata = metadata
        # (reference, axis) of each mapped Variable.
        self.mapped: list[tuple[int, int]] = []
        if metadata:
            owners = outline.graphdef.leaf_refs()
            self.mapped = [
                (owners[leaf], plan.roles[leaf]) for leaf in plan.of(int) if owners[leaf] >= 0
            ]

    def remove(self, inside: Inside) -> None:
        """Take the names off the rebuilt Variables."""
        for ref, axis in self.mapped:
            variable = inside.refs[ref]
            at = _outer_axis(axis, _core.raw_value(variable))
            variables.remove_axis(variable, at, self.metadata)

    def add(self, inside: Inside, new: NewState) -> None:
        """Put the names on mapped Variables and on those that the function made."""
        if not self.metadata:
            return
        for ref, axis in self.mapped:
            self._add(inside.refs[ref], axis)
        for variable, axis in new.of_new_variables():
            if isinstance(axis, int):
                self._add(variable, axis)

    def _add(self, variable: Any, axis: int) -> None:
        at = _outer_axis(axis, _core.raw_value(variable))
        variables.add_axis(variable, at, self.metadata)


def _outer_axis(axis: int, value: Any) -> int:
    """An axis that `value`, as it is inside, has outside; from the front if its arrays allow it."""
    if axis >= 0:
        return axis
    ranks = {rank(part) + 1 for part in jax.tree_util.tree_leaves(value)}
    return axis % ranks.pop() if len(ranks) == 1 else axis
