"""jacrev and jacfwd give what plain JAX gives on arrays, and change what the function changes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import treadle as nnx

W = jnp.arange(6.0).reshape(3, 2) / 5
X = jnp.array([0.5, -1.0])

BOTH = pytest.mark.parametrize("name", ["jacrev", "jacfwd"])


def net(**more):
    return nnx.Dict(w=nnx.Param(W), calls=nnx.BatchStat(jnp.array(0.0)), **more)


def forward(m, x):
    m["calls"].value += 1
    return {"y": jnp.tanh(m["w"].value @ x), "n": (x**2).sum()}


def plain(w, x):
    return {"y": jnp.tanh(w @ x), "n": (x**2).sum()}


@BOTH
@pytest.mark.parametrize("jitted", [False, True])
def test_several_arguments_as_in_plain_jax(name, jitted):
    lifted, expected = getattr(nnx, name)(forward, (0, 1)), getattr(jax, name)(plain, (0, 1))(W, X)
    m = net()
    found = (nnx.jit(lifted) if jitted else lifted)(m, X)
    assert set(found) == set(expected)
    for key, (of_w, of_x) in expected.items():
        state, of_array = found[key]
        assert set(state) == {"w"}
        np.testing.assert_allclose(state["w"].value, of_w, rtol=1e-6)
        np.testing.assert_allclose(of_array, of_x, rtol=1e-6)
    assert float(m["calls"].value) == 1.0


@BOTH
def test_a_shared_variable_has_one_derivative_the_sum_over_its_uses(name):
    shared = nnx.Param(jnp.array([2.0, 3.0]))
    m = nnx.Dict(a=shared, b=shared)
    found = getattr(nnx, name)(lambda m: m["a"].value * m["b"].value)(m)
    assert set(found) == {"a"}
    np.testing.assert_allclose(found["a"].value, np.diag([4.0, 6.0]))


@BOTH
def test_aux_filters_and_keywords(name):
    lifted = getattr(nnx, name)(
        lambda m, *, by: (m["calls"].value * by, m), wrt=nnx.BatchStat, has_aux=True
    )
    m = net()
    found, aux = lifted(m, by=jnp.array([1.0, 4.0]))
    assert aux is m
    np.testing.assert_allclose(found["calls"].value, [1.0, 4.0])
    chosen = getattr(nnx, name)(lambda m: m["calls"] * 3, nnx.DiffState(0, nnx.BatchStat))(m)
    assert float(chosen["calls"].value) == 3.0


def test_second_derivatives():
    def loss(m):
        return (m["w"].value ** 3).sum()

    m = nnx.Dict(w=nnx.Param(X))
    expected = jax.hessian(lambda w: (w**3).sum())(X)
    for outer, inner in ((nnx.jacfwd, nnx.jacrev), (nnx.jacrev, nnx.jacfwd)):
        (found,) = jax.tree_util.tree_leaves(outer(inner(loss))(m))
        np.testing.assert_allclose(found, expected, rtol=1e-6)


@BOTH
def test_mistakes_are_named_and_change_nothing(name):
    m = net()
    with pytest.raises(TypeError, match=rf"{name} of .*holds a Dict"):
        getattr(nnx, name)(lambda m: m)(m)
    with pytest.raises(TypeError, match=rf"{name} of .*m\.n, which is int32\[\]"):
        getattr(nnx, name)(lambda m: m["w"])(net(n=nnx.Param(jnp.array(1))))
    with pytest.raises(ValueError, match="argnums=1 is out of range"):
        getattr(nnx, name)(forward, 1)(m)
    assert float(m["calls"].value) == 0.0
