"""vmap: plain entries of in_axes speak of nodes and of Variables as they do of arrays."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import treadle as nnx

from .libraries import both, quiet, same, weights

pytestmark = quiet
W = np.arange(6.0).reshape(2, 3)


@both
def test_none_is_the_same_in_all_slices(lib):
    m = weights(3, lib=lib)
    out = nnx.vmap(lambda m, x: x * m["w"].value, in_axes=(None, 0))(m, jnp.ones((3, 3)))
    same(out, [[0, 1, 2]] * 3)


@both
def test_none_beside_another_size(lib):
    m = weights(3, lib=lib)
    out = nnx.vmap(lambda m, x: x + m["w"].value, in_axes=(None, 0))(m, jnp.ones(5))
    same(out, np.tile(np.arange(3.0) + 1, (5, 1)))


@both
def test_an_int_is_the_axis_of_every_leaf(lib):
    m = weights(2, 3, lib=lib)
    out = nnx.vmap(lambda m, x: m["w"].value + x, in_axes=(1, 0))(m, jnp.arange(3.0))
    same(out, W.T + np.arange(3.0)[:, None])


@both
def test_a_negative_axis_counts_from_each_leafs_own_end(lib):
    m = lib.Dict(a=lib.Param(jnp.asarray(W)), b=lib.Param(jnp.arange(3.0)))
    out = nnx.vmap(lambda m: m["a"].value.sum() + m["b"].value, in_axes=-1)(m)
    same(out, W.sum(0) + np.arange(3.0))


@both
def test_zero_is_still_axis_0(lib):
    m = weights(2, 3, lib=lib)
    same(nnx.vmap(lambda m: m["w"].value * 2, in_axes=(0,))(m), W * 2)


@both
def test_a_bare_variable_has_the_entry_too(lib):
    v = lib.Param(jnp.asarray(W))
    same(nnx.vmap(lambda v: v.value.sum(), in_axes=1)(v), W.sum(0))
    same(nnx.vmap(lambda v, x: v.value + x, in_axes=(None, 0))(v, jnp.ones(2)), [W + 1] * 2)


@both
def test_an_entry_for_a_container_holds_for_everything_in_it(lib):
    m, n = weights(2, 3, lib=lib), weights(2, 3, lib=lib)
    f = nnx.vmap(lambda pair, x: pair["m"]["w"].value + pair["n"][0]["w"].value + x, in_axes=(1, 0))
    same(f({"m": m, "n": [n]}, jnp.zeros(3)), (W * 2).T)


@both
def test_prefixes_tell_nodes_in_containers_apart(lib):
    m, n = weights(2, 3, lib=lib), weights(3, lib=lib)
    f = nnx.vmap(
        lambda d: d["m"]["w"].value + d["n"][0]["w"].value, in_axes=({"m": 0, "n": [None]},)
    )
    same(f({"m": m, "n": [n]}), W + np.arange(3.0))


@both
def test_prefixes_mix_arrays_nodes_and_variables(lib):
    m, v = weights(2, 3, lib=lib), lib.Param(jnp.asarray(W.T))
    f = nnx.vmap(lambda t: t[0]["w"].value + t[1].value + t[2], in_axes=((1, 0, None),))
    same(f((m, v, jnp.float32(1))), W.T + W.T + 1)


@both
def test_a_prefix_that_reaches_into_a_node_is_an_error(lib):
    m = weights(2, 3, lib=lib)
    with pytest.raises(ValueError, match=r"\bm\b"):
        nnx.vmap(lambda m: m["w"].value, in_axes=({"w": 1},))(m)


def test_self_of_a_method_has_the_first_entry():
    class Net(nnx.Module):
        def __init__(self):
            self.w = nnx.Param(jnp.arange(3.0))

        @nnx.vmap(in_axes=(None, 0))
        def scale(self, x):
            return x * self.w.value

    same(Net().scale(jnp.arange(2.0)), [[0, 0, 0], [0, 1, 2]])


def test_init_is_mapped_by_its_own_entries():
    class Net(nnx.Module):
        @nnx.vmap(in_axes=(0, None, 1))
        def __init__(self, m, x):
            self.w = nnx.Param(x * m["w"].value)

    net = Net(weights(2), jnp.arange(6.0).reshape(2, 3))
    same(net.w.value, W.T * np.arange(2.0))


def test_init_of_rngs_mapped_over_given_seeds():
    class Net(nnx.Module):
        @nnx.vmap(in_axes=(0, None, 0))
        def __init__(self, shared, x):
            self.w = nnx.Param(x + shared["w"].value.sum())

    net = Net(weights(3), jnp.arange(4.0))
    same(net.w.value, np.arange(4.0) + 3)


@both
def test_keywords_have_their_entries_in_in_axes_kwargs(lib):
    m, n = weights(2, 3, lib=lib), weights(3, lib=lib)
    f = nnx.vmap(lambda *, m, n: m["w"].value + n["w"].value, in_axes_kwargs={"m": 0, "n": None})
    same(f(m=m, n=n), W + np.arange(3.0))
    g = nnx.vmap(lambda *, m: m["w"].value.sum(), in_axes_kwargs=1)
    same(g(m=m), W.sum(0))


@both
def test_state_axes_in_its_place_comes_before_everything(lib):
    m = lib.Dict(a=lib.Param(jnp.asarray(W)), b=lib.BatchStat(jnp.asarray(W)))
    axes = nnx.StateAxes({lib.Param: 1, ...: None})
    out = nnx.vmap(lambda m: m["a"].value + m["b"].value.sum(1), in_axes=(axes,))(m)
    same(out, W.T + W.sum(1))


@both
def test_state_axes_for_one_and_a_plain_entry_for_another(lib):
    m, n = weights(2, 3, lib=lib), weights(2, lib=lib)
    f = nnx.vmap(lambda m, n: m["w"].value * n["w"].value, in_axes=(nnx.StateAxes({...: 1}), None))
    same(f(m, n), W.T * np.arange(2.0))


@both
def test_a_change_comes_back_along_its_entry(lib):
    m = weights(2, 3, lib=lib)
    w = m["w"]

    def f(m, x):
        m["w"].value = m["w"].value * x

    nnx.vmap(f, in_axes=(1, 0))(m, jnp.arange(3.0))
    assert m["w"] is w
    same(w.value, W * np.arange(3.0))


@both
def test_an_axis_out_of_bounds_names_the_leaf(lib):
    with pytest.raises(ValueError, match=r"axis 2 is out of bounds for m(\.w|\['w'\])"):
        nnx.vmap(lambda m: m["w"].value, in_axes=2)(weights(2, 3, lib=lib))


@both
def test_a_node_under_an_int_needs_the_axis(lib):
    m = lib.Dict(w=lib.Param(jnp.ones(3)), s=lib.Variable(jnp.array(1.0)))
    with pytest.raises(ValueError, match=r"m(\.s|\['s'\])"):
        nnx.vmap(lambda m: m["w"].value, in_axes=0)(m)


def test_the_same_as_jax_on_arrays():
    """Each entry gives for the node what jax.vmap gives for its array."""
    x = jnp.arange(24.0).reshape(2, 3, 4)
    for axis in (0, 1, 2, -1, -2, -3):
        got = nnx.vmap(lambda v: v.value * 2, in_axes=axis, out_axes=axis)(nnx.Param(x))
        same(got, jax.vmap(lambda x: x * 2, in_axes=axis, out_axes=axis)(x))


@both
def test_gradients_through_none_are_summed(lib):
    m = weights(3, lib=lib)
    x = jnp.arange(6.0).reshape(2, 3)

    def loss(m):
        return nnx.vmap(lambda m, x: (m["w"].value * x).sum(), in_axes=(None, 0))(m, x).sum()

    same(nnx.grad(loss, wrt=lib.Param)(m)["w"].value, x.sum(0))


@both
def test_gradients_through_an_axis_are_slices(lib):
    m = weights(2, 3, lib=lib)
    x = jnp.arange(3.0)

    def loss(m):
        return nnx.vmap(lambda m, x: (m["w"].value * x).sum(), in_axes=(1, 0))(m, x).sum()

    same(nnx.grad(loss, wrt=lib.Param)(m)["w"].value, np.tile(x, (2, 1)))


@both
def test_gradients_per_example_are_stacked(lib):
    m = weights(3, lib=lib)
    x = jnp.arange(6.0).reshape(2, 3)
    grads = nnx.vmap(
        nnx.grad(lambda m, x: (m["w"].value ** 2 * x).sum(), wrt=lib.Param), in_axes=(None, 0)
    )(m, x)
    same(grads["w"].value, 2 * np.arange(3.0) * x)


@both
def test_under_jit_and_inside_another_vmap(lib):
    m = weights(3, lib=lib)
    inner = nnx.vmap(lambda m, x: m["w"].value * x, in_axes=(None, 0))
    same(nnx.jit(inner)(m, jnp.arange(2.0)), [[0, 0, 0], [0, 1, 2]])
    outer = nnx.vmap(inner, in_axes=(None, 1))
    same(outer(m, jnp.ones((2, 4))), np.tile(np.arange(3.0), (4, 2, 1)))


@both
def test_an_entry_of_none_for_everything_needs_a_size(lib):
    m = weights(3, lib=lib)
    with pytest.raises(ValueError, match=re.escape("axis_size")):
        nnx.vmap(lambda m: m["w"].value, in_axes=None)(m)
    same(nnx.vmap(lambda m: m["w"].value, in_axes=None, axis_size=2)(m), [np.arange(3.0)] * 2)
