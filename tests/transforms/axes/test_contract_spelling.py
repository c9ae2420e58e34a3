"""The contract's spelling: state follows state_axes, entries at nodes are placeholders or agree."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

import treadle as nnx

from .libraries import both, quiet, same, weights

pytestmark = quiet
W = np.arange(6.0).reshape(2, 3)


def total(m, x):
    return m["w"].value.sum() + x


@both
@pytest.mark.parametrize("entry", [None, 0, 1], ids=str)
def test_a_placeholder_or_the_axis_that_state_axes_gives(lib, entry):
    f = nnx.vmap(total, in_axes=(entry, 0), state_axes={...: 1})
    same(f(weights(2, 3, lib=lib), jnp.zeros(3)), W.sum(0))


@both
def test_another_int_at_the_node_is_an_error_that_names_the_argument(lib):
    with pytest.raises(ValueError, match=r"\bm\b"):
        nnx.vmap(total, in_axes=(1, 0), state_axes={...: 0})(weights(2, 2, lib=lib), jnp.ones(2))
    with pytest.raises(ValueError, match=r"\bm\b"):
        nnx.scan(lambda c, m: (c, m["w"].value), in_axes=(None, 1), state_axes={...: 0})(
            0.0, weights(2, 2, lib=lib)
        )


def test_state_axes_equal_to_the_default_is_given_too():
    f = nnx.vmap(total, in_axes=(None, 0), state_axes={...: 0})
    same(f(weights(2, 3), jnp.zeros(2)), W.sum(1))


def test_out_axes_speaks_of_arrays_only():
    f = nnx.vmap(lambda x: (nnx.Dict(w=nnx.Param(x)), x), out_axes=1, state_axes={...: 0})
    m, x = f(jnp.asarray(W))
    same(m["w"].value, W)
    same(x, W.T)


def test_what_state_axes_does_not_select_is_broadcast_in_vmap():
    m = nnx.Dict(w=nnx.Param(jnp.asarray(W)), s=nnx.BatchStat(jnp.arange(3.0)))
    f = nnx.vmap(lambda m: m["w"].value + m["s"].value, state_axes={nnx.Param: 0})
    same(f(m), W + np.arange(3.0))


def test_what_state_axes_does_not_select_is_carried_in_scan():
    m = nnx.Dict(w=nnx.Param(jnp.arange(3.0)), s=nnx.BatchStat(jnp.array(0.0)))

    def f(c, m):
        m["s"].value = m["s"].value + m["w"].value
        return c, m["s"].value

    _, out = nnx.scan(f, state_axes={nnx.Param: 0})(0.0, m)
    same(out, [0, 1, 3])


def test_none_in_state_axes_of_vmap_is_broadcast():
    m = nnx.Dict(w=nnx.Param(jnp.asarray(W)), s=nnx.BatchStat(jnp.arange(3.0)))
    f = nnx.vmap(lambda m: m["w"].value + m["s"].value, state_axes={nnx.Param: 0, ...: None})
    same(f(m), W + np.arange(3.0))


@both
def test_scan_none_at_a_node_contradicts_the_default_of_state_axes(lib):
    m = weights(3, lib=lib)
    with pytest.raises(ValueError, match=r"\bm\b"):
        nnx.scan(lambda c, x, m: (c, x), in_axes=(None, 0, None))(0.0, jnp.ones(3), m)


def test_none_is_fine_for_random_state():
    f = nnx.scan(lambda c, x, r: (c, x), in_axes=(None, 0, None))
    same(f(0.0, jnp.ones(3), nnx.Rngs(0))[1], np.ones(3))


def test_none_is_fine_for_the_module_of_a_class():
    class Block(nnx.Module):
        def __init__(self, rngs):
            self.w = nnx.Param(jnp.ones(()))

        def __call__(self, x):
            return x + self.w.value, None

    stack = nnx.Scan(Block, length=3, in_axes=(None, None))(nnx.Rngs(0))
    same(stack(jnp.array(0.0))[0], 3.0)


def test_class_vmap_with_none_for_the_module_maps_its_state():
    class Block(nnx.Module):
        def __init__(self, rngs):
            self.w = nnx.Param(jnp.arange(2.0))

        def __call__(self, x):
            return x * self.w.value

    stack = nnx.Vmap(Block, axis_size=3, in_axes=(None, 0))(nnx.Rngs(0))
    same(stack(jnp.arange(3.0)), np.arange(3.0)[:, None] * np.arange(2.0))


def test_class_vmap_another_node_under_none_is_an_error():
    class Block(nnx.Module):
        def __init__(self, rngs):
            self.w = nnx.Param(jnp.ones(()))

        def __call__(self, x, other):
            return x + other["w"].value

    stack = nnx.Vmap(Block, axis_size=3, in_axes=(None, 0, None))(nnx.Rngs(0))
    with pytest.raises(ValueError, match="other"):
        stack(jnp.ones(3), weights(3))


def test_the_bodies_state_axes_give_carry_no_meaning_in_vmap():
    with pytest.raises(TypeError, match="Carry"):
        nnx.vmap(lambda x: x, in_axes=nnx.Carry)
