"""The body that `vmap`, `pmap` and `shard_map` hand to JAX."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from treadle.transforms._arguments import Function
from treadle.transforms._axis_names import AxisNames
from treadle.transforms._call import Call
from treadle.transforms._driver import Body, Rule, tail_of
from treadle.transforms._inside import Inside, Output
from treadle.transforms._new_state import NewState, Part
from treadle.transforms._random_keys import restore_keys
from treadle.transforms._roles import Plan, Role
from treadle.transforms._spelling import MapOptions


class MapRule(Rule):
    """A rule whose parameters are `MapOptions`.

    Args:
        options: the transform's parameters.
    """

    def __init__(self, options: MapOptions) -> None:
        self.name = options.name
        self.options = options

    def arrange(
        self, function: Function, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
        """Keywords and defaults take the places that `in_axes` speaks of."""
        return self.options.arrange(function, args, kwargs)


class MappedBody(Body[Any]):
    """Runs a slice of a call; what comes out is grouped by axis (or spec)."""

    def __init__(
        self, options: MapOptions, call: Call, plan: Plan, keep: bool | Sequence[bool] = True
    ) -> None:
        super().__init__(call.outline(), options.candidates(plan.roles), keep)
        self.options = options
        self.plan = plan
        self.split_keys = plan.of(Role.SPLIT)
        self.in_axes = tuple(
            0 if role is Role.SPLIT else None if isinstance(role, Role) else role
            for role in plan.roles
        )
        # What JAX is told of the head and the tail.
        self.out_axes = None, (None, self.candidates)
        self.names = AxisNames(options.transform_metadata, self.outline, plan)

    def run(self, inside: Inside) -> Any:
        """Run the function, without names of mapped axes and with what it does to keys undone."""
        self.names.remove(inside)
        result = inside.run()
        restore_keys(inside, self.split_keys)
        return result

    def leave(self, inside: Inside, head: Any, result: Any) -> Any:
        """Put the names of axes back, and find the axis of each output."""
        parts = [Part((), result, self.options.out_axes)]
        new = NewState(self.options, self.plan, inside, result, parts)
        self.names.add(inside, new)
        rows = inside.leave(result, self.keep)
        axes = self._axes(rows, new)
        self.check(inside, rows, axes)
        return head, tail_of(inside, self.candidates, axes)

    def _axes(self, rows: Sequence[Output], new: NewState) -> list[Any]:
        made, values = new.axes(rows), iter(new.value_axes)
        return [
            made[i]
            if row.kind == "new"
            else self.in_axes[row.leaf]
            if row.kind == "leaf"
            else next(values)
            for i, row in enumerate(rows)
        ]

    def check(self, inside: Inside, rows: Sequence[Output], axes: Sequence[Any]) -> None:
        """Look for outputs that differ where their axes say that they do not."""
