"""Libraries that know pytrees and nothing of treadle: optax, orbax, equinox, flax."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

import treadle as nnx


class Net(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.first = nnx.Linear(2, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.blocks = nnx.List([nnx.Linear(4, 4, rngs=rngs) for _ in range(2)])
        self.tied = self.blocks[0].kernel

    def __call__(self, x: Any) -> Any:
        x = self.first(x)
        for block in self.blocks:
            x = nnx.relu(block(x))
        return x @ self.tied.value


X = jnp.linspace(-1, 1, 12).reshape(6, 2)


def loss(net: Any) -> Any:
    return (net(X) ** 2).mean()


@pytest.mark.parametrize("make", [optax.sgd, optax.adam, optax.adamw, optax.lion])
def test_optax_trains_a_module(make: Any) -> None:
    net, tx = Net(nnx.Rngs(0)), make(1e-2)
    opt_state = tx.init(net)

    @jax.jit
    def step(net: Any, opt_state: Any) -> Any:
        value, grads = jax.value_and_grad(loss)(net)
        updates, opt_state = tx.update(grads, opt_state, net)
        return optax.apply_updates(net, updates), opt_state, value

    before = loss(net)
    for _ in range(10):
        net, opt_state, _ = step(net, opt_state)
    assert type(net) is Net
    assert net.tied is net.blocks[0].kernel
    assert loss(net) < before


def test_optax_as_with_nested_dicts() -> None:
    net, tx = Net(nnx.Rngs(0)), optax.adam(1e-2)
    params = {"first": net.first.kernel.value}
    m, _ = tx.update(jax.grad(loss)(net), tx.init(net), net)
    grads = {"first": jax.grad(loss)(net).first.kernel.value}
    d, _ = tx.update(grads, tx.init(params), params)
    assert jnp.allclose(m.first.kernel.value, d["first"])


def test_optax_masks_and_labels() -> None:
    net = Net(nnx.Rngs(0))
    is_variable = lambda v: isinstance(v, nnx.Variable)  # noqa: E731
    mask = jax.tree.map(lambda v: isinstance(v, nnx.Param), net, is_leaf=is_variable)
    # Optax calls what can be called, which many modules can.
    tx = optax.masked(optax.sgd(1.0), lambda _: mask)
    updates, _ = tx.update(jax.tree.map(jnp.ones_like, net), tx.init(net), net)
    assert updates.first.kernel[0, 0] == -1
    assert updates.norm.mean[0] == 1
    labels = jax.tree_util.tree_map_with_path(
        lambda path, _: "head" if "blocks" in jax.tree_util.keystr(path) else "rest", net
    )
    tx = optax.multi_transform(
        {"head": optax.sgd(1.0), "rest": optax.set_to_zero()}, lambda _: labels
    )
    updates, _ = tx.update(jax.tree.map(jnp.ones_like, net), tx.init(net), net)
    assert updates.blocks[0].kernel[0, 0] == -1
    assert updates.first.kernel[0, 0] == 0
    assert optax.global_norm(net) > 0


def test_our_optimizer_takes_gradients_of_plain_jax() -> None:
    net, other = Net(nnx.Rngs(0)), Net(nnx.Rngs(0))
    nnx.Optimizer(net, optax.adam(1e-2), wrt=nnx.Param).update(net, jax.grad(loss)(net))
    nnx.Optimizer(other, optax.adam(1e-2), wrt=nnx.Param).update(other, nnx.grad(loss)(other))
    assert jnp.allclose(net.first.kernel.value, other.first.kernel.value)


def test_orbax_saves_and_restores_a_module(tmp_path: Path) -> None:
    ocp = pytest.importorskip("orbax.checkpoint")
    net = Net(nnx.Rngs(0))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "net", net)
        checkpointer.wait_until_finished()
        shapes = jax.eval_shape(lambda: Net(nnx.Rngs(1)))
        restored = checkpointer.restore(tmp_path / "net", shapes)
    assert type(restored) is Net
    assert restored.tied is restored.blocks[0].kernel
    assert jax.tree.structure(restored) == jax.tree.structure(net)
    assert jnp.array_equal(restored.first.kernel.value, net.first.kernel.value)


def test_equinox_filters() -> None:
    eqx = pytest.importorskip("equinox")
    net = Net(nnx.Rngs(0))
    arrays, rest = eqx.partition(net, eqx.is_inexact_array)
    assert type(arrays) is Net
    assert jax.tree.leaves(rest) == []
    assert jax.tree.structure(eqx.combine(arrays, rest)) == jax.tree.structure(net)
    value, grads = eqx.filter_value_and_grad(loss)(net)
    assert type(grads) is Net
    assert jnp.allclose(value, loss(net))
    assert jnp.allclose(eqx.filter_jit(loss)(net), loss(net))
    changed = eqx.apply_updates(net, jax.tree.map(lambda g: -g, grads))
    assert loss(changed) < loss(net)
    new = eqx.tree_at(lambda n: n.first.kernel, net, replace=jnp.zeros((2, 4)))
    assert new.first.kernel.shape == (2, 4)
    assert eqx.tree_equal(net, jax.tree.map(lambda x: x, net))


def test_transforms_of_flax_take_modules_by_value() -> None:
    flax = pytest.importorskip("flax.nnx")
    net = Net(nnx.Rngs(0))
    assert jnp.allclose(flax.jit(loss)(net), loss(net))
    assert jnp.allclose(nnx.jit(lambda n: flax.jit(loss)(n))(net), loss(net))


def test_flax_modules_inside_of_ours() -> None:
    flax = pytest.importorskip("flax.nnx")
    m = nnx.Dict(inner=flax.Linear(2, 3, rngs=flax.Rngs(0)), w=nnx.Param(jnp.ones(2)))
    m.shared = m.inner
    out = jax.jit(lambda m: m)(m)
    assert type(out.inner) is flax.Linear
    assert out.shared is out.inner
    assert jnp.allclose(out.inner.kernel[...], m.inner.kernel[...])
    assert len(jax.tree.leaves(m)) == 3
