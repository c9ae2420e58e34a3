"""Rngs and RngStream: which keys they give, and what they refuse."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import treadle as nnx


def same(a: Any, b: Any) -> bool:
    return bool(jnp.all(jax.random.key_data(a) == jax.random.key_data(b)))


def test_the_nth_key_is_folded_from_key_and_count() -> None:
    rngs = nnx.Rngs(params=7)
    for count in range(3):
        assert same(rngs.params(), jax.random.fold_in(jax.random.key(7), count))
    assert int(rngs.params.count.value) == 3
    assert rngs.params.count.value.dtype == jnp.uint32


def test_streams_are_independent() -> None:
    rngs = nnx.Rngs(0, params=0, dropout=1)
    assert same(rngs.params(), nnx.Rngs(0)())
    assert not same(rngs.dropout(), rngs.params())
    assert int(rngs.default.count.value) == 0


def test_missing_streams_draw_from_default() -> None:
    rngs = nnx.Rngs(0)
    keys = [rngs.params(), rngs.dropout(), rngs()]
    assert int(rngs.default.count.value) == 3
    assert not same(keys[0], keys[1])
    assert same(keys[2], jax.random.fold_in(jax.random.key(0), 2))


def test_without_default_a_missing_stream_is_an_error_that_lists_streams() -> None:
    rngs = nnx.Rngs(params=0, dropout=1)
    with pytest.raises(AttributeError, match=r"No RNG named 'noise'.*'params', 'dropout'"):
        rngs.noise()
    with pytest.raises(AttributeError, match="No RNG named 'default'"):
        rngs()
    with pytest.raises(AttributeError, match=r"No RNG named 'x' .*streams: none"):
        _ = nnx.Rngs().x


@pytest.mark.parametrize(
    "seed",
    [
        3,
        np.int32(3),
        np.array(3),
        jnp.array(3),
        jax.random.key(3),
        jax.random.PRNGKey(3),
        np.asarray(jax.random.PRNGKey(3)),
        nnx.Param(jax.random.key(3)),
    ],
)
def test_seeds_and_keys_of_all_kinds_give_the_same_stream(seed: Any) -> None:
    stream = nnx.Rngs(noise=seed).noise
    assert jax.dtypes.issubdtype(stream.key.value.dtype, jax.dtypes.prng_key)
    assert same(stream.key.value, jax.random.key(3))


@pytest.mark.parametrize("seed", [1.5, "3", True, np.array(1.5), np.array([1, 2]), object()])
def test_what_is_no_seed_is_refused(seed: Any) -> None:
    with pytest.raises(TypeError, match="neither a seed nor a key"):
        nnx.Rngs(noise=seed)


def test_a_mapping_names_all_streams() -> None:
    rngs = nnx.Rngs({"default": 0, "params": 1}, dropout=2)
    assert list(rngs) == ["default", "params", "dropout"]
    assert ("params" in rngs, "noise" in rngs, len(rngs)) == (True, False, 3)
    assert rngs["params"] is rngs.params
    assert [name for name, _ in rngs.items()] == list(rngs)


def test_a_stream_given_to_rngs_is_shared() -> None:
    stream = nnx.RngStream("noise", 0)
    rngs = nnx.Rngs(noise=stream)
    rngs.noise()
    assert int(stream.count.value) == 1


def test_key_and_count_carry_the_stream_name_as_tag() -> None:
    rngs = nnx.Rngs(0, dropout=1)
    assert (rngs.dropout.key.tag, rngs.dropout.count.tag) == ("dropout", "dropout")
    assert list(nnx.state(rngs, "dropout").flat_state()) == [
        ("dropout", "count"),
        ("dropout", "key"),
    ]
    assert list(nnx.state(rngs, nnx.RngKey).flat_state()) == [
        ("default", "key"),
        ("dropout", "key"),
    ]
    assert len(nnx.state(rngs, nnx.RngState).flat_state()) == 4


def test_calling_a_stream_from_another_trace_level_is_refused() -> None:
    rngs = nnx.Rngs(0)
    with pytest.raises(
        nnx.TraceContextError, match="Cannot call RngStream from a different trace level"
    ):
        jax.jit(lambda: rngs.params())()
    assert int(rngs.default.count.value) == 0


def test_streams_work_inside_a_trace_and_count_there() -> None:
    @jax.jit
    def traced(seed: jax.Array) -> tuple[jax.Array, jax.Array]:
        rngs = nnx.Rngs(seed)
        rngs()
        return rngs(), rngs.default.count.value

    key, count = traced(5)
    assert same(key, jax.random.fold_in(jax.random.key(5), 1))
    assert int(count) == 2


def test_fork_starts_new_streams_from_the_next_keys() -> None:
    rngs = nnx.Rngs(0, dropout=1)
    expected = jax.random.fold_in(jax.random.key(1), 0)
    forked = rngs.fork()
    assert same(forked.dropout.key.value, expected)
    assert (int(forked.dropout.count.value), int(rngs.dropout.count.value)) == (0, 1)
    assert forked.dropout.key.tag == "dropout"


@pytest.mark.parametrize(("split", "shape"), [(3, (3,)), ((2, 3), (2, 3))])
def test_fork_with_split_gives_arrays_of_keys(split: Any, shape: tuple[int, ...]) -> None:
    forked = nnx.Rngs(0).fork(split=split)
    first = jax.random.fold_in(jax.random.key(0), 0)
    assert forked.default.key.shape == shape
    assert forked.default.count.shape == shape
    assert same(forked.default.key.value, jax.random.split(first, split))


def test_fork_splits_by_stream_name() -> None:
    forked = nnx.Rngs(0, dropout=1).fork(split={"dropout": 4})
    assert (forked.default.key.shape, forked.dropout.key.shape) == ((), (4,))


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda r: pickle.loads(pickle.dumps(r)), nnx.clone]
)
def test_copies_go_on_alike_and_apart(duplicate: Any) -> None:
    rngs = nnx.Rngs(0, dropout=1)
    rngs.dropout()
    other = duplicate(rngs)
    assert same(rngs.dropout(), other.dropout())
    other.dropout()
    assert (int(rngs.dropout.count.value), int(other.dropout.count.value)) == (2, 3)
