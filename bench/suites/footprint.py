"""Import time, and memory per Variable: each measured in processes of its own."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import peers
from harness.timing import Effort, Row, summary

_IMPORT = """
import time
import jax
start = time.perf_counter()
{statement}
print(time.perf_counter() - start)
"""

_MEMORY = """
import gc, json, os
import jax.numpy as jnp
import psutil
{setup}
array = jnp.zeros(())
count = 30_000
def used():
    gc.collect()
    return psutil.Process(os.getpid()).memory_info().rss
kept = [None] * count
warm = [{make} for _ in range(1000)]
before = used()
for i in range(count):
    kept[i] = {make}
print((used() - before) / count)
"""


def _child(code: str) -> float:
    # An installed package comes with its bytecode; whoever switched it off for a source tree still measures that.
    with_bytecode = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    with_bytecode["PYTHONPYCACHEPREFIX"] = str(
        Path(tempfile.gettempdir()) / "treadle-bench-bytecode"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=with_bytecode,
    )
    return float(json.loads(done.stdout.strip().splitlines()[-1]))


def import_rows(effort: Effort) -> Iterator[Row]:
    statements = {
        "import treadle": "import treadle",
        "import treadle, and use jit, Linear and Optimizer": (
            "import treadle; treadle.jit, treadle.Linear, treadle.Optimizer"
        ),
    }
    if peers.HAS_EQUINOX:
        statements["import equinox"] = "import equinox"
    if peers.HAS_FLAX:
        statements["from flax import nnx"] = "from flax import nnx"
    seconds: dict[str, list[float]] = {name: [] for name in statements}
    rounds = 9 if effort.full else 4
    for turn in range(rounds + 1):
        for name, statement in statements.items():
            # Peers take seconds; in the short run two turns of theirs tell enough.
            if turn > 2 and not effort.full and "treadle" not in statement:
                continue
            taken = _child(_IMPORT.format(statement=statement))
            # The first turn may write bytecode.
            if turn:
                seconds[name].append(taken)
    row = Row(name="import, after jax", base="import treadle", rounds=rounds)
    for name in statements:
        own = seconds["import treadle"][: len(seconds[name])]
        row.cases[name] = summary(seconds[name], own)
    yield row


def memory_rows(effort: Effort) -> Iterator[Row]:
    kinds = {
        "types.SimpleNamespace": (
            "from types import SimpleNamespace",
            "SimpleNamespace(value=array)",
        ),
        "treadle.Param": ("import treadle", "treadle.Param(array)"),
    }
    if peers.HAS_FLAX:
        kinds["flax nnx.Param"] = ("from flax import nnx", "nnx.Param(array)")
    row = Row(
        name="memory per Variable (bytes, without its array)",
        base="types.SimpleNamespace",
        rounds=3 if effort.full else 1,
    )
    found = {
        name: sorted(_child(_MEMORY.format(setup=setup, make=make)) for _ in range(row.rounds))
        for name, (setup, make) in kinds.items()
    }
    for name, values in found.items():
        row.cases[name] = {
            "bytes": statistics.median(values),
            "bytes_low": values[0],
            "bytes_high": values[-1],
            "ratio": statistics.median(values) / statistics.median(found["types.SimpleNamespace"]),
        }
    yield row
