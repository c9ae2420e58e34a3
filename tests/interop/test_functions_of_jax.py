"""Functions of JAX take a Variable and an entry of a State for the array that they hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import treadle as nnx

X = jnp.array([[0.9, 0.1, 0.3], [0.2, 0.8, 0.4], [0.5, 0.6, 0.7]])
Y = jnp.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]])

# Each takes one value in the place of an array.
FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    # elementwise
    "jnp.exp": jnp.exp,
    "jnp.log": jnp.log,
    "jnp.sqrt": jnp.sqrt,
    "jnp.sin": jnp.sin,
    "jnp.tanh": jnp.tanh,
    "jnp.abs": jnp.abs,
    "jnp.square": jnp.square,
    "jnp.sign": jnp.sign,
    "jnp.negative": jnp.negative,
    "jnp.isnan": jnp.isnan,
    "jnp.round": jnp.round,
    "jnp.add": lambda x: jnp.add(x, Y),
    "jnp.subtract": lambda x: jnp.subtract(Y, x),
    "jnp.multiply": lambda x: jnp.multiply(x, x),
    "jnp.divide": lambda x: jnp.divide(x, 2),
    "jnp.power": lambda x: jnp.power(x, 2),
    "jnp.maximum": lambda x: jnp.maximum(x, 0.5),
    "jnp.minimum": lambda x: jnp.minimum(0.5, x),
    "jnp.clip": lambda x: jnp.clip(x, 0.2, 0.6),
    "jnp.clip(max=)": lambda x: jnp.clip(Y, 0.0, x),
    "jnp.where": lambda x: jnp.where(x > 0.5, x, 0),
    "jnp.where(other)": lambda x: jnp.where(Y > 2, Y, x),
    "jnp.nan_to_num": jnp.nan_to_num,
    "jnp.equal": lambda x: jnp.equal(x, X),
    "jnp.allclose": lambda x: jnp.allclose(x, X),
    # reductions
    "jnp.sum": jnp.sum,
    "jnp.sum(axis)": lambda x: jnp.sum(x, axis=0),
    "jnp.mean": jnp.mean,
    "jnp.var": jnp.var,
    "jnp.std": jnp.std,
    "jnp.max": jnp.max,
    "jnp.min": jnp.min,
    "jnp.prod": jnp.prod,
    "jnp.argmax": jnp.argmax,
    "jnp.argsort": jnp.argsort,
    "jnp.sort": jnp.sort,
    "jnp.cumsum": jnp.cumsum,
    "jnp.median": jnp.median,
    "jnp.any": jnp.any,
    # products
    "jnp.dot": lambda x: jnp.dot(x, Y),
    "jnp.matmul": lambda x: jnp.matmul(Y, x),
    "jnp.tensordot": lambda x: jnp.tensordot(x, Y),
    "jnp.einsum": lambda x: jnp.einsum("ij,jk->ik", x, Y),
    "jnp.outer": lambda x: jnp.outer(x, Y),
    "jnp.vdot": lambda x: jnp.vdot(x, Y),
    "jnp.trace": jnp.trace,
    "jnp.linalg.norm": jnp.linalg.norm,
    "jnp.linalg.inv": jnp.linalg.inv,
    "jnp.linalg.det": jnp.linalg.det,
    # shapes
    "jnp.reshape": lambda x: jnp.reshape(x, (9,)),
    "jnp.transpose": jnp.transpose,
    "jnp.ravel": jnp.ravel,
    "jnp.expand_dims": lambda x: jnp.expand_dims(x, 0),
    "jnp.squeeze": lambda x: jnp.squeeze(x),
    "jnp.broadcast_to": lambda x: jnp.broadcast_to(x, (2, 3, 3)),
    "jnp.concatenate": lambda x: jnp.concatenate([x, Y]),
    "jnp.stack": lambda x: jnp.stack([x, x]),
    "jnp.pad": lambda x: jnp.pad(x, 1),
    "jnp.tile": lambda x: jnp.tile(x, 2),
    "jnp.flip": jnp.flip,
    "jnp.roll": lambda x: jnp.roll(x, 1),
    "jnp.take": lambda x: jnp.take(x, jnp.array([0, 2]), axis=0),
    "jnp.split": lambda x: jnp.split(x, 3),
    "jnp.diag": jnp.diag,
    "jnp.tril": jnp.tril,
    "jnp.asarray": jnp.asarray,
    "jnp.array": jnp.array,
    "jnp.astype": lambda x: jnp.astype(x, jnp.int32),
    "jnp.zeros_like": jnp.zeros_like,
    "jnp.full_like": lambda x: jnp.full_like(x, 2),
    "jnp.shape": lambda x: jnp.zeros(jnp.shape(x)),
    "jnp.size": lambda x: jnp.zeros((jnp.size(x), jnp.ndim(x))),
    "jnp.result_type": lambda x: jnp.zeros(2, jnp.result_type(x)),
    "jnp.vectorize": lambda x: jnp.vectorize(lambda v: v + 1)(x),
    # jax.nn
    "jax.nn.relu": jax.nn.relu,
    "jax.nn.gelu": jax.nn.gelu,
    "jax.nn.silu": jax.nn.silu,
    "jax.nn.softplus": jax.nn.softplus,
    "jax.nn.softmax": jax.nn.softmax,
    "jax.nn.log_softmax": jax.nn.log_softmax,
    "jax.nn.logsumexp": jax.nn.logsumexp,
    "jax.nn.standardize": jax.nn.standardize,
    "jax.nn.glu": lambda x: jax.nn.glu(x[:, :2]),
    # jax
    "jax.jit": lambda x: jax.jit(lambda v: v * 2)(x),
    "jax.grad": lambda x: jnp.asarray(jax.grad(lambda v: (v**2).sum())(x)),
    "jax.vmap": lambda x: jax.vmap(lambda v: v.sum())(x),
    "jax.jvp": lambda x: jax.jvp(lambda v: v * v, (x,), (x,)),
    "jax.checkpoint": lambda x: jax.checkpoint(lambda v: jnp.sin(v))(x),
    "jax.lax.map": lambda x: jax.lax.map(lambda v: v.sum(), x),
    "jax.lax.scan": lambda x: jax.lax.scan(lambda c, v: (c + v.sum(), v * 2), 0.0, x),
    "jax.lax.cond": lambda x: jax.lax.cond(True, lambda v: v * 1, lambda v: v * 2, x),
    "jax.lax.fori_loop": lambda x: jax.lax.fori_loop(0, 3, lambda i, s: s + x, jnp.zeros((3, 3))),
    "jax.tree.map": lambda x: jnp.asarray(jax.tree.map(jnp.exp, x)),
    "jax.tree.leaves": lambda x: jax.tree.leaves(x),
    "jax.lax.stop_gradient": lambda x: jnp.asarray(jax.lax.stop_gradient(x)),
    "jax.device_put": lambda x: jnp.asarray(jax.device_put(x)),
    "jax.block_until_ready": lambda x: jnp.asarray(jax.block_until_ready(x)),
    "jax.eval_shape": lambda x: jnp.zeros(jax.eval_shape(lambda v: v * 1, x).shape),
    "jax.ops.segment_sum": lambda x: jax.ops.segment_sum(x, jnp.array([0, 1, 0]), 2),
    "numpy.asarray": lambda x: x if isinstance(x, jax.core.Tracer) else jnp.asarray(np.asarray(x)),
}
# They want concrete values.
NOT_JITTED = {"numpy.asarray"}


def variable() -> Any:
    return nnx.Param(X, tag="x")


def entry() -> Any:
    return nnx.state(nnx.Dict(x=nnx.Param(X)))["x"]


def arrays(result: Any) -> list[Any]:
    """What a function gave, by value: where JAX keeps the Variable, what that one holds."""
    return [np.asarray(leaf) for leaf in jax.tree.leaves(result)]


def assert_same(found: Any, expected: Any) -> None:
    found, expected = arrays(found), arrays(expected)
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


def test_there_are_enough_of_them() -> None:
    assert len(FUNCTIONS) >= 80


@pytest.mark.parametrize("make", [variable, entry])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_gives_what_it_gives_for_the_array(name: str, make: Callable[[], Any]) -> None:
    function = FUNCTIONS[name]
    expected = function(X)
    assert_same(function(make()), expected)
    if name in NOT_JITTED:
        return
    assert_same(jax.jit(function)(make()), expected)
    assert_same(nnx.jit(lambda holder: function(holder[0]))([make()]), expected)


class Holder(nnx.Module):
    """A module around the value: `of(function)` is the function of the modules."""

    def __init__(self) -> None:
        self.inner = nnx.Dict(x=nnx.Param(X))
        self.shared = self.inner.x

    @staticmethod
    def of(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        return lambda holder: function(holder.inner.x)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_of_a_module_gives_what_it_gives_for_the_array(name: str) -> None:
    expected, function = FUNCTIONS[name](X), Holder.of(FUNCTIONS[name])
    assert_same(function(Holder()), expected)
    if name in NOT_JITTED:
        return
    assert_same(jax.jit(function)(Holder()), expected)
    assert_same(nnx.jit(function)(Holder()), expected)
    assert_same(jax.jit(nnx.jit(function))(Holder()), expected)
    assert_same(nnx.jit(lambda holder: jax.jit(function)(holder))(Holder()), expected)


# What goes to a primitive unchanged, which takes nothing but arrays.
LAX: dict[str, Callable[[Any], Any]] = {
    "jax.nn.sigmoid": jax.nn.sigmoid,
    "jax.lax.exp": jax.lax.exp,
    "jax.lax.add": lambda x: jax.lax.add(x, x),
    "jax.lax.dot": lambda x: jax.lax.dot(x, x),
    "jax.lax.reshape": lambda x: jax.lax.reshape(x, (9,)),
    "jax.lax.max": lambda x: jax.lax.max(x, x),
    "jax.lax.select": lambda x: jax.lax.select(X > 0.5, x, x),
    "jax.lax.dynamic_slice": lambda x: jax.lax.dynamic_slice(x, (0, 0), (1, 1)),
}


@pytest.mark.parametrize("make", [variable, entry])
@pytest.mark.parametrize("name", LAX)
def test_a_primitive_gives_the_same_or_says_what_to_write(
    name: str, make: Callable[[], Any]
) -> None:
    function = LAX[name]
    expected = function(X)
    for run in (function, jax.jit(function), lambda v: nnx.jit(function)(v)):
        try:
            found = run(make())
        except (TypeError, ValueError) as error:
            assert "jax.numpy.array()" in str(error) or "jnp.array" in str(error)  # noqa: PT017
        else:
            assert_same(found, expected)
    assert_same(function(make()[...]), expected)


def test_debug_print_shows_a_variable(capsys: pytest.CaptureFixture[str]) -> None:
    jax.debug.print("{}", nnx.Param(jnp.float32(0.5)))
    jax.jit(lambda v: jax.debug.print("now {x:.2f}", x=v))(nnx.Param(jnp.float32(0.5)))
    nnx.jit(lambda v: jax.debug.print("then {}", v))(nnx.Param(jnp.float32(0.5)))
    jax.effects_barrier()
    shown = capsys.readouterr().out
    assert "0.5" in shown
    assert "now 0.50" in shown
    assert "then" in shown
