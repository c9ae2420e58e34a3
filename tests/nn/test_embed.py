from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

import treadle as nnx
from tests.nn.peers import assert_close, assert_same_call, make, normal


@pytest.mark.parametrize("options", [{}, {"dtype": jnp.bfloat16}, {"param_dtype": jnp.float16}])
@pytest.mark.parametrize("count", [1, 5])
def test_embed_computes_what_flax_does(options, count):
    ours, theirs = make("Embed", count, 3, **options)
    assert_same_call(ours, theirs, jnp.array([[0, count - 1], [0, 0]]))
    assert_close(ours.attend(normal(2, 3)), theirs.attend(normal(2, 3)))


def test_embed_gives_nan_outside_the_table():
    layer = nnx.Embed(3, 2, rngs=nnx.Rngs(0))
    assert np.isnan(layer(jnp.array([3]))).all()


def test_the_only_row_is_for_every_number():
    ours, theirs = make("Embed", 1, 3)
    for ids in (jnp.array([[0, 1], [-5, 7]]), jnp.array([2])):
        assert_same_call(ours, theirs, ids)
    np.testing.assert_array_equal(ours(jnp.array(3)), ours.embedding.value[0])
    ours.embedding.value = normal(2, 3)
    np.testing.assert_array_equal(ours(jnp.array([1])), normal(2, 3)[1:])


def test_attend_names_the_length_it_expects():
    layer = nnx.Embed(3, 2, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"\(\.\.\., 2\), got \(4, 3\)"):
        layer.attend(normal(4, 3))


def test_embed_refuses_floats():
    layer = nnx.Embed(3, 2, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="looks up integers, got float32"):
        layer(jnp.ones(2))
