"""Compares layers with those of flax, given the same parameters."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import flax.nnx as flax_nnx
import jax
import jax.numpy as jnp
import numpy as np

import treadle as nnx

if TYPE_CHECKING:
    from collections.abc import Callable

TOLERANCE = {"float32": 2e-5, "bfloat16": 4e-2, "float16": 4e-3}


def normal(*shape: int, seed: int = 0, dtype: Any = jnp.float32) -> jax.Array:
    # From numpy, as jax would compile something for each shape.
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def make(name: str, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
    """The layer `name` of treadle and of flax, with equal Variables of random values."""
    layer = getattr(nnx, name)
    # The values are replaced below, and compiling the usual initializers takes most of the time.
    for option in ("kernel_init", "embedding_init"):
        if option in inspect.signature(layer).parameters:
            kwargs.setdefault(option, nnx.initializers.zeros)
    ours = layer(*args, rngs=nnx.Rngs(0), **kwargs)
    theirs = getattr(flax_nnx, name)(*args, rngs=flax_nnx.Rngs(0), **kwargs)
    share_values(ours, theirs)
    return ours, theirs


def values(theirs: Any) -> dict[tuple[Any, ...], Any]:
    """The Variables of a flax module by path."""
    wanted = (flax_nnx.Param, flax_nnx.BatchStat, flax_nnx.Cache)
    return dict(flax_nnx.to_flat_state(flax_nnx.state(theirs, wanted)))


def share_values(ours: Any, theirs: Any) -> None:
    """Fill both with the same values: positive, as a variance must be."""
    variables = values(theirs)
    entries = nnx.state(ours, (nnx.Param, nnx.BatchStat)).flat_state()
    assert entries.keys() == variables.keys()
    filled = {}
    for seed, (path, variable) in enumerate(variables.items()):
        entry = entries[path]
        assert entry.type.__name__ == type(variable).__name__, path
        assert entry.value.shape == variable[...].shape, path
        assert entry.value.dtype == variable[...].dtype, path
        value = np.abs(np.random.default_rng(seed + 7).normal(size=entry.value.shape)) * 0.5 + 0.1
        filled[path] = entry.replace(jnp.asarray(value, entry.value.dtype))
        target = theirs
        for key in path:
            target = getattr(target, key)
        target[...] = filled[path].value
    nnx.update(ours, nnx.State.from_flat_state(filled))


def assert_close(ours: Any, theirs: Any, what: object = "") -> None:
    assert ours.shape == theirs.shape, what
    assert ours.dtype == theirs.dtype, what
    tolerance = TOLERANCE.get(ours.dtype.name, 0.0)
    np.testing.assert_allclose(
        np.asarray(ours, np.float64),
        np.asarray(theirs, np.float64),
        rtol=tolerance,
        atol=tolerance,
        err_msg=str(what),
    )


def assert_same_call(ours: Any, theirs: Any, *args: Any, **kwargs: Any) -> None:
    assert_close(ours(*args, **kwargs), theirs(*args, **kwargs))


def gradient(ours: Any, call: Callable[[Any], jax.Array]) -> dict[tuple[Any, ...], jax.Array]:
    """Gradient of sum(sin(call)) with respect to the parameters of one of our modules."""
    graphdef, params, rest = nnx.split(ours, nnx.Param, ...)

    def loss(params: Any) -> jax.Array:
        return jnp.sum(jnp.sin(call(nnx.merge(graphdef, params, rest))))

    found = jax.jit(jax.grad(loss))(params).flat_state()
    return {path: entry.value for path, entry in found.items()}


def flax_gradient(
    theirs: Any, call: Callable[[Any], jax.Array]
) -> dict[tuple[Any, ...], jax.Array]:
    graphdef, params, rest = flax_nnx.split(theirs, flax_nnx.Param, ...)

    def loss(params: Any) -> jax.Array:
        return jnp.sum(jnp.sin(call(flax_nnx.merge(graphdef, params, rest, copy=True))))

    found = flax_nnx.to_flat_state(jax.jit(jax.grad(loss))(params))
    return {path: variable[...] for path, variable in found}


def assert_same_gradients(ours: Any, theirs: Any, call: Callable[[Any], jax.Array]) -> None:
    a, b = gradient(ours, call), flax_gradient(theirs, call)
    assert a.keys() == b.keys()
    for path in a:
        np.testing.assert_allclose(a[path], b[path], rtol=2e-4, atol=2e-4, err_msg=str(path))
