"""When an allocation of the C++ core fails, there is a MemoryError and nothing has changed.

`test_memory.py` does the same to Python's allocator. The debug build lets a test choose the
allocation to fail; `make sanitize` runs on such a build.
"""

from __future__ import annotations

import copy
import gc
import pickle
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import pytest

import treadle as nnx
from tests.properties.outsiders import Rack, Tank
from tests.reference.kinds import TREADLE
from tests.reference.model import walk
from treadle import _core

from .faults import Model, change, predicate
from .record import Record
from .test_described_objects import make, step

pytestmark = pytest.mark.skipif(
    not hasattr(_core, "_fail_allocation"),
    reason="only the debug build for Linux can make C++ allocations fail: make sanitize",
)

MAX_ALLOCATIONS = 5_000


class Job(NamedTuple):
    """An operation on a model."""

    run: Callable[[], Any]
    undo: Callable[[], Any] = lambda: None


class Plain(nnx.Module):
    """Leaves only, no code of the user's."""

    def __init__(self) -> None:
        self.weights = nnx.List([nnx.Param(jnp.ones(2)) for _ in range(3)])
        self.stat = nnx.BatchStat(jnp.zeros(2))
        self.mean = nnx.Variable(jnp.ones(2), tag="mean", note="kept")
        self.tied = self.weights[0]
        self.rate = 0.5
        self.items = [(1, jnp.ones(1)), {"a": nnx.Param(jnp.ones(1))}]


def advance(model: Plain, x: Any) -> Any:
    model.stat.value = model.stat.value + x
    model.weights[1].value = model.weights[1].value * 2
    return model.stat.value, model.weights[0]


def restructure(model: Plain, x: Any) -> Any:
    model.stat.value = model.stat.value + x
    model.rate += 1
    model.weights.append(nnx.Param(x))
    model.mean.note = "changed"
    model.weights[0], model.weights[1] = model.weights[1], model.weights[0]
    return model.weights[2]


def restore(model: Plain) -> Callable[[], None]:
    """What puts a Plain back to how it is now."""
    state, weights, rate = nnx.state(model), list(model.weights), model.rate

    def undo() -> None:
        model.weights[:] = weights
        model.rate = rate
        model.mean.note = "kept"
        nnx.update(model, state)

    return undo


def job_flatten(model: Plain) -> Job:
    return Job(lambda: _core.flatten(model))


def job_flatten_call(model: Plain) -> Job:
    return Job(lambda: _core.flatten_call((model, 1.0), {"y": model, "x": 2}, (1,), ("x",)))


def job_unflatten(model: Plain) -> Job:
    flat = _core.flatten(model)
    return Job(lambda: _core.unflatten(flat.graphdef, flat.leaves))


def job_split(model: Plain) -> Job:
    return Job(lambda: nnx.split(model, nnx.BatchStat, predicate, nnx.All("mean", ...), ...))


def job_merge(model: Plain) -> Job:
    parts = nnx.split(model, nnx.Param, ...)
    return Job(lambda: nnx.merge(*parts))


def job_clone(model: Plain) -> Job:
    return Job(lambda: nnx.clone(model))


def job_update(model: Plain) -> Job:
    state = nnx.state(nnx.clone(model))
    return Job(lambda: nnx.update(model, state), restore(model))


def job_pop(model: Plain) -> Job:
    mean = model.mean
    return Job(lambda: nnx.pop(model, "mean"), lambda: setattr(model, "mean", mean))


def job_state(model: Plain) -> Job:
    return Job(lambda: nnx.State({"a": {"b": nnx.state(model)}, "c": jnp.ones(1)}).flat_state())


def job_state_split(model: Plain) -> Job:
    return Job(lambda: nnx.State.merge(*nnx.state(model).split(nnx.Param, ...)))


def job_paths(model: Plain) -> Job:
    def run() -> Any:
        graphdef = _core.flatten(model).graphdef
        return graphdef.paths(), graphdef.ref_paths(), graphdef.path_index(), repr(graphdef)

    return Job(run)


def job_iter_graph(model: Plain) -> Job:
    return Job(lambda: list(nnx.iter_graph(model)))


def job_difference(model: Plain) -> Job:
    other = nnx.clone(model)
    other.rate = 3
    theirs = nnx.graphdef(other)
    return Job(lambda: (nnx.graphdef(model) == theirs, nnx.graphdef(model).difference(theirs)))


def job_pickle(model: Plain) -> Job:
    return Job(lambda: pickle.loads(pickle.dumps(nnx.graphdef(model))))


def job_deepcopy(model: Plain) -> Job:
    return Job(lambda: copy.deepcopy(model))


def job_variable(model: Plain) -> Job:
    def run() -> Any:
        variable = nnx.Param(jnp.ones(2), tag="mean")
        variable.value = jnp.zeros(2)
        variable.note = "x"
        return variable.state(), nnx.List([variable]), nnx.Dict(a=variable)

    return Job(run)


def job_new_type(model: Plain) -> Job:
    """The first meeting of types."""
    return Job(lambda: _core.flatten([type("Fresh", (), {})(), type("Node", (nnx.Module,), {})()]))


def job_effects(model: Plain) -> Job:
    flat = _core.flatten(model)
    root, inner = _core.unflatten(flat.graphdef, flat.leaves)
    restructure(root, jnp.ones(2))
    trace = (inner, flat.graphdef, flat.leaves, root.weights, True)

    def run() -> Any:
        effects, _ = _core.trace_effects(*trace)
        described = effects.outputs(), effects.output_types(), effects.output_metadata()
        return described, effects.same_as(_core.trace_effects(*trace)[0])

    return Job(run)


def job_apply(model: Plain) -> Job:
    flat = _core.flatten(model)
    root, inner = _core.unflatten(flat.graphdef, flat.leaves)
    result = restructure(root, jnp.ones(2))
    effects, out = _core.trace_effects(inner, flat.graphdef, flat.leaves, result, True)
    return Job(lambda: _core.apply_effects(effects, flat.refs, flat.leaves, out), restore(model))


def job_jit_hot(model: Plain) -> Job:
    step, x = nnx.jit(advance), jnp.ones(2)
    step(model, x), step(model, x)
    return Job(lambda: step(model, x), restore(model))


def job_jit_donating(model: Plain) -> Job:
    """Only values that the computation makes itself come back, so there is nothing to lose."""
    step, x = nnx.jit(advance, donate_argnums=1), jnp.ones(2)
    step(model, x + 1)
    return Job(lambda: step(model, x + 1), restore(model))


def job_jit_structure(model: Plain) -> Job:
    step, x, undo = nnx.jit(restructure), jnp.ones(2), restore(model)
    step(model, x)
    undo()
    return Job(lambda: step(model, x), undo)


def job_jit_warm(model: Plain) -> Job:
    step, x = nnx.jit(advance), jnp.ones(2)
    step(nnx.clone(model), x)
    return Job(lambda: step(nnx.clone(model), x))


def job_jit_cold(model: Plain) -> Job:
    x = jnp.ones(2)
    return Job(lambda: nnx.jit(advance)(model, x), restore(model))


def job_jit_timed(model: Plain) -> Job:
    step, x = nnx.jit(advance), jnp.ones(2)
    step(model, x)
    return Job(
        lambda: (step._timed((model,), {"x": x}), step._counts, step._structures), restore(model)
    )


def job_grad(model: Plain) -> Job:
    loss = nnx.value_and_grad(lambda model, x: jnp.sum(advance(model, x)[0]))
    return Job(lambda: loss(model, jnp.ones(2)), restore(model))


def job_vmap(model: Plain) -> Job:
    mapped = nnx.vmap(
        lambda x, model: model.weights[0].value * x,
        in_axes=(0, nnx.StateAxes({...: None})),
    )
    return Job(lambda: mapped(jnp.ones(2), model))


# Python objects only: nothing to fail in C++.
ALLOCATE_NOTHING = {"pop", "iter_graph", "deepcopy", "variable"}
JOBS = {name[4:]: job for name, job in list(globals().items()) if name.startswith("job_")}


def survive_every_failure(job: Job, model: Any) -> int:
    """Run a job once for each of its allocations, with that one failing; returns how many failed."""
    job.run()
    job.undo()
    job.run()
    job.undo()
    objects = [*walk(model, TREADLE).refs, *walk(model, TREADLE).leaves]
    gc.collect()
    counts = list(map(sys.getrefcount, objects))
    for n in range(1, MAX_ALLOCATIONS):
        before = Record(model)
        _core._fail_allocation(n)
        try:
            job.run()
        except MemoryError:
            failed = True
        else:
            failed = False
        finally:
            unreached = _core._fail_allocation(0)
        if unreached:
            assert not failed
            job.undo()
            return n - 1
        assert failed, f"allocation {n} failed and nobody noticed"
        before.assert_unchanged()
        del before
        if list(map(sys.getrefcount, objects)) != counts:
            gc.collect()  # tracebacks and the frames they show may hold each other
        assert list(map(sys.getrefcount, objects)) == counts, f"failure {n} left references behind"
    raise AssertionError("more allocations than expected")


@pytest.mark.parametrize("name", JOBS)
def test_every_failing_allocation_is_a_memory_error(name: str) -> None:
    model = Plain()
    failures = survive_every_failure(JOBS[name](model), model)
    assert (failures == 0) == (name in ALLOCATE_NOTHING)
    nnx.jit(advance)(model, jnp.ones(2))
    nnx.merge(*nnx.split(model))


def test_user_code_and_failing_allocations() -> None:
    """The graph with hooks, lying statics, registered nodes and pytrees."""
    model = Model()
    flat = _core.flatten(model)
    root, inner = _core.unflatten(flat.graphdef, flat.leaves)
    result = change(root, jnp.ones(2))
    effects, out = _core.trace_effects(inner, flat.graphdef, flat.leaves, result, True)
    for job in (
        Job(lambda: nnx.merge(*nnx.split(model))),
        Job(lambda: _core.flatten(model).graphdef == flat.graphdef),
        Job(lambda: _core.set_leaves(flat, range(len(flat.leaves)), flat.leaves)),
        Job(lambda: _core.trace_effects(inner, flat.graphdef, flat.leaves, None, True)),
    ):
        assert survive_every_failure(job, model) > 0
    assert survive_applying(effects, flat, out, model) > 10


def test_described_objects_and_failing_allocations() -> None:
    """Another library's objects: their metadata, marks and slots, and calls that guard them."""
    shed = make()
    flat = _core.flatten(shed)
    root, inner = _core.unflatten(flat.graphdef, flat.leaves)
    root.tank.value = root.tank.value + 1
    root.tank.note, root.inner.other.note = "changed", "new"
    root.mark(("entries",))
    root.fresh, root.late = Tank(jnp.ones(2)), Rack(("a",))
    del root.entries
    effects, out = _core.trace_effects(inner, flat.graphdef, flat.leaves, root.tank, True)
    state = nnx.state(shed)
    for job in (
        Job(lambda: _core.flatten(shed).graphdef == flat.graphdef),
        Job(lambda: nnx.merge(*nnx.split(shed))),
        Job(lambda: nnx.update(shed, state)),
        Job(lambda: _core.trace_effects(inner, flat.graphdef, flat.leaves, root, True)),
        Job(lambda: step(shed), lambda: nnx.update(shed, state)),
    ):
        assert survive_every_failure(job, shed) > 0
    assert survive_applying(effects, flat, out, shed) > 10


def survive_applying(effects: _core.Effects, flat: _core.Flat, out: Any, model: Any) -> int:
    """Apply effects with each allocation failing, until none does; returns how many there are."""
    n = 0
    unreached = False
    while not unreached:
        n += 1
        before = Record(model)
        _core._fail_allocation(n)
        try:
            _core.apply_effects(effects, flat.refs, flat.leaves, out)
        except MemoryError:
            assert not _core._fail_allocation(0)
            before.assert_unchanged()
        else:
            unreached = _core._fail_allocation(0)
            assert unreached
    return n
