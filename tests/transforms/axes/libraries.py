"""Nodes of treadle and of flax, for rules that hold for both."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import treadle as nnx

flax_nnx = pytest.importorskip("flax.nnx", reason="flax has no release for this Python")

# flax asks to read Variables as v[...]; treadle has both spellings.
LIBRARIES = {"ours": nnx, "flax": flax_nnx}
both = pytest.mark.parametrize("lib", LIBRARIES.values(), ids=LIBRARIES)
quiet = pytest.mark.filterwarnings("ignore:'.value' access:DeprecationWarning")


def weights(*shape: int, lib: Any = nnx) -> Any:
    """A node with one Param that counts up from 0."""
    return lib.Dict(w=lib.Param(jnp.arange(float(np.prod(shape))).reshape(shape)))


def same(got: Any, expected: Any) -> None:
    """Equal up to rounding."""
    np.testing.assert_allclose(np.asarray(got), np.asarray(expected), rtol=1e-5, atol=1e-6)


def draw(stream: Any, *shape: int) -> jax.Array:
    """The data of a stream's next key."""
    return jax.random.key_data(stream())


def data(*keys: Any) -> np.ndarray[Any, Any]:
    """The data of some keys."""
    return np.stack([np.asarray(jax.random.key_data(key)) for key in keys])


def fold(key: Any, *counts: int) -> np.ndarray[Any, Any]:
    """The keys that a stream with that key draws at those counts."""
    return data(*(jax.random.fold_in(key, count) for count in counts))
