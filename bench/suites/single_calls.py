"""One-leaf calls, and calls with other objects of a known structure."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

import models
import peers
import treadle
from harness.timing import Effort, Row, interleave


class Cell(treadle.Module):
    def __init__(self) -> None:
        self.value = treadle.Param(jnp.ones(3))


def one_leaf_rows(effort: Effort) -> Iterator[Row]:
    x = jnp.ones(3)
    cell = Cell()
    plain = jax.jit(lambda x: x + 1)
    of_array = treadle.jit(lambda x: x + 1)
    of_module = treadle.jit(lambda m: m.value.value + 1)
    cases: dict[str, Any] = {
        "jax.jit": lambda: plain(x),
        "treadle.jit, an array": lambda: of_array(x),
        "treadle.jit, a module": lambda: of_module(cell),
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
            jitted = nnx.jit(lambda m: peers.flax_get(m.value) + 1, **settings)
            cases[mode] = lambda jitted=jitted: jitted(flax_cell)
    if peers.HAS_EQUINOX:
        import equinox

        filtered = equinox.filter_jit(lambda x: x + 1)
        cases["equinox filter_jit"] = lambda: filtered(x)
    yield _short_calls("one leaf in, one out", cases, effort)

    changing = Cell()
    held = jnp.ones(3)

    def advance(m: Any) -> None:
        m.value.value = m.value.value + 1

    step = treadle.jit(advance)

    def by_hand() -> Any:
        nonlocal held
        held = plain(held)
        return held

    yield _short_calls(
        "one leaf, written back",
        {"jax.jit": by_hand, "treadle.jit": lambda: step(changing)},
        effort,
    )


def _short_calls(name: str, cases: dict[str, Any], effort: Effort) -> Row:
    """Calls of a few microseconds, in very many short batches next to each other.

    What Treadle adds is less than what the machine's speed drifts by from one second to the next. So it is the
    median of the differences round by round that counts; the difference of the best batches leaves out
    whatever disturbed the others, and is given beside it.
    """
    smoke = effort.max_rounds < 10
    short = replace(
        effort,
        row_seconds=effort.row_seconds * 2,
        batch_seconds=0.001,
        batch_steps=150,
        min_rounds=effort.min_rounds if smoke else 200,
        max_rounds=effort.max_rounds if smoke else 1000,
    )
    row = interleave(name, cases, short, base="jax.jit", leaves=1, collect=False)
    for case in row.cases.values():
        case["added_us_best"] = case["us_best"] - row.cases["jax.jit"]["us_best"]
    steps = row.cases["jax.jit"]["steps_per_round"]
    row.notes.append(
        f"batches of {steps} calls, garbage collector off; added: the median of the differences round by round, "
        "then the difference between the best batch of either"
    )
    return row


def warm_rows(effort: Effort) -> Iterator[Row]:
    """Each call gets objects that the function has not seen last time."""
    model = models.mlp(50)
    x, y = map(jnp.asarray, model.batch())
    # More than a jitted function tries by identity.
    copies = 8
    step = treadle.jit(peers.treadle_train_step(model))
    pairs = [peers.treadle_state(model) for _ in range(copies)]
    turns = itertools.cycle(pairs)
    hand = peers.hand_flat(model)
    # On as many states: arrays that were not used last time cost a hand-written step more, too.
    hand_turns = peers.hand_flat(model, states=copies)
    hot = peers.treadle_jit(model)

    def warm() -> Any:
        module, optimizer = next(turns)
        return step(module, optimizer, x, y)

    for _ in range(2 * copies):
        jax.block_until_ready(warm())
    before = dict(step._counts)
    row = interleave(
        "warm call: other objects each time, training step of 602 leaves",
        {
            peers.HAND_TURNS: hand_turns.step,
            peers.HAND_FLAT: hand.step,
            "treadle.jit, hot": hot.step,
            "treadle.jit, warm": warm,
        },
        effort,
        base=peers.HAND_TURNS,
        leaves=602,
    )
    after = step._counts
    row.extra["calls"] = {kind: after[kind] - before[kind] for kind in ("hot", "warm", "cold")}
    row.notes.append(f"classes of the warm case's calls: {row.extra['calls']}")
    yield row
