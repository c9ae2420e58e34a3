"""Rngs and RngStream: which keys they give, and what they refuse."""

from __future__ import annotations

import copy
import inspect
import pickle
from typing import Any

import flax.nnx as flax_nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import treadle as nnx
from treadle._modules.draws import RandomSource


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


def keys_of(made: Any) -> tuple[Any, Any]:
    keys = jax.random.split(jax.random.key(0), 6)
    return keys.reshape(made), nnx.Rngs(0, params=keys.reshape(made))


@pytest.mark.parametrize("shape", [(6,), (2, 3)])
def test_an_array_of_keys_is_as_many_streams(shape: tuple[int, ...]) -> None:
    keys, rngs = keys_of(shape)
    assert rngs.params.key.shape == rngs.params.count.shape == shape
    for count in range(2):
        drawn = rngs.params()
        assert drawn.shape == shape
        expected = [jax.random.fold_in(key, count) for key in keys.ravel()]
        assert same(drawn.ravel(), jnp.stack(expected))
    assert (rngs.params.count.value == 2).all()
    forked = rngs.fork()
    assert (forked.params.key.shape, forked.default.key.shape) == (shape, ())
    with pytest.raises(ValueError, match=r"stream 'params' is an array of keys"):
        rngs.fork(split=2)
    assert (rngs.params.count.value == 3).all()


def test_a_count_for_all_keys_together_stays_one() -> None:
    keys, _ = keys_of((6,))
    stream = nnx.RngStream("params", keys)
    stream.count.value = jnp.uint32(4)
    assert same(stream()[3], jax.random.fold_in(keys[3], 4))
    assert stream.count.shape == ()
    assert nnx.RngStream("params", keys, 4).count.value.tolist() == [4] * 6
    legacy = nnx.Rngs(params=jax.random.key_data(keys))
    assert legacy.params.count.shape == (6,)


@pytest.mark.parametrize(
    "axes", [0, nnx.StateAxes({"params": 0, ...: None}), nnx.StateAxes({nnx.RngState: 0})]
)
def test_an_array_of_keys_is_mapped_with_its_counts(axes: Any) -> None:
    keys, _ = keys_of((6,))
    rngs = nnx.Rngs(params=keys)

    def draw(rngs: Any) -> Any:
        rngs.params()
        return jax.random.key_data(rngs.params())

    expected = [jax.random.key_data(jax.random.fold_in(key, 1)) for key in keys]
    np.testing.assert_array_equal(nnx.vmap(draw, in_axes=(axes,))(rngs), expected)
    assert rngs.params.count.value.tolist() == [2] * 6


ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "ball": (3,),
    "beta": (1.0, 2.0),
    "binomial": (5, 0.5),
    "categorical": (jnp.zeros(3),),
    "chisquare": (3.0,),
    "choice": (10, (2,)),
    "dirichlet": (jnp.ones(3),),
    "f": (3.0, 4.0),
    "gamma": (2.0,),
    "generalized_normal": (2.0,),
    "geometric": (0.5,),
    "loggamma": (2.0,),
    "double_sided_maxwell": (0.0, 1.0),
    "multinomial": (jnp.array(5.0), jnp.full(2, 0.5)),
    "multivariate_normal": (jnp.zeros(2), jnp.eye(2)),
    "orthogonal": (3,),
    "pareto": (2.0,),
    "permutation": (5,),
    "poisson": (2.0,),
    "randint": ((3,), 0, 9),
    "rayleigh": (1.0,),
    "t": (3.0,),
    "triangular": (0.0, 0.5, 1.0),
    "truncated_normal": (-1.0, 1.0),
    "wald": (1.0,),
    "weibull_min": (1.0, 2.0),
}
SAMPLERS = [
    name
    for name, f in vars(jax.random).items()
    if callable(f) and next(iter(inspect.signature(f).parameters), None) == "key"
]
SAMPLERS = [name for name in SAMPLERS if name not in ("clone", "fold_in", "split")]


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_draw_with_the_next_key(name: str) -> None:
    rngs = nnx.Rngs(0, noise=1)
    rngs()
    given = ARGUMENTS.get(name, ())
    for source, seed, count in ((rngs, 0, 1), (rngs.default, 0, 2), (rngs.noise, 1, 0)):
        key = jax.random.fold_in(jax.random.key(seed), count)
        expected = getattr(jax.random, name)(key, *given)
        np.testing.assert_array_equal(getattr(source, name)(*given), expected)


def test_samplers_and_initializers_are_those_of_flax() -> None:
    made_by_hand = {"split", "broadcast", "fork"}
    theirs = {name for name in vars(flax_nnx.RngStream) if not name.startswith("_")}
    ours = {name for name in vars(RandomSource) if not name.startswith("_")}
    assert ours >= theirs - made_by_hand
    for name in ours - set(SAMPLERS):
        options = (1.0, "fan_in", "normal") if name == "variance_scaling" else ()
        shape = (3, 3, 4, 4)
        found = getattr(nnx.Rngs(0).params, name)(*options)(shape, jnp.float32)
        initialize = getattr(jax.nn.initializers, name)(*options)
        expected = initialize(nnx.Rngs(0)(), shape, jnp.float32)
        np.testing.assert_array_equal(found, expected)


def test_a_stream_goes_before_a_sampler_of_its_name() -> None:
    rngs = nnx.Rngs(0, normal=1)
    assert same(rngs.normal(), jax.random.fold_in(jax.random.key(1), 0))
    assert same(rngs["uniform"](), jax.random.fold_in(jax.random.key(0), 0))
    layer = nnx.Dropout(0.5, rng_collection="gamma", rngs=nnx.Rngs(0))
    expected = nnx.Dropout(0.5, rngs=nnx.Rngs(0))(jnp.ones(20))
    np.testing.assert_array_equal(layer(jnp.ones(20)), expected)


def test_samplers_are_traced_like_keys() -> None:
    rngs = nnx.Rngs(0)
    expected = [nnx.Rngs(0).normal((2,)), None]
    expected[1] = jax.random.normal(jax.random.fold_in(jax.random.key(0), 1), (2,))
    draw = nnx.jit(lambda rngs: rngs.normal((2,)))
    for value in expected:
        np.testing.assert_array_equal(draw(rngs), value)
    with pytest.raises(nnx.TraceContextError):
        jax.jit(lambda: rngs.normal((2,)))()
