"""Random models under random nestings do what hand-written JAX, and plain Python loops, do.

A program is a chain of transforms around one block, at most three deep. The hand-written side works on
(GraphDef, State) pairs with `jax.vmap`, `jax.lax.scan` and so on, and returns the final state; the
plain side loops over modules that were never stacked.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import treadle as nnx
from tests.transforms.models import Block, assert_same, plain

WIDTH = 2
QUICK = settings(max_examples=6, deadline=None)


class Random(nnx.Module):
    """A block with a random set of parts."""

    def __init__(self, parts: tuple[str, ...], rngs: nnx.Rngs) -> None:
        self.parts = parts
        if "linear" in parts:
            self.kernel = nnx.Param(jax.random.normal(rngs(), (WIDTH, WIDTH)) * 0.5)
        if "bias" in parts:
            self.bias = nnx.Param(jax.random.normal(rngs(), (WIDTH,)))
        if "tied" in parts and "bias" in parts:
            self.tied = [self.bias]
        if "stats" in parts:
            self.block = Block(WIDTH, rngs=rngs)
        if "bare" in parts:
            self.bare = jax.random.normal(rngs(), (WIDTH,))

    def __call__(self, x: jax.Array) -> jax.Array:
        if "linear" in self.parts:
            x = x @ self.kernel.value
        if "bias" in self.parts:
            x = x + self.bias.value
        if "tied" in self.parts and "bias" in self.parts:
            x = x * self.tied[0].value
        if "stats" in self.parts:
            x = self.block(x)
        if "bare" in self.parts:
            x = x * self.bare
            self.bare = self.bare * 0.5
        return jnp.tanh(x)


PARTS = st.sets(st.sampled_from(["linear", "bias", "tied", "stats", "bare"]), min_size=1).map(
    lambda parts: tuple(sorted(parts | {"bias"}))
)
LEVELS = st.lists(st.sampled_from(["jit", "remat", "vmap", "scan"]), max_size=3).map(tuple)


def make(parts: tuple[str, ...], levels: tuple[str, ...], seed: int) -> Any:
    """A block stacked once for each vmap or scan in `levels`, outermost first."""

    def build(rngs: nnx.Rngs) -> Any:
        return Random(parts, rngs)

    for level in reversed(levels):
        if level in ("vmap", "scan"):
            build = nnx.vmap(build, axis_size=2)
    return build(nnx.Rngs(seed))


def inputs(levels: tuple[str, ...], seed: int) -> jax.Array:
    shape = (2,) * sum(level == "vmap" for level in levels)
    return jax.random.normal(jax.random.key(seed), (*shape, 3, WIDTH))


def lifted(levels: tuple[str, ...]) -> Any:
    """The program through treadle."""

    def run(m, x):
        return m(x)

    def scanned(inner):
        scan = nnx.scan(lambda x, m: (inner(m, x), None))
        return lambda m, x: scan(x, m)[0]

    around = {"jit": nnx.jit, "remat": nnx.remat, "vmap": nnx.vmap, "scan": scanned}
    for level in reversed(levels):
        run = around[level](run)
    return run


def by_hand(levels: tuple[str, ...], graphdef: Any) -> Any:
    """The same program over states: (state, x) -> (x, state)."""

    def run(state, x):
        m = nnx.merge(graphdef, state)
        y = m(x)
        return y, nnx.state(m)

    def scanned(inner):
        def scan(state, x):
            return jax.lax.scan(lambda x, s: inner(s, x), x, state)

        return scan

    around = {"jit": jax.jit, "remat": jax.checkpoint, "vmap": jax.vmap, "scan": scanned}
    for level in reversed(levels):
        run = around[level](run)
    return run


def by_loops(levels: tuple[str, ...], graphdef: Any) -> Any:
    """The same program as Python loops over modules that are not stacked."""

    def run(state, x):
        m = nnx.merge(graphdef, state)
        y = m(x)
        return y, nnx.state(m)

    def mapped(inner):
        def loop(state, x):
            done = [inner(jax.tree.map(lambda v, i=i: v[i], state), x[i]) for i in range(2)]
            return jax.tree.map(lambda *parts: jnp.stack(parts), *done)

        return loop

    def scanned(inner):
        def loop(state, x):
            states = []
            for i in range(2):
                x, s = inner(jax.tree.map(lambda v, i=i: v[i], state), x)
                states.append(s)
            return x, jax.tree.map(lambda *parts: jnp.stack(parts), *states)

        return loop

    around = {"jit": lambda f: f, "remat": lambda f: f, "vmap": mapped, "scan": scanned}
    for level in reversed(levels):
        run = around[level](run)
    return run


@given(PARTS, LEVELS, st.integers(0, 3))
@QUICK
def test_outputs_and_states(parts, levels, seed):
    m = make(parts, levels, seed)
    graphdef, state = nnx.split(m)
    x = inputs(levels, seed)
    out = lifted(levels)(m, x)
    hand_out, hand_state = by_hand(levels, graphdef)(state, x)
    assert_same(out, hand_out)
    assert_same(nnx.state(m), hand_state)
    loop_out, loop_state = by_loops(levels, graphdef)(state, x)
    assert_same(out, loop_out)
    assert_same(nnx.state(m), loop_state)


@given(PARTS, LEVELS, st.integers(0, 3), st.sampled_from([nnx.Param, ...]), st.booleans())
@QUICK
def test_gradients_outputs_and_states(parts, levels, seed, wrt, jitted):
    m = make(parts, levels, seed)
    if wrt is ... and "stats" in parts:
        wrt = nnx.Any(nnx.Param, jax.Array)
    graphdef, chosen, rest = nnx.split(m, wrt, ...)
    x = inputs(levels, seed)
    run = lifted(levels)

    def loss(m, x):
        out = run(m, x)
        return (out**2).sum(), out

    step = nnx.value_and_grad(loss, has_aux=True, wrt=wrt)
    (value, out), grads = (nnx.jit(step) if jitted else step)(m, x)

    def hand_loss(chosen, rest, x):
        out, state = by_hand(levels, graphdef)(nnx.State.merge(chosen, rest), x)
        return (out**2).sum(), (out, state)

    (hand_value, (hand_out, state)), hand_grads = jax.value_and_grad(hand_loss, has_aux=True)(
        chosen, rest, x
    )
    np.testing.assert_allclose(value, hand_value, rtol=1e-5)
    assert_same(out, hand_out)
    assert_same(grads, hand_grads, rtol=1e-4)
    assert_same(nnx.state(m), state)


@given(PARTS, st.sampled_from([("vmap",), ("vmap", "vmap"), ("vmap", "scan"), ("scan",)]))
@QUICK
def test_gradients_inside_a_mapping(parts, levels):
    m = make(parts, levels, 0)
    graphdef, state = nnx.split(m)
    x = inputs(levels, 1)

    def inner(m, x):
        return nnx.grad(lambda m, x: (m(x) ** 2).sum(), argnums=1)(m, x)

    def hand(state, x):
        def loss(x):
            m = nnx.merge(graphdef, state)
            y = m(x)
            return (y**2).sum(), nnx.state(m)

        return jax.grad(loss, has_aux=True)(x)

    run, reference = inner, hand
    for level in reversed(levels):
        if level == "vmap":
            run, reference = nnx.vmap(run), jax.vmap(reference)
        else:
            scan = nnx.scan(lambda x, m, run=run: (run(m, x), None))
            run = lambda m, x, scan=scan: scan(x, m)[0]  # noqa: E731
            reference = lambda s, x, f=reference: jax.lax.scan(  # noqa: E731
                lambda x, s: f(s, x), x, s
            )
    out = run(m, x)
    hand_out, hand_state = reference(state, x)
    assert_same(out, hand_out, rtol=1e-4)
    assert_same(nnx.state(m), hand_state)


@given(
    st.lists(st.sampled_from(["vmap", "scan", "remat", "jit"]), min_size=1, max_size=3),
    st.integers(0, 2),
)
@QUICK
def test_random_streams_by_value(levels, count):
    """Slice i of a level draws from ``jax.random.split(key, n)[i]``; a scan carries the count on."""
    rngs = nnx.Rngs(noise=7)
    for _ in range(count):
        rngs.noise()

    def run(rngs):
        return jax.random.key_data(rngs.noise())

    def expected(key, count):
        return np.asarray(jax.random.key_data(jax.random.fold_in(key, count))), count + 1

    def sliced(inner, *, carried):
        def slices(key, count):
            values, after = [], count
            for part in jax.random.split(key, 2):
                value, after = inner(part, after if carried else count)
                values.append(value)
            return np.stack(values), after

        return slices

    for level in reversed(levels):
        if level == "vmap":
            run = nnx.vmap(run, axis_size=2)
        elif level == "scan":
            scan = nnx.scan(lambda c, rngs, run=run: (c, run(rngs)), length=2)
            run = lambda rngs, scan=scan: scan(0, rngs)[1]  # noqa: E731
        else:
            run = {"remat": nnx.remat, "jit": nnx.jit}[level](run)
        if level in ("vmap", "scan"):
            expected = sliced(expected, carried=level == "scan")
    values, after = expected(jax.random.key(7), count)
    np.testing.assert_array_equal(run(rngs), values)
    np.testing.assert_array_equal(plain(rngs.noise.key.value), plain(jax.random.key(7)))
    assert int(rngs.noise.count.value) == after


@pytest.mark.parametrize(
    "levels",
    [("jit", "scan", "remat"), ("vmap", "vmap"), ("scan", "vmap"), ("vmap", "scan", "remat")],
)
def test_named_nestings_with_gradients(levels):
    parts = ("bare", "bias", "linear", "stats", "tied")
    m = make(parts, levels, 0)
    graphdef, params, rest = nnx.split(m, nnx.Param, ...)
    x = inputs(levels, 0)
    run = lifted(levels)
    grads = nnx.jit(nnx.grad(lambda m, x: (run(m, x) ** 2).sum()))(m, x)

    def hand(params):
        out, state = by_hand(levels, graphdef)(nnx.State.merge(params, rest), x)
        return (out**2).sum(), state

    hand_grads, state = jax.grad(hand, has_aux=True)(params)
    assert_same(grads, hand_grads, rtol=1e-4)
    assert_same(nnx.state(m), state)
