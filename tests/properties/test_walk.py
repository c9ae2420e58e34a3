"""The engine's walk agrees with the oracle on random graphs."""

from __future__ import annotations

import copy

from hypothesis import given, note

from tests.reference.kinds import TREADLE
from tests.reference.model import differences, first_difference, walk
from treadle import _core

from .graphs import build
from .programs import run
from .source import Source
from .strategies import graph_bytes, program_bytes, seeds
from .target import check_order, check_pickle


@given(graph_bytes)
def test_leaves_references_and_paths_come_in_canonical_order(data: bytes) -> None:
    graph = build(Source(data))
    expected = walk(graph.root, TREADLE)
    note(str(expected.root))
    flat = _core.flatten(graph.root)
    assert [id(x) for x in flat.leaves] == [id(x) for x in expected.leaves]
    assert [id(x) for x in flat.refs] == [id(x) for x in expected.refs]
    graphdef = flat.graphdef
    assert graphdef.num_leaves == len(expected.leaves)
    assert graphdef.num_refs == len(expected.refs)
    assert graphdef.paths() == tuple(expected.leaf_paths)
    assert graphdef.ref_paths() == tuple(expected.ref_paths)
    assert graphdef.leaf_refs() == tuple(expected.leaf_refs)
    assert [flat.ref_id(ref) for ref in expected.refs] == list(range(len(expected.refs)))


@given(graph_bytes, seeds)
def test_insertion_order_shows_in_the_structure_and_nowhere_else(data: bytes, seed: int) -> None:
    check_order(build(Source(data)), build(Source(data), shuffle=seed))


@given(graph_bytes, graph_bytes)
def test_graphdefs_are_equal_exactly_if_the_oracle_says_so(data: bytes, other: bytes) -> None:
    one, two = build(Source(data)), build(Source(other))
    a, b = _core.flatten(one.root).graphdef, _core.flatten(two.root).graphdef
    expected = first_difference(walk(one.root, TREADLE).root, walk(two.root, TREADLE).root)
    assert (a == b) == (expected is None)
    assert (a.difference(b) is None) == (expected is None)


@given(graph_bytes, program_bytes)
def test_any_change_of_structure_is_seen_and_explained(data: bytes, program: bytes) -> None:
    one, two = build(Source(data)), build(Source(data))
    run(two.root, Source(program), steps=2)
    a, b = _core.flatten(one.root).graphdef, _core.flatten(two.root).graphdef
    expected = list(differences(walk(one.root, TREADLE).root, walk(two.root, TREADLE).root))
    assert (a == b) == (not expected)
    assert (a != b) == bool(expected)
    if not expected:
        assert hash(a) == hash(b)
        assert a.difference(b) is None
        return
    note(str(expected))
    # A list of another length is a difference of its own.
    places = {*expected, *(path[:-1] for path in expected)}
    assert a.difference(b)[0] in places
    assert b.difference(a)[0] in places


@given(graph_bytes)
def test_graphdef_survives_pickle_and_deepcopy(data: bytes) -> None:
    graphdef = _core.flatten(build(Source(data)).root).graphdef
    assert copy.deepcopy(graphdef) == graphdef
    check_pickle(graphdef)


@given(graph_bytes)
def test_walking_changes_nothing_and_repeats_exactly(data: bytes) -> None:
    graph = build(Source(data))
    before = walk(graph.root, TREADLE)
    first, second = _core.flatten(graph.root), _core.flatten(graph.root)
    after = walk(graph.root, TREADLE)
    assert first_difference(before.root, after.root) is None
    assert [id(x) for x in before.leaves] == [id(x) for x in after.leaves]
    assert first.graphdef == second.graphdef
    assert repr(first.graphdef) == repr(second.graphdef)
