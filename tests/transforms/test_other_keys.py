"""Streams that are split, broadcast, forked or seeded anew, beside flax's."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx as flax_nnx

import treadle as nnx


def numbers(key):
    value = getattr(key, "value", key)
    return np.asarray(jax.random.key_data(value)).tolist()


def streams(lib, rngs):
    return {name: (numbers(s.key), np.asarray(s.count.value).tolist()) for name, s in rngs.items()}


def made(lib):
    return lib.Rngs(params=1, dropout=2, noise=3)


NEW = {
    "split": lambda lib, r: r.split(5),
    "split, a shape": lambda lib, r: r.split((2, 3)),
    "split, by filter": lambda lib, r: r.split({"params": 5, ...: (2, 5)}),
    "broadcast": lambda lib, r: r.broadcast(4),
    "broadcast, by filter": lambda lib, r: r.broadcast({"noise": (2, 2), ...: 3}),
    "fork, by filter": lambda lib, r: r.fork(split={"dropout": 3}),
}


@pytest.mark.parametrize("name", NEW)
def test_new_streams_have_flaxs_keys(name):
    ours, theirs = made(nnx), made(flax_nnx)
    new, expected = NEW[name](nnx, ours), NEW[name](flax_nnx, theirs)
    assert {n: s.key.value.shape for n, s in new.items()} == {
        n: s.key.value.shape for n, s in expected.items()
    }
    assert {n: k for n, (k, _) in streams(nnx, new).items()} == {
        n: k for n, (k, _) in streams(flax_nnx, expected).items()
    }
    assert streams(nnx, ours) == streams(flax_nnx, theirs)


def test_streams_that_get_none_are_shared():
    rngs = made(nnx)
    split = rngs.split({"params": 5, ...: None})
    assert split.dropout is rngs.dropout
    assert split.params.key.value.shape == (5,)


def test_a_split_stream_cannot_be_split_again():
    with pytest.raises(ValueError, match="array of keys"):
        nnx.RngStream("noise", 0).split(2).split(3)


def model(lib):
    return lib.Dict(a=lib.Dict(rngs=made(lib)), b=lib.Rngs(dropout=9))


def test_reseed_as_in_flax():
    ours, theirs = model(nnx), model(flax_nnx)
    for lib, m in ((nnx, ours), (flax_nnx, theirs)):
        m["a"].rngs.dropout()
        lib.reseed(m, dropout=42, params=jax.random.key(7))
    assert streams(nnx, ours["a"].rngs) == streams(flax_nnx, theirs["a"].rngs)
    assert streams(nnx, ours["b"]) == streams(flax_nnx, theirs["b"])


@pytest.mark.parametrize(
    "policy", ["match_shape", lambda path, key, shape: jax.random.split(key, shape)]
)
def test_reseed_of_arrays_of_keys(policy):
    ours, theirs = made(nnx).split(3), made(flax_nnx).split(3)
    for lib, m in ((nnx, ours), (flax_nnx, theirs)):
        lib.reseed(m, dropout=42, policy=policy)
    assert streams(nnx, ours) == streams(flax_nnx, theirs)


def test_reseed_changes_nothing_where_something_is_wrong():
    rngs = nnx.Rngs({"noise": 1} | dict(made(nnx).split({"dropout": 3, ...: None}).items()))
    before = streams(nnx, rngs)
    for match, arguments in {
        r"node\.dropout is a stream of keys of shape \(3,\)": {"params": 1, "dropout": 2},
        "no stream is named 'other'": {"params": 1, "other": 2},
        "policy is": {"params": 1, "policy": "some"},
    }.items():
        with pytest.raises(ValueError, match=match):
            nnx.reseed(rngs, **arguments)
    assert streams(nnx, rngs) == before


def test_fork_rngs_and_restore():
    rngs = made(nnx)
    backups = nnx.fork_rngs(rngs, split={"params": 3, "dropout": None})
    assert rngs.params.key.value.shape == (3,)
    assert rngs.dropout.key.value.shape == ()
    assert numbers(rngs.noise.key) == numbers(made(nnx).noise.key)
    rngs.dropout()
    nnx.restore_rngs(backups)
    expected = made(nnx)
    expected.params(), expected.dropout()
    assert streams(nnx, rngs) == streams(nnx, expected)


def test_fork_rngs_for_the_time_of_a_call():
    @nnx.fork_rngs(split=2)
    def draw(rngs, *, scale):
        return jax.vmap(lambda key: jax.random.normal(key))(rngs()) * scale

    rngs = nnx.Rngs(0)
    first = draw(rngs, scale=1.0)
    assert first.shape == (2,)
    assert int(rngs.default.count.value) == 1
    assert not jnp.array_equal(first, draw(rngs, scale=1.0))


def test_a_call_that_raises_leaves_the_streams_as_they_were():
    @nnx.fork_rngs()
    def fails(rngs):
        rngs()
        raise RuntimeError("no")

    rngs = nnx.Rngs(0)
    with pytest.raises(RuntimeError):
        fails(rngs)
    assert streams(nnx, rngs) == streams(nnx, nnx.Rngs(0))


def test_forked_in_a_jitted_function():
    @nnx.jit
    def step(rngs):
        with nnx.fork_rngs(rngs):
            drawn = rngs.normal((2,))
        return drawn, rngs.normal((2,))

    rngs, eager = nnx.Rngs(0), nnx.Rngs(0)
    with nnx.fork_rngs(eager):
        expected = eager.normal((2,))
    drawn, after = step(rngs)
    np.testing.assert_array_equal(drawn, expected)
    np.testing.assert_array_equal(after, eager.normal((2,)))
    assert streams(nnx, rngs) == streams(nnx, eager)
