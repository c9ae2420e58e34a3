"""Masks for attention: which positions may look at which."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from treadle._public import publish

__all__ = ["combine_masks", "make_attention_mask", "make_causal_mask"]


def make_attention_mask(
    query_input: jax.Array,
    key_input: jax.Array,
    pairwise_fn: Callable[..., Any] = jnp.multiply,
    extra_batch_dims: int = 0,
    dtype: DTypeLike = jnp.float32,
) -> jax.Array:
    """A mask made from a property of each query and each key.

    Args:
        query_input: `(*batch, queries)`.
        key_input: `(*batch, keys)`.
        pairwise_fn: combines the two, broadcast against each other.
        extra_batch_dims: number of axes of size 1 to put in front.
        dtype: dtype of the mask.

    Returns:
        `(*ones, *batch, 1, queries, keys)`; the 1 stands for the heads.

    >>> import jax.numpy as jnp
    >>> import treadle as nnx
    >>> real = jnp.array([True, True, False])
    >>> nnx.make_attention_mask(real, real, dtype=int)[0].tolist()
    [[1, 1, 0], [1, 1, 0], [0, 0, 0]]
    """
    mask = pairwise_fn(query_input[..., :, None], key_input[..., None, :])
    mask = jnp.expand_dims(mask, axis=-3)
    mask = jnp.expand_dims(mask, axis=tuple(range(extra_batch_dims)))
    return jnp.asarray(mask, dtype)


def make_causal_mask(
    x: jax.Array, extra_batch_dims: int = 0, dtype: DTypeLike = jnp.float32
) -> jax.Array:
    """A mask that lets each position look at itself and at what comes before.

    Args:
        x: `(*batch, length)`; only its shape counts.
        extra_batch_dims: number of axes of size 1 to put in front.
        dtype: dtype of the mask.

    Returns:
        `(*ones, *batch, 1, length, length)`.

    >>> import jax.numpy as jnp
    >>> import treadle as nnx
    >>> nnx.make_causal_mask(jnp.ones(3), dtype=int)[0].tolist()
    [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    """
    positions = jnp.broadcast_to(jnp.arange(x.shape[-1], dtype=jnp.int32), x.shape)
    return make_attention_mask(positions, positions, jnp.greater_equal, extra_batch_dims, dtype)


def combine_masks(*masks: jax.Array | None, dtype: DTypeLike = jnp.float32) -> jax.Array | None:
    """The mask that allows what all given masks allow.

    Args:
        *masks: arrays that broadcast against each other, or None.
        dtype: dtype of the mask.

    Returns:
        The combined mask; None if there is none to combine.

    Raises:
        ValueError: masks of different rank.

    >>> import jax.numpy as jnp
    >>> import treadle as nnx
    >>> nnx.combine_masks(jnp.array([1, 1, 0]), None, jnp.array([0, 1, 1]), dtype=int).tolist()
    [0, 1, 0]
    """
    given = [m for m in masks if m is not None]
    if not given:
        return None
    ranks = {m.ndim for m in given}
    if len(ranks) > 1:
        shapes = ", ".join(str(m.shape) for m in given)
        raise ValueError(f"masks must have one rank to be combined, got shapes {shapes}")
    combined = given[0]
    for mask in given[1:]:
        combined = jnp.logical_and(combined, mask)
    return combined.astype(dtype)


publish(__all__, globals())
