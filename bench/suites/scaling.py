"""Graph functions against the size of the graph, up to a million leaves and 100 000 levels.

Each size is measured in a process of its own. Time is the processor's, the least of a few runs with the
garbage collector off; memory is what the process grew by while it held a result.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

from harness.timing import Effort, Row

_CHILD = """
import gc, json, os, time
import jax.numpy as jnp
import psutil
import treadle

array = jnp.zeros(())

class Link(treadle.Module):
    pass

def wide(n):
    return treadle.List([treadle.Param(array) for _ in range(n)])

def deep(n):
    inner = Link()
    inner.w = treadle.Param(array)
    for _ in range(n):
        outer = Link()
        outer.inner = inner
        inner = outer
    return inner

def used():
    gc.collect()
    return psutil.Process(os.getpid()).memory_info().rss

def measure(operation):
    before = used()
    result = operation()
    grown = used() - before
    del result
    seconds = []
    gc.disable()
    while len(seconds) < 3 or (sum(seconds) < {seconds} and len(seconds) < 50):
        started = time.process_time()
        result = operation()
        seconds.append(time.process_time() - started)
        del result
    gc.enable()
    return min(seconds), grown

treadle.merge(*treadle.split({shape}(1000)))
before = used()
model = {shape}({size})
objects = used() - before
found = {{"split": measure(lambda: treadle.split(model))}}
parts = treadle.split(model)
found["merge"] = measure(lambda: treadle.merge(*parts))
found["update"] = measure(lambda: treadle.update(model, parts[1]))
print(json.dumps([objects, found]))
"""

_SHAPES = {
    "wide": ("list of {:,} Variables", (1_000, 10_000, 100_000, 1_000_000)),
    "deep": ("{:,} modules nested in each other", (1_000, 10_000, 100_000)),
}


def rows(effort: Effort) -> Iterator[Row]:
    for shape, (name, sizes) in _SHAPES.items():
        for size in sizes:
            code = _CHILD.format(shape=shape, size=size, seconds=effort.row_seconds / 10)
            done = subprocess.run(
                [sys.executable, "-c", code], capture_output=True, text=True, check=True
            )
            objects, found = json.loads(done.stdout.strip().splitlines()[-1])
            row = Row(name=name.format(size), base="split", extra={"shape": shape, "size": size})
            row.notes.append(f"the graph itself takes {objects / size:.0f} bytes for each")
            for case, (seconds, grown) in found.items():
                row.cases[case] = {
                    "each_ns": seconds / size * 1e9,
                    "us": seconds * 1e6,
                    # The last pages of a small graph may have been there before.
                    "each_bytes": max(grown, 0) / size,
                    "ratio": seconds / found["split"][0],
                }
            yield row
