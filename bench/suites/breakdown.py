"""Where the time of a hot call goes: verify, gather, dispatch, scatter."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

import jax
import jax.numpy as jnp

import models
import peers
import stateful
import weft
from harness.timing import Effort, Row

PHASES = ("verify", "gather", "dispatch", "scatter")


def rows(effort: Effort) -> Iterator[Row]:
    row = Row(name="where the time of a hot call goes (µs)", base=peers.WEFT)
    calls = 400 if effort.full else 100
    for leaves in (1, 10, 100, 1000):
        model = stateful.counters(leaves)
        objects = stateful.weft_objects(model)
        x = jnp.asarray(model.data())
        step = weft.jit(lambda *args, model=model: model.function(stateful.WEFT_ACCESS, *args))
        row.cases[f"{leaves} leaves, all changed"] = _phases(step, (*objects, x), calls)
    model = models.mlp(50)
    step = weft.jit(peers.weft_train_step(model))
    row.cases["training step, 602 leaves"] = _phases(
        step, (*peers.weft_state(model), *map(jnp.asarray, model.batch())), calls
    )
    row.rounds = calls
    yield row


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
