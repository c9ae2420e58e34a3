"""Promises of vjp, jvp and custom_vjp."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

import weft as nnx
from tests.transforms.models import Block, assert_same, values


def model():
    return nnx.Dict(w=nnx.Param(jnp.array([1.0, 2.0])), s=nnx.BatchStat(jnp.array(3.0)))


def apply(m, x):
    m["s"].value = m["s"].value + 1
    return m["w"].value * x


# -- vjp -------------------------------------------------------------------------------------------


def test_vjp_pulls_back_to_every_primal():
    m, x = model(), jnp.array([3.0, 4.0])
    out, pull_back = nnx.vjp(apply, m, x)
    np.testing.assert_allclose(out, [3, 8])
    of_m, of_x = pull_back(jnp.array([1.0, 10.0]))
    assert list(of_m) == ["w"]
    np.testing.assert_allclose(of_m["w"].value, [3, 40])
    np.testing.assert_allclose(of_x, [1, 20])
    assert float(m["s"].value) == 4.0


def test_vjp_has_aux_and_wrt():
    m = model()
    out, pull_back, aux = nnx.vjp(lambda m: (m["w"].value * m["s"].value, m), m, has_aux=True)
    assert aux is m
    (grads,) = pull_back(jnp.ones_like(out))
    assert list(grads) == ["w"]
    _, pull_back = nnx.vjp(lambda m: m["w"].value * m["s"].value, m, wrt=nnx.BatchStat)
    (grads,) = pull_back(jnp.ones(2))
    assert float(grads["s"].value) == 3.0


def test_vjp_errors():
    with pytest.raises(TypeError, match="the differentiated result holds a Dict"):
        nnx.vjp(lambda m: m, model())
    with pytest.raises(TypeError, match=r"must return a pair \(out, aux\)"):
        nnx.vjp(lambda m: m["w"].value, model(), has_aux=True)
    with pytest.raises(ValueError, match="psum"):
        nnx.vjp(lambda m: m["w"].value, model(), reduce_axes=("i",))


# -- jvp -------------------------------------------------------------------------------------------


def test_jvp_pushes_tangents_forward():
    m, x = model(), jnp.array([3.0, 4.0])
    tangent = nnx.State({"w": nnx.VariableState(nnx.Param, jnp.array([1.0, 0.0]))})
    out, out_tangent = nnx.jvp(apply, (m, x), (tangent, jnp.array([0.0, 5.0])))
    np.testing.assert_allclose(out, [3, 8])
    np.testing.assert_allclose(out_tangent, [3, 10])
    assert float(m["s"].value) == 4.0


def test_jvp_missing_tangents_are_zero():
    m, x = model(), jnp.array([3.0, 4.0])
    _, none = nnx.jvp(apply, (m, x), (None, None))
    np.testing.assert_allclose(none, [0, 0])
    _, of_w = nnx.jvp(apply, (m, x), ({"w": jnp.ones(2)}, None))
    np.testing.assert_allclose(of_w, x)


def test_jvp_has_aux_and_wrt():
    m = model()
    tangent = {"s": jnp.array(1.0)}
    _, out_tangent, aux = nnx.jvp(
        lambda m: (m["w"].value * m["s"].value, m),
        (m,),
        (tangent,),
        has_aux=True,
        wrt=nnx.BatchStat,
    )
    assert aux is m
    np.testing.assert_allclose(out_tangent, [1, 2])
    with pytest.raises(ValueError, match=r"tangents has an entry at \('s',\)"):
        nnx.jvp(lambda m: m["w"].value, (m,), (tangent,))


def test_jvp_errors():
    with pytest.raises(ValueError, match="got 1 primals and 2 tangents"):
        nnx.jvp(lambda x: x, (1.0,), (1.0, 2.0))


# -- custom_vjp ------------------------------------------------------------------------------------


def clipped(limit=1.0):
    @nnx.custom_vjp
    def f(m, x):
        m["s"].value = m["s"].value + 1
        return m["w"].value * x

    def fwd(m, x):
        return f(m, x), (m, x)

    def bwd(residual, g):
        (m, x), (inputs_g, out_g) = residual, g
        of_m, _ = inputs_g
        assert isinstance(of_m, nnx.State)
        of_m["w"].value = jnp.clip(out_g * x, -limit, limit)
        return of_m, out_g * m["w"].value

    f.defvjp(fwd, bwd)
    return f


def test_custom_vjp_uses_the_rule():
    m, x = model(), jnp.array([0.5, 4.0])
    f = clipped()
    np.testing.assert_allclose(f(m, x), [0.5, 8])
    assert float(m["s"].value) == 4.0
    grads = nnx.grad(lambda m, x: f(m, x).sum(), argnums=(0, 1))(m, x)
    np.testing.assert_allclose(grads[0]["w"].value, [0.5, 1.0])
    np.testing.assert_allclose(grads[1], [1, 2])
    assert float(m["s"].value) == 5.0


def test_custom_vjp_sees_cotangents_of_its_updates():
    @nnx.custom_vjp
    def f(m):
        m["s"].value = m["w"].value.sum()
        return m["w"].value * 1.0

    def fwd(m):
        return f(m), None

    def bwd(_, g):
        (of_m,), out_g = g
        return (nnx.State({"w": out_g + of_m["s"].value * 10}),)

    f.defvjp(fwd, bwd)

    def loss(m):
        return f(m).sum() + 2 * m["s"].value

    grads = nnx.grad(loss)(model())
    np.testing.assert_allclose(grads["w"].value, [21.0, 21.0])


def test_custom_vjp_nondiff_argnums():
    @nnx.custom_vjp(nondiff_argnums=(1,))
    def f(m, name, x):
        assert name == "static"
        return m["w"].value * x

    def fwd(m, name, x):
        return f(m, name, x), x

    def bwd(name, x, g):
        assert name == "static"
        _, out_g = g
        return {"w": out_g * x * 2}, None

    f.defvjp(fwd, bwd)
    grads = nnx.grad(lambda m, x: f(m, "static", x).sum(), argnums=(0, 1))(model(), jnp.ones(2))
    np.testing.assert_allclose(grads[0]["w"].value, [2, 2])
    np.testing.assert_allclose(grads[1], [0, 0])


@pytest.mark.parametrize("spelling", ["nondiff", "wrt"])
def test_custom_vjp_restricts_the_differentiated_state(spelling):
    parameters = {
        "nondiff": {"nondiff_argnums": (nnx.DiffState(0, nnx.Param),)},
        "wrt": {"wrt": nnx.Param},
    }

    @nnx.custom_vjp(**parameters[spelling])
    def f(m):
        return m["w"].value * m["s"].value

    def bwd(residual, g):
        (of_m,), _ = g
        assert list(of_m) == ["w"]
        return (of_m,)

    f.defvjp(lambda m: (f(m), None), bwd)
    grads = nnx.grad(lambda m: f(m).sum(), wrt=...)(model())
    np.testing.assert_allclose(grads["w"].value, [0, 0])
    assert float(grads["s"].value) == 0.0


def test_custom_vjp_under_jit_vmap_and_on_methods():
    class Model(nnx.Module):
        def __init__(self):
            self.w = nnx.Param(jnp.array(2.0))

        @nnx.custom_vjp
        def double(self, x):
            return self.w.value * x

    Model.double.defvjp(
        lambda self, x: (self.double(x), (self.w.value, x)),
        lambda residual, g: ({"w": g[1] * residual[1] * 100}, g[1] * residual[0]),
    )
    m = Model()
    f = nnx.jit(nnx.grad(lambda m, x: m.double(x)))
    assert float(f(m, 3.0)["w"].value) == 300.0
    g = nnx.vmap(nnx.grad(lambda m, x: m.double(x)), state_axes={})
    np.testing.assert_allclose(g(m, jnp.arange(3.0))["w"].value, [0, 100, 200])


def test_custom_vjp_errors():
    @nnx.custom_vjp
    def f(m):
        return m["w"].value.sum()

    with pytest.raises(AttributeError, match=r"call its defvjp\(fwd, bwd\) first"):
        f(model())
    f.defvjp(lambda m: f(m), lambda r, g: (None,))
    with pytest.raises(TypeError, match=r"fwd must return a pair \(out, residual\)"):
        nnx.grad(f)(model())
    f.defvjp(lambda m: (f(m), None), lambda r, g: ())
    with pytest.raises(TypeError, match="gradient of each of the 1 differentiated"):
        nnx.grad(f)(model())
    f.defvjp(lambda m: (f(m), None), lambda r, g: ({"zzz": 1.0},))
    with pytest.raises(ValueError, match="the result of bwd has an entry at"):
        nnx.grad(f)(model())


def test_an_exception_in_the_rule_changes_nothing():
    f = clipped()
    m = model()

    def fail(m, x):
        m["s"].value = m["s"].value * 5
        raise RuntimeError("stop")

    f.defvjp(fail, lambda r, g: None)
    before = values(m)
    with pytest.raises(RuntimeError, match="stop"):
        nnx.grad(lambda m, x: f(m, x).sum())(m, jnp.ones(2))
    assert_same(values(m), before)


def test_vjp_of_a_block_agrees_with_grad():
    a, b = Block(3, rngs=nnx.Rngs(0)), Block(3, rngs=nnx.Rngs(0))
    x = jnp.ones((2, 3))
    out, pull_back = nnx.vjp(lambda m, x: m(x).sum(), a, x)
    assert_same(pull_back(jnp.ones_like(out))[0], nnx.grad(lambda m, x: m(x).sum())(b, x))
    assert_same(nnx.state(a), nnx.state(b))
