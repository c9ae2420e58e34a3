from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

import treadle as nnx


@pytest.mark.parametrize("name", nnx.activations.__all__)
def test_activations_are_those_of_jax(name):
    ours = getattr(nnx, name)
    assert ours is getattr(jax.nn, name, None) or ours is getattr(jnp, name)


@pytest.mark.parametrize(
    "name", [n for n in nnx.initializers.__all__ if n not in ("zeros_init", "ones_init")]
)
def test_initializers_are_those_of_jax(name):
    assert getattr(nnx.initializers, name) is getattr(jax.nn.initializers, name)


def test_promotion_follows_jax_unless_told():
    a, b, none = nnx.promote_dtype((jnp.ones(2, jnp.bfloat16), jnp.ones(2), None))
    assert (a.dtype, b.dtype, none) == (jnp.float32, jnp.float32, None)
    (a,) = nnx.promote_dtype((jnp.ones(2, jnp.int32),))
    assert a.dtype == jnp.float32
    (a,) = nnx.promote_dtype((jnp.ones(2, jnp.int32),), inexact=False)
    assert a.dtype == jnp.int32
    with pytest.raises(ValueError, match="int32 cannot hold"):
        nnx.promote_dtype((a,), dtype=jnp.int32)
