"""Random keys and counts among the leaves of a call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from treadle import _core
from treadle.transforms._inside import Inside


def is_kind_of(kind: type[Any] | None, treadle_kind: type[Any]) -> bool:
    """Whether a leaf's Variable type (None for bare arrays) means what a type of treadle's does."""
    return kind is not None and issubclass(_core.counterpart(kind), treadle_kind)


def rng_key_ndim(value: Any) -> int:
    """Number of axes of an array of keys, not counting the words of a legacy ``uint32`` key."""
    dtype = getattr(value, "dtype", None)
    is_typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    return np.ndim(value) - (0 if is_typed else 1)


def split_key(key: Any, size: int) -> Any:
    """The keys of the slices: ``jax.random.split(key, size)``."""
    return jax.random.split(key, size)


def restore_keys(inside: Inside, split: Sequence[int]) -> None:
    """Undo what the function did to split keys, so that they do not come out."""
    owners = inside.outline.graphdef.leaf_refs()
    for leaf in split:
        variable = inside.refs[owners[leaf]]
        if _core.raw_value(variable) is not inside.leaves[leaf]:
            _core.set_raw_value(variable, inside.leaves[leaf])
