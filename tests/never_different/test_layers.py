"""Layers: values checked against JAX and flax (point 16)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import treadle as nnx
from tests.open_points import cases


def test_einsum_with_an_ellipsis_and_a_bias():
    layer = nnx.Einsum("d...ab,bc...->ad...c", (4, 5, 6, 7), (6, 7, 5), rngs=nnx.Rngs(0))
    layer.bias.value = jnp.arange(210.0).reshape(6, 7, 5)
    x = jax.random.normal(jax.random.key(0), (2, 6, 7, 3, 4))
    expected = jnp.einsum("d...ab,bc...->ad...c", x, layer.kernel.value) + layer.bias.value
    np.testing.assert_allclose(layer(x), expected, rtol=1e-5, atol=1e-5)


def test_einsum_with_an_ellipsis_of_one_axis_and_a_bias():
    layer = nnx.Einsum("...a,ab->...b", (3, 4), (4,), rngs=nnx.Rngs(0))
    layer.bias.value = jnp.arange(4.0)
    x = jax.random.normal(jax.random.key(0), (2, 5, 3))
    np.testing.assert_allclose(layer(x), x @ layer.kernel.value + jnp.arange(4.0), rtol=1e-5)


def test_einsum_as_in_flax():
    flax = pytest.importorskip("flax.nnx", reason="flax has no release for this Python")
    theirs = flax.Einsum("d...ab,bc...->ad...c", (4, 5, 6, 7), (6, 7, 5), rngs=flax.Rngs(0))
    ours = nnx.Einsum("d...ab,bc...->ad...c", (4, 5, 6, 7), (6, 7, 5), rngs=nnx.Rngs(0))
    ours.kernel.value, ours.bias.value = theirs.kernel[...], theirs.bias[...] + 1
    theirs.bias[...] = theirs.bias[...] + 1
    x = jax.random.normal(jax.random.key(0), (2, 6, 7, 3, 4))
    np.testing.assert_allclose(ours(x), theirs(x), rtol=1e-5, atol=1e-5)


def exact(q, k, v):
    """Attention in float64 on NumPy."""
    q, k, v = (np.asarray(a, np.float64) for a in (q, k, v))
    logits = np.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(q.shape[-1])
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("bhqk,bkhd->bqhd", weights, v)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=["bfloat16", "float16"])
def test_attention_is_as_exact_as_that_of_jax(dtype):
    keys = jax.random.split(jax.random.key(0), 3)
    q, k, v = (jax.random.normal(key, (2, 32, 2, 16)).astype(dtype) for key in keys)
    expected = exact(q, k, v)

    def error(out):
        assert out.dtype == dtype
        return np.sqrt(np.mean((np.asarray(out, np.float64) - expected) ** 2))

    ours = error(nnx.dot_product_attention(q, k, v))
    theirs = error(jax.nn.dot_product_attention(q, k, v))
    assert ours <= theirs * 1.05


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=["bfloat16", "float16"])
def test_attention_with_a_mask_is_as_exact_too(dtype):
    keys = jax.random.split(jax.random.key(0), 3)
    q, k, v = (jax.random.normal(key, (2, 32, 2, 16)).astype(dtype) for key in keys)
    mask = nnx.make_causal_mask(jnp.ones((2, 32)))
    reference = jax.nn.dot_product_attention(
        *(a.astype(jnp.float32) for a in (q, k, v)), is_causal=True
    )

    def error(out):
        return float(jnp.sqrt(jnp.mean((out.astype(jnp.float32) - reference) ** 2)))

    ours = error(nnx.dot_product_attention(q, k, v, mask=mask.astype(bool)))
    assert ours <= error(jax.nn.dot_product_attention(q, k, v, is_causal=True)) * 1.05


def test_attention_in_float32_is_unchanged():
    keys = jax.random.split(jax.random.key(0), 3)
    q, k, v = (jax.random.normal(key, (2, 8, 2, 4)) for key in keys)
    np.testing.assert_allclose(
        nnx.dot_product_attention(q, k, v), exact(q, k, v), rtol=1e-4, atol=1e-5
    )


INDICES = {str(i): i for i in ([0, 0], [[0], [0]], [0, 1], [-1])}


@pytest.mark.parametrize("indices", cases(INDICES))
def test_embed_with_one_row_as_in_flax(indices):
    flax = pytest.importorskip("flax.nnx", reason="flax has no release for this Python")
    ours = nnx.Embed(1, 3, rngs=nnx.Rngs(0))
    theirs = flax.Embed(1, 3, rngs=flax.Rngs(0))
    theirs.embedding[...] = ours.embedding.value
    np.testing.assert_array_equal(ours(jnp.array(indices)), theirs(jnp.array(indices)))
    np.testing.assert_array_equal(
        nnx.jit(lambda m, i: m(i))(ours, jnp.array(indices)), theirs(jnp.array(indices))
    )


def test_embed_with_one_row_has_finite_values_and_gradients():
    layer = nnx.Embed(1, 3, rngs=nnx.Rngs(0))
    grads = nnx.grad(lambda m: m(jnp.zeros(4, int)).sum())(layer)
    np.testing.assert_allclose(grads["embedding"].value, np.full((1, 3), 4.0))
    assert np.isfinite(layer.embedding.value).all()
