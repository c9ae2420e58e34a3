"""If user code raises, wherever, the caller's objects are as before and the next call works."""

from __future__ import annotations

import gc
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import treadle as nnx
from tests.reference.kinds import TREADLE
from tests.reference.model import first_difference, walk

from .faults import Fault, Model, Operation, change, fuse, predicate
from .record import Record, reference_counts

X = jnp.ones(2)


def _loss(model: Model, x: Any) -> Any:
    value, _ = change(model, x)
    return value


def _update(model: Model) -> None:
    state = nnx.state(model)
    nnx.update(model, jax.tree.map(lambda leaf: leaf + 1, state))


def _set_eval(model: Model) -> None:
    model.set_attributes(predicate, lambda *_: True, counter=5)


OPERATIONS: dict[str, Operation] = {
    "jit": lambda model: nnx.jit(change)(model, X),
    "jit, all filters": lambda model: nnx.jit(change, donate_state=False, constrain_state=True)(
        model, X
    ),
    "grad": lambda model: nnx.grad(_loss, wrt=nnx.Any(predicate, nnx.Param))(model, X),
    "value_and_grad": lambda model: nnx.value_and_grad(change, has_aux=True)(model, X),
    "remat": lambda model: nnx.remat(change)(model, X),
    "vmap": lambda model: nnx.vmap(
        change, state_axes={predicate: None, ...: None}, in_axes=None, axis_size=2
    )(model, X),
    "jit of grad": lambda model: nnx.jit(nnx.grad(_loss))(model, X),
    "eval_shape": lambda model: nnx.eval_shape(change, model, X),
    "split": lambda model: nnx.split(model, predicate, ...),
    "merge": lambda model: nnx.merge(*nnx.split(model)),
    "state": lambda model: nnx.state(model, predicate),
    "update": _update,
    "clone": nnx.clone,
    "pop": lambda model: nnx.pop(model, predicate),
    "graphdef": lambda model: hash(nnx.graphdef(model)),
}
PURE = {"eval_shape", "split", "merge", "state", "clone", "graphdef"}


def outcome(operation: Operation) -> Any:
    """What the operation leaves of a model when nothing fails."""
    model = Model()
    operation(model)
    return walk(model, TREADLE)


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_fault_anywhere_in_user_code_changes_nothing(name: str) -> None:
    operation = OPERATIONS[name]
    expected = outcome(operation)
    call = 0
    while True:
        call += 1
        model = Model()
        before = Record(model)
        try:
            with fuse.blow_at(call):
                operation(model)
        except Fault:
            before.assert_unchanged()
            operation(model)  # the fuse is blown: now it works
            after = walk(model, TREADLE)
            assert first_difference(after.root, expected.root) is None, fuse.where
            for seen, wanted in zip(after.leaves, expected.leaves, strict=True):
                assert jnp.array_equal(seen, wanted), fuse.where
            continue
        break
    assert call > 3, "no user code ran"


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, MemoryError, RecursionError])
def test_exceptions_of_any_kind_pass_through_unchanged(error: type[BaseException]) -> None:
    jitted = nnx.jit(change)
    start = fuse.calls
    jitted(Model(), X)
    count = fuse.calls - start
    for call in sorted({1, count // 4, count // 2, 3 * count // 4}):
        jitted = nnx.jit(change)
        model = Model()
        before = Record(model)
        with pytest.raises(error), fuse.blow_at(call, error):
            jitted(model, X)
        before.assert_unchanged()


def test_a_fault_in_a_hot_call_changes_nothing() -> None:
    """The structure is compiled and known; the walk and the guards run user code."""

    @nnx.jit
    def step(model: Model, x: Any) -> Any:
        model.stat.value = model.stat.value + x
        return model.stat.value

    model = Model()
    for _ in range(3):
        step(model, X)
    call = 0
    while True:
        call += 1
        before = Record(model)
        try:
            with fuse.blow_at(call):
                step(model, X)
        except Fault:
            before.assert_unchanged()
            continue
        break
    step(model, X)


def test_faults_leave_no_reference_behind() -> None:
    model = Model()
    jitted = nnx.jit(change)
    for call in (1, 7, 14):  # whatever is set up once is set up now
        with pytest.raises(Fault), fuse.blow_at(call):
            jitted(model, X)
    before = reference_counts(model)
    for call in range(1, 30):
        try:
            with fuse.blow_at(call):
                nnx.split(model, predicate, ...)
                jitted(model, X)
        except Fault:
            pass
        else:
            pytest.fail("the fuse did not blow")
    gc.collect()
    assert reference_counts(model) == before


def test_update_refuses_before_it_writes() -> None:
    model = Model()
    before = Record(model)
    state = nnx.state(model)
    flat = dict(state.flat_state())
    flat["missing", "entry"] = nnx.VariableState(nnx.Param, jnp.ones(3))
    with pytest.raises(nnx.GraphError, match="missing"):
        nnx.update(model, nnx.State.from_flat_state(flat))
    before.assert_unchanged()


def test_a_result_that_jax_refuses_changes_nothing() -> None:
    model = Model()
    before = Record(model)

    def returns_text(model: Model) -> Any:
        model.stat.value = model.stat.value + 1
        return object()

    with pytest.raises(TypeError):
        nnx.jit(returns_text)(model)
    before.assert_unchanged()
