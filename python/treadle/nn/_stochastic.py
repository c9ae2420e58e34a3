"""Layers that draw random numbers at each call."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from treadle._modules.module import Module
from treadle._public import publish
from treadle.nn._options import RngSource, as_tuple, checked_source, draw_key, first_given

__all__ = ["Dropout"]


class Dropout(Module):
    """Sets a random share of the inputs to zero and scales the rest up to keep the mean.

    Srivastava et al., "Dropout: A Simple Way to Prevent Neural Networks from Overfitting", 2014,
    in the form that scales while training.

    Args:
        rate: the share that becomes zero, from 0 to 1.
        broadcast_dims: axes along which all entries share one draw.
        deterministic: return the inputs as they are. `model.train()` and `model.eval()` set it;
            None: each call must say.
        rng_collection: the stream of `rngs` that keys are drawn from.
        rngs: an `Rngs` or a single `RngStream`, held by reference: modules given the same one
            share it. None: each call must bring one, unless it is deterministic.

    Raises:
        ValueError: `rate` is not between 0 and 1.
        TypeError: `rngs` is a key or a seed, which would drop the same at each call.

    >>> import jax.numpy as jnp
    >>> import treadle as nnx
    >>> layer = nnx.Dropout(0.5, rngs=nnx.Rngs(0))
    >>> sorted(set(layer(jnp.ones(100)).tolist()))
    [0.0, 2.0]
    >>> layer(jnp.ones(3), deterministic=True).tolist()
    [1.0, 1.0, 1.0]
    """

    def __init__(
        self,
        rate: float,
        *,
        broadcast_dims: Sequence[int] = (),
        deterministic: bool | None = False,
        rng_collection: str = "dropout",
        rngs: RngSource | None = None,
    ) -> None:
        if not 0.0 <= rate <= 1.0:
            raise ValueError(f"rate={rate} is not a share between 0 and 1")
        self.rate = rate
        self.broadcast_dims = as_tuple(broadcast_dims)
        self.deterministic = deterministic
        self.rng_collection = rng_collection
        self.rngs = checked_source(self, rngs)

    def __call__(
        self,
        inputs: jax.Array,
        *,
        deterministic: bool | None = None,
        rngs: RngSource | jax.Array | None = None,
    ) -> jax.Array:
        """Drop.

        Args:
            inputs: an array of any shape.
            deterministic: goes before the module's own setting.
            rngs: an `Rngs`, an `RngStream` or a key; goes before the module's own.

        Returns:
            An array like `inputs`.

        Raises:
            ValueError: neither the call nor the module says whether to be deterministic, or
                neither brings random numbers.
        """
        if first_given(self, "deterministic", deterministic, self.deterministic):
            return inputs
        if self.rate == 0.0:
            return inputs
        if self.rate == 1.0:
            return jnp.zeros_like(inputs)
        source: Any = self.rngs if rngs is None else rngs
        key = draw_key(self, source, self.rng_collection)
        shape = list(inputs.shape)
        for axis in self.broadcast_dims:
            shape[axis] = 1
        keep = 1.0 - self.rate
        kept = jnp.broadcast_to(jax.random.bernoulli(key, keep, tuple(shape)), inputs.shape)
        return jnp.where(kept, inputs / keep, jnp.zeros_like(inputs))


publish(__all__, globals())
