"""split, merge and their kin do a fixed amount of work in Python, however many leaves there are."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import pytest

import treadle as nnx


class Layer(nnx.Module):
    def __init__(self) -> None:
        self.kernel, self.mean = nnx.Param(jnp.ones(1)), nnx.BatchStat(jnp.ones(1))


def python_calls(function: Callable[[], Any]) -> int:
    """How many Python functions run in one call of `function`, once caches are warm."""
    function()
    count = 0

    def profiler(frame: Any, event: str, arg: Any) -> None:
        nonlocal count
        count += event == "call"

    gc.disable()  # what other tests left behind may run Python when it is collected
    sys.setprofile(profiler)
    try:
        function()
    finally:
        sys.setprofile(None)
        gc.enable()
    return count


def split_and_merge(model: Any) -> Callable[[], Any]:
    return lambda: nnx.merge(*nnx.split(model))


def split_and_merge_by_filters(model: Any) -> Callable[[], Any]:
    return lambda: nnx.merge(*nnx.split(model, nnx.Param, ...))


def update_by_the_state_of_another(model: Any) -> Callable[[], Any]:
    other = nnx.clone(model)
    return lambda: nnx.update(model, nnx.state(other, nnx.Param))


def clone(model: Any) -> Callable[[], Any]:
    return lambda: nnx.clone(model)


def merge_states(model: Any) -> Callable[[], Any]:
    return lambda: nnx.State.merge(*nnx.state(model, nnx.Param, ...))


def filter_state(model: Any) -> Callable[[], Any]:
    return lambda: nnx.state(model).split(nnx.Param, ...)


@pytest.mark.parametrize(
    "work",
    [
        split_and_merge,
        split_and_merge_by_filters,
        update_by_the_state_of_another,
        clone,
        merge_states,
        filter_state,
    ],
)
def test_python_calls_do_not_grow_with_the_model(work: Any) -> None:
    small, large = (nnx.List([Layer() for _ in range(count)]) for count in (2, 40))
    assert python_calls(work(small)) == python_calls(work(large)) < 60
