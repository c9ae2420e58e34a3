"""The suites by name. Each is a function from an effort to rows."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from harness import allocator

# Name -> module and function. Each suite runs in a process of its own; what the targets need comes first.
SUITES = {
    "training": ("suites.dispatch", "train_rows"),
    "one-leaf": ("suites.single_calls", "one_leaf_rows"),
    "warm": ("suites.single_calls", "warm_rows"),
    "eager": ("suites.eager", "rows"),
    "tracing": ("suites.tracing", "rows"),
    "flax": ("suites.flax_models", "rows"),
    "allocator": ("suites.allocator", "rows"),
    "training-large": ("suites.dispatch", "large_train_rows"),
    "tail": ("suites.tail", "rows"),
    "imports": ("suites.footprint", "import_rows"),
    "memory": ("suites.footprint", "memory_rows"),
    "breakdown": ("suites.breakdown", "rows"),
    "state": ("suites.dispatch", "state_rows"),
    "sweep": ("suites.dispatch", "sweep_rows"),
    "scaling": ("suites.scaling", "rows"),
    "transforms": ("suites.transforms", "rows"),
}

TITLES = {
    "training": "Training steps with Adam",
    "training-large": "Training steps with thousands of leaves",
    "state": "Models that change their state, and decoding",
    "sweep": "Cost against the number of leaves",
    "one-leaf": "One-leaf calls",
    "warm": "Other objects, same structure",
    "eager": "Graph functions outside of jit, and State as a pytree",
    "transforms": "Each transform called eagerly",
    "tracing": "Tracing",
    "flax": "Models of flax",
    "allocator": "On another allocator than glibc's",
    "breakdown": "Where the time goes",
    "tail": "Tail latency with the garbage collector on",
    "imports": "Import time",
    "memory": "Memory",
    "scaling": "Linear in the size of the graph",
}


# Seconds that a suite of the short run takes on two quiet cores.
_SECONDS = {
    "training": 70,
    "one-leaf": 11,
    "warm": 14,
    "eager": 19,
    "tracing": 18,
    "flax": 90,
    "allocator": 40,
    "training-large": 75,
    "tail": 30,
    "imports": 22,
    "memory": 8,
    "breakdown": 12,
    "state": 38,
    "sweep": 42,
    "scaling": 25,
    "transforms": 22,
}


def limit(left: float, names: Sequence[str]) -> float:
    """How long the first of these suites may run, so that the others get what they need.

    An early suite may use up what is to spare, but not the time of later ones. Where there is not enough for
    all, each gets its share.
    """
    needed = sum(_SECONDS[name] for name in names)
    own = _SECONDS[names[0]]
    return max(left - (needed - own), left * own / needed)


def environment(name: str) -> dict[str, str]:
    """What a suite's process needs in its environment."""
    library = allocator.alternative() if name == "allocator" else None
    return {} if library is None else {"LD_PRELOAD": str(library)}


def load(name: str) -> Callable[[Any], Iterator[Any]]:
    module, function = SUITES[name]
    return getattr(importlib.import_module(module), function)
