"""Donated state comes back whole, is donated once, and needs no more memory than by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import treadle as nnx
from tests.dispatch.models import Tower


class Pair(nnx.Module):
    def __init__(self) -> None:
        self.changed = nnx.Param(jnp.arange(4.0))
        self.kept = nnx.Param(jnp.arange(4.0) + 10)


def advance(pair: Pair, x: Any = 1.0) -> Any:
    pair.changed.value = pair.changed.value + x
    return pair.changed.value.sum()


def test_an_unchanged_leaf_that_was_donated_comes_back() -> None:
    pair = Pair()
    step = nnx.jit(advance, donate_state=True)
    for _ in range(3):
        step(pair)
    np.testing.assert_array_equal(pair.kept.value, np.arange(4.0) + 10)
    np.testing.assert_array_equal(pair.changed.value, np.arange(4.0) + 3)


def buffers(*variables: nnx.Variable) -> set[int]:
    """Where the values lie. What this file held itself would be copied instead of donated."""
    return {variable.value.unsafe_buffer_pointer() for variable in variables}


def test_old_buffers_are_really_donated() -> None:
    pair = Pair()
    before = buffers(pair.changed, pair.kept)
    nnx.jit(advance, donate_state=True)(pair)
    assert buffers(pair.changed, pair.kept) == before


def test_one_array_under_two_variables_is_donated_once() -> None:
    step = nnx.jit(advance, donate_state=True)
    for _ in range(2):
        pair = Pair()
        pair.kept.value = pair.changed.value
        step(pair)
        np.testing.assert_array_equal(pair.kept.value, np.arange(4.0))
        np.testing.assert_array_equal(pair.changed.value, np.arange(4.0) + 1)


def test_an_array_that_is_also_a_plain_argument_survives() -> None:
    step = nnx.jit(advance, donate_state=True)
    pair = Pair()
    for _ in range(3):
        x = pair.changed.value
        before = np.asarray(x)
        step(pair, x)
        np.testing.assert_array_equal(x, before)
        np.testing.assert_array_equal(pair.changed.value, 2 * before)


def test_donate_argnums_donates_that_node_alone() -> None:
    step = nnx.jit(lambda a, b: advance(a) + advance(b), donate_argnums=0)
    a, b = Pair(), Pair()
    before, old_b = buffers(a.changed, a.kept), b.changed.value
    step(a, b)
    assert buffers(a.changed, a.kept) == before
    assert not old_b.is_deleted()
    np.testing.assert_array_equal(a.kept.value, b.kept.value)


def test_swapped_values_survive_donation() -> None:
    @nnx.jit(donate_state=True)
    def swap(pair: Pair) -> None:
        pair.changed.value, pair.kept.value = pair.kept.value, pair.changed.value

    pair = Pair()
    for _ in range(3):
        swap(pair)
    np.testing.assert_array_equal(pair.changed.value, np.arange(4.0) + 10)
    np.testing.assert_array_equal(pair.kept.value, np.arange(4.0))


def test_donated_calls_are_hot() -> None:
    step, pair = nnx.jit(advance, donate_state=True), Pair()
    for _ in range(4):
        step(pair)
    assert step._counts["hot"] == 3


def bytes_alive() -> int:
    """Bytes of all arrays that have not been freed or donated, each buffer counted once."""
    buffers = {a.unsafe_buffer_pointer(): a.nbytes for a in jax.live_arrays() if not a.is_deleted()}
    return sum(buffers.values())


def growth(step: Callable[[], Any]) -> int:
    step()
    before = bytes_alive()
    step()
    return bytes_alive() - before


def test_a_donating_step_keeps_no_more_alive_than_by_hand() -> None:
    model = Tower(10)

    @nnx.jit(donate_state=True)
    def by_treadle(model: Tower) -> None:
        for block in model.blocks:
            block.kernel.value = block.kernel.value * 2

    leaves = tuple(jnp.copy(leaf) for leaf in jax.tree.leaves(nnx.state(model)))
    by_hand = jax.jit(lambda leaves: tuple(leaf * 2 for leaf in leaves), donate_argnums=0)

    def hand_step() -> None:
        nonlocal leaves
        leaves = by_hand(leaves)

    assert growth(hand_step) == 0
    assert growth(lambda: by_treadle(model)) == 0


def test_a_donating_step_aliases_its_buffers_as_by_hand() -> None:
    pair = Pair()
    step = nnx.jit(advance, donate_state=True)
    analysis = step.lower(pair).compile().memory_analysis()
    # Both arrays of the pair: the changed one and the one that is only passed through.
    assert analysis.alias_size_in_bytes == 2 * pair.kept.value.nbytes


def test_a_step_without_donation_does_not_keep_the_old_arrays() -> None:
    pair = Pair()
    step = nnx.jit(advance)
    assert growth(lambda: step(pair)) == 0


@pytest.mark.parametrize("within", [True, False], ids=["one variable", "two variables"])
def test_an_array_twice_in_containers_is_copied(within: bool) -> None:
    array = jnp.ones(3)
    model = nnx.Dict(
        w=nnx.Param((array, array) if within else (array,)),
        v=nnx.Param(jnp.ones(3) if within else array),
    )
    step = nnx.jit(lambda m: m["w"].value[0] + m["v"].value, donate_state=True)
    with pytest.warns(nnx.DonationWarning, match=r"m\.w"):
        np.testing.assert_array_equal(step(model), np.full(3, 2.0))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(nnx.state(model)))
    np.testing.assert_array_equal(array, np.ones(3))
    del array
    np.testing.assert_array_equal(step(model), np.full(3, 2.0))
