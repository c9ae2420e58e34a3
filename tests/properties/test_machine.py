"""A state machine: twin graphs live through one history, one of them through Treadle's functions."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

import treadle as nnx
from tests.reference.kinds import TREADLE
from tests.reference.model import first_difference, walk
from treadle import _core

from .graphs import Graph, build_argument
from .outcome import assert_same_leaves, assert_same_outcome, identities
from .programs import run
from .source import Source
from .strategies import graph_bytes

short_program = st.binary(min_size=2, max_size=12)


class GraphMachine(RuleBasedStateMachine):
    """`plain` is changed directly, `lifted` through transforms, updates and merges."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = self.lifted = Graph(None, [])
        self.step: Any = nnx.jit(
            lambda root, program: run(root, Source(program), steps=2), static_argnums=1
        )

    @initialize(data=graph_bytes)
    def start(self, data: bytes) -> None:
        self.plain, self.lifted = build_argument(Source(data)), build_argument(Source(data))

    @rule(program=short_program)
    def change_both(self, program: bytes) -> None:
        """A change outside any transform, seen by the next call."""
        run(self.plain.root, Source(program), steps=2)
        run(self.lifted.root, Source(program), steps=2)

    @rule(program=short_program)
    def call_jitted(self, program: bytes) -> None:
        expected = run(self.plain.root, Source(program), steps=2)
        seen = self.step(self.lifted.root, program)
        assert_same_outcome(self.lifted, seen, self.plain, expected)

    @rule(program=short_program)
    def call_through_effects(self, program: bytes) -> None:
        expected = run(self.plain.root, Source(program), steps=2)
        flat = _core.flatten(self.lifted.root)
        inner_root, inner = _core.unflatten(flat.graphdef, flat.leaves)
        result = run(inner_root, Source(program), steps=2)
        effects, out = _core.trace_effects(inner, flat.graphdef, flat.leaves, result, True)
        seen = _core.apply_effects(effects, flat.refs, flat.leaves, out)
        assert_same_outcome(self.lifted, seen, self.plain, expected)

    @rule()
    def write_back_own_state(self) -> None:
        nnx.update(self.lifted.root, nnx.state(self.lifted.root))

    @rule()
    def copy_by_split_and_merge(self) -> None:
        merged = nnx.merge(*nnx.split(self.lifted.root))
        ours, theirs = walk(merged, TREADLE), walk(self.lifted.root, TREADLE)
        assert first_difference(ours.root, theirs.root) is None
        assert_same_leaves(ours.leaves, theirs.leaves)

    @invariant()
    def both_are_equal(self) -> None:
        assert_same_outcome(self.lifted, None, self.plain, None)
        assert identities(walk(self.lifted.root, TREADLE), self.lifted) == identities(
            walk(self.plain.root, TREADLE), self.plain
        )


TestGraphMachine = GraphMachine.TestCase
TestGraphMachine.settings = settings(
    max_examples=max(10, settings.default.max_examples // 16), stateful_step_count=8
)
