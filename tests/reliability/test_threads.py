"""Threads: separate models, one shared model, a mutating thread, racing first calls."""

from __future__ import annotations

import contextlib
import itertools
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np
import pytest

import treadle as nnx

from .test_described_objects import make as described
from .test_described_objects import step as described_step

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

THREADS = 16


class Model(nnx.Module):
    """Two Variables that always change together."""

    def __init__(self, start: float = 0.0) -> None:
        self.a = nnx.Param(jnp.full(2, start))
        self.b = nnx.Param(jnp.full(2, start))
        self.layers = nnx.List([nnx.Dict(w=nnx.Param(jnp.full(2, start))) for _ in range(3)])
        self.rate = 1


def advance(model: Model) -> Any:
    model.a.value = model.a.value + 1
    model.b.value = model.b.value + 1
    for layer in model.layers:
        layer.w.value = layer.w.value + 1
    return model.a.value


@pytest.fixture(autouse=True)
def _switch_often() -> Iterator[None]:
    """Let the interpreter change threads as often as it can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def in_threads(work: Callable[[int], Any], n: int = THREADS) -> list[Any]:
    """Run `work` in `n` threads that start together; raises what any of them raised."""
    barrier = threading.Barrier(n)

    def start(i: int) -> Any:
        barrier.wait()
        return work(i)

    with ThreadPoolExecutor(n) as pool:
        return list(pool.map(start, range(n)))


def test_separate_models_do_not_disturb_each_other() -> None:
    step = nnx.jit(advance)
    models = [Model(float(i)) for i in range(THREADS)]

    def work(i: int) -> None:
        for _ in range(50):
            step(models[i])

    in_threads(work)
    for i, model in enumerate(models):
        assert np.array_equal(model.a.value, np.full(2, i + 50.0))
        assert np.array_equal(model.layers[2].w.value, np.full(2, i + 50.0))


def test_one_shared_model_is_never_torn() -> None:
    """Calls may overtake each other, but each sees and leaves a graph that belongs together."""

    @nnx.jit
    def step(model: Model) -> Any:
        advance(model)
        return [v.value[0] for v in (model.a, model.b, *(layer.w for layer in model.layers))]

    model = Model()

    def work(_: int) -> list[Any]:
        return [step(model) for _ in range(50)]

    for values in in_threads(work):
        assert all(len(set(map(float, seen))) == 1 for seen in values)
    final = {float(v.value[0]) for v in (model.a, model.b, *(d.w for d in model.layers))}
    assert len(final) == 1
    assert 50 <= final.pop() <= 50 * THREADS


@contextlib.contextmanager
def changed_meanwhile(change: Callable[[int], None]) -> Iterator[None]:
    """Another thread calls `change(1)`, `change(2)`, and so on until the block ends."""
    stop = threading.Event()

    def disturb() -> None:
        for i in itertools.count(1):
            if stop.is_set():
                return
            with contextlib.suppress(Exception):
                change(i)

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def test_a_thread_that_changes_the_model_causes_errors_at_most() -> None:
    step = nnx.jit(advance)
    model = Model()
    step(model)

    def change(i: int) -> None:
        model.rate = i % 2
        if i % 3 == 0:
            model.layers.append(nnx.Dict(w=nnx.Param(jnp.zeros(2))))
            model.layers.pop()
        if i % 5 == 0:
            vars(model)["extra"] = i % 2
            del vars(model)["extra"]

    def work(_: int) -> int:
        done = 0
        for _ in range(20):
            with contextlib.suppress(ValueError, TypeError, RuntimeError, KeyError, IndexError):
                step(model)
                done += 1
        return done

    with changed_meanwhile(change):
        in_threads(work, 8)
    step(model)
    nnx.merge(*nnx.split(model))


def test_a_thread_that_changes_described_objects_causes_errors_at_most() -> None:
    """Another library's objects change in place, even where treadle's own would be copied."""
    shed = described()
    described_step(shed)

    def change(i: int) -> None:
        shed.tank.note = str(i % 3)
        shed.mark(("rate",) if i % 2 else ())
        if i % 3 == 0:
            shed.extra = i % 2
            del shed.extra
        if i % 5 == 0:
            del shed.tank._notes["note"]
        shed.entries.entries["again"] = (shed.tank, shed.inner.other)[i % 2]

    def work(i: int) -> None:
        for _ in range(20):
            with contextlib.suppress(ValueError, TypeError, RuntimeError, KeyError, AttributeError):
                nnx.merge(*nnx.split(shed)) if i % 4 == 0 else described_step(shed)

    with changed_meanwhile(change):
        in_threads(work, 8)
    shed.mark(("rate",))
    described_step(shed)
    nnx.merge(*nnx.split(shed))


def test_racing_first_calls_all_succeed() -> None:
    traces = []

    @nnx.jit
    def step(model: Model) -> Any:
        traces.append(1)
        return advance(model)

    models = [Model(float(i)) for i in range(THREADS)]
    results = in_threads(lambda i: step(models[i]))
    for i, result in enumerate(results):
        assert np.array_equal(result, np.full(2, i + 1.0))
    assert len(traces) <= THREADS
    before = len(traces)
    step(Model())
    assert len(traces) == before


def test_racing_first_meetings_with_a_type() -> None:
    """What the engine remembers of a type is settled once, whoever asks first."""
    for _ in range(50):
        cls = type("Fresh", (), {})
        nodes = []
        for _ in range(8):
            model = Model()
            model.thing = cls()
            nodes.append(model)
        in_threads(lambda i, nodes=nodes: nnx.merge(*nnx.split(nodes[i])), 8)


def test_graph_functions_in_threads() -> None:
    model = Model()

    def work(i: int) -> None:
        for _ in range(100):
            graphdef, params, rest = nnx.split(model, lambda p, v: "a" in p, ...)
            copied = nnx.merge(graphdef, params, rest)
            assert graphdef == nnx.graphdef(copied)
            nnx.update(copied, params)
            graphdef.paths()

    in_threads(work)


def test_each_thread_has_its_own_trace_level() -> None:
    """While one thread traces, another may change what that thread has captured."""
    model, other = Model(), Model()
    tracing, changed = threading.Event(), threading.Event()

    def body(model: Model) -> Any:
        tracing.set()
        assert changed.wait(20)
        return advance(model)

    def change() -> None:
        assert tracing.wait(20)
        other.a.value = other.a.value + 1
        changed.set()

    thread = threading.Thread(target=change)
    thread.start()
    nnx.jit(body)(model)
    thread.join()
    assert np.array_equal(other.a.value, np.ones(2))


def test_the_extension_declares_the_lock_it_needs() -> None:
    """Nothing here is tested without the global lock, so the extension must ask for one."""
    if hasattr(sys, "_is_gil_enabled"):
        assert sys._is_gil_enabled()
