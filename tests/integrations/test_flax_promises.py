"""What treadle promises of its own objects holds for those of flax."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import treadle

pytest.importorskip("flax.nnx", reason="flax has no release for this Python")
from flax import nnx

from tests.integrations.flax_models import add, listed

# Why a growing number of arrays says nothing about treadle: a program of jax alone shows it.
ABORTED = "jax keeps the constants of a trace that an exception ends"
HAS_DATA_NUMBERS = hasattr(nnx, "List")


class Counter(nnx.Module):
    def __init__(self) -> None:
        self.count = nnx.BatchStat(jnp.array(0.0))
        self.rate = 0.5


def value(variable: Any) -> float:
    return float(variable[...])


def test_the_callers_objects_change_and_stay_themselves() -> None:
    counter = Counter()
    variable = counter.count

    @treadle.jit
    def step(counter: Any) -> Any:
        add(counter.count, 1.0)
        counter.rate = 0.25
        return counter

    assert step(counter) is counter
    assert counter.count is variable
    assert (value(variable), counter.rate) == (1.0, 0.25)


def test_inside_are_objects_of_flax_at_the_level_of_the_trace() -> None:
    seen: list[Any] = []

    @treadle.jit
    def step(counter: Any) -> None:
        seen.extend([type(counter), type(counter.count), isinstance(counter.count, nnx.Variable)])
        counter.count._trace_state.is_valid() or seen.append("stale Variable")
        counter.added = nnx.Param(jnp.ones(2))  # flax checks the module's level here

    counter = Counter()
    step(counter)
    assert seen == [Counter, nnx.BatchStat, True]
    assert isinstance(counter.added, nnx.Param)
    # What came out belongs to the caller's level: flax lets it be changed.
    counter.added = nnx.Param(jnp.zeros(2))
    add(counter.count, 1.0)


def test_new_attributes_keep_their_mark_as_data() -> None:
    @treadle.jit
    def grow(counter: Any) -> None:
        counter.extra = nnx.Param(jnp.ones(3))

    counter = Counter()
    grow(counter)
    assert "extra" in dict(nnx.state(counter).items())
    assert len(jax.tree.leaves(counter)) == 2 or not Counter._pytree__is_pytree
    nnx.jit(lambda c: add(c.extra, 1.0))(counter)
    assert value(counter.extra[0]) == 2.0


@pytest.mark.skipif(not HAS_DATA_NUMBERS, reason="flax 0.11 makes no leaves of marked numbers")
def test_numbers_marked_as_data_are_traced_and_others_are_structure() -> None:
    class Box(nnx.Module):
        def __init__(self) -> None:
            self.moving = nnx.data(1)
            self.fixed = nnx.static(2)

    @treadle.jit
    def step(box: Any) -> None:
        box.moving = box.moving + box.fixed

    box = Box()
    for _ in range(3):
        step(box)
    assert (int(box.moving), box.fixed) == (7, 2)
    # The number became an array in the first call, which is one more type for one structure.
    assert len(step._structures) == 1


def test_what_is_shared_is_one_object_inside_and_out() -> None:
    linear = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    tied = nnx.Module()
    tied.a = tied.b = linear
    tied.weight = linear.kernel

    @treadle.jit
    def step(tied: Any, same: Any) -> Any:
        assert tied.a is tied.b is same
        assert tied.weight is same.kernel
        add(tied.a.kernel, 1.0)

    before = value(linear.kernel[0, 0])
    step(tied, linear)
    assert tied.a is tied.b is linear
    assert value(linear.kernel[0, 0]) == pytest.approx(before + 1.0)


def test_swapped_and_removed_children() -> None:
    @treadle.jit
    def change(module: Any) -> None:
        module.a, module.b = module.b, module.a
        del module.c

    module = nnx.Module()
    module.a, module.b, module.c = Counter(), Counter(), Counter()
    a, b = module.a, module.b
    change(module)
    assert module.a is b
    assert module.b is a
    assert not hasattr(module, "c")


def test_a_cycle_comes_back_as_one() -> None:
    module = nnx.Module()
    module.inner = Counter()
    vars(module.inner)["outer"] = module
    treadle.jit(lambda m: add(m.inner.outer.inner.count, 1.0))(module)
    assert value(module.inner.count) == 1.0
    assert module.inner.outer is module


def test_an_error_leaves_everything_as_it_was() -> None:
    counter = Counter()
    before = counter.count[...]

    @treadle.jit
    def fails(counter: Any) -> None:
        add(counter.count, 1.0)
        counter.rate, counter.extra = 3.0, Counter()
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fails(counter)
    assert counter.rate == 0.5
    assert not hasattr(counter, "extra")
    assert not isinstance(counter.count[...], jax.core.Tracer)
    assert jnp.array_equal(counter.count[...], before)
    add(counter.count, 1.0)


@pytest.mark.others_keep("array", reason=ABORTED)
def test_a_captured_variable_cannot_be_changed() -> None:
    counter = Counter()

    def step(x: jax.Array) -> jax.Array:
        add(counter.count, 1.0)
        return x

    with pytest.raises(Exception, match="trace level"):
        treadle.jit(step)(jnp.ones(1))
    assert value(counter.count) == 0.0


@pytest.mark.others_keep("array", reason=ABORTED)
def test_writing_back_at_another_level_is_an_error() -> None:
    counter = Counter()
    inner = treadle.jit(lambda counter: add(counter.count, 1.0))

    def step(x: jax.Array) -> jax.Array:
        inner(counter)
        return x

    with pytest.raises(treadle.TraceContextError, match="'BatchStat' from different trace level"):
        jax.jit(step)(jnp.ones(1))
    assert value(counter.count) == 0.0


def test_models_of_one_structure_share_a_trace() -> None:
    step = treadle.jit(lambda model, x: model(x))
    x = jnp.ones((1, 2))
    first, second = (nnx.Linear(2, 3, rngs=nnx.Rngs(seed)) for seed in (0, 1))
    for model in (first, second, first, treadle.clone(second)):
        step(model, x)
    assert step.num_traces == 1
    assert step._counts == {"hot": 0, "warm": 3, "cold": 1, "plans": 1}
    # flax's clones have their attributes sorted, which is another program for whoever loops over them.
    for model in (nnx.clone(second), nnx.clone(first), nnx.clone(nnx.clone(first))):
        step(model, x)
    assert step.num_traces == 2
    assert "the order" in str(step.retraces[-1])


@pytest.mark.parametrize("hot", [False, True])
def test_a_change_of_structure_is_seen(hot: bool) -> None:
    step = treadle.jit(lambda counter, x: x * counter.rate)
    counter = Counter()
    x = jnp.ones(())
    for _ in range(2 if hot else 1):
        step(counter, x)
    counter.rate = 2.0
    assert float(step(counter, x)) == 2.0
    assert "rate: 0.5 -> 2.0" in str(step.retraces[0])


def test_metadata_changed_in_place_is_seen() -> None:
    seen: list[Any] = []
    step = treadle.jit(lambda counter: seen.append(counter.count.mine))
    counter = Counter()
    counter.count._var_metadata["mine"] = 1
    step(counter)
    step(counter)
    counter.count._var_metadata["mine"] = 2
    step(counter)
    assert seen == [1, 2]


def test_metadata_changed_inside_reaches_the_caller() -> None:
    def step(counter: Any) -> None:
        if hasattr(nnx.Variable, "set_metadata"):
            counter.count.set_metadata(mine=3)
        else:  # in flax 0.11 attributes are metadata
            counter.count.mine = 3

    counter, other = Counter(), Counter()
    treadle.jit(step)(counter)
    assert counter.count.get_metadata()["mine"] == 3
    assert "mine" not in other.count.get_metadata()


def test_a_value_replaced_or_a_variable_exchanged_is_seen() -> None:
    step = treadle.jit(lambda counter: counter.count[...] * 1.0)
    counter = Counter()
    step(counter)
    add(counter.count, 4.0)
    assert float(step(counter)) == 4.0
    counter.count = nnx.BatchStat(jnp.array(7.0))
    assert float(step(counter)) == 7.0
    assert step.num_traces == 1


def test_lists_dicts_and_optimizers_mixed_with_treadle_objects() -> None:
    import optax

    layers = listed([nnx.Linear(2, 2, rngs=nnx.Rngs(0)) for _ in range(11)])
    mixed = treadle.Dict(layers=layers, own=treadle.Param(jnp.ones(2)))
    optimizer = treadle.Optimizer(mixed, optax.sgd(0.1), wrt=treadle.Param)

    @treadle.jit
    def step(mixed: Any, optimizer: Any, x: jax.Array) -> Any:
        def loss(mixed: Any) -> Any:
            y = x
            for layer in mixed["layers"]:
                y = layer(y)
            return (y * mixed["own"].value).sum()

        value, grads = treadle.value_and_grad(loss)(mixed)
        optimizer.update(mixed, grads)
        return value

    losses = [float(step(mixed, optimizer, jnp.ones((1, 2)))) for _ in range(3)]
    assert losses[2] < losses[1] < losses[0]
    assert step._counts["hot"] == 2
    assert ("layers", 10, "kernel") in treadle.state(mixed).flat_state()


def test_a_metric_accumulates_in_a_jitted_function() -> None:
    metrics = nnx.MultiMetric(loss=nnx.metrics.Average("loss"), seen=nnx.metrics.Average("seen"))
    step = treadle.jit(lambda metrics, x: metrics.update(loss=x, seen=2 * x))
    for x in (1.0, 2.0, 3.0):
        step(metrics, jnp.array(x))
    found = metrics.compute()
    assert (float(found["loss"]), float(found["seen"])) == (2.0, 4.0)


def test_a_plan_keeps_no_model_alive() -> None:
    model = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    step = treadle.jit(lambda model, x: model(x))
    step(model, jnp.ones((1, 2)))
    step(model, jnp.ones((1, 2)))
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
