"""nnx.grad and nnx.value_and_grad, a case per sentence of their documentation."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import treadle as nnx
from tests.open_points import cases


def net():
    return nnx.Dict(w=nnx.Param(jnp.array([1.0, 2.0])), s=nnx.BatchStat(jnp.array(3.0)))


def loss(m, x):
    return (m["w"].value ** 2 * x).sum() * m["s"].value


def plain(w, x):
    return (w**2 * x).sum() * 3.0


X = jnp.array([5.0, 7.0])
grad_of = pytest.mark.parametrize(
    "grad",
    [nnx.grad, lambda f, **options: lambda *a: nnx.value_and_grad(f, **options)(*a)[1]],
    ids=["grad", "value_and_grad"],
)


@grad_of
def test_the_example_of_the_page(grad):
    m = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    x, y = jnp.ones((1, 2)), jnp.ones((1, 3))
    grads = grad(lambda m, x, y: jnp.mean((m(x) - y) ** 2), wrt=nnx.Param)(m, x, y)
    assert jax.tree_util.tree_map(jnp.shape, grads) == nnx.State(
        {
            "bias": nnx.VariableState(nnx.Param, (3,)),
            "kernel": nnx.VariableState(nnx.Param, (2, 3)),
        }
    )


@grad_of
def test_gradients_of_nodes_are_of_type_state(grad):
    grads = grad(loss)(net(), X)
    assert isinstance(grads, nnx.State)
    assert list(grads) == ["w"]
    np.testing.assert_allclose(grads["w"].value, jax.grad(plain)(net()["w"].value, X))


@grad_of
def test_the_repr_of_gradients_is_that_of_the_page(grad):
    m = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    grads = grad(lambda m, x: m(x).sum())(m, jnp.ones((1, 2)))
    text = repr(jax.tree_util.tree_map(jnp.shape, grads))
    assert text == (
        "State({\n  'bias': VariableState(\n    type=Param,\n    value=(3,)\n  ),\n"
        "  'kernel': VariableState(\n    type=Param,\n    value=(2, 3)\n  )\n})"
    )


@grad_of
def test_arguments_may_be_arrays_scalars_nodes_and_containers(grad):
    def f(t):
        return loss(t["m"], t["x"][0]) * t["k"]

    grads = grad(f)({"m": net(), "x": [X], "k": 2.0})
    np.testing.assert_allclose(grads["m"]["w"].value, jax.grad(plain)(net()["w"].value, X) * 2)
    np.testing.assert_allclose(grads["x"][0], jax.grad(plain, 1)(net()["w"].value, X) * 2)
    np.testing.assert_allclose(grads["k"], plain(net()["w"].value, X))


@grad_of
def test_argument_arrays_must_be_inexact(grad):
    with pytest.raises(TypeError, match="float"):
        grad(lambda x: x * 2.0)(3)


@grad_of
def test_the_result_is_a_scalar_not_of_shape_1(grad):
    np.testing.assert_allclose(grad(lambda x: jnp.array(2.0) * x)(3.0), 2.0)
    with pytest.raises(TypeError, match="scalar"):
        grad(lambda x: jnp.ones(1) * x)(3.0)


ARGNUMS = (0, 1, -1, (0, 1), [1, 0], np.int64(1), np.array([0, 1]), (np.int32(0), np.int64(1)), [1])


@grad_of
@pytest.mark.parametrize("argnums", cases({repr(a): (a,) for a in ARGNUMS}))
def test_argnums_is_an_integer_or_a_sequence(grad, argnums):
    given = np.asarray(argnums)
    numbers = int(given) if given.ndim == 0 else tuple(int(i) for i in given)
    expected = jax.grad(plain, numbers)(net()["w"].value, X)
    grads = grad(loss, argnums=argnums)(net(), X)
    flat = lambda t: [  # noqa: E731
        e["w"].value if isinstance(e, nnx.State) else e
        for e in (t if isinstance(t, tuple) else (t,))
    ]
    assert isinstance(grads, tuple) == isinstance(expected, tuple)
    for a, b in zip(flat(grads), flat(expected), strict=True):
        np.testing.assert_allclose(a, b)


def test_argnums_default_is_0():
    np.testing.assert_allclose(nnx.grad(lambda x, y: x * y)(2.0, 3.0), 3.0)


@pytest.mark.parametrize("make", cases({"tuple": tuple, "list": list}))
def test_has_aux_takes_a_pair(make):
    f = lambda m, x: make((loss(m, x), {"n": x.sum()}))  # noqa: E731
    grads, aux = nnx.grad(f, has_aux=True)(net(), X)
    np.testing.assert_allclose(grads["w"].value, jax.grad(plain)(net()["w"].value, X))
    np.testing.assert_allclose(aux["n"], 12.0)
    (value, aux), grads = nnx.value_and_grad(f, has_aux=True)(net(), X)
    np.testing.assert_allclose(value, plain(net()["w"].value, X))
    np.testing.assert_allclose(aux["n"], 12.0)


def test_has_aux_default_is_false():
    with pytest.raises(TypeError, match=r"scalar|has_aux"):
        nnx.grad(lambda x: (x, x))(1.0)


@grad_of
def test_holomorphic(grad):
    z = jnp.array(1.0 + 2.0j)
    np.testing.assert_allclose(
        grad(lambda z: z**2, holomorphic=True)(z), jax.grad(lambda z: z**2, holomorphic=True)(z)
    )
    with pytest.raises(TypeError, match="complex"):
        grad(lambda z: z**2, holomorphic=True)(1.0)


@grad_of
def test_allow_int(grad):
    g = grad(lambda i: jnp.float32(i) * 2.0, allow_int=True)(3)
    assert g.dtype == jax.dtypes.float0


@grad_of
@pytest.mark.parametrize("axes", cases({repr(a): (a,) for a in ((), [], None)}))
def test_reduce_axes_without_names(grad, axes):
    np.testing.assert_allclose(grad(lambda x: x**2, reduce_axes=axes)(3.0), 6.0)


@grad_of
def test_reduce_axes_with_names_is_a_clear_error(grad):
    with pytest.raises((ValueError, NotImplementedError), match="reduce_axes"):
        grad(lambda x: x**2, reduce_axes=("batch",))(3.0)


@grad_of
def test_wrt_is_a_filter_whose_default_is_param(grad):
    assert list(grad(loss)(net(), X)) == ["w"]
    grads = grad(loss, wrt=nnx.BatchStat)(net(), X)
    assert list(grads) == ["s"]
    np.testing.assert_allclose(grads["s"].value, (net()["w"].value ** 2 * X).sum())
    assert list(grad(loss, wrt=...)(net(), X)) == ["s", "w"]


def test_value_and_grad_gives_both():
    value, grads = nnx.value_and_grad(loss)(net(), X)
    np.testing.assert_allclose(value, plain(net()["w"].value, X))
    np.testing.assert_allclose(grads["w"].value, jax.grad(plain)(net()["w"].value, X))


@pytest.mark.parametrize(
    "transform", [nnx.grad, nnx.value_and_grad], ids=["grad", "value_and_grad"]
)
def test_an_init_is_refused_when_decorating(transform):
    with pytest.raises((TypeError, ValueError), match="__init__"):

        class Net(nnx.Module):
            @transform
            def __init__(self, x):
                self.w = nnx.Param(x)
