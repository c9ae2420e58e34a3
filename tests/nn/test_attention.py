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


def exactly(q, k, v, bias=None, mask=None):
    """Attention in float64, by numpy."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    logits = np.einsum("...qhd,...khd->...hqk", q, k) / np.sqrt(q.shape[-1])
    logits = logits if bias is None else logits + np.asarray(bias, np.float64)
    logits = logits if mask is None else np.where(mask, logits, -1e30)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("...hqk,...khd->...qhd", weights, v)


MASK = np.random.default_rng(0).integers(0, 2, (3, 5)).astype(bool)
EXTRAS = {
    "nothing": {},
    "bias": {"bias": normal(2, 3, 5)},
    "mask of all": {"mask": MASK},
    "mask of keys": {"mask": MASK[:1]},
    "mask of numbers": {"mask": MASK.astype(np.float32) * 3},
    "both": {"bias": normal(1, 5), "mask": MASK},
    "nothing seen": {"mask": np.zeros((3, 5), bool)},
}


@pytest.mark.parametrize("extra", EXTRAS)
@pytest.mark.parametrize("batch", [(), (7,), (2, 3)])
@pytest.mark.parametrize("depth", [4, 6])
def test_attention_for_any_batch_and_what_is_added(extra, batch, depth):
    q, k, v = qkv(*batch)
    v = v[..., :depth]
    np.testing.assert_allclose(
        nnx.dot_product_attention(q, k, v, **EXTRAS[extra]),
        exactly(q, k, v, **EXTRAS[extra]),
        rtol=2e-5,
        atol=2e-5,
    )


def test_a_mask_for_each_example_and_one_that_adds_examples():
    mask = np.random.default_rng(1).integers(0, 2, (2, 1, 1, 3, 5)).astype(bool)
    for batch in ((2, 3), (2, 1)):
        q, k, v = qkv(*batch)
        out = nnx.dot_product_attention(q, k, v, mask=mask)
        np.testing.assert_allclose(out, exactly(q, k, v, mask=mask), rtol=2e-5, atol=2e-5)
    q, k, v = qkv(1)
    out = nnx.dot_product_attention(q, k, v, mask=mask[:, 0])
    assert out.shape == (2, 3, 2, 6)
    np.testing.assert_allclose(out, exactly(q, k, v, mask=mask[:, 0]), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("how", ["plain", "causal", "values of another depth", "sown"])
def test_half_precision_is_as_exact_as_jax(dtype, how):
    q, k, v = (x.astype(dtype) for x in qkv(4, queries=64, keys=64, heads=4, kv_heads=2))
    q, k, v = (jnp.concatenate([x] * 8, -1) * 2 for x in (q, k, v[..., :4]))
    options = {"is_causal": True} if how == "causal" else {}
    by_jax = jax.nn.dot_product_attention(q, k, v, **options)
    if how == "values of another depth":
        v, by_jax = v[..., :7], by_jax[..., :7]
    if how == "sown":
        options["module"] = nnx.Module()
    ours = nnx.dot_product_attention(q, k, v, **options)
    assert ours.dtype == dtype
    mask = np.tril(np.ones((64, 64), bool)) if how == "causal" else None
    exact = exactly(q, jnp.repeat(k, 2, -2), jnp.repeat(v, 2, -2), mask=mask)

    def error(x):
        return np.sqrt(np.mean((np.asarray(x, np.float64) - exact) ** 2))

    assert error(ours) <= 1.05 * error(by_jax)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_gradients_are_those_without_jax(dtype):
    q, k, v = (x.astype(dtype) for x in qkv(2))
    v = v[..., :4]

    def loss(qkv, **options):
        out = nnx.dot_product_attention(*qkv, mask=MASK, **options)
        return jnp.sum(jnp.sin(out.astype(jnp.float32)))

    found = jax.jit(jax.grad(loss))((q, k, v))
    # Asking for a precision is what jax.nn does not know.
    by_hand = jax.jit(lambda x: jax.grad(loss)(x, precision=jax.lax.Precision.HIGHEST))((q, k, v))
    for a, b in zip(found, by_hand, strict=True):
        assert_close(a, b)


def test_a_precision_is_not_ignored():
    q, k, v = qkv(2)
    text = str(
        jax.make_jaxpr(lambda *x: nnx.dot_product_attention(*x, precision="highest"))(q, k, v)
    )
    assert text.count("precision=(Precision.HIGHEST, Precision.HIGHEST)") == 2


def test_wider_dtypes_stay_as_exact_as_they_are():
    with jax.enable_x64(True):
        q, k, v = (jnp.asarray(np.asarray(x), jnp.float64) for x in qkv(2))
        out = nnx.dot_product_attention(q, k, v[..., :4])
        np.testing.assert_allclose(out, exactly(q, k, v[..., :4]), rtol=1e-12)


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
