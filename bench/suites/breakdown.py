"""Where the time of a hot call goes: verify, gather, dispatch, scatter; and what JAX's own part is."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

import models
import peers
import stateful
import treadle
from harness.timing import Effort, Row, interleave

PHASES = ("verify", "gather", "dispatch", "scatter")


def rows(effort: Effort) -> Iterator[Row]:
    yield outputs_row(effort)
    row = Row(name="where the time of a hot call goes (µs)", base=peers.TREADLE)
    calls = 400 if effort.full else 100
    for leaves in (1, 10, 100, 1000):
        model = stateful.counters(leaves)
        objects = stateful.treadle_objects(model)
        x = jnp.asarray(model.data())
        step = treadle.jit(
            lambda *args, model=model: model.function(stateful.TREADLE_ACCESS, *args)
        )
        row.cases[f"{leaves} leaves, all changed"] = _phases(step, (*objects, x), calls)
    model = models.mlp(50)
    step = treadle.jit(peers.treadle_train_step(model))
    row.cases["training step, 602 leaves"] = _phases(
        step, (*peers.treadle_state(model), *map(jnp.asarray, model.batch())), calls
    )
    row.rounds = calls
    yield row


def outputs_row(effort: Effort) -> Row:
    """Calls of `jax.jit` that compute next to nothing, with many arrays in and few or many out."""
    count = 602
    arrays = tuple(jnp.full((8, 8), i, jnp.float32) for i in range(count))

    def first(xs: Any) -> Any:
        # Touches each array, as JAX leaves out of the call what is not used.
        return sum(x[0, 0] for x in xs)

    def each(xs: Any) -> Any:
        return tuple(x + 1 for x in xs)

    few, many = jax.jit(first), jax.jit(each)
    one_out, all_out = f"{count} arrays in, 1 out", f"{count} arrays in, {count} out"
    row = interleave(
        f"what `jax.jit` itself takes: `x + 1` for {count} arrays",
        {one_out: lambda: few(arrays), all_out: lambda: many(arrays)},
        replace(effort, max_rounds=3 * effort.max_rounds),
        base=one_out,
        leaves=count,
    )
    row.extra["us_per_output"] = row.cases[all_out]["added_us"] / (count - 1)
    row.notes.append(
        f"each array that comes out costs JAX {row.extra['us_per_output']:.1f} µs here, which every case with as "
        "many outputs pays, hand-written ones too"
    )
    return row


def _phases(step: object, args: tuple, calls: int) -> dict[str, float]:
    reports = []
    for _ in range(calls + 3):
        result, report = step._timed(args, {})
        jax.block_until_ready(result)
        reports.append(report)
    medians = {
        phase: statistics.median(report.get(phase, 0) for report in reports[3:]) / 1e3
        for phase in PHASES
    }
    return {"us": sum(medians.values()), **medians}
