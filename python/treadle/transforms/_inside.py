"""Inside a JAX transform: the user's function, its objects over the tracers, and what it did."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from treadle import _core
from treadle.errors import format_path
from treadle.transforms._arguments import Path, argument_label, naming, output_label
from treadle.transforms._call import Outline
from treadle.transforms._messages import refuse_nodes


class Output(NamedTuple):
    """One leaf that comes out of the function."""

    kind: str
    """``"leaf"`` for a changed leaf of the call, ``"new"`` for new state, ``"result"``."""
    leaf: int
    """Which leaf of the call it is, if it is one; for new state in the result, the item there."""
    path: Path
    value: Any


class Inside:
    """A call rebuilt over the values that JAX gives for its leaves: fresh objects, run once.

    Args:
        outline: structure and function of the call.
        leaves: values of the call's leaves, as they are inside.
    """

    __slots__ = ("args", "effects", "kwargs", "leaves", "outline", "refs", "values")

    def __init__(self, outline: Outline, leaves: Sequence[Any]) -> None:
        self.outline = outline
        self.leaves = leaves
        refuse_nodes(leaves, outline.label)
        (self.args, self.kwargs), self.refs = _core.unflatten(outline.graphdef, leaves)
        self.effects: Any = None
        self.values: list[Any] = []

    def run(self) -> Any:
        """Run the user's function on the rebuilt arguments."""
        return self.outline.function(*self.args, **self.kwargs)

    def leave(self, result: Any, keep: bool | Sequence[bool] = True) -> list[Output]:
        """Walk again: what the function did, and each leaf that comes out.

        Args:
            result: what to take as the function's result.
            keep: leave out the leaves that did not change; or for each leaf whether to do so.
        """
        graphdef = self.outline.graphdef
        with naming(self._label):
            self.effects, self.values = _core.trace_effects(
                self.refs, graphdef, self.leaves, result, keep
            )
        rows = [
            Output(kind, leaf, path, value)
            for (kind, leaf, path), value in zip(self.effects.outputs(), self.values, strict=True)
        ]
        refuse_nodes(self.values, lambda number: self.label(rows[number]))
        return rows

    def label(self, output: Output) -> str:
        """Where an output is, as the user would write it."""
        return output_label(self.outline.function, output.kind, output.leaf, output.path)

    def _label(self, path: Path) -> str:
        if path[:1] == ("result",) and "result" not in self.kwargs:
            return format_path(path[1:], "the result")
        return argument_label(self.outline.function, path)
