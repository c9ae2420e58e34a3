"""Attention: the function and the layer with several heads."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer
from jax.typing import DTypeLike

from treadle._modules.module import Module
from treadle._modules.rngs import Rngs
from treadle._objects.variables import Cache, Intermediate
from treadle._public import publish
from treadle.nn._dtypes import promote_dtype as default_promote_dtype
from treadle.nn._linear import (
    NO_METADATA,
    LinearGeneral,
    default_bias_init,
    default_kernel_init,
)
from treadle.nn._masks import combine_masks
from treadle.nn._normalization import LayerNorm
from treadle.nn._options import (
    Initializer,
    PromoteDtype,
    RngSource,
    checked_source,
    draw_key,
    first_given,
    held,
)

__all__ = ["MultiHeadAttention", "dot_product_attention", "dot_product_attention_weights"]


def dot_product_attention_weights(
    query: jax.Array,
    key: jax.Array,
    bias: jax.Array | None = None,
    mask: jax.Array | None = None,
    broadcast_dropout: bool = True,
    dropout_rng: jax.Array | None = None,
    dropout_rate: float = 0.0,
    deterministic: bool = False,
    dtype: DTypeLike | None = None,
    precision: Any = None,
    module: Module | None = None,
    promote_dtype: PromoteDtype = default_promote_dtype,
    is_causal: bool = False,
) -> jax.Array:
    """How much each query attends to each key: softmax(query . key / sqrt(depth) + bias).

    Arguments are those of `dot_product_attention`.

    Returns:
        `(*batch, heads, queries, keys)`, each row summing to one where nothing is dropped.

    Raises:
        ValueError: shapes that do not match, or dropout without a key.

    >>> import jax.numpy as jnp
    >>> import treadle as nnx
    >>> q = jnp.zeros((1, 2, 1, 4))
    >>> nnx.dot_product_attention_weights(q, q, is_causal=True)[0, 0].tolist()
    [[1.0, 0.0], [0.5, 0.5]]
    """
    query, key = promote_dtype((query, key), dtype=dtype)
    _check_attention_shapes(query, key, None)
    key = _repeat_heads(key, query.shape[-2])
    # Differences of logits are what counts, and in half precision large ones have none.
    wide = jnp.promote_types(query.dtype, jnp.float32)
    weights = jnp.einsum(
        "...qhd,...khd->...hqk", query, key, precision=precision, preferred_element_type=wide
    )
    weights = weights / math.sqrt(query.shape[-1])
    if bias is not None:
        weights = weights + jnp.asarray(bias, wide)
    if is_causal:
        causal = jnp.tril(jnp.ones(weights.shape[-2:], bool))
        mask = causal if mask is None else jnp.logical_and(mask, causal)
    if mask is not None:
        weights = jnp.where(mask, weights, jnp.finfo(wide).min)
    weights = jax.nn.softmax(weights).astype(query.dtype)
    if module is not None:
        module.sow(Intermediate, "attention_weights", weights)
    if not deterministic and dropout_rate > 0.0:
        if dropout_rng is None:
            raise ValueError(
                "dropout of attention weights needs random numbers: pass `dropout_rng=`, or "
                "`deterministic=True`"
            )
        keep = 1.0 - dropout_rate
        shape = weights.shape
        if broadcast_dropout:
            # One draw for all examples and heads.
            shape = (1,) * (weights.ndim - 2) + weights.shape[-2:]
        kept = jax.random.bernoulli(dropout_rng, keep, shape)
        weights = weights * (kept.astype(weights.dtype) / jnp.asarray(keep, weights.dtype))
    return weights


def dot_product_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    bias: jax.Array | None = None,
    mask: jax.Array | None = None,
    broadcast_dropout: bool = True,
    dropout_rng: jax.Array | None = None,
    dropout_rate: float = 0.0,
    deterministic: bool = False,
    dtype: DTypeLike | None = None,
    precision: Any = None,
    module: Module | None = None,
    promote_dtype: PromoteDtype = default_promote_dtype,
    is_causal: bool = False,
) -> jax.Array:
    """The values, averaged by how well their keys match the query.

    Vaswani et al., "Attention Is All You Need", 2017, equation 1.

    Args:
        query: `(*batch, queries, heads, depth)`.
        key: `(*batch, keys, heads, depth)`; with fewer heads, whose number divides that of the
            query, neighbouring query heads share one (grouped-query attention).
        value: `(*batch, keys, heads, depth of values)`, as many heads as `key`.
        bias: added to the logits; broadcastable to `(*batch, heads, queries, keys)`.
        mask: True (or not zero) where a query may look at a key; broadcastable like `bias`.
        broadcast_dropout: drop the same weights in all examples and heads.
        dropout_rng: a key, needed for dropout.
        dropout_rate: the share of weights that is dropped.
        deterministic: do not drop.
        dtype: dtype of the computation; None: the common dtype of query, key and value.
        precision: precision of the products, see `jax.lax.Precision`.
        module: where to `sow` the weights, as the `Intermediate` `attention_weights`; None:
            nowhere.
        promote_dtype: casts query, key and value to the dtype of the computation.
        is_causal: let the query at position i look at keys 0 to i only.

    Returns:
        `(*batch, queries, heads, depth of values)`.

    Raises:
        ValueError: shapes that do not match, or dropout without a key.

    >>> import jax.numpy as jnp
    >>> import treadle as nnx
    >>> q = jnp.zeros((1, 2, 1, 4))
    >>> v = jnp.array([1.0, 3.0]).reshape(1, 2, 1, 1)
    >>> nnx.dot_product_attention(q, q, v).ravel().tolist()
    [2.0, 2.0]
    """
    query, key, value = promote_dtype((query, key, value), dtype=dtype)
    _check_attention_shapes(query, key, value)
    drops = dropout_rate > 0.0 and not deterministic
    if not drops and module is None and _is_known_to_jax(query, value, bias, mask, precision):
        return _attention_of_jax(query, key, value, bias, mask, is_causal)
    weights = dot_product_attention_weights(
        query,
        key,
        bias,
        mask,
        broadcast_dropout,
        dropout_rng,
        dropout_rate,
        deterministic,
        dtype,
        precision,
        module,
        promote_dtype,
        is_causal,
    )
    value = _repeat_heads(value, query.shape[-2])
    return jnp.einsum("...hqk,...khd->...qhd", weights, value, precision=precision)


def _check_attention_shapes(query: jax.Array, key: jax.Array, value: jax.Array | None) -> None:
    ok = (
        query.ndim == key.ndim >= 3
        and query.shape[:-3] == key.shape[:-3]
        and query.shape[-1] == key.shape[-1]
        and key.shape[-2] > 0
        and query.shape[-2] % key.shape[-2] == 0
        and (value is None or value.shape[:-1] == key.shape[:-1])
    )
    if not ok:
        shapes = f"query {query.shape}, key {key.shape}"
        if value is not None:
            shapes += f", value {value.shape}"
        raise ValueError(
            "attention expects query (*batch, queries, heads, depth), key (*batch, keys, heads, "
            f"depth) and value (*batch, keys, heads, depth of values), got {shapes}"
        )


def _is_known_to_jax(query: Any, value: Any, bias: Any, mask: Any, precision: Any) -> bool:
    """Whether `jax.nn.dot_product_attention` takes such arguments and ignores none.

    It computes softmax in float32 even for wider dtypes, and knows neither precisions nor values of
    another depth, nor what adds axes to the outputs.
    """
    logits = (*query.shape[:-3], query.shape[-2], query.shape[-3], value.shape[-3])

    def spreads(extra: Any) -> bool:
        if extra is None:
            return False
        sizes = zip(reversed(jnp.shape(extra)), reversed(logits), strict=False)
        return jnp.ndim(extra) > len(logits) or any(n not in (1, size) for n, size in sizes)

    return (
        query.dtype.name in ("float32", "bfloat16", "float16")
        and query.shape[-1] == value.shape[-1]
        and precision is None
        and not spreads(bias)
        and not spreads(mask)
    )


def _attention_of_jax(
    query: jax.Array, key: jax.Array, value: jax.Array, bias: Any, mask: Any, is_causal: bool
) -> jax.Array:
    """`jax.nn.dot_product_attention`, for any number of batch axes."""
    batch = query.shape[:-3]

    def one_batch_axis(x: jax.Array) -> jax.Array:
        return x if len(batch) == 1 else jnp.reshape(x, (math.prod(batch), *x.shape[-3:]))

    def extra(x: Any) -> jax.Array:
        x = jnp.reshape(x, (1,) * (len(batch) + 3 - jnp.ndim(x)) + jnp.shape(x))
        if len(batch) != 1:
            x = jnp.broadcast_to(x, batch + x.shape[-3:])
        return one_batch_axis(x)

    out = jax.nn.dot_product_attention(
        one_batch_axis(query),
        one_batch_axis(key),
        one_batch_axis(value),
        None if bias is None else extra(bias),
        None if mask is None else extra(mask).astype(bool),
        is_causal=is_causal,
    )
    return jnp.reshape(out, query.shape)


def _repeat_heads(x: jax.Array, heads: int) -> jax.Array:
    return x if x.shape[-2] == heads else jnp.repeat(x, heads // x.shape[-2], axis=-2)


class MultiHeadAttention(Module):
    """Attention with several heads, each with its own projections of queries, keys and values.

    Vaswani et al., "Attention Is All You Need", 2017.

    Args:
        num_heads: number of heads.
        in_features: size of the last axis of the inputs.
        qkv_features: size of all heads together, divisible by `num_heads`; None: `in_features`.
        out_features: size of the last axis of the outputs; None: `in_features`.
        num_kv_heads: number of heads of keys and values, a divisor of `num_heads`; None:
            `num_heads`.
        in_kv_features: size of the last axis of the inputs for keys and values; None:
            `in_features`.
        dtype: dtype of the computation; None: the common dtype of inputs and parameters.
        param_dtype: dtype the parameters are created in.
        broadcast_dropout: drop the same weights in all examples and heads.
        dropout_rate: the share of attention weights that is dropped.
        deterministic: do not drop. `model.train()` and `model.eval()` set it; None: with dropout,
            each call must say.
        precision: precision of the products, see `jax.lax.Precision`.
        kernel_init: initializer of the kernels of query, key and value.
        out_kernel_init: initializer of the output's kernel; None: `kernel_init`.
        bias_init: initializer of the biases of query, key and value.
        out_bias_init: initializer of the output's bias; None: `bias_init`.
        use_bias: whether the projections have a bias.
        attention_fn: the attention, with the signature of `dot_product_attention`.
        decode: look up keys and values in the cache, one position a call; see `init_cache`. None:
            each call must say, where it is not plain attention.
        normalize_qk: normalize queries and keys with a `LayerNorm`.
        qkv_dot_general: the product in the projections of query, key and value.
        out_dot_general: the product in the projection of the output.
        rngs: draws the initial parameters from the stream `params`, and dropout from the stream
            `dropout`, for which it is kept.
        kernel_metadata: metadata of the kernels of query, key and value.
        out_kernel_metadata: metadata of the output's kernel.
        bias_metadata: metadata of the biases of query, key and value.
        out_bias_metadata: metadata of the output's bias.

    Attributes:
        query, key, value: `LinearGeneral` from `in_features` to `(heads, depth)`.
        out: `LinearGeneral` from `(heads, depth)` to `out_features`.
        query_ln, key_ln: `LayerNorm` over the depth, or None.
        cached_key, cached_value, cache_index: `Cache`, or None before `init_cache`.

    Raises:
        ValueError: sizes that do not divide.

    >>> import jax.numpy as jnp
    >>> import treadle as nnx
    >>> layer = nnx.MultiHeadAttention(num_heads=2, in_features=4, decode=False, rngs=nnx.Rngs(0))
    >>> layer(jnp.ones((1, 3, 4))).shape
    (1, 3, 4)
    """

    # Over 60 lines: the signature is the interface, so each parameter is spelled out, and handed to the
    # projections by name.
    def __init__(
        self,
        num_heads: int,
        in_features: int,
        qkv_features: int | None = None,
        out_features: int | None = None,
        num_kv_heads: int | None = None,
        in_kv_features: int | None = None,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        broadcast_dropout: bool = True,
        dropout_rate: float = 0.0,
        deterministic: bool | None = None,
        precision: Any = None,
        kernel_init: Initializer = default_kernel_init,
        out_kernel_init: Initializer | None = None,
        bias_init: Initializer = default_bias_init,
        out_bias_init: Initializer | None = None,
        use_bias: bool = True,
        attention_fn: Callable[..., jax.Array] = dot_product_attention,
        decode: bool | None = None,
        normalize_qk: bool = False,
        qkv_dot_general: Callable[..., jax.Array] | None = None,
        out_dot_general: Callable[..., jax.Array] | None = None,
        rngs: Rngs,
        kernel_metadata: Mapping[str, Any] = NO_METADATA,
        out_kernel_metadata: Mapping[str, Any] = NO_METADATA,
        bias_metadata: Mapping[str, Any] = NO_METADATA,
        out_bias_metadata: Mapping[str, Any] = NO_METADATA,
    ) -> None:
        checked_source(self, rngs)
        self.num_heads = num_heads
        self.in_features = in_features
        self.qkv_features = in_features if qkv_features is None else qkv_features
        self.out_features = in_features if out_features is None else out_features
        self.num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        self.in_kv_features = in_features if in_kv_features is None else in_kv_features
        if self.qkv_features % num_heads:
            raise ValueError(
                f"num_heads={num_heads} does not divide qkv_features={self.qkv_features}"
            )
        if num_heads % self.num_kv_heads:
            raise ValueError(f"num_kv_heads={num_kv_heads} does not divide num_heads={num_heads}")
        self.head_dim = self.qkv_features // num_heads
        self.dtype = dtype
        self.param_dtype = param_dtype
        self.broadcast_dropout = broadcast_dropout
        self.dropout_rate = dropout_rate
        self.deterministic = deterministic
        self.precision = precision
        self.use_bias = use_bias
        self.attention_fn = attention_fn
        self.decode = decode
        self.normalize_qk = normalize_qk

        def projection(features: int, heads: int) -> LinearGeneral:
            return LinearGeneral(
                features,
                (heads, self.head_dim),
                use_bias=use_bias,
                dtype=dtype,
                param_dtype=param_dtype,
                kernel_init=kernel_init,
                bias_init=bias_init,
                precision=precision,
                dot_general=qkv_dot_general,
                rngs=rngs,
                kernel_metadata=kernel_metadata,
                bias_metadata=bias_metadata,
            )

        self.query = projection(self.in_features, self.num_heads)
        self.key = projection(self.in_kv_features, self.num_kv_heads)
        self.value = projection(self.in_kv_features, self.num_kv_heads)

        def norm() -> LayerNorm | None:
            if not normalize_qk:
                return None
            return LayerNorm(
                self.head_dim, use_bias=False, dtype=dtype, param_dtype=param_dtype, rngs=rngs
            )

        self.query_ln = norm()
        self.key_ln = norm()
        self.out = LinearGeneral(
            (num_heads, self.head_dim),
            self.out_features,
            axis=(-2, -1),
            use_bias=use_bias,
            dtype=dtype,
            param_dtype=param_dtype,
            kernel_init=kernel_init if out_kernel_init is None else out_kernel_init,
            bias_init=bias_init if out_bias_init is None else out_bias_init,
            precision=precision,
            dot_general=out_dot_general,
            rngs=rngs,
            kernel_metadata=out_kernel_metadata,
            bias_metadata=out_bias_metadata,
        )
        self.rngs = rngs if dropout_rate > 0.0 else None
        self.cached_key: Cache[jax.Array] | None = None
        self.cached_value: Cache[jax.Array] | None = None
        self.cache_index: Cache[jax.Array] | None = None

    def __call__(
        self,
        inputs_q: jax.Array,
        inputs_k: jax.Array | None = None,
        inputs_v: jax.Array | None = None,
        *,
        mask: jax.Array | None = None,
        deterministic: bool | None = None,
        rngs: RngSource | None = None,
        sow_weights: bool = False,
        decode: bool | None = None,
        is_causal: bool = False,
    ) -> jax.Array:
        """Attend.

        Args:
            inputs_q: `(*batch, queries, in_features)`, from which the queries are made.
            inputs_k: `(*batch, keys, in_kv_features)`, from which the keys are made; None:
                `inputs_q`.
            inputs_v: `(*batch, keys, in_kv_features)`, from which the values are made; None:
                `inputs_k`.
            mask: True (or not zero) where a query may look at a key; broadcastable to
                `(*batch, heads, queries, keys)`.
            deterministic: goes before the module's own setting.
            rngs: goes before the module's own; needed for dropout.
            sow_weights: put the attention weights aside as the `Intermediate` `attention_weights`.
            decode: goes before the module's own setting. One position per call; its key and value
                go into the cache, and it attends to all positions so far.
            is_causal: let position i look at positions 0 to i only.

        Returns:
            `(*batch, queries, out_features)`.

        Raises:
            ValueError: inputs of other sizes; values given without keys; dropout without random
                numbers, or without being told whether to drop; decoding without `init_cache`, with
                another shape than it was made for, or past its end where that is known.
        """
        if inputs_k is None:
            if inputs_v is not None:
                raise ValueError("inputs_v is given without inputs_k: give the keys' inputs too")
            inputs_k = inputs_q
        if inputs_v is None:
            inputs_v = inputs_k
        query = self.query(inputs_q)
        key = self.key(inputs_k)
        value = self.value(inputs_v)
        if self.query_ln is not None and self.key_ln is not None:
            query = self.query_ln(query)
            key = self.key_ln(key)

        if self._decodes(decode):
            key, value, seen = self._cached(query, key, value)
            mask = combine_masks(mask, seen)
            # The cache holds nothing but the past, so being causal adds nothing.
            is_causal = False

        dropout_rng: jax.Array | None = None
        still = True
        if self.dropout_rate > 0.0:
            still = first_given(self, "deterministic", deterministic, self.deterministic)
            if not still:
                dropout_rng = draw_key(self, self.rngs if rngs is None else rngs, "dropout")
        options: dict[str, Any] = {}
        if is_causal:
            # A user's attention function need not know this option unless it is asked for.
            options["is_causal"] = True
        x = self.attention_fn(
            query,
            key,
            value,
            mask=mask,
            dropout_rng=dropout_rng,
            dropout_rate=self.dropout_rate,
            broadcast_dropout=self.broadcast_dropout,
            deterministic=still,
            dtype=self.dtype,
            precision=self.precision,
            module=self if sow_weights else None,
            **options,
        )
        return self.out(x)

    def init_cache(self, input_shape: Sequence[int], dtype: DTypeLike | None = None) -> None:
        """Make room for decoding, or empty the cache.

        Args:
            input_shape: `(*batch, positions, in_features)`, as the inputs would be all at once.
            dtype: dtype of the cache; None: `dtype` of the layer, or else `param_dtype`.

        >>> import jax.numpy as jnp
        >>> import treadle as nnx
        >>> layer = nnx.MultiHeadAttention(2, in_features=4, decode=True, rngs=nnx.Rngs(0))
        >>> layer.init_cache((1, 5, 4))
        >>> layer(jnp.ones((1, 1, 4))).shape, int(layer.cache_index.value)
        ((1, 1, 4), 1)
        """
        if dtype is None:
            dtype = self.param_dtype if self.dtype is None else self.dtype
        # On a shard of the heads there are as many as its kernel makes.
        shape = (*input_shape[:-1], *held(self.key.kernel).shape[-2:])
        self.cached_key = Cache(jnp.zeros(shape, dtype))
        self.cached_value = Cache(jnp.zeros(shape, dtype))
        self.cache_index = Cache(jnp.array(0, jnp.int32))

    def _decodes(self, decode: bool | None) -> bool:
        # Unlike dropout, plain attention is what nobody would be surprised by.
        return bool(self.decode if decode is None else decode)

    def _cached(
        self, query: jax.Array, key: jax.Array, value: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Put key and value into the cache; all keys, all values, and the mask of those seen."""
        if self.cached_key is None or self.cached_value is None or self.cache_index is None:
            raise ValueError("decoding needs a cache: call init_cache(input_shape) first")
        *batch, length, heads, depth = self.cached_key.value.shape
        expected = (*batch, 1, heads, depth)
        if key.shape != expected or query.shape[:-2] != (*batch, 1):
            raise ValueError(
                f"decoding takes one position at a time, with keys of shape {expected} as "
                f"init_cache was told; got keys of shape {key.shape} and queries of shape "
                f"{query.shape}"
            )
        index = self.cache_index.value
        if not isinstance(index, Tracer) and int(index) >= length:
            raise ValueError(
                f"the cache of {length} positions is full: call init_cache with a longer shape"
            )
        zero = jnp.zeros((), index.dtype)
        start = (*[zero] * len(batch), index, zero, zero)
        keys = lax.dynamic_update_slice(
            self.cached_key.value, key.astype(self.cached_key.value.dtype), start
        )
        values = lax.dynamic_update_slice(
            self.cached_value.value, value.astype(self.cached_value.value.dtype), start
        )
        self.cached_key.value = keys
        self.cached_value.value = values
        self.cache_index.value = index + 1
        seen = jnp.broadcast_to(jnp.arange(length) <= index, (*batch, 1, 1, length))
        return keys, values, seen


publish(__all__, globals())
