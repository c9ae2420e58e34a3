"""Filters partition the leaves of random graphs as the oracle does."""

from __future__ import annotations

from typing import Any

import jax
import pytest
from hypothesis import given

import treadle as nnx
from tests.reference.kinds import TREADLE
from tests.reference.model import entries, first_difference, partition, walk
from treadle import _core
from treadle._graph.filters import compile_filters
from treadle.errors import FilterError

from .graphs import NAMES, Scale, build
from .outcome import assert_same_leaves
from .source import Source
from .strategies import graph_bytes, program_bytes

TYPES = (nnx.Param, nnx.BatchStat, Scale, nnx.Variable, jax.Array)


def draw(source: Source, depth: int = 0) -> tuple[Any, Any]:
    """A random filter, and its description for the oracle."""
    leafs = 7
    choice = source.below(leafs if depth == 3 else leafs + 3)
    match choice:
        case 0:
            kind = source.pick(TYPES)
            return source.pick((kind, nnx.OfType(kind))), ("type", kind)
        case 1:
            return source.pick((..., True)), ("all",)
        case 2:
            return source.pick((None, False)), ("none",)
        case 3:
            tag = source.pick(("decay", "frozen", "missing"))
            return source.pick((tag, nnx.WithTag(tag))), ("tag", tag)
        case 4:
            key = source.pick((*NAMES, 0, 1))
            return nnx.PathContains(key), ("contains", key)
        case 5:
            n = source.below(5)
            return (lambda path, value: len(path) > n), ("call", lambda path: len(path) > n)
        case 6:
            key = source.pick(NAMES)
            return (lambda path, _: path[-1:] == (key,)), ("call", lambda p: p[-1:] == (key,))
        case 7:
            inner, description = draw(source, depth + 1)
            return nnx.Not(inner), ("not", description)
    parts = [draw(source, depth + 1) for _ in range(source.below(3) + 1)]
    filters, descriptions = zip(*parts, strict=True)
    if choice == 8:
        return nnx.All(*filters), ("every", *descriptions)
    return source.pick((list(filters), filters, nnx.Any(*filters))), ("any", *descriptions)


def draw_several(source: Source) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Filters in an order that is accepted: `...` comes last."""
    pairs = [draw(source) for _ in range(1 + source.below(4))]
    pairs.sort(key=lambda pair: pair[0] is ... or pair[0] is True)
    filters, descriptions = zip(*pairs, strict=True)
    return filters, descriptions


@given(graph_bytes, program_bytes)
def test_first_match_wins_as_in_the_oracle(data: bytes, choices: bytes) -> None:
    graph = build(Source(data))
    filters, descriptions = draw_several(Source(choices))
    flat = _core.flatten(graph.root)
    expected = partition(descriptions, entries(walk(graph.root, TREADLE), TREADLE))
    assert list(flat.graphdef.partition(compile_filters(filters), flat.leaves)) == expected


@given(graph_bytes, program_bytes)
def test_split_by_filters_gives_each_leaf_to_one_state(data: bytes, choices: bytes) -> None:
    graph = build(Source(data))
    filters, descriptions = draw_several(Source(choices))
    found = walk(graph.root, TREADLE)
    expected = partition(descriptions, entries(found, TREADLE))
    if -1 in expected:
        with pytest.raises(FilterError):
            nnx.split(graph.root, *filters)
        return
    graphdef, *states = nnx.split(graph.root, *filters)
    for i, state in enumerate(states):
        wanted = {
            path: leaf
            for path, leaf, group in zip(found.leaf_paths, found.leaves, expected, strict=True)
            if group == i
        }
        seen = dict(state.flat_state())
        assert set(seen) == set(wanted)
        for path, leaf in wanted.items():
            held = seen[path]
            assert (held.value if isinstance(held, nnx.VariableState) else held) is leaf
    merged = walk(nnx.merge(graphdef, *states), TREADLE)
    assert first_difference(merged.root, found.root) is None
    assert_same_leaves(merged.leaves, found.leaves)


@given(graph_bytes, program_bytes)
def test_state_by_filters_selects_as_split_does(data: bytes, choices: bytes) -> None:
    graph = build(Source(data))
    filter_, description = draw(Source(choices))
    found = walk(graph.root, TREADLE)
    groups = partition([description], entries(found, TREADLE))
    wanted = {p for p, group in zip(found.leaf_paths, groups, strict=True) if group == 0}
    assert set(dict(nnx.state(graph.root, filter_).flat_state())) == wanted
