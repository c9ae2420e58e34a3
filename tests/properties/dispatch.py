"""Calls through the dispatcher without a compiler behind it.

The dispatcher's Python side gives it a function that is traced and run at once, over the arrays
themselves. So every call goes the way of a jitted function's, guards, effects and scatter included, at
the cost of a walk.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax

from treadle import _core

from .graphs import Graph, Palette
from .outcome import assert_same_outcome
from .programs import run
from .source import Source

# Programs that change values only, so that the next call finds the structure it knows.
TOUCHES = (b"\x00\x00", b"\x01\x00\x01", b"\x02\x01\x00", b"\x00\x01\x00\x02")


class Direct:
    """The Python side of a dispatcher for a function that is not compiled."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function = function

    def plan(self, graphdef: _core.GraphDef, leaves: Sequence[Any]) -> tuple[Any, ...]:
        """What calls of a structure need."""
        del leaves
        first: list[_core.Effects] = []

        def call(*values: Any) -> Any:
            (args, _), inner = _core.unflatten(graphdef, values)
            result = self.function(*args)
            effects, out = _core.trace_effects(inner, graphdef, values, result, True)
            if not first:
                first.append(effects)
            if not effects.same_as(first[0]):
                return _core.Outputs(effects, out)
            return out[0] if len(out) == 1 and isinstance(out[0], jax.Array) else tuple(out)

        return call, (), first, None, (), None

    def on_error(self, graphdef: Any, leaves: Any, error: Exception) -> None:
        """No better error is known."""


def dispatcher(function: Callable[[Any], Any], capacity: int = 3) -> Any:
    """What `treadle.jit` would return, were there nothing to compile."""
    return _core.Dispatcher(Direct(function), frozenset(), frozenset(), capacity)


class Step:
    """Programs as dispatched functions, each beside the same program run eagerly."""

    def __init__(self, palette: Palette) -> None:
        self.palette = palette
        self.functions: dict[bytes, Any] = {}

    def run(self, program: bytes, lifted: Graph, plain: Graph) -> None:
        """Run a program on both graphs and compare; only a structure that is new makes a cold call."""
        if program not in self.functions:
            self.functions[program] = dispatcher(
                lambda root: run(root, Source(program), self.palette)
            )
        function = self.functions[program]
        structure = _core.flatten_call((lifted.root,), {}, frozenset(), frozenset()).graphdef
        cold = function._counts["cold"] + (structure not in function._structures)
        expected = run(plain.root, Source(program), self.palette)
        seen = function(lifted.root)
        assert_same_outcome(lifted, seen, plain, expected)
        assert function._counts["cold"] == cold


def check_dispatch(lifted: Graph, plain: Graph, program: bytes, palette: Palette) -> None:
    """Hot, warm and cold calls do what the program does, whatever happens to the graph in between."""
    step = Step(palette)
    touch = TOUCHES[len(program) % len(TOUCHES)]
    for between in (b"", b"", program, b"", program[::-1], b""):
        for graph in (lifted, plain):
            run(graph.root, Source(between), palette)
        step.run(touch, lifted, plain)
    step.run(program, lifted, plain)
    step.run(touch, lifted, plain)
