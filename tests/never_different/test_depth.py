"""Time and memory grow with depth, not with its square (point 20)."""

from __future__ import annotations

import gc
import time
import tracemalloc

import jax.numpy as jnp
import pytest

import treadle as nnx
from tests.on_devices import run_script
from tests.open_points import cases


class Link(nnx.Module):
    def __init__(self, inner):
        self.inner = inner
        self.training = True


def chain(depth):
    node = nnx.Dict(w=nnx.Param(jnp.ones(())))
    for _ in range(depth):
        node = Link(node)
    return node


def innermost(node):
    while isinstance(node, Link):
        node = node.inner
    return node


RUNS = {
    "iter_graph": lambda m: sum(1 for _ in nnx.iter_graph(m)),
    "eval": lambda m: m.eval(),
    "train": lambda m: m.train(),
    "iter_modules": lambda m: sum(1 for _ in m.iter_modules()),
    "set_attributes": lambda m: m.set_attributes(training=False),
    "grad": lambda m: nnx.grad(lambda m: innermost(m)["w"].value * 2.0)(m),
    "state": nnx.state,
    "split": nnx.split,
    "clone": nnx.clone,
    "jit": lambda m: nnx.jit(lambda m: innermost(m)["w"].value)(m),
    "remat": lambda m: nnx.remat(lambda m: innermost(m)["w"].value)(m),
    "fori_loop": lambda m: nnx.fori_loop(0, 2, lambda i, m: m, m),
    "cond": lambda m: nnx.cond(jnp.array(True), lambda m: None, lambda m: None, m),
    "repr of the structure": lambda m: repr(nnx.graphdef(m)),
}
DEPTH = 2500
# What these yield, all paths of a chain together, is of square size; what is kept of it is not.
OF_SQUARE_SIZE = ["iter_graph", "iter_modules"]


def seconds(run, depth):
    """Of this thread alone, the best of some runs, without collections of garbage."""
    best = float("inf")
    for _ in range(4 if depth <= DEPTH else 2):
        m = chain(depth)
        gc.collect()
        gc.disable()
        try:
            start = time.thread_time()
            run(m)
            best = min(best, time.thread_time() - start)
        finally:
            gc.enable()
    return best


@pytest.mark.parametrize("run", cases({n: r for n, r in RUNS.items() if n not in OF_SQUARE_SIZE}))
def test_time_is_linear_in_depth(run):
    """Four times as deep takes about four times as long, not sixteen."""
    run(chain(10))
    assert seconds(run, 4 * DEPTH) / seconds(run, DEPTH) < 7


def peak(run, depth):
    m = chain(depth)
    tracemalloc.start()
    run(m)
    seen = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return seen


@pytest.mark.parametrize("run", cases(RUNS))
def test_peak_memory_is_linear_in_depth(run):
    run(chain(10))
    assert peak(run, 1000) / peak(run, 250) < 8


def test_repr_is_bounded_or_linear():
    """It indents, so a text that shows everything is quadratic: it must leave something out."""
    repr(chain(10))
    small, large = chain(100), chain(400)
    assert len(repr(large)) / len(repr(small)) < 9


SCRIPT = """
import resource, sys
from tests.never_different.test_depth import *
# AddressSanitizer maps the whole address space for its own books.
if "sanitizers address" not in nnx._core.build_info():
    resource.setrlimit(resource.RLIMIT_AS, (12 * 2**30, resource.RLIM_INFINITY))
m = chain(100_000)
try:
    RUNS[{name!r}](m)
except RecursionError:
    print("said so")
print("alive")
sys.stdout.flush()
import os; os._exit(0)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", cases({n: n for n in ("eval", "iter_graph", "grad")}))
def test_100_000_levels_work_or_raise(name):
    done = run_script(SCRIPT.format(name=name))
    assert done.returncode == 0, done.stderr[-2000:]
    assert "alive" in done.stdout
