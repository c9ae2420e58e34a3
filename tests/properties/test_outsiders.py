"""Objects of another library, described to treadle, agree with the oracle as treadle's own do."""

from __future__ import annotations

import jax
from hypothesis import given

import treadle as nnx
from treadle import _core

from . import target
from .graphs import MIXED, build, build_argument
from .outcome import assert_same_outcome
from .outsiders import Ledger, Rack, Shed, Tank
from .programs import run
from .source import Source
from .strategies import compiling, graph_bytes, program_bytes, seeds


def test_the_library_is_known_by_its_description() -> None:
    """Without it, its objects would be statics, and every other test here would agree too easily."""
    shed, tank = Shed(("number",)), Tank(jax.numpy.ones(2), note="x")
    shed.tank, shed.number, shed.ledger = tank, 3, Ledger({"again": tank})
    flat = _core.flatten(shed)
    assert [id(ref) for ref in flat.refs] == [id(shed), id(tank)]
    assert flat.graphdef.paths() == (("ledger", "again"), ("number",))
    assert flat.leaves[1] == 3
    assert issubclass(Rack, Shed)


@compiling(2)
@given(graph_bytes, seeds)
def test_walks_and_copies(data: bytes, seed: int) -> None:
    graph = build(Source(data), palette=MIXED)
    flat = target.check_walk(graph, build(Source(data), palette=MIXED))
    target.check_order(graph, build(Source(data), shuffle=seed, palette=MIXED))
    target.check_rebuild(graph)
    target.check_pickle(flat.graphdef)


@compiling(2)
@given(graph_bytes, program_bytes)
def test_effects_of_a_program_reach_the_callers_objects(data: bytes, program: bytes) -> None:
    lifted, plain = (build(Source(data), palette=MIXED) for _ in range(2))
    target.check_update(lifted, plain, program, MIXED)


@compiling(6)
@given(graph_bytes, program_bytes)
def test_programs_under_jit(data: bytes, program: bytes) -> None:
    plain, lifted = (build_argument(Source(data), MIXED) for _ in range(2))
    expected = run(plain.root, Source(program), MIXED)
    seen = nnx.jit(lambda root: run(root, Source(program), MIXED))(lifted.root)
    assert_same_outcome(lifted, seen, plain, expected)
