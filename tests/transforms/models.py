"""Small modules that the transform tests share."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

import treadle as nnx


class Block(nnx.Module):
    """A layer with parameters, statistics that every call changes, and a counter."""

    def __init__(self, width: int, *, rngs: nnx.Rngs) -> None:
        self.kernel = nnx.Param(jax.random.normal(rngs.params(), (width, width)) * 0.3)
        self.bias = nnx.Param(jnp.zeros(width))
        self.seen = nnx.BatchStat(jnp.zeros(width))
        self.calls = nnx.Variable(jnp.array(0))

    def __call__(self, x: jax.Array) -> jax.Array:
        self.seen.value = 0.9 * self.seen.value + 0.1 * x.reshape(-1, x.shape[-1]).mean(0)
        self.calls.value = self.calls.value + 1
        return jnp.tanh(x @ self.kernel.value + self.bias.value)


class Noisy(nnx.Module):
    """Draws from a stream of its own at every call."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.scale = nnx.Param(jnp.ones(()))
        self.rngs = rngs

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + self.scale.value * jax.random.normal(self.rngs.noise(), x.shape)


def values(node: Any) -> dict[Any, Any]:
    """Leaf values of a node by path, keys as their data."""
    flat = nnx.state(node).flat_state()
    return {path: plain(getattr(entry, "value", entry)) for path, entry in flat.items()}


def plain(value: Any) -> Any:
    """A value that numpy can compare."""
    dtype = getattr(value, "dtype", None)
    if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key):
        return jax.random.key_data(value)
    return value


def assert_same(a: Any, b: Any, **tolerance: Any) -> None:
    """Leaf by leaf the same, within a tolerance for floating-point numbers."""
    import numpy as np

    left, right = jax.tree.leaves_with_path(a), jax.tree.leaves_with_path(b)
    assert [path for path, _ in left] == [path for path, _ in right]
    for (path, x), (_, y) in zip(left, right, strict=True):
        np.testing.assert_allclose(
            plain(x),
            plain(y),
            err_msg=jax.tree_util.keystr(path),
            **{"rtol": 1e-5, "atol": 1e-6, **tolerance},
        )


def stacked(make: Any, size: int, seed: int = 0) -> Any:
    """`size` modules made under vmap, from a split stream."""
    return nnx.vmap(make, axis_size=size)(nnx.Rngs(seed))


def unstacked(node: Any, size: int) -> list[Any]:
    """The slices of a stacked module, as modules of their own."""
    graphdef, state = nnx.split(node)
    return [nnx.merge(graphdef, jax.tree.map(lambda x, i=i: x[i], state)) for i in range(size)]


def restacked(nodes: list[Any]) -> Any:
    """State of several modules, stacked."""
    return jax.tree.map(lambda *xs: jnp.stack(xs), *map(nnx.state, nodes))
