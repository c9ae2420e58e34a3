"""Captured nodes in results are the caller's own, or an error, never a copy (point 15)."""

from __future__ import annotations

import jax.numpy as jnp
import pytest

import treadle as nnx


def net():
    return nnx.Dict(w=nnx.Param(jnp.arange(2.0)))


def own_or_error(call, captured):
    """Run; the result is the captured object itself, unless it is refused by name."""
    try:
        out = call()
    except (ValueError, TypeError, nnx.errors.GraphError, nnx.TraceContextError) as error:
        assert "captured" in str(error)  # noqa: PT017
    else:
        assert out is captured


CALLS = {
    "jit": lambda c: nnx.jit(lambda x: (x, c))(1)[1],
    "remat": lambda c: nnx.remat(lambda x: (x, c))(1.0)[1],
    "vmap": lambda c: nnx.vmap(lambda x: (x, c), out_axes=(0, None))(jnp.ones(3))[1],
    "vmap, stacked": lambda c: nnx.vmap(lambda x: (x, c))(jnp.ones(3))[1],
    "scan": lambda c: nnx.scan(lambda s, x: (s, c))(0.0, jnp.ones(3))[1],
    "cond": lambda c: nnx.cond(jnp.array(True), lambda x: c, lambda x: c, 1.0),
    "grad": lambda c: nnx.grad(lambda x: (x, c), has_aux=True)(1.0)[1],
    "value_and_grad": lambda c: nnx.value_and_grad(lambda x: (x, c), has_aux=True)(1.0)[0][1],
    "switch": lambda c: nnx.switch(0, [lambda x: c], 1.0),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_captured_module(name):
    captured = net()
    before = captured["w"].value
    own_or_error(lambda: CALLS[name](captured), captured)
    assert captured["w"].value is before


@pytest.mark.parametrize("name", CALLS)
def test_a_captured_variable(name):
    captured = nnx.Param(jnp.arange(2.0))
    own_or_error(lambda: CALLS[name](captured), captured)


def test_a_captured_node_inside_a_new_one():
    captured = net()
    own_or_error(
        lambda: nnx.jit(lambda x: nnx.Dict(inner=captured, x=nnx.Param(x)))(1.0)["inner"], captured
    )


def test_a_captured_node_put_into_an_argument():
    captured, m = net(), net()

    def f(m):
        m["other"] = captured

    def call():
        nnx.jit(f)(m)
        return m["other"]

    own_or_error(call, captured)


def test_a_second_call_gives_the_same():
    captured = net()
    f = nnx.jit(lambda x: (x, captured))
    for _ in range(2):
        own_or_error(lambda: f(1)[1], captured)


def test_what_a_nested_transform_makes_is_no_capture():
    @nnx.jit
    def make(x):
        def inner(x):
            made = nnx.remat(lambda x: nnx.Dict(w=nnx.Param(x)))(x)
            made["v"] = nnx.vmap(lambda x: nnx.Param(x))(jnp.ones(2))
            return nnx.cond(x > 0, lambda m: (m, nnx.clone(m)), lambda m: (m, nnx.clone(m)), made)

        return nnx.grad(lambda x: (x, inner(x)), has_aux=True)(x)[1]

    made, copied = make(2.0)
    assert made is not copied
    assert float(made["w"].value) == float(copied["w"].value) == 2.0


@pytest.mark.parametrize("wrap", [nnx.jit, nnx.remat, nnx.vmap], ids=["jit", "remat", "vmap"])
def test_the_message_has_a_path_and_a_remedy(wrap):
    captured = net()
    with pytest.raises(nnx.GraphError, match=r"result\[1\].*captured Dict.*argument"):
        wrap(lambda x: (x, captured))(jnp.ones(2))


def test_a_flax_module_is_no_copy_either():
    flax = pytest.importorskip("flax.nnx", reason="flax has no release for this Python")
    captured = flax.Linear(2, 2, rngs=flax.Rngs(0))
    with pytest.raises(nnx.GraphError, match="captured Linear"):
        nnx.jit(lambda x: (x, captured))(1.0)
    made = nnx.jit(lambda: flax.Linear(2, 2, rngs=flax.Rngs(0)))()
    assert isinstance(made, flax.Linear)


CAPTURED = nnx.Dict(q=nnx.Param(jnp.array(2.0)))


@pytest.mark.parametrize(
    "make",
    [
        lambda: CAPTURED,
        lambda: CAPTURED["q"],
        lambda: [CAPTURED],
        lambda: nnx.Dict(inner=CAPTURED),
        lambda: nnx.Dict(inner=CAPTURED["q"]),
    ],
)
@pytest.mark.parametrize("outer", [lambda f: f, nnx.jit, nnx.remat], ids=["eager", "jit", "remat"])
@pytest.mark.filterwarnings("ignore::treadle.CapturedNodeWarning")
def test_a_captured_node_in_the_result_of_custom_vjp_is_refused(make, outer):
    f = nnx.custom_vjp(lambda x: (x * 2, make()))
    f.defvjp(lambda x: ((x * 2, make()), None), lambda residual, g: (g[1][0],))
    with pytest.raises(nnx.GraphError, match=r"result"):
        outer(f)(1.0)
