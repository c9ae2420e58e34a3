"""nnx.remat, a case per parameter of its signature."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import treadle as nnx
from tests.open_points import cases


def net():
    return nnx.Dict(w=nnx.Param(jnp.array(3.0)), n=nnx.BatchStat(jnp.array(0)))


def f(m, x, power=2):
    m["n"].value = m["n"].value + 1
    return jnp.sin(m["w"].value * x) ** power


def test_values_gradients_and_updates():
    m = net()
    value, grads = nnx.value_and_grad(nnx.remat(f))(m, 2.0)
    expected, of_w = jax.value_and_grad(lambda w: jnp.sin(w * 2.0) ** 2)(3.0)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(grads["w"].value, of_w, rtol=1e-6)
    assert int(m["n"].value) == 1


@pytest.mark.parametrize("cse", [True, False])
def test_prevent_cse(cse):
    text = str(jax.make_jaxpr(lambda x: nnx.remat(f, prevent_cse=cse)(net(), x))(2.0))
    assert f"prevent_cse={cse}" in text


ARGNUMS = (2, -1, (2,), [2], np.int64(2), [np.int64(2)], np.array([2]))


@pytest.mark.parametrize("argnums", cases({repr(a): (a,) for a in ARGNUMS}))
def test_static_argnums(argnums):
    def g(m, x, double):
        return m["w"].value * x * (2 if double else 1)

    remat = nnx.remat(g, static_argnums=argnums)
    assert float(remat(net(), 2.0, True)) == 12.0
    assert float(remat(net(), 2.0, False)) == 6.0


@pytest.mark.parametrize("given", [{}, {"power": 3}], ids=["default", "keyword"])
def test_static_argnums_of_an_argument_that_is_not_given_by_position(given):
    def g(m, x, power=2):
        return sum([m["w"].value * x] * power)

    assert float(nnx.remat(g, static_argnums=2)(net(), 2.0, **given)) == 6.0 * given.get("power", 2)


def test_policy():
    policy = jax.checkpoint_policies.everything_saveable
    text = str(jax.make_jaxpr(lambda x: nnx.remat(f, policy=policy)(net(), x))(2.0))
    assert "everything_saveable" in text
