"""Interleaved timing: rounds in one process, ratios round by round."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax

Step = Callable[[], Any]


@dataclass
class Effort:
    """How much time goes into one row of a suite.

    Attributes:
        row_seconds: about how long a row may take, over all its cases.
        batch_seconds: a case runs for about this long in each round.
        min_rounds: rounds even where `row_seconds` is then exceeded.
        max_rounds: enough, however quick they are.
        full: the larger sizes too.
    """

    row_seconds: float = 6.0
    batch_seconds: float = 0.02
    min_rounds: int = 7
    max_rounds: int = 60
    full: bool = False


@dataclass
class Row:
    """Cases that do the same work.

    Attributes:
        name: what is done.
        base: the case that the ratios are against.
        cases: for each case its median in microseconds, quartiles, and ratio (median and quartiles).
        notes: what a reader must know to compare them.
        extra: numbers of another kind.
    """

    name: str
    base: str
    leaves: int | None = None
    rounds: int = 0
    cases: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def run_batch(step: Step, count: int) -> float:
    """Seconds per step over `count` steps, the last of them waited for.

    One step runs before the clock starts: what ran in between has other data in the caches, while in
    a loop the step before was the same.
    """
    result = step()
    jax.block_until_ready(result)
    started = time.perf_counter()
    for _ in range(count):
        result = step()
    jax.block_until_ready(result)
    return (time.perf_counter() - started) / count


def warm_up(step: Step, seconds: float) -> float:
    """Compile, reach the hot path, and say how long a step takes."""
    started = time.perf_counter()
    jax.block_until_ready(step())
    first = time.perf_counter() - started
    taken = [first]
    started = time.perf_counter()
    while len(taken) < 50 and (len(taken) < 3 or time.perf_counter() - started < seconds):
        # What takes this long again and again compiles or traces each time, and needs no warming up.
        if len(taken) == 2 and min(taken) > 0.3:
            break
        taken.append(run_batch(step, 1))
    return statistics.median(taken[1:])


def interleave(
    name: str, cases: Mapping[str, Step], effort: Effort, *, base: str, leaves: int | None = None
) -> Row:
    """Time `cases` in turn, each going first equally often."""
    costs = {case: warm_up(step, effort.batch_seconds) for case, step in cases.items()}
    counts = {case: max(1, int(effort.batch_seconds / cost)) for case, cost in costs.items()}
    per_round = sum(costs[case] * counts[case] for case in cases)
    rounds = int(effort.row_seconds / max(per_round, 1e-9))
    rounds = max(effort.min_rounds, min(effort.max_rounds, rounds))
    names = list(cases)
    seconds: dict[str, list[float]] = {case: [] for case in names}
    gc.collect()
    # What other cases hold must not lengthen a collection that falls into this one.
    gc.freeze()
    try:
        for turn in range(rounds):
            first = turn % len(names)
            for case in names[first:] + names[:first]:
                gc.collect()
                seconds[case].append(run_batch(cases[case], counts[case]))
    finally:
        gc.unfreeze()
    row = Row(name=name, base=base, leaves=leaves, rounds=rounds)
    for case in names:
        row.cases[case] = summary(seconds[case], seconds[base])
        row.cases[case]["steps_per_round"] = counts[case]
    return row


def summary(seconds: Sequence[float], base: Sequence[float]) -> dict[str, Any]:
    """Median and quartiles in microseconds, and of the ratio to `base` round by round."""
    low, middle, high = quartiles([s * 1e6 for s in seconds])
    ratio_low, ratio, ratio_high = quartiles([s / b for s, b in zip(seconds, base, strict=True)])
    return {
        "us": middle,
        "us_low": low,
        "us_high": high,
        "ratio": ratio,
        "ratio_low": ratio_low,
        "ratio_high": ratio_high,
    }
