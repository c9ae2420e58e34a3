"""Objects of other libraries, which treadle can only watch: they change in place, and behind its back."""

from __future__ import annotations

import dataclasses
import functools
import gc
import weakref
from typing import Any

import jax.numpy as jnp
import pytest

import treadle as nnx
from tests.properties.outsiders import Ledger, Memory, Rack, Shed, Tank

from .test_reentrancy import Trigger


def make() -> Shed:
    shed = Shed(("rate",))
    shed.tank = Tank(jnp.ones(2), note="x")
    shed.inner = Rack()
    shed.inner.other = Tank(jnp.zeros(3))
    shed.rate = 0.5
    shed.entries = Ledger({"again": shed.tank})
    return shed


@nnx.jit
def step(shed: Shed) -> Any:
    shed.tank.value = shed.tank.value + shed.rate
    return shed.inner.other.value.sum()


def test_hot_calls_leave_memory_and_references_flat() -> None:
    shed = make()
    for _ in range(10):
        step(shed)
    gc.collect()
    before = len(gc.get_objects())
    for _ in range(2_000):
        step(shed)
    gc.collect()
    assert len(gc.get_objects()) <= before + 10
    assert step._counts["cold"] <= 2
    assert shed.tank.value.tolist() == [1006.0, 1006.0]


@pytest.mark.parametrize("call", [nnx.split, step], ids=["split", "jit"])
def test_metadata_that_refer_to_a_model_do_not_keep_it_alive(call: Any) -> None:
    """Metadata are remembered to compare them quickly; what leads to a model is not."""

    class Mine(Shed):
        def hook(self) -> None:
            """Something for metadata to hold."""

    shed: Any = Mine(("rate",))
    shed.tank, shed.inner, shed.rate = Tank(jnp.ones(2)), make().inner, 0.5
    shed.tank.note = shed.hook
    call(shed)
    watch = weakref.ref(shed)
    del shed
    step._clear_plans()
    step.clear_cache()
    gc.collect()
    assert watch() is None


def test_metadata_without_end_do_not_pile_up() -> None:
    """Each kind of metadata there ever was is remembered, up to a number."""
    shed = make()
    for i in range(5_000):
        shed.tank.note = f"note {i}"
        nnx.graphdef(shed)
    gc.collect()
    before = len(gc.get_objects())
    for i in range(5_000, 10_000):
        shed.tank.note = f"note {i}"
        nnx.graphdef(shed)
    gc.collect()
    assert len(gc.get_objects()) <= before + 100


@pytest.mark.parametrize("moment", range(1, 8))
@pytest.mark.parametrize("what", ["metadata", "marks"])
def test_what_changes_while_guards_are_taken_is_seen_by_the_next_call(
    what: str, moment: int
) -> None:
    shed = make()
    shed.trigger = Trigger()
    calls = 0

    def change() -> None:
        nonlocal calls
        calls += 1
        if calls == moment and what == "metadata":
            shed.tank.note = "y"
        elif calls == moment:
            shed.mark(())

    seen = []

    @nnx.jit
    def look(shed: Shed) -> None:
        seen.append((shed.tank.note, isinstance(shed.rate, float)))

    shed.trigger.run = change
    look(shed)
    shed.trigger.run = None
    look(shed)
    look(shed)
    assert seen[-1] == (shed.tank.note, "rate" not in shed._marks)


@pytest.mark.parametrize("static", ["off", functools.partial(max, 1)], ids=["text", "partial"])
def test_a_static_in_the_place_of_a_marked_number_is_another_structure(static: Any) -> None:
    """A marked number is a leaf, so a hot call takes any other number; what is none it must not take."""
    shed = Shed(("rate",))
    shed.tank = Tank(jnp.ones(2))

    @nnx.jit
    def double(shed: Shed) -> Any:
        return -1 if shed.rate is static else shed.rate * 2

    for rate, doubled in ((0.5, 1.0), (1.5, 3.0), (static, -1), (2, 4)):
        shed.rate = rate
        for _ in range(2):
            assert float(double(shed)) == doubled
    assert len(double._structures) == 2


def test_an_emptied_slot_is_an_error_that_changes_nothing() -> None:
    shed = make()
    expected = step(shed)
    del shed.inner.other._held
    with pytest.raises(AttributeError):
        step(shed)
    assert shed.tank.value.tolist() == [1.5, 1.5]
    shed.inner.other.value = jnp.zeros(3)
    assert step(shed) == expected


def test_a_variable_without_metadata_or_trace_is_refused_and_nothing_changes() -> None:
    shed = make()
    shed.inner.other._notes = None
    with pytest.raises(TypeError, match="must be a dict"):
        step(shed)
    shed.inner.other._notes = {}
    assert shed.tank.value.tolist() == [1, 1]
    del shed.tank._memory
    with pytest.raises(AttributeError):
        nnx.update(shed, nnx.state(shed))
    shed.tank._memory = Memory()
    step(shed)


def test_values_that_cannot_be_leaves_are_refused_by_path() -> None:
    shed = make()
    shed.inner.other.value = Memory()
    with pytest.raises(nnx.GraphError, match=r"shed\.inner\.other holds a memory"):
        step(shed)
    shed.inner.other.value = jnp.ones(3)
    shed.inner.other.refused = "is not to be touched"
    with pytest.raises(nnx.GraphError, match=r"shed\.inner\.other is not to be touched"):
        step(shed)


def test_changing_a_captured_variable_of_another_level_is_refused() -> None:
    shed = make()

    @nnx.jit
    def inner(other: Shed) -> None:
        nnx.update(shed, nnx.state(other))

    with pytest.raises(nnx.TraceContextError, match="Cannot mutate 'Tank'"):
        inner(make())
    assert shed.tank.value.tolist() == [1, 1]


@dataclasses.dataclass(frozen=True)
class Label:
    """Frozen, and yet it leads to what it likes."""

    of: object


def test_metadata_that_hold_a_frozen_dataclass_do_not_keep_what_it_holds() -> None:
    class Thing:
        pass

    thing = Thing()
    watch = weakref.ref(thing)
    shed = make()
    shed.tank.note = Label(thing)
    nnx.split(shed)
    del shed, thing
    gc.collect()
    assert watch() is None


def test_instances_that_need_more_than_object_sets_up_are_refused() -> None:
    class Drawers(Shed, dict):  # type: ignore[misc]
        """A dict too, which `object.__new__` does not know how to make."""

    shed: Any = Drawers(("rate",))
    shed.tank = Tank(jnp.ones(2))
    with pytest.raises(TypeError, match="not safe"):
        nnx.merge(*nnx.split(shed))


class EqualName(str):
    """A name that another one's hash leads to, so that looking that one up runs code."""

    def __new__(cls, text: str, like: str, run: Any) -> EqualName:
        made = super().__new__(cls, text)
        made.like, made.run = like, run
        return made

    def __hash__(self) -> int:
        return hash(self.like)

    def __eq__(self, other: object) -> bool:
        self.run()
        return self is other


def test_names_that_run_code_while_a_mapping_is_guarded() -> None:
    """Arrays that the guards have just seen may not be freed before the call has taken them."""
    armed: list[bool] = []

    def run() -> None:
        if armed:
            armed.clear()
            model.a = jnp.ones(3) * 5

    ledger: Any = Ledger.__new__(Ledger)
    vars(ledger)[EqualName("x", "entries", run)] = 0
    ledger.entries = {"k": jnp.ones(())}
    model = nnx.Dict(a=jnp.ones(3) * 2, z=ledger)
    add = nnx.jit(lambda model: model.a.sum() + model.z.entries["k"])
    add(model), add(model)
    armed.append(True)
    assert float(add(model)) in (7.0, 16.0)
    assert add._counts["cold"] == 1


@pytest.mark.parametrize("kind", [Shed, Rack])
def test_names_that_raise_while_books_are_looked_up(kind: type[Shed]) -> None:
    def run() -> None:
        if armed:
            raise ValueError("from __eq__")

    armed: list[bool] = []
    node = kind(["p"])
    for book in ("_memory", "_marks", "p"):
        vars(node)[EqualName(f"like {book}", book, run)] = 1.0
    armed.append(True)
    with pytest.raises((ValueError, nnx.GraphError)):
        nnx.graphdef(node)


def test_a_class_that_is_collected_with_its_last_call() -> None:
    """What is known of a type goes before finalizers run, which may still call the function."""
    seen: list[float] = []

    class Owner:
        def __init__(self) -> None:
            class Local(Tank):
                __slots__ = ()

            self.kind, self.me = Local, self
            self.shed: Any = Shed()
            self.shed.tank = Local(jnp.ones(()))
            self.shed.books = Ledger({"again": self.shed.tank})
            self.double = nnx.jit(lambda shed: shed.books.entries["again"].value * 2)
            self.double(self.shed), self.double(self.shed)

        def __del__(self) -> None:
            seen.append(float(self.double(self.shed)))

    for _ in range(3):
        watch = weakref.ref(Owner().kind)
        gc.collect()
        gc.collect()
        assert watch() is None
    assert seen == [2.0] * 3


def test_a_cycle_through_metadata_and_the_function_is_collected() -> None:
    class Owner:
        def __init__(self) -> None:
            self.shed = make()
            self.shed.tank.note = self
            self.step = nnx.jit(lambda shed: shed.tank.value.sum())
            self.step(self.shed), self.step(self.shed)
            assert self.step._counts["hot"] == 1

    watch = weakref.ref(Owner())
    gc.collect()
    assert watch() is None
