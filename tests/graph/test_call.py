"""call: methods of objects in split form, which stays as it was."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest

import treadle as nnx


class Counter(nnx.Module):
    def __init__(self) -> None:
        self.count = nnx.Variable(jnp.array(0))
        self.parts = nnx.List([nnx.Dict(x=nnx.Param(2.0))])

    def __call__(self, by: Any) -> Any:
        self.count.value += by
        return self.count.value * 10

    def grow(self) -> None:
        self.parts.append(nnx.Dict(x=nnx.Param(3.0)))


def test_the_split_form_before_stays_and_the_one_after_has_the_changes() -> None:
    before = nnx.split(Counter())
    out, after = nnx.call(before)(3)
    assert (int(out), int(before[1].count.value), int(after[1].count.value)) == (30, 0, 3)


def test_attributes_and_items_lead_to_the_method() -> None:
    split = nnx.split(Counter())
    out, _ = nnx.call(split).parts[0].get("x")
    assert out.value == 2.0
    _, (graphdef, state) = nnx.call(split).grow()
    assert len(nnx.merge(graphdef, state).parts) == 2


def test_several_states_may_be_given() -> None:
    out, (_, state) = nnx.call(nnx.split(Counter(), nnx.Param, ...))(1)
    assert int(out) == 10
    assert len(state.flat_state()) == 2


def test_call_works_in_jit() -> None:
    @jax.jit
    def step(split: Any) -> Any:
        return nnx.call(split)(1)

    split: Any = nnx.split(Counter())
    for _ in range(3):
        out, split = step(split)
    assert (int(out), int(split[1].count.value)) == (30, 3)


def test_an_error_in_the_method_comes_through() -> None:
    with pytest.raises(AttributeError, match="nothing"):
        nnx.call(nnx.split(Counter())).nothing()
