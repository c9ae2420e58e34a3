"""Whole programs of the kind that people write: training, dropout, sowing, loops around it all."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import treadle as nnx


class Block(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(4, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.dropout(jnp.tanh(self.norm(self.linear(x)))), None


def regression(model, x, y):
    return jnp.mean((model(x) - y) ** 2)


def train_step(model, optimizer, x, y):
    loss, grads = nnx.value_and_grad(regression)(model, x, y)
    optimizer.update(model, grads)
    return loss


def make(rngs):
    model = nnx.Linear(2, 1, rngs=rngs)
    return model, nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)


X = jax.random.normal(jax.random.key(0), (8, 2))
Y = X @ jnp.array([[1.0], [-2.0]])


def test_several_seeds_train_at_once_like_one_by_one():
    models, optimizers = nnx.vmap(make, axis_size=3)(nnx.Rngs(0))
    step = nnx.jit(nnx.vmap(train_step, in_axes=(0, 0, None, None)))
    losses = [step(models, optimizers, X, Y) for _ in range(5)]
    for i, key in enumerate(jax.random.split(jax.random.key(0), 3)):
        model, optimizer = make(nnx.Rngs(key))
        alone = nnx.jit(train_step)
        for loss in losses:
            np.testing.assert_allclose(alone(model, optimizer, X, Y), loss[i], rtol=1e-5)
        np.testing.assert_allclose(models.kernel.value[i], model.kernel.value, rtol=1e-5)


def test_a_training_loop_inside_scan_is_the_loop_outside():
    model, optimizer = make(nnx.Rngs(0))
    other, other_optimizer = make(nnx.Rngs(0))

    def body(carry, batch):
        return carry, train_step(*carry, *batch)

    batches = jnp.stack([X] * 5), jnp.stack([Y] * 5)
    carry, losses = nnx.jit(nnx.scan(body))((model, optimizer), batches)
    assert carry[0] is model
    assert carry[1] is optimizer
    alone = [float(train_step(other, other_optimizer, X, Y)) for _ in range(5)]
    np.testing.assert_allclose(losses, alone, rtol=1e-5)
    np.testing.assert_allclose(model.kernel.value, other.kernel.value, rtol=1e-5)


def test_dropout_differs_from_layer_to_layer_and_from_call_to_call():
    rngs = nnx.Rngs(params=0, dropout=1)
    stack = nnx.Scan(nnx.Remat(Block), length=3)(rngs)
    layers = stack.scan_module.remat_module
    assert layers.dropout.rngs is rngs
    layers.linear.kernel.value = jnp.stack([jnp.eye(4)] * 3)

    @nnx.jit
    def masks(stack, x):
        def body(x, block):
            return x, block.dropout(x) == 0

        _, dropped = nnx.scan(body)(x, stack.scan_module.remat_module)
        return dropped

    first, second = masks(stack, jnp.ones(64)), masks(stack, jnp.ones(64))
    assert len({tuple(m.tolist()) for m in [*first, *second]}) == 6
    # A draw in each of three layers, twice.
    assert int(rngs.dropout.count.value) == 6
    stack.eval()
    assert not masks(stack, jnp.ones(64)).any()


def test_gradients_of_a_deep_stack_with_dropout_and_statistics():
    stack = nnx.Scan(nnx.Remat(Block), length=3)(nnx.Rngs(params=0, dropout=1))
    x = jax.random.normal(jax.random.key(2), (8, 4))
    step = nnx.jit(nnx.grad(lambda m, x: (m(x)[0] ** 2).sum()))
    grads = step(stack, x)
    inner = grads["scan_module"]["remat_module"]
    assert set(inner) == {"linear", "norm"}
    assert all(bool(jnp.any(leaf != 0)) for leaf in jax.tree.leaves(inner["linear"]["kernel"]))
    assert stack.scan_module.remat_module.norm.mean.shape == (3, 4)
    assert bool(jnp.any(stack.scan_module.remat_module.norm.mean.value != 0))


def test_sown_values_are_stacked_and_popped():
    class Sower(nnx.Module):
        def __init__(self, rngs):
            self.linear = nnx.Linear(3, 3, rngs=rngs)

        def __call__(self, x):
            y = self.linear(x)
            self.sow(nnx.Intermediate, "out", y)
            return y

    stack = nnx.vmap(Sower, axis_size=4)(nnx.Rngs(0))
    nnx.scan(lambda x, m: (m(x), None))(jnp.ones(3), stack)
    (sown,) = jax.tree.leaves(nnx.pop(stack, nnx.Intermediate))
    assert sown.shape == (4, 3)
    assert not hasattr(stack, "out")


def test_metrics_as_a_carry():
    metric = nnx.metrics.Average()

    def body(metric, value):
        metric.update(values=value)
        return metric, None

    nnx.scan(body)(metric, jnp.arange(4.0))
    assert float(metric.compute()) == 1.5


def test_nodes_by_keyword():
    m = nnx.Dict(a=nnx.Param(jnp.arange(3.0)))

    def f(*, m):
        m["a"].value = m["a"].value + 1
        return m["a"].value

    np.testing.assert_allclose(nnx.vmap(f)(m=m), [1, 2, 3])
    _, y = nnx.scan(lambda c, *, m: (c, f(m=m)))(0, m=m)
    np.testing.assert_allclose(y, [2, 3, 4])
    grad = nnx.grad(lambda x, *, m: (f(m=m) * x).sum())(2.0, m=m)
    assert float(grad) == 12.0
    np.testing.assert_allclose(nnx.remat(f)(m=m), [4, 5, 6])


def test_keys_and_numpy_arrays_as_inputs():
    keys = jax.random.split(jax.random.key(0), 3)
    _, drawn = nnx.scan(lambda c, k: (c, jax.random.uniform(k)))(0, keys)
    np.testing.assert_allclose(drawn, jax.vmap(jax.random.uniform)(keys))
    m = nnx.Dict(a=nnx.Param(np.ones(3, np.float32)), b=np.arange(3))
    out = nnx.vmap(lambda m, x: m["a"].value * x + m["b"])(m, np.arange(3.0))
    np.testing.assert_allclose(out, [0, 2, 4])


def test_zero_iterations():
    m = nnx.Dict(a=nnx.Param(jnp.ones((0, 3))), r=nnx.Rngs(0))

    def f(c, m):
        m["r"]()
        return c + 1, m["a"].value

    c, y = nnx.scan(f)(jnp.array(1.0), m)
    assert float(c) == 1.0
    assert y.shape == (0, 3)
    assert int(m["r"].default.count.value) == 0


def test_nothing_leaks_and_no_tracer_stays():
    def bump(m):
        m["a"].value = m["a"].value + 1

    def bumped(m):
        bump(m)
        return m

    with jax.checking_leaks():
        m = nnx.Dict(a=nnx.Param(jnp.ones(())))
        nnx.cond(True, bump, lambda m: None, m)
        nnx.while_loop(lambda m: m["a"].value < 4, bumped, m)
        nnx.fori_loop(0, 2, lambda i, m: bumped(m), m)
        nnx.vjp(lambda m: m["a"].value * 2, m)[1](1.0)
        nnx.grad(lambda m: (bump(m), m["a"].value)[1])(m)
        nnx.remat(bump)(m)
        nnx.scan(lambda m: (bumped(m), None), length=2)(m)
        nnx.vmap(lambda m, x: x, state_axes={})(m, jnp.ones(2))
        nnx.eval_shape(bump, m)
    assert float(m["a"].value) == 10.0
    assert not isinstance(m["a"].value, jax.core.Tracer)


def test_nans_are_found_inside():
    with jax.debug_nans(True), pytest.raises(FloatingPointError):
        nnx.vmap(lambda m: jnp.log(m["a"].value))(nnx.Dict(a=nnx.Param(-jnp.ones(3))))


def test_a_partial_of_a_lifted_function():
    m = nnx.Dict(a=nnx.Param(jnp.arange(3.0)))
    f = functools.partial(nnx.vmap(lambda m, x: m["a"].value + x), m)
    np.testing.assert_allclose(f(jnp.ones(3)), [1, 2, 3])
