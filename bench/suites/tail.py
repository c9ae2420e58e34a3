"""Latency of single steps with the garbage collector on."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

import models
import peers
from harness.timing import Effort, Row

_PERCENTILES = (50, 90, 99, 99.9)
_CURVE = (*range(0, 100, 5), 99, 99.5, 99.9, 99.95, 100)


def rows(effort: Effort) -> Iterator[Row]:
    model = models.mlp(50)
    steps = 20_000 if effort.full else 2_000 if effort.max_rounds > 3 else 50
    slower = max(50, steps // 20)
    names = [peers.HAND_FLAT, peers.TREADLE, peers.FLAX_GRAPH]
    if effort.full:
        names += [peers.HAND_NESTED, peers.FLAX_PARTIAL, peers.EQUINOX]
    makers = peers.makers(names)
    row = Row(name="latency of single steps, MLP of 50 blocks", base=peers.HAND_FLAT, leaves=602)
    times: dict[str, list[float]] = {}
    collections: dict[str, list[int]] = {}
    cases = {name: make(model) for name, make in makers.items()}
    for case in cases.values():
        for _ in range(20):
            jax.block_until_ready(case.step())
    # In turns of some hundred steps, so that all see the same machine.
    turns = 10
    for name in cases:
        times[name], collections[name] = [], [0, 0, 0]
    gc.collect()
    started = time.perf_counter()
    done = 0
    for _ in range(turns):
        # On a busy machine the short run makes do with fewer steps.
        if not effort.full and time.perf_counter() - started > 8 * effort.row_seconds:
            break
        done += 1
        for name, case in cases.items():
            count = (
                steps if name in (peers.HAND_FLAT, peers.HAND_NESTED, peers.TREADLE) else slower
            ) // turns
            before = [generation["collections"] for generation in gc.get_stats()]
            times[name] += _latencies(case.step, count)
            after = [generation["collections"] for generation in gc.get_stats()]
            collections[name] = [
                total + b - a for total, a, b in zip(collections[name], before, after, strict=True)
            ]
    for name, taken in times.items():
        micro = np.asarray(taken) * 1e6
        points = np.percentile(micro, _PERCENTILES)
        row.cases[name] = {
            "us": float(points[0]),
            "us_low": float(np.percentile(micro, 25)),
            "us_high": float(np.percentile(micro, 75)),
            **{f"p{p}": float(v) for p, v in zip(_PERCENTILES, points, strict=True)},
            "tail": float(points[-1] / points[0]),
            "steps": len(taken),
            "collections_per_1000_steps": [1000 * c / len(taken) for c in collections[name]],
            "curve": [[q, float(np.percentile(micro, q))] for q in _CURVE],
        }
    base = row.cases[peers.HAND_FLAT]["us"]
    for case in row.cases.values():
        for quantity in ("", "_low", "_high"):
            case[f"ratio{quantity}"] = case[f"us{quantity}"] / base
    row.rounds = done
    row.notes.append(
        "collections: how often each generation of the garbage collector ran during that peer's steps"
    )
    yield row


def _latencies(step: Any, count: int) -> list[float]:
    taken = []
    clock = time.perf_counter
    for _ in range(count):
        started = clock()
        jax.block_until_ready(step())
        taken.append(clock() - started)
    return taken
