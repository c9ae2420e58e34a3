"""Graphs that pass through plain JAX between treadle's calls, and both libraries' transforms in one another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import treadle as nnx
from tests.reference.kinds import TREADLE
from tests.reference.model import first_difference, walk

from .graphs import Box, Graph, build
from .outcome import assert_same_leaves, assert_same_outcome
from .programs import run
from .source import Source
from .strategies import compiling, graph_bytes, program_bytes

Way = Callable[[Any], Any]


def argument(data: bytes) -> Graph:
    """A graph with an array in every Variable, as plain JAX gives it back.

    All of it is below one node, whose parts go together; JAX knows nothing of registered node types elsewhere.
    """
    graph = build(Source(data))
    graph.root = nnx.Dict(root=graph.root)
    graph.objects.append(graph.root)
    for ref in walk(graph.root, TREADLE).refs:
        if isinstance(ref, nnx.Variable):
            ref.value = jnp.asarray(ref.value)
    return graph


def through_map(root: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf, root)


def through_jit(root: Any) -> Any:
    return jax.jit(lambda root: root)(root)


def through_vmap(root: Any) -> Any:
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), root)
    out = jax.vmap(lambda root: root)(stacked) if jax.tree.leaves(root) else stacked
    return jax.tree.map(lambda leaf: leaf[1], out)


def through_masks(root: Any) -> Any:
    """None and texts stand for the leaves on the way."""
    leaves, tree = jax.tree.flatten(root)
    named = jax.tree.map(lambda _: "spec", root)
    assert jax.tree.structure(named) == tree
    nothing = jax.tree.map(lambda _: None, named)
    return jax.tree.unflatten(
        jax.tree.structure(nothing, is_leaf=lambda leaf: leaf is None), leaves
    )


WAYS: dict[str, Way] = {
    "map": through_map,
    "jit": through_jit,
    "vmap": through_vmap,
    "masks": through_masks,
}


@pytest.mark.parametrize("way", WAYS)
@compiling(10)
@given(graph_bytes)
def test_a_graph_comes_back_equal(way: str, data: bytes) -> None:
    """Structure, sharing, order and values, of objects that are all new; the given ones are as before."""
    graph, twin = argument(data), argument(data)
    # A registered type is made again by its own functions: an array in it that became something else is a static.
    assume(
        way != "masks" or not any(isinstance(ref, Box) for ref in walk(graph.root, TREADLE).refs)
    )
    back = WAYS[way](graph.root)
    ours, theirs = walk(back, TREADLE), walk(twin.root, TREADLE)
    assert first_difference(ours.root, theirs.root) is None
    assert_same_leaves(ours.leaves, theirs.leaves)
    assert not {id(ref) for ref in ours.refs} & {id(ref) for ref in walk(graph.root, TREADLE).refs}
    assert_same_outcome(graph, None, twin, None)
    assert jax.tree.structure(back) == jax.tree.structure(graph.root)


@compiling(20)
@given(
    graph_bytes,
    program_bytes,
    st.lists(st.sampled_from(["map", "jit", "vmap"]), min_size=1, max_size=3),
)
def test_programs_with_plain_jax_in_between(data: bytes, program: bytes, ways: list[str]) -> None:
    """The program runs eagerly on one graph, under our `jit` on its twin, which plain JAX has in between."""
    plain, lifted = argument(data).root, argument(data).root
    jitted = nnx.jit(lambda root: run(root, Source(program), steps=3))
    for way in ways:
        expected, seen = run(plain, Source(program), steps=3), jitted(lifted)
        ours, theirs = walk((lifted, seen), TREADLE), walk((plain, expected), TREADLE)
        assert first_difference(ours.root, theirs.root) is None
        assert_same_leaves(ours.leaves, theirs.leaves)
        plain, lifted = nnx.clone(plain), WAYS[way](lifted)


# Each takes what changes a root in place and gives a function that returns the changed root.
NESTED: dict[str, Callable[[Way], Way]] = {
    "jax.jit of ours": lambda change: jax.jit(nnx.jit(change)),
    "ours of jax.jit": lambda change: nnx.jit(lambda root: jax.jit(change)(root)),
    "ours twice around jax.jit": lambda change: nnx.jit(nnx.jit(lambda root: jax.jit(change)(root))),
    "jax.jit, ours, jax.jit": lambda change: jax.jit(nnx.jit(lambda root: jax.jit(change)(root))),
    "jax.checkpoint of ours": lambda change: jax.checkpoint(nnx.remat(change)),
    "ours of jax.checkpoint": lambda change: nnx.remat(lambda root: jax.checkpoint(change)(root)),
    "jax.vmap of ours": lambda change: lambda root: jax.tree.map(
        lambda leaf: leaf[0],
        jax.vmap(nnx.jit(change), axis_size=2)(
            jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), root)
        ),
    ),
    "jax.lax.cond of ours": lambda change: lambda root: jax.lax.cond(
        True, nnx.jit(change), nnx.jit(change), root
    ),
    "ours of jax.lax.cond": lambda change: nnx.jit(
        lambda root: jax.lax.cond(True, change, change, root)
    ),
}  # fmt: skip


@pytest.mark.parametrize("nested", NESTED)
@compiling(40)
@given(graph_bytes, program_bytes)
def test_both_libraries_in_one_another(nested: str, data: bytes, program: bytes) -> None:
    """By value through plain JAX: what comes out is the changed graph, what went in is as before.

    Where ours is outermost and changes nothing itself, the caller's objects are as before, too.
    """

    def change(root: Any) -> Any:
        run(root, Source(program), steps=2)
        return root

    plain, lifted, twin = argument(data), argument(data), argument(data)
    seen, expected = NESTED[nested](change)(lifted.root), change(plain.root)
    ours, theirs = walk(seen, TREADLE), walk(expected, TREADLE)
    assert first_difference(ours.root, theirs.root) is None
    assert_same_leaves(ours.leaves, theirs.leaves)
    assert_same_outcome(lifted, None, twin, None)
