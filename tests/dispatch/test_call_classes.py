"""Hot, warm and cold: which calls walk the arguments, and which trace."""

from __future__ import annotations

import copy
import importlib
from collections import namedtuple
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import treadle as nnx
from tests.dispatch.models import Tower

X = jnp.ones(2)


def classes(step: Any) -> tuple[int, int, int]:
    counts = step._counts
    return counts["cold"], counts["warm"], counts["hot"]


def bias_of(model: Tower, x: Any) -> Any:
    model.blocks[0].bias.value = model.blocks[0].bias.value + x
    return model.blocks[0].bias.value


def test_the_same_objects_are_hot_after_the_first_call() -> None:
    step, model = nnx.jit(bias_of), Tower(2)
    for _ in range(4):
        step(model, X)
    assert classes(step) == (1, 0, 3)


def test_other_objects_of_the_same_structure_are_warm_and_do_not_trace() -> None:
    step = nnx.jit(bias_of)
    for model in (Tower(2), Tower(2), copy.deepcopy(Tower(2)), nnx.clone(Tower(2))):
        step(model, X)
    assert classes(step) == (1, 3, 0)
    assert step.num_traces == 1


def test_a_few_models_in_turn_of_different_structure_are_hot() -> None:
    step = nnx.jit(bias_of)
    models = [Tower(1), Tower(2), Tower(3)]
    for _ in range(3):
        for model in models:
            step(model, X)
    assert classes(step) == (3, 0, 6)


def test_new_array_values_are_hot_however_they_came() -> None:
    step, model = nnx.jit(bias_of), Tower(2)
    step(model, X)
    model.blocks[0].bias.value = jnp.full(2, 7.0)
    assert float(step(model, X)[0]) == 8.0
    nnx.update(model, jax.tree.map(lambda v: v * 0, nnx.state(model)))
    assert float(step(model, X)[0]) == 1.0
    assert classes(step) == (1, 0, 2)


def test_a_replaced_child_is_seen_and_is_warm_if_its_structure_is_the_same() -> None:
    step, model = nnx.jit(bias_of), Tower(2)
    step(model, X)
    model.blocks[0] = Tower(1).blocks[0]
    assert float(step(model, X)[0]) == 1.0
    assert classes(step) == (1, 1, 0)
    assert step.num_traces == 1


def test_changes_behind_setattr_are_seen() -> None:
    @nnx.jit
    def scaled(model: Tower, x: Any) -> Any:
        return x * getattr(model, "factor", 1)

    model = Tower(1)
    assert float(scaled(model, X)[0]) == 1
    vars(model)["factor"] = 3
    assert float(scaled(model, X)[0]) == 3
    vars(model)["factor"] = 4
    assert float(scaled(model, X)[0]) == 4
    del vars(model)["factor"]
    assert float(scaled(model, X)[0]) == 1
    assert scaled.num_traces == 3


def test_list_and_dict_mutation_are_seen() -> None:
    @nnx.jit
    def size(model: Tower, x: Any) -> Any:
        return x * len(model.blocks) + sum(model.sizes.values())

    model = Tower(1)
    model.sizes = {"a": 1}
    assert float(size(model, X)[0]) == 2
    model.blocks.append(Tower(1).blocks[0])
    assert float(size(model, X)[0]) == 3
    model.sizes["b"] = 10
    assert float(size(model, X)[0]) == 13
    model.blocks.pop()
    model.sizes.pop("b")
    assert float(size(model, X)[0]) == 2


def test_a_static_that_changed_in_place_is_seen() -> None:
    class Config:
        def __init__(self, factor: int) -> None:
            self.factor = factor

        def __eq__(self, other: object) -> bool:
            return isinstance(other, Config) and other.factor == self.factor

        def __hash__(self) -> int:
            return hash(self.factor)

    @nnx.jit
    def scaled(model: Tower, x: Any) -> Any:
        return x * model.config.factor

    model = Tower(1)
    model.config = Config(2)
    assert float(scaled(model, X)[0]) == 2
    model.config.factor = 5
    assert float(scaled(model, X)[0]) == 5
    assert float(scaled(model, X)[0]) == 5


def test_sharing_that_appears_or_goes_away_is_seen() -> None:
    @nnx.jit
    def double_first(model: Tower) -> None:
        model.blocks[0].bias.value = model.blocks[0].bias.value + 1

    model = Tower(2)
    double_first(model)
    model.blocks[1] = model.blocks[0]
    double_first(model)
    assert float(model.blocks[1].bias.value[0]) == 2
    model.blocks[1] = Tower(1).blocks[0]
    double_first(model)
    assert float(model.blocks[1].bias.value[0]) == 0
    assert float(model.blocks[0].bias.value[0]) == 3


def test_metadata_that_changed_retraces() -> None:
    @nnx.jit
    def tagged(model: Tower, x: Any) -> Any:
        return x * len(model.blocks[0].bias.get_metadata().get("note", ""))

    model = Tower(1)
    assert float(tagged(model, X)[0]) == 0
    model.blocks[0].bias.note = "abc"
    assert float(tagged(model, X)[0]) == 3


def test_namedtuples_lists_and_none_among_the_arguments_are_hot() -> None:
    pair = namedtuple("pair", "left right")
    step = nnx.jit(lambda p, model: p.left[0] + p.right["x"] + model.blocks[0].bias.value)
    model = Tower(1)
    for _ in range(3):
        step(pair([X, None], {"x": X}), model)
    assert classes(step) == (1, 0, 2)


def test_the_plans_of_a_function_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.import_module("treadle.transforms._jit.jit"), "_CAPACITY", 3)
    step = nnx.jit(lambda x, n: x * n, static_argnums=1)
    for n in range(6):
        step(X, n)
    assert step._counts["plans"] == 3
    assert len(step.compiled) == 3
    # The one not used for longest was forgotten, and works nevertheless.
    assert float(step(X, 0)[0]) == 0
    assert float(step(X, 5)[0]) == 5
    assert step.num_traces == 7


def test_clear_caches_forgets_plans_and_later_calls_trace_again() -> None:
    step, model = nnx.jit(bias_of), Tower(1)
    step(model, X)
    jax.clear_caches()
    assert step._counts["plans"] == 0
    assert float(step(model, X)[0]) == 2
    assert step.num_traces == 2


def test_a_plan_keeps_neither_the_model_nor_its_arrays_alive() -> None:
    import gc
    import weakref

    step, model = nnx.jit(bias_of), Tower(1)
    step(model, X)
    alive = weakref.ref(model), weakref.ref(model.blocks[0].kernel.value)
    del model
    gc.collect()
    assert [ref() for ref in alive] == [None, None]
