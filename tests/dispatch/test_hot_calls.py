"""A hot call on a model of 600 leaves runs none of our Python and leaves nothing for the garbage collector.

None of this is a timing: each test counts what a hot call must not do, and compares it with hand-written code
over the same leaves.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src import test_util

import treadle as nnx
from tests.dispatch.models import (
    LEAVES,
    Tower,
    frames_of,
    peak_of_tracked_objects,
    touch,
    touched_tower,
    train,
    training,
)

X = jnp.ones(2)


@pytest.fixture(scope="module")
def hot_train() -> Callable[[], Any]:
    """A training step of 602 leaves that has reached the hot path."""
    model, optimizer = training()
    x = jnp.ones((3, 2))
    step = nnx.jit(train)

    def call() -> Any:
        return step(model, optimizer, x)

    for _ in range(3):
        call()
    call.step = step  # type: ignore[attr-defined]
    return call


@pytest.fixture(scope="module")
def hot_touch() -> Callable[[], Any]:
    """A call that changes each of 600 leaves."""
    model = touched_tower()
    step = nnx.jit(touch)

    def call() -> Any:
        return step(model, X)

    for _ in range(3):
        call()
    call.step = step  # type: ignore[attr-defined]
    return call


@pytest.fixture(scope="module")
def hand_touch() -> Callable[[], Any]:
    """The same by hand."""
    leaves = tuple(jax.tree.leaves(nnx.state(touched_tower())))
    step = jax.jit(lambda leaves, x: (tuple(-leaf for leaf in leaves), x + 1))

    def call() -> Any:
        nonlocal leaves
        leaves, result = step(leaves, X)
        return result

    for _ in range(3):
        call()
    return call


def test_a_hot_training_step_enters_no_python_function(hot_train: Callable[[], Any]) -> None:
    before = hot_train.step._counts["hot"]
    assert [name for name in frames_of(hot_train) if not name.endswith(":call")] == []
    assert hot_train.step._counts["hot"] == before + 1


def test_jax_counts_no_cache_miss_in_a_hot_step(hot_train: Callable[[], Any]) -> None:
    # Off JAX's C++ path each call would count here, and cost ten times as much.
    with (
        test_util.count_pjit_cpp_cache_miss() as misses,
        test_util.count_jit_tracing_cache_miss() as traces,
    ):
        for _ in range(3):
            hot_train()
    assert (misses(), traces()) == (0, 0)


def test_the_count_of_cache_misses_does_notice_one() -> None:
    step = nnx.jit(lambda x: x - 3)
    with test_util.count_pjit_cpp_cache_miss() as misses:
        step(jnp.ones(7))
    assert misses() > 0


def test_a_hot_call_holds_no_more_tracked_objects_than_hand_written(
    hot_touch: Callable[[], Any], hand_touch: Callable[[], Any]
) -> None:
    assert peak_of_tracked_objects(hot_touch) <= peak_of_tracked_objects(hand_touch)


def test_a_hot_call_that_changes_nothing_allocates_as_little_as_with_one_leaf() -> None:
    model = touched_tower()
    step = nnx.jit(lambda m, x: sum(b.bias.value for b in m.blocks) + x)
    small = Tower(1)
    for _ in range(3):
        step(model, X), step(small, X)
    large_peak = peak_of_tracked_objects(lambda: step(model, X))
    assert large_peak <= peak_of_tracked_objects(lambda: step(small, X))


def test_hot_calls_keep_no_memory(hot_touch: Callable[[], Any]) -> None:
    hot_touch()
    before = sys.getallocatedblocks()
    for _ in range(50):
        hot_touch()
    # A block kept by each call, let alone by each leaf of each, would be 50 of them.
    assert sys.getallocatedblocks() - before < 50


def test_only_changed_leaves_are_returned() -> None:
    model, _ = training(depth=5)

    @nnx.jit
    def step(model: Tower, x: jax.Array) -> jax.Array:
        model.blocks[2].bias.value = x
        model.blocks[3].bias.value = model.blocks[3].bias.value
        return model(x)

    for _ in range(2):
        _, report = step._timed((model, X), {})
    assert (report["call_class"], report["leaves_in"], report["leaves_out"]) == ("hot", 21, 2)


def test_a_training_step_returns_the_leaves_that_adam_changes(hot_train: Callable[[], Any]) -> None:
    model, optimizer = training(depth=2)
    step = nnx.jit(train)
    arguments = (model, optimizer, jnp.ones((3, 2)))
    step(*arguments)
    _, report = step._timed(arguments, {})
    # Parameters, two moments and two counts; and the loss.
    assert (report["leaves_in"], report["leaves_out"]) == (2 * 12 + 2 + 1, 2 * 12 + 2 + 1)
    assert LEAVES == 50 * 12 + 2


# -- everything stays hot ------------------------------------------------------------------------------


class Counter(nnx.Module):
    def __init__(self) -> None:
        self.count = nnx.Variable(jnp.zeros(()))
        self.rngs = nnx.Rngs(0, noise=1)

    @nnx.jit
    def method(self, by: Any) -> Any:
        self.count.value += by
        return self.count.value

    @nnx.jit(static_argnums=1, static_argnames="mode")
    def static(self, times: int, *, mode: str) -> Any:
        self.count.value += times if mode == "up" else -times
        return self.count.value

    @nnx.jit
    def keywords(self, *, by: Any, other: Any) -> Any:
        return self.count.value + by + other["a"][0] - other["b"]

    @nnx.jit
    def random(self) -> Any:
        return jax.random.normal(self.rngs.noise(), ()) + jax.random.normal(self.rngs.other(), ())

    @nnx.jit(donate_state=True)
    def donating(self) -> Any:
        self.count.value += 1


def calls() -> Iterator[tuple[str, Any]]:
    yield "a method", lambda c: c.method(X)
    yield "a numpy input", lambda c: c.method(np.float32(2))
    yield "a numpy array", lambda c: c.method(np.ones(2, np.float32))
    yield "a Python scalar", lambda c: c.method(2.0)
    yield "static arguments", lambda c: c.static(3, mode="up")
    yield (
        "keywords and plain pytrees",
        lambda c: c.keywords(by=X, other={"b": X, "a": [X, (X, None)]}),
    )
    yield "keywords in another order", lambda c: c.keywords(other={"a": (X,), "b": 1.0}, by=1)
    yield "random streams", lambda c: c.random()
    yield "donated state", lambda c: c.donating()


@pytest.mark.parametrize("call", list(dict(calls()).values()), ids=dict(calls()))
def test_stays_hot(call: Callable[[Counter], Any]) -> None:
    counter = Counter()
    jitted = [getattr(Counter, n) for n in ("method", "static", "keywords", "random", "donating")]
    # The first call settles dtypes and weak types of what it writes back.
    for _ in range(3):
        call(counter)
    before = [step._counts for step in jitted]
    traces = [step.num_traces for step in jitted]
    for _ in range(3):
        call(counter)
    after = [step._counts for step in jitted]
    gained = {
        kind: sum(b[kind] - a[kind] for a, b in zip(before, after, strict=True))
        for kind in ("hot", "warm", "cold")
    }
    assert gained == {"hot": 3, "warm": 0, "cold": 0}
    assert [step.num_traces for step in jitted] == traces


def test_a_method_with_random_streams_enters_no_python_function_but_jaxs_own() -> None:
    counter = Counter()
    for _ in range(3):
        counter.random()
    key = counter.rngs.noise.key.value
    by_hand = jax.jit(lambda key, other: jax.random.normal(key) + jax.random.normal(other))
    for _ in range(3):
        by_hand(key, key)
    # JAX takes typed keys apart in Python.
    assert frames_of(counter.random) == frames_of(functools.partial(by_hand, key, key))


def test_statics_of_another_model_that_fail_to_hash_concern_nobody_else() -> None:
    class Config:
        def __init__(self) -> None:
            self.closed = False

        def __eq__(self, other: object) -> bool:
            return type(other) is Config

        def __hash__(self) -> int:
            if self.closed:
                raise ValueError("closed")
            return 1

    plain, configured = nnx.Dict(w=nnx.Param(jnp.ones(()))), nnx.Dict(w=nnx.Param(jnp.ones(())))
    configured.config = Config()
    double = nnx.jit(lambda model: model.w.value * 2)
    double(plain), double(configured)
    configured.config.closed = True
    assert float(double(plain)) == 2
    assert double._counts["hot"] == 1
    with pytest.raises(ValueError, match="closed"):
        double(configured)
    configured.config.closed = False
    assert float(double(configured)) == 2
