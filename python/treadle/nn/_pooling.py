"""Pooling over the spatial dimensions of channels-last arrays."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from treadle._public import publish
from treadle.nn._options import as_tuple, per_dimension

__all__ = ["avg_pool", "max_pool", "min_pool"]

Padding = str | Sequence[tuple[int, int]]


def pool(
    inputs: jax.Array,
    init: Any,
    reduce_fn: Callable[[jax.Array, jax.Array], jax.Array],
    window_shape: Sequence[int],
    strides: Sequence[int] | None,
    padding: Padding,
) -> jax.Array:
    """Reduce sliding windows of the spatial dimensions.

    Args:
        inputs: `(*batch, *spatial, channels)`, any dtype; there may be no batch dimension.
        init: the neutral element of `reduce_fn`.
        reduce_fn: a binary operation, such as `jax.lax.add`.
        window_shape: size of the window, one number per spatial dimension.
        strides: steps between windows, one per spatial dimension; None: steps of one.
        padding: `"SAME"`, `"VALID"`, or `(low, high)` per spatial dimension.

    Returns:
        `(*batch, *spatial', channels)`, with the dtype of `inputs`.

    Raises:
        ValueError: sizes that do not match the number of spatial dimensions, or an unknown padding.

    >>> import jax, jax.numpy as jnp
    >>> from treadle.nn._pooling import pool
    >>> pool(jnp.arange(4.0).reshape(4, 1), 0.0, jax.lax.add, (2,), (2,), "VALID").ravel().tolist()
    [1.0, 5.0]
    """
    window = as_tuple(window_shape)
    ndim = len(window)
    outer = inputs.ndim - ndim - 1
    if outer < 0:
        raise ValueError(
            f"a window of shape {window} needs inputs of rank {ndim + 1} or more "
            f"(*batch, *spatial, channels), got shape {inputs.shape}"
        )
    steps = per_dimension("strides", strides, ndim)
    if isinstance(padding, str):
        if padding.upper() not in ("SAME", "VALID"):
            raise ValueError(f"padding={padding!r}: use 'SAME', 'VALID' or (low, high) pairs")
        pads: Any = padding.upper()
    else:
        pads = tuple((int(low), int(high)) for low, high in padding)
        if len(pads) != ndim:
            raise ValueError(
                f"padding={pads} has {len(pads)} pairs, the window has {ndim} dimension(s)"
            )
        pads = ((0, 0),) * outer + pads + ((0, 0),)
    return lax.reduce_window(
        inputs,
        np.asarray(init, inputs.dtype),
        reduce_fn,
        (1,) * outer + window + (1,),
        (1,) * outer + steps + (1,),
        pads,
    )


def max_pool(
    inputs: jax.Array,
    window_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    padding: Padding = "VALID",
) -> jax.Array:
    """The largest value of each window.

    Args:
        inputs: `(*batch, *spatial, channels)`, integer or float.
        window_shape: size of the window, one number per spatial dimension.
        strides: steps between windows; None: steps of one.
        padding: `"SAME"`, `"VALID"`, or `(low, high)` per spatial dimension; padding never wins.

    Returns:
        `(*batch, *spatial', channels)`, with the dtype of `inputs`.

    Raises:
        ValueError: see `pool`.

    >>> import jax.numpy as jnp
    >>> import treadle as nnx
    >>> nnx.max_pool(jnp.arange(16.0).reshape(4, 4, 1), (2, 2), (2, 2)).ravel().tolist()
    [5.0, 7.0, 13.0, 15.0]
    """
    return pool(inputs, _limit(inputs.dtype, "min"), lax.max, window_shape, strides, padding)


def min_pool(
    inputs: jax.Array,
    window_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    padding: Padding = "VALID",
) -> jax.Array:
    """The smallest value of each window; arguments and shapes as in `max_pool`.

    >>> import jax.numpy as jnp
    >>> import treadle as nnx
    >>> nnx.min_pool(jnp.arange(16.0).reshape(4, 4, 1), (2, 2), (2, 2)).ravel().tolist()
    [0.0, 2.0, 8.0, 10.0]
    """
    return pool(inputs, _limit(inputs.dtype, "max"), lax.min, window_shape, strides, padding)


def avg_pool(
    inputs: jax.Array,
    window_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    padding: Padding = "VALID",
    count_include_pad: bool = True,
) -> jax.Array:
    """The mean of each window; arguments and shapes as in `max_pool`.

    Args:
        inputs: `(*batch, *spatial, channels)`, float.
        window_shape: size of the window, one number per spatial dimension.
        strides: steps between windows; None: steps of one.
        padding: `"SAME"`, `"VALID"`, or `(low, high)` per spatial dimension.
        count_include_pad: divide by the window's size; otherwise by the number of values in it
            that are not padding.

    Returns:
        `(*batch, *spatial', channels)`.

    Raises:
        ValueError: see `pool`.

    >>> import jax.numpy as jnp
    >>> import treadle as nnx
    >>> x = jnp.ones((3, 1))
    >>> nnx.avg_pool(x, (2,), (2,), "SAME").ravel().tolist()
    [1.0, 0.5]
    >>> nnx.avg_pool(x, (2,), (2,), "SAME", count_include_pad=False).ravel().tolist()
    [1.0, 1.0]
    """
    total = pool(inputs, 0.0, lax.add, window_shape, strides, padding)
    if count_include_pad:
        return total / math.prod(as_tuple(window_shape))
    spatial = inputs.shape[inputs.ndim - len(as_tuple(window_shape)) - 1 : -1]
    ones = jnp.ones((*spatial, 1), inputs.dtype)
    return total / pool(ones, 0.0, lax.add, window_shape, strides, padding)


def _limit(dtype: Any, which: str) -> Any:
    if jnp.issubdtype(dtype, jnp.floating):
        return -np.inf if which == "min" else np.inf
    return getattr(np.iinfo(dtype), which)


publish(__all__, globals())
