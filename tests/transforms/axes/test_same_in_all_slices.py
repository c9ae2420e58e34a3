"""vmap: state that is the same in all slices comes back so, or is an error by path."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import treadle as nnx

from .libraries import both, quiet, same, weights

pytestmark = quiet


@both
def test_a_count_may_change(lib):
    m = lib.Dict(n=lib.Variable(jnp.array(0)))

    def f(m, x):
        m["n"].value = m["n"].value + 1
        return x

    nnx.vmap(f, in_axes=(None, 0))(m, jnp.ones(3))
    assert int(m["n"].value) == 1


@both
def test_a_mean_over_the_axis_may_be_stored(lib):
    m = lib.Dict(s=lib.BatchStat(jnp.array(0.0)))

    def f(m, x):
        m["s"].value = jax.lax.pmean(x, "batch")
        return x

    nnx.vmap(f, in_axes=(None, 0), axis_name="batch")(m, jnp.arange(3.0))
    same(m["s"].value, 1.0)


@both
def test_what_differs_is_an_error_by_path(lib):
    m = lib.Dict(inner=lib.Dict(s=lib.BatchStat(jnp.array(0.0))))

    def f(m, x):
        m["inner"]["s"].value = x
        return x

    with pytest.raises(ValueError, match=r"m(\.inner|\['inner'\])(\.s|\['s'\])"):
        nnx.vmap(f, in_axes=(None, 0))(m, jnp.arange(3.0))
    same(m["inner"]["s"].value, 0.0)


def test_batch_norm_with_axis_name():
    norm = nnx.BatchNorm(3, axis_name="batch", rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (4, 2, 3))
    out = nnx.vmap(lambda m, x: m(x), in_axes=(None, 0), axis_name="batch")(norm, x)
    whole = nnx.BatchNorm(3, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(out.reshape(8, 3), whole(x.reshape(8, 3)), atol=1e-5)
    np.testing.assert_allclose(norm.mean.value, whole.mean.value, atol=1e-6)


def test_batch_norm_without_axis_name_is_an_error():
    norm = nnx.BatchNorm(3, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"m\.mean|m\.var"):
        nnx.vmap(lambda m, x: m(x), in_axes=(None, 0))(norm, jnp.arange(24.0).reshape(4, 2, 3))
    same(norm.mean.value, np.zeros(3))


def test_an_optimizer_step_per_slice_of_one_model_is_an_error():
    m = weights(2)

    def f(m, x):
        m["w"].value = m["w"].value - nnx.grad(lambda m: (m["w"].value * x).sum())(m)["w"].value

    with pytest.raises(ValueError, match=r"m\.w|m\['w'\]"):
        nnx.vmap(f, in_axes=(None, 0))(m, jnp.arange(3.0))
