"""Results as a run writes them, made up."""

from __future__ import annotations

import copy
from typing import Any


def case(ratio: float, spread: float = 0.02, base_us: float = 100.0) -> dict[str, Any]:
    """A case whose quartiles are `spread` away from its median."""
    low, high = ratio * (1 - spread), ratio * (1 + spread)
    return {
        "us": base_us * ratio,
        "us_low": base_us * low,
        "us_high": base_us * high,
        "us_best": base_us * low,
        "ratio": ratio,
        "ratio_low": low,
        "ratio_high": high,
        "added_us": base_us * (ratio - 1),
        "added_us_low": base_us * (low - 1),
        "added_us_high": base_us * (high - 1),
        "rounds": 9,
        "steps_per_round": 10,
    }


def row(
    name: str, base: str, cases: dict[str, dict[str, Any]], leaves: int | None = None, **extra: Any
) -> dict[str, Any]:
    return {
        "name": name,
        "base": base,
        "leaves": leaves,
        "rounds": 9,
        "cases": cases,
        "notes": [],
        "extra": extra,
    }


def results(**suites: list[dict[str, Any]]) -> dict[str, Any]:
    return copy.deepcopy(
        {
            "size": "quick",
            "date": "2026-01-01T00:00:00+00:00",
            "machine": {
                "versions": {"treadle": "0"},
                "python": "3",
                "commit": "abc",
                "build": "a build",
                "cpu": "a processor",
                "cores": 2,
                "load": 0.0,
                "system": "a system",
                "platform": "cpu",
                "devices": ["cpu"],
            },
            "suites": {
                name.replace("_", "-"): {"rows": rows, "error": None, "seconds": 1.0}
                for name, rows in suites.items()
            },
        }
    )


PROFILE = {
    "verify": 11.0,
    "gather": 2.0,
    "scatter": 33.0,
    "dispatch": 444.0,
    "leaves_in": 602,
    "leaves_out": 603,
}


def training(treadle: float, flax: float) -> dict[str, Any]:
    cases = {
        "jax.jit, flat": case(1.0, 0.0),
        "treadle.jit": case(treadle),
        "flax nnx.jit, graph updates": case(flax),
    }
    return row("a training step", "jax.jit, flat", cases, leaves=602, profile=PROFILE)
