"""One-leaf calls, and calls with other objects of a known structure."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

import models
import peers
import weft
from harness.timing import Effort, Row, interleave


class Cell(weft.Module):
    def __init__(self) -> None:
        self.value = weft.Param(jnp.ones(3))


def one_leaf_rows(effort: Effort) -> Iterator[Row]:
    x = jnp.ones(3)
    cell = Cell()
    plain = jax.jit(lambda x: x + 1)
    of_array = weft.jit(lambda x: x + 1)
    of_module = weft.jit(lambda m: m.value.value + 1)
    cases: dict[str, Any] = {
        "jax.jit": lambda: plain(x),
        "weft.jit, an array": lambda: of_array(x),
        "weft.jit, a module": lambda: of_module(cell),
    }
    if peers.HAS_FLAX:
        from flax import nnx

        class FlaxCell(nnx.Module):
            def __init__(self) -> None:
                self.value = nnx.Param(jnp.ones(3))

        flax_cell = FlaxCell()
        for mode, settings in peers.flax_modes().items():
            if mode in (peers.FLAX_CACHED, peers.FLAX_PARTIAL):
                continue
            jitted = nnx.jit(lambda m: m.value.get_value() + 1, **settings)
            cases[mode] = lambda jitted=jitted: jitted(flax_cell)
    if peers.HAS_EQUINOX:
        import equinox

        filtered = equinox.filter_jit(lambda x: x + 1)
        cases["equinox filter_jit"] = lambda: filtered(x)
    row = interleave("one leaf in, one out", cases, effort, base="jax.jit", leaves=1)
    base = row.cases["jax.jit"]["us"]
    for case in row.cases.values():
        # Round by round, as the machine's speed drifts by more than this between rounds.
        case["fixed_us"] = base * (case["ratio"] - 1)
        case["fixed_us_spread"] = base * (case["ratio_high"] - case["ratio_low"])
    yield row

    changing = Cell()
    held = jnp.ones(3)

    def advance(m: Any) -> None:
        m.value.value = m.value.value + 1

    step = weft.jit(advance)

    def by_hand() -> Any:
        nonlocal held
        held = plain(held)
        return held

    def by_weft() -> Any:
        step(changing)
        return changing.value.raw_value

    yield interleave(
        "one leaf, written back",
        {"jax.jit": by_hand, "weft.jit": by_weft},
        effort,
        base="jax.jit",
        leaves=1,
    )


def warm_rows(effort: Effort) -> Iterator[Row]:
    """Each call gets objects that the function has not seen last time."""
    model = models.mlp(50)
    x, y = map(jnp.asarray, model.batch())
    # More than a jitted function tries by identity.
    copies = 8
    step = weft.jit(peers.weft_train_step(model))
    pairs = [peers.weft_state(model) for _ in range(copies)]
    turns = itertools.cycle(pairs)
    hand = peers.hand_flat(model)
    hot = peers.weft_jit(model)

    before: dict[str, int] = {}

    def warm() -> Any:
        module, optimizer = next(turns)
        return step(module, optimizer, x, y)

    for _ in range(2 * copies):
        jax.block_until_ready(warm())
    before = dict(step._counts)
    row = interleave(
        "warm call: other objects each time, training step of 602 leaves",
        {peers.HAND_FLAT: hand.step, "weft.jit, hot": hot.step, "weft.jit, warm": warm},
        effort,
        base=peers.HAND_FLAT,
        leaves=602,
    )
    after = step._counts
    row.extra["calls"] = {kind: after[kind] - before[kind] for kind in ("hot", "warm", "cold")}
    row.notes.append(f"classes of the warm case's calls: {row.extra['calls']}")
    yield row
