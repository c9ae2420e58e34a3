"""No tracer leaves a transform in a static: refused by path (point 19)."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import pytest

import treadle as nnx
from tests.open_points import cases, pairs


class Box:
    def __init__(self, value):
        self.value = value


def g(x, y=0.0):
    return x + y


def closure(x):
    return lambda: x


def default(x):
    def f(x=x):
        return x

    return f


def attribute(x):
    def f():
        return f.x

    f.x = x
    return f


HOLDERS = {
    "partial": lambda x: functools.partial(g, x),
    "keyword of a partial": lambda x: functools.partial(g, y=x),
    "closure": closure,
    "default": default,
    "function attribute": attribute,
    "object": Box,
    "object in an object": lambda x: Box(Box(x)),
    "list in an object": lambda x: Box([x]),
    "bound method": lambda x: Box(x).__class__.__init__.__get__(Box(x)),
    "closure in a list": lambda x: [closure(x)],
}
RUNS = {
    "jit": lambda f: nnx.jit(f),
    "grad": lambda f: lambda m: nnx.grad(lambda m: (f(m), jnp.sum(m["w"].value))[1])(m),
    "remat": lambda f: nnx.remat(f),
    "vmap": lambda f: lambda m: nnx.vmap(f, state_axes={...: 0})(m),
    "scan": lambda f: lambda m: nnx.scan(lambda c, m: (c, f(m)), state_axes={}, length=2)(0.0, m),
    "cond": lambda f: lambda m: nnx.cond(jnp.array(True), f, f, m),
    "eval_shape": lambda f: lambda m: nnx.eval_shape(f, m),
    "jit of grad": lambda f: nnx.jit(
        lambda m: nnx.grad(lambda m: (f(m), jnp.sum(m["w"].value))[1])(m)
    ),
}


def net():
    return nnx.Dict(w=nnx.Param(jnp.ones(2)), inner=nnx.Dict())


def check(holder, run):
    m = net()

    def f(m):
        m["inner"]["kept"] = HOLDERS[holder](m["w"].value * 2)

    with pytest.raises(
        (nnx.errors.GraphError, nnx.StaticError, nnx.LeafTypeError, ValueError, TypeError),
        match=r"m\.inner\.kept|m\['inner'\]\['kept'\]",
    ):
        RUNS[run](f)(m)
    assert "kept" not in m["inner"]


@pytest.mark.parametrize("holder", HOLDERS)
def test_a_tracer_in_a_static_is_refused_by_jit(holder):
    check(holder, "jit")


SOME = {name: name for name in ("partial", "closure", "object")}
OTHERS = {name: name for name in RUNS if name != "jit"}


@pytest.mark.parametrize(("holder", "run"), cases(pairs(SOME, OTHERS)))
def test_a_tracer_in_a_static_is_refused_by_every_transform(holder, run):
    check(holder, run)


@pytest.mark.parametrize("holder", ["partial", "closure", "object"])
def test_a_tracer_in_a_new_node_of_the_result(holder):
    with pytest.raises(Exception, match=r"result.*kept") as caught:
        nnx.jit(lambda x: nnx.Dict(kept=HOLDERS[holder](x)))(1.0)
    assert not isinstance(caught.value, jax.errors.UnexpectedTracerError)


def test_a_tracer_in_a_static_of_metadata():
    def f(m):
        m["w"].note = functools.partial(g, m["w"].value)

    m = net()
    with pytest.raises(Exception, match=r"m\.w|m\['w'\]"):
        nnx.jit(f)(m)


def test_statics_without_tracers_may_be_stored():
    m = net()

    def f(m):
        m["inner"]["kept"] = functools.partial(g, 1.0)

    nnx.jit(f)(m)
    assert m["inner"]["kept"]() == 1.0
