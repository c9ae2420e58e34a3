"""Promises of vjp, jvp and custom_vjp."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import treadle as nnx
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


def summed(a, b):
    return (a["w"].value * b["w"].value).sum()


def test_jvp_of_an_object_given_twice():
    m, ones = model(), jnp.ones(2)
    twice = {"w": ones}
    for tangents in [
        (twice, None),
        (None, twice),
        (twice, {}),
        (twice, twice),
        (twice, {"w": ones}),
    ]:
        _, tangent = nnx.jvp(summed, (m, m), tangents)
        assert float(tangent) == 6.0
    # What vjp gives for such arguments fits.
    _, pull_back = nnx.vjp(summed, m, m)
    _, tangent = nnx.jvp(summed, (m, m), pull_back(jnp.array(1.0)))
    assert float(tangent) == 20.0


def test_jvp_does_not_choose_between_two_tangents():
    m = model()
    with pytest.raises(
        ValueError, match=r"jvp of summed: a\.w and b\.w are one and the same.*Pass .* once"
    ):
        nnx.jvp(summed, (m, m), ({"w": jnp.ones(2)}, {"w": 100 * jnp.ones(2)}))
    nested = {"k": (nnx.Param((1.0, 2.0)),)}
    with pytest.raises(ValueError, match=r"a\.k\[0\]\[1\] and b\[1\]\[1\] are one"):
        nnx.jvp(
            lambda a, b: 1.0,
            (nested, [2.0, nested["k"][0]]),
            ({"k": ((None, 1.0),)}, [None, (None, 2.0)]),
        )


@pytest.mark.parametrize(
    ("tangents", "error", "message"),
    [
        (
            ({"w": jnp.ones(3)}, None),
            ValueError,
            r"m\.w, which is float32\[2\]; got float32\[3\]\.",
        ),
        (({"w": 1.0}, None), ValueError, r"m\.w, .*; got float32\[\]\. Give .* shape \(2,\)"),
        (
            ({"w": jnp.ones(2, jnp.bfloat16)}, None),
            TypeError,
            r"m\.w, which is float32\[2\]; got bfloat16\[2\]\. Cast it to float32",
        ),
        (({"w": "text"}, None), TypeError, r"m\.w, .*; got a value of type str"),
        (({"w": [1.0, 1.0]}, None), TypeError, r"m\.w, .*; got a value of type list"),
        ((None, {"a": (jnp.ones(3), None)}), ValueError, r"x\.a\[0\], which is float32\[2\]"),
        ((None, {"a": (None, 1.0)}), TypeError, r"x\.a\[1\], which is int32\[\].* give None"),
    ],
)
def test_a_tangent_that_does_not_fit_is_named(tangents, error, message):
    x = {"a": (jnp.ones(2), jnp.array(1))}
    with pytest.raises(error, match="jvp of apply: tangents must fit " + message):
        nnx.jvp(apply, (model(), x), tangents)


def test_a_tangent_that_does_not_fit_is_named_where_it_was_given():
    m = nnx.Dict(w=nnx.Param({"k": jnp.ones(2)}))
    with pytest.raises(ValueError, match=r"must fit b\[0\]\.w\['k'\], which"):
        nnx.jvp(lambda a, b: 1.0, (m, [m]), (None, [{"w": {"k": jnp.ones(3)}}]))


def test_jvp_takes_what_jax_takes_as_tangents():
    def of_all(m, n, x):
        return m["w"].value * x * n

    no_tangent = np.zeros((), jax.dtypes.float0)
    for given in (1.0, np.ones((), np.float32), jnp.array(1.0)):
        primals = nnx.Dict(w=nnx.Param(jnp.array(3.0))), 2, 5.0
        _, tangent = nnx.jvp(of_all, primals, ({"w": given}, no_tangent, given))
        assert float(tangent) == 16.0


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
    grads = nnx.grad(lambda m: f(m).sum())(model())
    np.testing.assert_allclose(grads["w"].value, [0, 0])
    with pytest.raises(ValueError, match=r"m\.s is differentiated, but the rule leaves it out"):
        nnx.grad(lambda m: f(m).sum(), wrt=...)(model())


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


def scaled(**parameters):
    """``m.w * x * s`` with a rule whose gradients are a hundredfold, to be told from jax's."""

    @nnx.custom_vjp(**parameters)
    def f(m, x, s=2.0):
        return m["w"].value * x * s

    def fwd(m, x, s):
        return f(m, x, s), (m["w"].value, x, s)

    def bwd(*residual_and_g):
        *skipped, (w, x, s), (_, g) = residual_and_g
        assert skipped in ([], [s])
        gradients = {"w": 100 * g * x * s}, 100 * g * w * s, 100 * g * w * x
        return gradients[: 3 - len(skipped)]

    f.defvjp(fwd, bwd)
    return f


CALLS = {
    "positions": lambda f, m, x: f(m, x, 2.0),
    "default": lambda f, m, x: f(m, x),
    "keyword": lambda f, m, x: f(m, x=x),
    "keywords": lambda f, m, x: f(s=2.0, x=x, m=m),
}


@pytest.mark.parametrize("skip", [(), (2,), (-1,)])
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_custom_vjp_binds_keywords_and_defaults(call, skip):
    f = scaled(nondiff_argnums=skip)
    m = nnx.Dict(w=nnx.Param(jnp.array(3.0)))
    of_m, of_x = nnx.grad(lambda m, x: call(f, m, x), argnums=(0, 1))(m, 5.0)
    assert (float(of_m["w"].value), float(of_x)) == (1000.0, 600.0)
    assert float(call(f, m, 5.0)) == 30.0


def test_custom_vjp_differentiates_keywords():
    m = nnx.Dict(w=nnx.Param(jnp.array(3.0)))
    assert float(nnx.grad(lambda s: scaled()(m, 5.0, s=s))(2.0)) == 1500.0
    assert float(nnx.grad(lambda m: scaled()(x=5.0, m=m))(m)["w"].value) == 1000.0

    class Model(nnx.Module):
        @nnx.custom_vjp
        def double(self, x):
            return 2 * x

    Model.double.defvjp(lambda self, x: (self.double(x), None), lambda _, g: (None, g[1] * 7))
    assert float(nnx.grad(lambda x: Model().double(x=x))(3.0)) == 7.0


def test_custom_vjp_of_arguments_without_a_position():
    @nnx.custom_vjp
    def f(x, *rest, scale=2.0, **options):
        assert not options
        return x * scale + sum(rest)

    f.defvjp(lambda x, *rest: (f(x, *rest), rest), lambda rest, g: (7 * g[1], *rest))
    assert float(nnx.grad(f)(1.0)) == 7.0
    assert float(nnx.grad(f, argnums=2)(1.0, 2.0, 3.0)) == 3.0
    message = "custom_vjp of f: its rule takes arguments by position, and {} cannot be given so"
    with pytest.raises(TypeError, match=message.format("'scale'")):
        f(1.0, scale=3.0)
    with pytest.raises(TypeError, match=message.format("'rest', 'scale'")):
        f(1.0, rest=1.0, scale=3.0)
    with pytest.raises(TypeError, match="custom_vjp of f: missing a required argument: 'x'"):
        f()


@pytest.mark.parametrize(
    "function", [functools.partial(lambda a, b, c: b, c=1), max], ids=["partial", "builtin"]
)
def test_custom_vjp_of_functions_that_are_called_by_position_only(function):
    f = nnx.custom_vjp(function)
    f.defvjp(lambda a, b: (function(a, b), None), lambda _, g: (None, 7 * g[1]))
    assert float(f(1.0, 2.0)) == 2.0
    assert float(nnx.grad(f, argnums=1)(1.0, 2.0)) == 7.0
    with pytest.raises(TypeError, match="by position, and 'b' cannot"):
        f(1.0, b=2.0)


def test_custom_vjp_names_an_argument_that_is_not_an_array():
    @nnx.custom_vjp
    def f(x, mode="sum"):
        return x

    f.defvjp(lambda x, mode: (f(x, mode), None), lambda _, g: (g[1], None))
    with pytest.raises(TypeError, match=r"mode is a 'str', which .*nondiff_argnums"):
        f(1.0)


@pytest.mark.parametrize(
    ("gradients", "error", "message"),
    [
        (
            ({"w": jnp.ones(3)}, None),
            ValueError,
            r"m\.w, which is float32\[2\]; got float32\[3\]\.",
        ),
        (({"w": 1.0}, None), ValueError, r"m\.w, .*; got float32\[\]\. Give .* shape \(2,\)"),
        (({"w": "text"}, None), TypeError, r"m\.w, .*; got a value of type str"),
        ((None, {"a": jnp.ones((2, 2))}), ValueError, r"x\.a, which is float32\[2\]; got"),
        ((None, {"a": [1.0]}), TypeError, r"x\.a, which is float32\[2\]; got .* list"),
    ],
)
def test_a_gradient_that_does_not_fit_is_named(gradients, error, message):
    @nnx.custom_vjp
    def f(m, x):
        return m["w"].value * x["a"]

    f.defvjp(lambda m, x: (f(m, x), None), lambda _, g: gradients)
    grad = nnx.grad(lambda m, x: f(m, x).sum())
    for transformed in (grad, nnx.jit(grad)):
        with pytest.raises(error, match="of f: the result of bwd must fit " + message):
            transformed(model(), {"a": jnp.ones(2)})


def test_custom_vjp_takes_what_jax_takes_as_gradients():
    symbolic = jax.custom_derivatives.SymbolicZero(jax.typeof(jnp.ones(2)))
    half = jnp.ones(2, jnp.bfloat16)
    for gradients in [(half, "anything"), (np.ones(2), jnp.ones(5)), (symbolic, None)]:

        @nnx.custom_vjp
        def f(x, n):
            return x * n

        f.defvjp(lambda x, n: (f(x, n), None), lambda _, g: gradients)  # noqa: B023
        of_x = nnx.grad(lambda x, n: f(x, n).sum())(jnp.ones(2), 3)
        np.testing.assert_array_equal(of_x, jnp.zeros(2) if gradients[1] is None else jnp.ones(2))


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
