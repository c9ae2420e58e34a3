from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import treadle as nnx
from tests.nn.peers import assert_close, make, normal


@pytest.mark.parametrize("options", [{}, {"broadcast_dims": (1,)}, {"broadcast_dims": (0, -1)}])
def test_dropout_with_one_key_drops_what_flax_drops(options):
    ours, theirs = make("Dropout", 0.3, **options)
    x, key = normal(6, 3, 8), jax.random.key(1)
    assert_close(ours(x, rngs=key), theirs(x, rngs=key))


def test_dropout_keeps_the_mean_and_drops_the_rate():
    layer = nnx.Dropout(0.25, rngs=nnx.Rngs(0))
    y = layer(jnp.ones(10_000))
    assert abs(float((y == 0).mean()) - 0.25) < 0.02
    np.testing.assert_allclose(np.unique(y), [0, 1 / 0.75], rtol=1e-6)


def test_dropout_draws_anew_at_each_call_from_its_stream():
    rngs = nnx.Rngs(0, dropout=1)
    layer = nnx.Dropout(0.5, rngs=rngs)
    x = jnp.ones(100)
    assert not (layer(x) == layer(x)).all()
    assert int(rngs.dropout.count.value) == 2
    assert int(rngs.default.count.value) == 0


def test_dropout_draws_from_the_stream_it_is_told():
    rngs = nnx.Rngs(0, noise=1)
    nnx.Dropout(0.5, rng_collection="noise", rngs=rngs)(jnp.ones(4))
    assert int(rngs.noise.count.value) == 1


def test_dropout_takes_a_stream_and_the_call_goes_first():
    stream, other = nnx.RngStream("dropout", 0), nnx.RngStream("dropout", 1)
    layer = nnx.Dropout(0.5, rngs=stream)
    layer(jnp.ones(4))
    layer(jnp.ones(4), rngs=other)
    assert (int(stream.count.value), int(other.count.value)) == (1, 1)


def test_dropouts_given_one_rngs_share_it():
    rngs = nnx.Rngs(0)
    model = nnx.List([nnx.Dropout(0.5, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)])
    model[0](jnp.ones(3))
    model[1](jnp.ones(3))
    assert int(rngs.default.count.value) == 2
    assert len(nnx.state(model).flat_state()) == 2


def test_dropout_is_switched_by_train_and_eval_and_the_call_goes_first():
    layer = nnx.Dropout(0.5, deterministic=None, rngs=nnx.Rngs(0))
    x = jnp.ones(100)
    with pytest.raises(ValueError, match="`deterministic`"):
        layer(x)
    layer.eval()
    assert layer(x) is x
    assert (layer(x, deterministic=False) == 0).any()
    layer.train()
    assert (layer(x) == 0).any()


def test_dropout_at_the_ends_of_its_range_draws_nothing():
    rngs = nnx.Rngs(0)
    x = normal(5)
    assert nnx.Dropout(0.0, rngs=rngs)(x) is x
    assert (nnx.Dropout(1.0, rngs=rngs)(x) == 0).all()
    assert int(rngs.default.count.value) == 0


def test_dropout_explains_what_it_misses():
    with pytest.raises(ValueError, match=r"needs random numbers.*model\.eval\(\)"):
        nnx.Dropout(0.5)(jnp.ones(3))
    with pytest.raises(ValueError, match="between 0 and 1"):
        nnx.Dropout(1.5)
