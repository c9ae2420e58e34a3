"""Embeddings: a learned vector for each of a number of integers."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from treadle._modules.module import Module
from treadle._modules.rngs import Rngs
from treadle._public import publish
from treadle.nn import initializers
from treadle.nn._dtypes import promote_dtype as default_promote_dtype
from treadle.nn._linear import NO_METADATA
from treadle.nn._options import Initializer, PromoteDtype, held, make_param

__all__ = ["Embed"]

default_embedding_init = initializers.variance_scaling(1.0, "fan_in", "normal", out_axis=0)


class Embed(Module):
    """A table of vectors, looked up by integers.

    Args:
        num_embeddings: number of vectors.
        features: length of each vector.
        dtype: dtype of the outputs; None: `param_dtype`.
        param_dtype: dtype the table is created in.
        embedding_init: initializer of the table.
        promote_dtype: casts the table, and the queries of `attend`.
        rngs: draws the initial table, from the stream `params`.
        embedding_metadata: metadata of the table's `Param`.

    Attributes:
        embedding: `Param` of shape `(num_embeddings, features)`.

    >>> import jax.numpy as jnp
    >>> import treadle as nnx
    >>> layer = nnx.Embed(5, 3, rngs=nnx.Rngs(0))
    >>> layer(jnp.array([[1, 4]])).shape
    (1, 2, 3)
    """

    def __init__(
        self,
        num_embeddings: int,
        features: int,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        embedding_init: Initializer = default_embedding_init,
        promote_dtype: PromoteDtype = default_promote_dtype,
        rngs: Rngs,
        embedding_metadata: Mapping[str, Any] = NO_METADATA,
    ) -> None:
        self.embedding = make_param(
            self,
            embedding_init,
            rngs,
            (num_embeddings, features),
            param_dtype,
            embedding_metadata,
        )
        self.num_embeddings = num_embeddings
        self.features = features
        self.dtype = param_dtype if dtype is None else dtype
        self.param_dtype = param_dtype
        self.promote_dtype = promote_dtype

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Look vectors up.

        Args:
            inputs: integers below `num_embeddings`, of any shape. What lies outside the table
                gives NaN, as `jax.numpy.take` does. A table made with one row is not looked
                into: each input gets that row.

        Returns:
            `(*inputs.shape, features)`.

        Raises:
            ValueError: inputs that are not integers.
        """
        if not jnp.issubdtype(inputs.dtype, jnp.integer):
            raise ValueError(
                f"Embed looks up integers, got {inputs.dtype}; cast the inputs with astype(int)"
            )
        (embedding,) = self.promote_dtype((held(self.embedding),), dtype=self.dtype, inexact=False)
        # Not the one row that a shard of a longer table holds: that is for one number only.
        if self.num_embeddings == embedding.shape[0] == 1:
            return jnp.broadcast_to(
                jnp.squeeze(embedding, 0), (*inputs.shape, *embedding.shape[1:])
            )
        return jnp.take(embedding, inputs, axis=0)

    def attend(self, query: jax.Array) -> jax.Array:
        """Inner products of `query` with every vector, such as the logits of tied embeddings.

        Args:
            query: `(..., features)`.

        Returns:
            `(..., num_embeddings)`.

        Raises:
            ValueError: vectors of another length than those of the table.
        """
        embedding = held(self.embedding)
        if query.ndim == 0 or query.shape[-1] != embedding.shape[-1]:
            raise ValueError(
                f"Embed.attend expects queries of shape (..., {embedding.shape[-1]}), got "
                f"{query.shape}; its embedding has shape {embedding.shape}"
            )
        query, embedding = self.promote_dtype((query, embedding), dtype=self.dtype)
        return jnp.dot(query, embedding.T)


publish(__all__, globals())
