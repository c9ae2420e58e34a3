"""Equality that looks into arrays and containers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["same"]


def same(a: Any, b: Any) -> bool:
    """Whether two values are equal, arrays by shape, dtype and content."""
    pending = [(a, b)]
    met: set[tuple[int, int]] = set()  # containers may hold themselves
    while pending:
        a, b = pending.pop()
        if a is b:
            continue
        if isinstance(a, (tuple, list, Mapping)):
            pair = (id(a), id(b))
            if pair in met:
                continue
            met.add(pair)
        if isinstance(a, (tuple, list)) and type(a) is type(b):
            if len(a) != len(b):
                return False
            pending.extend(zip(a, b, strict=True))
        elif isinstance(a, Mapping) and isinstance(b, Mapping):
            if a.keys() != b.keys():
                return False
            pending.extend((a[key], b[key]) for key in a)
        elif not _same_leaf(a, b):
            return False
    return True


def _same_leaf(a: Any, b: Any) -> bool:
    if isinstance(a, (jax.Array, np.ndarray)) and isinstance(b, (jax.Array, np.ndarray)):
        if a.shape != b.shape or a.dtype != b.dtype:
            return False
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        return bool((np.asarray(a) == np.asarray(b)).all())
    return type(a) is type(b) and bool(a == b)
