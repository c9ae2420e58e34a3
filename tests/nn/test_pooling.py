from __future__ import annotations

import flax.nnx as flax_nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import treadle as nnx
from tests.nn.peers import assert_close, normal


@pytest.mark.parametrize("name", ["max_pool", "min_pool", "avg_pool"])
@pytest.mark.parametrize(
    ("window", "strides", "padding"),
    [((2, 2), (2, 2), "VALID"), ((3, 2), None, "SAME"), ((2, 3), (1, 2), ((1, 0), (1, 1)))],
)
@pytest.mark.parametrize("shape", [(2, 7, 8, 3), (7, 8, 3), (2, 2, 7, 8, 3)])
def test_pooling_computes_what_flax_does(name, window, strides, padding, shape):
    x = normal(*shape)
    ours = getattr(nnx, name)(x, window, strides, padding)
    # flax takes one batch axis at most where the padding is given in numbers.
    one_batch = x.reshape(-1, *shape[-3:])
    theirs = getattr(flax_nnx, name)(one_batch, window, strides, padding)
    assert_close(ours, theirs.reshape(*shape[:-3], *theirs.shape[1:]))


@pytest.mark.parametrize("name", ["max_pool", "min_pool", "avg_pool"])
def test_pooling_has_gradients(name):
    x = normal(1, 4, 4, 1)

    def loss(pool):
        return lambda x: (pool(x, (2, 2), (2, 2)) ** 2).sum()

    ours = jax.grad(loss(getattr(nnx, name)))(x)
    assert_close(ours, jax.grad(loss(getattr(flax_nnx, name)))(x))


def test_avg_pool_can_leave_the_padding_out_of_the_count():
    x = normal(2, 7, 8, 3)
    assert_close(
        nnx.avg_pool(x, (3, 2), None, "SAME", count_include_pad=False),
        flax_nnx.avg_pool(x, (3, 2), None, "SAME", count_include_pad=False),
    )


def test_pooling_of_integers_and_half_precision_keeps_the_dtype():
    x = jnp.arange(6, dtype=jnp.int8).reshape(6, 1)
    np.testing.assert_array_equal(nnx.max_pool(x, (2,), padding="SAME").ravel(), [1, 2, 3, 4, 5, 5])
    np.testing.assert_array_equal(nnx.min_pool(x, (2,), padding="SAME").ravel(), [0, 1, 2, 3, 4, 5])
    assert nnx.max_pool(x, (2,)).dtype == jnp.int8
    assert nnx.avg_pool(x.astype(jnp.bfloat16), (2,)).dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (((2, 2),), "rank 3 or more"),
        (((2,), (1, 1)), "strides"),
        (((2,), None, "FULL"), "'FULL'"),
        (((2,), None, ((0, 0), (0, 0))), "has 2 pairs"),
    ],
)
def test_pooling_explains_wrong_sizes(args, message):
    with pytest.raises(ValueError, match=message):
        nnx.max_pool(jnp.ones((4, 1)), *args)
