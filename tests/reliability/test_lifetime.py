"""Nothing is kept longer than it is needed, and nothing grows."""

from __future__ import annotations

import copy
import gc
import sys
import weakref
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import treadle as nnx
from treadle import _core

from .record import reference_counts


class Model(nnx.Module):
    """A few leaves of each sort, and a cycle."""

    def __init__(self) -> None:
        self.weights = nnx.List([nnx.Param(jnp.ones(4) * i) for i in range(4)])
        self.stat = nnx.BatchStat(jnp.zeros(4))
        self.rate = 0.5
        self.me = self


@nnx.jit
def step(model: Model, x: Any) -> Any:
    model.stat.value = model.stat.value + x
    model.weights[0].value = model.weights[0].value * 0.5
    return jnp.sum(model.stat.value)


# AddressSanitizer keeps up to 256 MB of what was freed, to tell who still uses it.
HELD_BACK = 65_536 if "sanitizers address" in _core.build_info() else 0


def resident_pages() -> int:
    """Memory in use by the process, in pages; 0 where the platform does not say."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1])
    except OSError:
        return 0


def test_100_000_hot_calls_leave_everything_flat() -> None:
    model, x = Model(), jnp.ones(4)
    for _ in range(2_000):
        step(model, x)
    gc.collect()
    counts, objects, arrays = reference_counts(model), len(gc.get_objects()), len(jax.live_arrays())
    blocks, pages = sys.getallocatedblocks(), resident_pages()
    for _ in range(100_000):
        step(model, x)
    gc.collect()
    assert reference_counts(model) == counts
    assert len(jax.live_arrays()) <= arrays + 2
    assert abs(len(gc.get_objects()) - objects) < 500
    assert abs(sys.getallocatedblocks() - blocks) < 2_000
    assert resident_pages() - pages < 4_000 + HELD_BACK  # 16 MB


def test_warm_calls_on_fresh_models_leave_everything_flat() -> None:
    x = jnp.ones(4)
    for _ in range(200):
        step(Model(), x)
    gc.collect()
    blocks, arrays = sys.getallocatedblocks(), len(jax.live_arrays())
    for _ in range(2_000):
        step(Model(), x)
    gc.collect()
    assert abs(sys.getallocatedblocks() - blocks) < 2_000
    assert len(jax.live_arrays()) <= arrays + 2


def test_structures_that_come_and_go_do_not_pile_up() -> None:
    """One call site, many structures that live on nowhere else."""

    @nnx.jit
    def read(model: Model) -> None:
        model.stat.value = model.stat.value + 1

    for i in range(12):
        model = Model()
        model.rate = i
        read(model)
        watch = weakref.ref(model)
        del model
        gc.collect()
        assert watch() is None


@pytest.mark.parametrize("calls", [1, 2, 5])
def test_a_dropped_model_frees_its_arrays_at_once(calls: int) -> None:
    class Plain(nnx.Module):
        """Without a cycle, so that no garbage collection is needed."""

        def __init__(self) -> None:
            self.w = nnx.Param(jnp.full(4, 7.0))

    @nnx.jit
    def touch(model: Plain) -> Any:
        model.w.value = model.w.value + 1
        return jnp.sum(model.w.value)

    model = Plain()
    for _ in range(calls):
        touch(model)
    watched = [weakref.ref(model), weakref.ref(model.w), weakref.ref(model.w.value)]
    gc.disable()
    try:
        del model
        assert [ref() for ref in watched] == [None, None, None]
    finally:
        gc.enable()


def test_replaced_arrays_are_freed_at_once() -> None:
    model, x = Model(), jnp.ones(4)
    step(model, x)
    old = weakref.ref(model.stat.value)
    step(model, x)
    assert old() is None


def test_a_dropped_function_frees_what_it_knew() -> None:
    class Token:
        """A static that can be watched."""

    model = Model()
    model.token = Token()
    watched = weakref.ref(model.token)

    def body(model: Model) -> None:
        model.stat.value = model.stat.value + 1

    jitted = nnx.jit(body)
    jitted(model)
    jitted(model)
    gone = weakref.ref(body)
    del model, jitted, body
    jax.clear_caches()
    gc.collect()
    assert watched() is None
    assert gone() is None


def retraced(function: Callable[..., Any]) -> Callable[..., Any]:
    """Jitted, and called before with another structure: why it is traced again is written down."""
    jitted = nnx.jit(function)
    jitted(nnx.Dict(other=nnx.Param(jnp.ones(3)), w=nnx.Param(jnp.ones(4))), jnp.ones(4))
    return jitted


LIFTS: dict[str, Callable[[Callable[..., Any]], Callable[..., Any]]] = {
    "jit": nnx.jit,
    "retraced": retraced,
    "grad": nnx.grad,
    "remat": nnx.remat,
    "vmap": lambda function: (
        lambda model, x: nnx.vmap(function, in_axes=(None, 0), state_axes={...: None})(
            model, x[None]
        )
    ),
    "scan": lambda function: (
        lambda model, x: nnx.scan(
            lambda carry, m, y: (carry + function(m, y), None),
            in_axes=(nnx.Carry, None, 0),
            out_axes=(nnx.Carry, 0),
        )(jnp.zeros(()), model, x[None])
    ),
    "cond": lambda function: lambda model, x: nnx.cond(True, function, function, model, x),
    "eval_shape": lambda function: lambda model, x: nnx.eval_shape(function, model, x),
    "jit of grad": lambda function: nnx.jit(lambda model, x: nnx.grad(function)(model, x)),
}


class Plain(nnx.Module):
    """Without a cycle."""

    def __init__(self) -> None:
        self.w = nnx.Param(jnp.full(4, 7.0))


def loss_with(captured: Plain) -> Callable[..., Any]:
    """A function that closes over a model."""
    return lambda model, x: (model.w.value * captured.w.value * x).sum()


@pytest.mark.parametrize("lift", LIFTS.values(), ids=LIFTS)
def test_what_a_dropped_function_closed_over_is_freed(lift: Any) -> None:
    captured, model = Plain(), Plain()
    watched = [weakref.ref(captured), weakref.ref(captured.w.value)]
    lifted = lift(loss_with(captured))
    lifted(model, jnp.ones(4))
    lifted(model, jnp.ones(4))
    del lifted, captured
    jax.clear_caches()
    gc.collect()
    assert [ref() for ref in watched] == [None, None]


def test_clearing_jaxs_caches_costs_a_compilation_and_nothing_else() -> None:
    model, x = Model(), jnp.ones(4)
    for _ in range(2):
        step(model, x)
        step(model, x)
        jax.clear_caches()
    assert jnp.array_equal(model.stat.value, jnp.full(4, 4.0))


def test_cycles_through_every_type_of_the_core_are_collected() -> None:
    class Watched(nnx.Module):
        """Can be watched by weak reference."""

    def through_variable() -> Any:
        node = Watched()
        node.v = nnx.Param(jnp.zeros(1))
        node.v.raw_value = node
        return node

    def through_metadata() -> Any:
        node = Watched()
        node.v = nnx.Param(jnp.zeros(1))
        node.v.owner = node
        return node

    def through_containers() -> Any:
        node = Watched()
        node.items = nnx.List([nnx.Dict(back=node)])
        return node

    def through_variable_state() -> Any:
        node = Watched()
        node.state = nnx.VariableState(nnx.Param, node)
        return node

    def through_state() -> Any:
        node = Watched()
        node.kept = nnx.state(node)
        node.w = nnx.Param(jnp.zeros(1))
        node.state = nnx.State({"a": nnx.VariableState(nnx.Param, node)})
        return node

    def through_graphdef() -> Any:
        node = Watched()
        later: list[Any] = []
        node.f = lambda: later  # a static of the structure that is kept below
        vars(node)["f"].kept = nnx.graphdef(node)
        later.append(node)
        return node

    def through_flat() -> Any:
        node = Watched()
        node.f = lambda: None
        node.f.kept = _core.flatten(node)
        return node

    def through_jitted_function() -> Any:
        node = Watched()
        node.w = nnx.Param(jnp.zeros(1))
        node.call = nnx.jit(lambda x: node)
        return node

    def through_called_function() -> Any:
        node = Watched()
        node.w = nnx.Param(jnp.zeros(1))
        table: dict[str, Any] = {}

        def call(m: Any) -> Any:
            return table and m.w.value

        table["f"] = nnx.jit(call)
        table["f"](node)
        table["node"] = node
        return node

    for make in (
        through_variable,
        through_metadata,
        through_containers,
        through_variable_state,
        through_state,
        through_graphdef,
        through_flat,
        through_jitted_function,
        through_called_function,
    ):
        node = make()
        watched = weakref.ref(node)
        del node
        jax.clear_caches()
        gc.collect()
        assert watched() is None, make.__name__


def test_types_of_the_core_take_part_in_garbage_collection() -> None:
    model = Model()
    flat = _core.flatten(model)
    objects = [
        model,
        model.stat,
        nnx.VariableState(nnx.Param, 1),
        flat,
        flat.graphdef,
        nnx.state(model),
        step,
    ]
    for obj in objects:
        assert gc.is_tracked(obj), type(obj)
        assert gc.get_referents(obj), type(obj)


def test_copies_share_nothing_but_arrays() -> None:
    model = Model()
    copied = copy.deepcopy(model)
    assert copied.me is copied
    step(copied, jnp.ones(4))
    assert jnp.array_equal(model.stat.value, jnp.zeros(4))
    shallow = copy.copy(model)
    assert shallow.stat is model.stat


def test_thousands_of_types_leave_nothing_behind() -> None:
    """Classes without instances; and of those with instances, which JAX keeps, nothing but the class."""

    def make() -> tuple[weakref.ref[Any], ...]:
        unused = type("Unused", (nnx.Module,), {})
        cls = type("Passing", (nnx.Module,), {})
        node = cls()
        node.w = nnx.Param(jnp.zeros(()))
        copied = nnx.merge(*nnx.split(node))
        return tuple(map(weakref.ref, (unused, node, node.w, copied)))

    watched = [ref for _ in range(1_000) for ref in make()]
    gc.collect()
    assert not any(ref() for ref in watched)
