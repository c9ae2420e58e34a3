"""Interleaved timing: rounds in one process, ratios round by round."""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax

Step = Callable[[], Any]


# A case that takes this many times the base's time is a far one: fewer and shorter batches tell enough.
_FAR = 1.6
# What takes this long fills the caches itself, and compiles or traces each time: no need to warm up.
_LONG = 0.3


@dataclass
class Effort:
    """How much time goes into one row of a suite.

    Attributes:
        row_seconds: about how long a row may take, over all its cases.
        batch_seconds: a case runs for at least about this long in each round.
        batch_steps: cases near the base run this many steps in each round, if `batch_limit` allows.
        batch_limit: seconds that `batch_steps` may take.
        min_rounds: rounds even where `row_seconds` is then exceeded.
        max_rounds: enough, however quick they are.
        far_rounds: at least so many rounds of the cases that are far from the base.
        full: the larger sizes too.
    """

    row_seconds: float = 6.0
    batch_seconds: float = 0.02
    batch_steps: int = 10
    batch_limit: float = 0.1
    min_rounds: int = 9
    max_rounds: int = 60
    far_rounds: int = 4
    full: bool = False


@dataclass
class Row:
    """Cases that do the same work.

    Attributes:
        name: what is done.
        base: the case that the ratios are against.
        rounds: in how many rounds the cases near the base were timed.
        cases: for each case what `summary` says of it.
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


def run_batch(step: Step, count: int, *, lead: int = 1) -> float:
    """Seconds per step over `count` steps, the last of them waited for.

    `lead` steps run before the clock starts: what ran in between has other data in the caches, while in
    a loop the step before was the same.
    """
    result = None
    for _ in range(lead):
        result = step()
    jax.block_until_ready(result)
    started = time.perf_counter()
    for _ in range(count):
        result = step()
    jax.block_until_ready(result)
    return (time.perf_counter() - started) / count


def warm_up(step: Step, seconds: float) -> float:
    """Compile, reach the hot path, and say how long a step takes."""
    taken = [run_batch(step, 1, lead=0)]
    started = time.perf_counter()
    while len(taken) < 50 and (len(taken) < 6 or time.perf_counter() - started < seconds):
        if len(taken) == 2 and min(taken) > _LONG:
            break
        taken.append(run_batch(step, 1))
    # The least: a machine that was busy for a moment must not decide how the case is measured.
    return min(taken[1:])


@dataclass
class Turns:
    """When a case runs, and for how long.

    Attributes:
        count: steps of a batch.
        lead: steps before it that are not timed.
        rounds: in how many of the row's rounds it takes part.
    """

    count: int
    lead: int
    rounds: int


def share_out(
    costs: Mapping[str, float], base: str, effort: Effort
) -> tuple[dict[str, Turns], int]:
    """Turns of each case, and the rounds of the row.

    Cases near the base get batches long enough for the state that a loop is in, and as many rounds as time
    allows, since their ratios are near 1. For those far from it a few rounds tell as much.
    """
    turns: dict[str, Turns] = {}
    spent = {True: 0.0, False: 0.0}
    for case, cost in costs.items():
        near = cost < _FAR * costs[base]
        count = effort.batch_seconds / cost
        if near:
            count = max(count, min(effort.batch_steps, effort.batch_limit / cost))
        turns[case] = Turns(max(1, int(count)), 0 if cost > _LONG else 1, 0)
        spent[near] += cost * (turns[case].count + turns[case].lead)
    far_seconds = effort.row_seconds / 4 if spent[False] else 0.0
    rounds = int((effort.row_seconds - far_seconds) / max(spent[True], 1e-9))
    rounds = max(effort.min_rounds, min(effort.max_rounds, rounds))
    far = max(effort.far_rounds, int(far_seconds / max(spent[False], 1e-9)))
    for case, cost in costs.items():
        turns[case].rounds = rounds if cost < _FAR * costs[base] else min(rounds, far)
    return turns, rounds


def takes_part(turn: int, part: int, rounds: int) -> bool:
    """Whether a case of `part` rounds, spread evenly over `rounds`, runs in this one."""
    return (turn + 1) * part // rounds > turn * part // rounds


def interleave(
    name: str,
    cases: Mapping[str, Step],
    effort: Effort,
    *,
    base: str,
    leaves: int | None = None,
    collect: bool = True,
) -> Row:
    """Time `cases` in turn, in another order each round.

    Args:
        name: of the row.
        cases: one step of each.
        effort: how long.
        base: the case that others are compared with; it takes part in each round.
        leaves: array leaves, for the report.
        collect: collect garbage before each batch, so that nobody pays for another's. Otherwise only between
            rounds, for batches so short that a collection would cool the caches they live in or fall on one of
            them by chance.
    """
    costs = {case: warm_up(step, effort.batch_seconds) for case, step in cases.items()}
    turns, rounds = share_out(costs, base, effort)
    seconds: dict[str, dict[int, float]] = {case: {} for case in cases}
    # The same order on each run, and no case that always comes after the same other one.
    order = random.Random(0)
    gc.collect()
    # What other cases hold must not lengthen a collection that falls into this one.
    gc.freeze()
    if not collect:
        gc.disable()
    try:
        for turn in range(rounds):
            names = [case for case in cases if takes_part(turn, turns[case].rounds, rounds)]
            order.shuffle(names)
            gc.collect()
            for place, case in enumerate(names):
                if collect and place:
                    gc.collect()
                count, lead = turns[case].count, turns[case].lead
                if not collect:
                    lead = min(count, 10)
                seconds[case][turn] = run_batch(cases[case], count, lead=lead)
    finally:
        gc.enable()
        gc.unfreeze()
    row = Row(name=name, base=base, leaves=leaves, rounds=rounds)
    for case, taken in seconds.items():
        bases = [seconds[base][turn] for turn in taken]
        row.cases[case] = summary(list(taken.values()), bases)
        row.cases[case] |= {"steps_per_round": turns[case].count, "rounds": len(taken)}
    return row


def summary(seconds: Sequence[float], base: Sequence[float]) -> dict[str, Any]:
    """Quartiles in microseconds, and round by round of the ratio to `base` and the time added to it."""
    low, middle, high = quartiles([s * 1e6 for s in seconds])
    pairs = list(zip(seconds, base, strict=True))
    ratio_low, ratio, ratio_high = quartiles([s / b for s, b in pairs])
    added_low, added, added_high = quartiles([(s - b) * 1e6 for s, b in pairs])
    return {
        "us": middle,
        "us_low": low,
        "us_high": high,
        "us_best": min(seconds) * 1e6,
        "ratio": ratio,
        "ratio_low": ratio_low,
        "ratio_high": ratio_high,
        "added_us": added,
        "added_us_low": added_low,
        "added_us_high": added_high,
    }
