"""Programs in the later spelling give, number by number, what flax's NNX gives."""

from __future__ import annotations

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import treadle as nnx

peer: Any = pytest.importorskip("flax.nnx")


def both(program: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = program(peer)
    ours = program(nnx)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def layer_type(library: Any) -> Any:
    class Layer(library.Module):
        def __init__(self, rngs):
            self.w = library.Param(jax.random.normal(rngs.params(), (3, 3)))
            self.calls = library.BatchStat(jnp.zeros(()))

        def __call__(self, x):
            self.calls.value = self.calls.value + 1
            return jnp.tanh(x @ self.w.value)

    return Layer


def stacked(library: Any) -> Any:
    kind = layer_type(library)
    make = library.vmap(
        lambda rngs: kind(rngs),
        in_axes=(library.StateAxes({library.RngState: 0}),),
        out_axes=library.StateAxes({library.Param: 0, ...: None}),
    )
    return library.split_rngs(splits=4)(make)(library.Rngs(params=0))


def test_split_rngs():
    def program(library):
        rngs = library.Rngs(0, dropout=1)
        library.split_rngs(rngs, splits=3, only="dropout")
        return jax.random.key_data(rngs.dropout.key.value), rngs.dropout.count.value

    both(program)


def test_split_rngs_before_plain_axes():
    def program(library):
        rngs = library.Rngs(0)
        draw = library.vmap(lambda rngs: jax.random.key_data(rngs()), in_axes=0)
        return library.split_rngs(splits=4)(draw)(rngs), rngs.default.count.value

    both(program)


def test_scan_with_carry_and_state_axes():
    def program(library):
        layers = stacked(library)
        axes = library.StateAxes({library.Param: 0, ...: library.Carry})
        run = library.scan(
            lambda x, layer: (layer(x), x),
            in_axes=(library.Carry, axes),
            out_axes=(library.Carry, 1),
        )
        return run(jnp.ones((2, 3)), layers), layers.calls.value, layers.w.value

    both(program)


def test_vmap_with_state_axes():
    def program(library):
        layers = stacked(library)
        axes = library.StateAxes({library.Param: 0, ...: None})
        run = library.vmap(lambda layer, x: layer(x), in_axes=(axes, 0), out_axes=1)
        return run(layers, jnp.ones((4, 2, 3))), layers.calls.value

    both(program)


def test_grad_with_diff_state():
    def program(library):
        layer = layer_type(library)(library.Rngs(params=0))
        params = library.DiffState(0, library.Param)
        grads = library.grad(lambda m, x: (m(x) ** 2).sum(), argnums=params)(layer, jnp.ones(3))
        return jax.tree.leaves(grads), layer.calls.value

    both(program)
