"""Rebuilding and updating agree with the oracle on random graphs."""

from __future__ import annotations

import copy
import pickle

from hypothesis import given

import treadle as nnx
from tests.reference.kinds import TREADLE
from tests.reference.model import first_difference, rebuild, scatter, walk
from treadle import _core

from .graphs import Graph, build
from .outcome import assert_same_leaves, assert_same_outcome, pickled
from .programs import run
from .source import Source
from .strategies import graph_bytes, program_bytes


def assert_equal_copy(copied: object, root: object) -> None:
    """A copy has the same structure and leaves, and no object in common."""
    ours, theirs = walk(copied, TREADLE), walk(root, TREADLE)
    assert first_difference(ours.root, theirs.root) is None
    assert_same_leaves(ours.leaves, theirs.leaves)
    assert not {id(ref) for ref in ours.refs} & {id(ref) for ref in theirs.refs}


@given(graph_bytes)
def test_unflatten_gives_an_equal_graph_of_fresh_objects(data: bytes) -> None:
    graph = build(Source(data))
    flat = _core.flatten(graph.root)
    root, refs = _core.unflatten(flat.graphdef, flat.leaves)
    assert_equal_copy(root, graph.root)
    assert [id(ref) for ref in refs] == [id(ref) for ref in walk(root, TREADLE).refs]


@given(graph_bytes)
def test_the_oracles_own_rebuild_is_what_the_engine_walks(data: bytes) -> None:
    graph = build(Source(data))
    found = walk(graph.root, TREADLE)
    root, _ = rebuild(found.root, found.leaves, TREADLE)
    assert_equal_copy(root, graph.root)
    assert _core.flatten(root).graphdef == _core.flatten(graph.root).graphdef


@given(graph_bytes)
def test_split_and_merge_round_trip(data: bytes) -> None:
    graph = build(Source(data))
    assert_equal_copy(nnx.merge(*nnx.split(graph.root)), graph.root)


@given(graph_bytes)
def test_clone_and_deepcopy_round_trip(data: bytes) -> None:
    graph = build(Source(data))
    assert_equal_copy(nnx.clone(graph.root), graph.root)
    assert_equal_copy(copy.deepcopy(graph.root), graph.root)


@given(graph_bytes)
def test_pickle_round_trip(data: bytes) -> None:
    graph = build(Source(data))
    stored = pickled(graph.root)
    if stored is not None:
        assert_equal_copy(pickle.loads(stored), graph.root)


@given(graph_bytes)
def test_update_moves_a_state_into_an_equal_graph(data: bytes) -> None:
    """Arrays and values alike, also those inside tuples; all by the same objects as before."""
    source, target = (nnx.Dict(root=build(Source(data)).root) for _ in range(2))
    objects = walk(target, TREADLE).refs
    for i, ref in enumerate(walk(source, TREADLE).refs):
        if isinstance(ref, nnx.Variable):
            ref.raw_value = float(i)
    nnx.update(target, nnx.state(source))
    ours, theirs = walk(target, TREADLE), walk(source, TREADLE)
    assert [id(ref) for ref in ours.refs] == [id(ref) for ref in objects]
    assert first_difference(ours.root, theirs.root) is None
    assert [id(leaf) for leaf in ours.leaves] == [id(leaf) for leaf in theirs.leaves]


@given(graph_bytes, program_bytes)
def test_effects_of_a_program_reach_the_callers_objects(data: bytes, program: bytes) -> None:
    """The engine's own two halves, without any JAX transform between them."""
    outer, twin, plain = (build(Source(data)) for _ in range(3))
    expected = run(plain.root, Source(program))

    flat = _core.flatten(outer.root)
    inner_root, inner = _core.unflatten(flat.graphdef, flat.leaves)
    result = run(inner_root, Source(program))
    effects, out = _core.trace_effects(inner, flat.graphdef, flat.leaves, result, True)
    assert effects.num_out == len(out)
    returned = _core.apply_effects(effects, flat.refs, flat.leaves, out)
    assert_same_outcome(outer, returned, plain, expected)

    # The oracle's scatter agrees as well, objects that have left the graph included.
    found = walk(twin.root, TREADLE)
    stand_in, made = rebuild(found.root, found.leaves, TREADLE)
    inner = [made[i] for i in range(len(made))]
    result = run(stand_in, Source(program))
    root, result, _ = scatter(walk((stand_in, result, inner), TREADLE), inner, found.refs, TREADLE)
    assert_same_outcome(Graph(root, twin.objects), result, plain, expected)
