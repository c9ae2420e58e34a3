from __future__ import annotations

import flax.nnx as flax_nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import treadle as nnx
from tests.nn.peers import assert_close, assert_same_call, assert_same_gradients, make, normal


def qkv(*batch: int, queries: int = 3, keys: int = 5, heads: int = 2, kv_heads: int = 2):
    return (
        normal(*batch, queries, heads, 4, seed=1),
        normal(*batch, keys, kv_heads, 4, seed=2),
        normal(*batch, keys, kv_heads, 6, seed=3),
    )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bias": normal(2, 3, 5)},
        {"mask": jnp.asarray(np.random.default_rng(0).integers(0, 2, (7, 1, 3, 5)), bool)},
        {"dtype": jnp.bfloat16},
        {"is_causal": True},
        {"dropout_rate": 0.5, "dropout_rng": jax.random.key(0)},
        {"dropout_rate": 0.5, "dropout_rng": jax.random.key(0), "broadcast_dropout": False},
        {"dropout_rate": 0.5, "deterministic": True},
    ],
)
def test_attention_computes_what_flax_does(options):
    # flax hands some cases to another implementation, unless a module asks for the weights.
    sink = flax_nnx.Module()
    keys = 3 if "is_causal" in options else 5
    q, k, v = qkv(7, keys=keys)
    said_to_flax = dict(options)
    if said_to_flax.pop("is_causal", False):
        # The oldest flax that is tested with knows only the mask.
        said_to_flax["mask"] = jnp.tril(jnp.ones((3, keys), bool))
    theirs = flax_nnx.dot_product_attention(q, k, v, module=sink, **said_to_flax)
    assert_close(nnx.dot_product_attention(q, k, v, **options), theirs)


def test_attention_agrees_with_jax():
    q, k, v = qkv(2)
    v = v[..., :4]
    assert_close(nnx.dot_product_attention(q, k, v), jax.nn.dot_product_attention(q, k, v))


def test_grouped_queries_share_keys_and_values():
    q, k, v = qkv(2, heads=4, kv_heads=2)
    repeated = nnx.dot_product_attention(q, jnp.repeat(k, 2, -2), jnp.repeat(v, 2, -2))
    assert_close(nnx.dot_product_attention(q, k, v), repeated)


def test_masked_keys_have_no_weight_and_a_causal_query_sees_no_future():
    q, k, _ = qkv(queries=4, keys=4)
    weights = nnx.dot_product_attention_weights(q, k, is_causal=True)
    np.testing.assert_allclose(weights.sum(-1), np.ones((2, 4)), rtol=1e-6)
    assert (np.triu(np.ones((4, 4)), 1) * weights == 0).all()
    both = nnx.dot_product_attention_weights(
        q, k, mask=jnp.array([False, True, True, True]), is_causal=True
    )
    assert (both[:, 1:, 0] == 0).all()


def test_attention_explains_shapes_that_do_not_match():
    q, k, v = qkv(2)
    with pytest.raises(ValueError, match="attention expects query"):
        nnx.dot_product_attention(q, k[..., :3], v)
    with pytest.raises(ValueError, match="attention expects query"):
        nnx.dot_product_attention(q, k, v[:, :2])
    with pytest.raises(ValueError, match="dropout_rng"):
        nnx.dot_product_attention(q, k, v, dropout_rate=0.5)


def test_masks_are_those_of_flax():
    real = jnp.array([[1, 1, 0], [1, 0, 0]])
    for options in ({}, {"extra_batch_dims": 2}, {"dtype": bool}):
        assert_close(
            nnx.make_attention_mask(real, real[:, :2], **options),
            flax_nnx.make_attention_mask(real, real[:, :2], **options),
        )
        assert_close(
            nnx.make_causal_mask(real, **options), flax_nnx.make_causal_mask(real, **options)
        )
    a, b = nnx.make_attention_mask(real, real), nnx.make_causal_mask(real)
    assert_close(nnx.combine_masks(a, None, b), flax_nnx.combine_masks(a, None, b))
    assert nnx.combine_masks(None, None) is None
    with pytest.raises(ValueError, match="one rank"):
        nnx.combine_masks(a, a[0])


LAYERS = [
    {},
    {"qkv_features": 4, "out_features": 3},
    {"use_bias": False},
    {"normalize_qk": True},
    {"in_kv_features": 5},
    {"dtype": jnp.bfloat16},
]


@pytest.mark.parametrize("options", LAYERS)
def test_multi_head_attention_computes_what_flax_does(options):
    ours, theirs = make("MultiHeadAttention", 2, 8, decode=False, **options)
    x = normal(3, 5, 8)
    other = normal(3, 6, options.get("in_kv_features", 8), seed=4)
    mask = nnx.make_attention_mask(jnp.ones((3, 5)), jnp.arange(6)[None].repeat(3, 0) < 4)
    assert_same_call(ours, theirs, x, other, mask=mask)
    if "in_kv_features" not in options:
        assert_same_call(ours, theirs, x)
        if options.get("normalize_qk"):
            assert_same_gradients(ours, theirs, lambda m: m(x))


def test_multi_head_attention_with_grouped_queries_has_smaller_keys():
    layer = nnx.MultiHeadAttention(4, 8, num_kv_heads=2, rngs=nnx.Rngs(0))
    assert layer.key.kernel.value.shape == (8, 2, 2)
    assert layer(normal(3, 5, 8)).shape == (3, 5, 8)


def test_decoding_one_position_a_call_gives_what_causal_attention_gives_at_once():
    layer = nnx.MultiHeadAttention(2, 8, normalize_qk=True, rngs=nnx.Rngs(0))
    x = normal(3, 5, 8)
    at_once = layer(x, is_causal=True)
    layer.init_cache(x.shape)
    steps = [layer(x[:, i : i + 1], decode=True) for i in range(5)]
    assert_close(jnp.concatenate(steps, 1), at_once)
    assert int(layer.cache_index.value) == 5
    with pytest.raises(ValueError, match="cache of 5 positions is full"):
        layer(x[:, :1], decode=True)
    layer.init_cache(x.shape)
    assert_close(layer(x[:, :1], decode=True), steps[0])


def test_decoding_computes_what_flax_does():
    ours, theirs = make("MultiHeadAttention", 2, 8, decode=True)
    x = normal(3, 4, 8)
    ours.init_cache(x.shape)
    theirs.init_cache(x.shape)
    for i in range(4):
        assert_same_call(ours, theirs, x[:, i : i + 1])
    assert_close(ours.cached_key.value, theirs.cached_key[...])
    assert_close(ours.cached_value.value, theirs.cached_value[...])


def test_decoding_explains_what_it_misses():
    layer = nnx.MultiHeadAttention(2, 8, decode=True, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="init_cache"):
        layer(normal(3, 1, 8))
    layer.init_cache((3, 5, 8))
    with pytest.raises(ValueError, match="one position at a time"):
        layer(normal(3, 2, 8))
    with pytest.raises(ValueError, match="one position at a time"):
        layer(normal(2, 1, 8))


def test_the_cache_is_a_cache_and_the_parameters_are_params():
    layer = nnx.MultiHeadAttention(2, 8, rngs=nnx.Rngs(0))
    layer.init_cache((1, 5, 8), jnp.bfloat16)
    assert set(nnx.state(layer, nnx.Cache)) == {"cached_key", "cached_value", "cache_index"}
    assert layer.cached_key.value.dtype == jnp.bfloat16
    assert len(nnx.state(layer, nnx.Param).flat_state()) == 8


def test_sown_weights_can_be_popped():
    layer = nnx.MultiHeadAttention(2, 8, rngs=nnx.Rngs(0))
    layer(normal(3, 5, 8), sow_weights=True)
    (weights,) = layer.pop(nnx.Intermediate)["attention_weights"].value
    np.testing.assert_allclose(weights.sum(-1), np.ones((3, 2, 5)), rtol=1e-5)


def test_attention_dropout_follows_train_and_eval():
    rngs = nnx.Rngs(0, dropout=1)
    layer = nnx.MultiHeadAttention(2, 8, dropout_rate=0.5, rngs=rngs)
    x = normal(3, 5, 8)
    with pytest.raises(ValueError, match="`deterministic`"):
        layer(x)
    layer.train()
    assert not jnp.allclose(layer(x), layer(x))
    assert int(rngs.dropout.count.value) == 2
    layer.eval()
    assert_close(layer(x), layer(x))
    assert int(rngs.dropout.count.value) == 2


def test_the_attention_function_can_be_replaced():
    seen = {}

    def attention(query, key, value, **options):
        seen.update(options)
        return jnp.zeros_like(query)

    layer = nnx.MultiHeadAttention(2, 8, attention_fn=attention, rngs=nnx.Rngs(0))
    assert (layer(normal(3, 5, 8)) == 0).all()
    assert "is_causal" not in seen
    layer(normal(3, 5, 8), is_causal=True)
    assert seen["is_causal"] is True


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 3}, "does not divide qkv_features=8"),
        ({"num_heads": 4, "num_kv_heads": 3}, "num_kv_heads=3"),
    ],
)
def test_heads_must_divide(options, message):
    with pytest.raises(ValueError, match=message):
        nnx.MultiHeadAttention(in_features=8, rngs=nnx.Rngs(0), **options)


def test_values_need_keys():
    layer = nnx.MultiHeadAttention(2, 8, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="without inputs_k"):
        layer(normal(3, 5, 8), inputs_v=normal(3, 5, 8))
