"""Deep and large graphs: no limit but memory, and linear time."""

from __future__ import annotations

import copy
import gc
import time
import tracemalloc
import weakref
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import pytest

import treadle as nnx
from treadle import _core

from .record import works_or_names

if TYPE_CHECKING:
    from collections.abc import Callable

DEPTH = 100_000


class Link(nnx.Module):
    """One link of a chain."""


def chain(depth: int) -> Link:
    """Modules nested `depth` deep, a Variable at the innermost."""
    inner = Link()
    inner.w = nnx.Param(jnp.zeros(()))
    for _ in range(depth):
        outer = Link()
        outer.inner = inner
        inner = outer
    return inner


def innermost(link: Any) -> Any:
    """The last module of a chain."""
    while hasattr(link, "inner"):
        link = link.inner
    return link


def test_100_000_nested_modules() -> None:
    model = chain(DEPTH)
    graphdef, state = nnx.split(model)
    (path,) = dict(state.flat_state())
    assert len(path) == DEPTH + 1
    assert hash(graphdef) == hash(nnx.graphdef(model))
    assert graphdef == nnx.graphdef(model)
    copied = nnx.merge(graphdef, state)
    assert innermost(copied).w.value is innermost(model).w.value

    @nnx.jit
    def step(model: Link) -> None:
        last = innermost(model)
        last.w.value = last.w.value + 1

    step(model)
    step(model)
    assert innermost(model).w.value == 2
    nnx.update(model, state)
    assert innermost(model).w.value == 0
    del copied, model, graphdef, state
    gc.collect()


def test_100_000_nested_plain_lists() -> None:
    value: Any = nnx.Param(jnp.zeros(()))
    for _ in range(DEPTH):
        value = [value]
    model = Link()
    model.w = nnx.Param(jnp.zeros(()))
    model.deep = value
    with works_or_names("deep"):
        nnx.merge(*nnx.split(model))


def test_100_000_containers_in_a_row() -> None:
    model: Any = nnx.List([])
    for i in range(DEPTH):
        model = nnx.List([model]) if i % 2 else nnx.Dict(x=model)
    graphdef, state = nnx.split(model)
    nnx.merge(graphdef, state)
    del model, graphdef, state
    gc.collect()


def test_a_deep_graph_is_copied_pickled_and_shown_or_refused() -> None:
    """Python's own copy and repr recurse, so a refusal is allowed; a crash is not."""
    model = chain(20_000)
    for operation in (repr, copy.deepcopy):
        try:
            operation(model)
        except RecursionError:
            continue


def wide(n: int) -> nnx.List:
    """A list of `n` Variables that share one array."""
    array = jnp.zeros(())
    return nnx.List([nnx.Param(array) for _ in range(n)])


def seconds(operation: Callable[[], Any]) -> float:
    """The least processor time of three runs, without the garbage collector's own.

    How often that runs, and over how many objects of others, grows with the size in its own way.
    """
    best = float("inf")
    for _ in range(3):
        gc.collect()
        gc.disable()
        try:
            start = time.process_time()
            operation()
            best = min(best, time.process_time() - start)
        finally:
            gc.enable()
    return best


OPERATIONS: dict[str, Callable[[Any], Callable[[], Any]]] = {
    "split": lambda model: lambda: nnx.split(model),
    "split and merge": lambda model: lambda: nnx.merge(*nnx.split(model)),
    "filters": lambda model: lambda: nnx.split(model, nnx.BatchStat, nnx.PathContains(7), ...),
    "paths": lambda model: lambda: dict(nnx.state(model).flat_state()),
    "update": lambda model: lambda: nnx.update(model, nnx.state(model)),
    "hash": lambda model: lambda: hash(nnx.graphdef(model)),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_time_grows_linearly_with_size(name: str) -> None:
    """Eight times the size takes nowhere near 64 times as long."""
    small, large = wide(5_000), wide(40_000)
    ratio = seconds(OPERATIONS[name](large)) / seconds(OPERATIONS[name](small))
    assert ratio < 32


def test_time_grows_linearly_with_depth() -> None:
    short, long = chain(2_000), chain(16_000)
    ratio = seconds(lambda: nnx.split(long)) / seconds(lambda: nnx.split(short))
    assert ratio < 32


def tagged(depth: int, name: str, value: Any) -> Link:
    """A chain whose innermost module has one attribute more."""
    model = chain(depth)
    setattr(innermost(model), name, value)
    return model


@pytest.mark.parametrize(
    "other", [("tag", 2), ("zag", 1), ("tag", [1])], ids=["a value", "a name", "a kind"]
)
def test_differences_are_found_in_linear_time_with_depth(other: tuple[str, Any]) -> None:
    """Paths of all that is equal on the way together take the square of the depth."""

    def find(depth: int) -> Callable[[], Any]:
        one, two = nnx.graphdef(tagged(depth, "tag", 1)), nnx.graphdef(tagged(depth, *other))
        path = one.difference(two)[0]
        assert len(path) == depth + 1
        return lambda: one.difference(two)

    assert seconds(find(16_000)) / seconds(find(2_000)) < 32


def test_a_difference_100_000_deep_explains_a_retrace() -> None:
    step = nnx.jit(lambda model: jnp.zeros(()))
    step(tagged(DEPTH, "tag", 1))
    step(tagged(DEPTH, "tag", 2))
    (retrace,) = step.retraces
    assert retrace.path.endswith(".inner.inner.tag")
    assert (retrace.before, retrace.after) == (1, 2)


def test_the_text_of_a_deep_structure_takes_little_more_than_itself() -> None:
    """Each line has its whole path, so the text grows with the square of the depth; no path is kept beside it."""
    model: Any = Link()
    for _ in range(2_000):
        outer = Link()
        outer.a = model
        model = outer
    graphdef = nnx.graphdef(model)
    tracemalloc.start()
    try:
        text = repr(graphdef)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert text.endswith(".a.a: Link #2000")
    assert peak < 2 * len(text)


def lengthened(depth: int) -> Callable[[Link], None]:
    """A function that hangs a chain of new modules on its argument."""

    def lengthen(model: Link) -> None:
        model.inner = chain(depth)

    return lengthen


@pytest.mark.parametrize("transform", [nnx.jit, nnx.vmap, nnx.remat])
def test_new_structure_is_carried_out_in_linear_time_with_depth(transform: Any) -> None:
    def trace(depth: int) -> Callable[[], Any]:
        def run() -> Link:
            model = Link()
            model.w = nnx.Param(jnp.zeros((2,)))
            transform(lengthened(depth))(model)
            return model

        assert innermost(run()).w.value.size in (1, 2)
        return run

    assert seconds(trace(16_000)) / seconds(trace(2_000)) < 32


def test_changes_at_every_depth_are_described_in_linear_time() -> None:
    def outputs(depth: int) -> Callable[[], Any]:
        before = _core.flatten(chain(depth))
        model, refs = _core.unflatten(before.graphdef, before.leaves)
        link: Any = model
        while hasattr(link, "inner"):
            link.tag = 1
            link = link.inner
        effects, _ = _core.trace_effects(refs, before.graphdef, before.leaves, None, True)
        assert effects.outputs() == ()
        return effects.outputs

    assert seconds(outputs(16_000)) / seconds(outputs(2_000)) < 32


@pytest.mark.slow
def test_a_million_leaves() -> None:
    model = wide(1_000_000)
    graphdef, state = nnx.split(model)
    assert graphdef.num_leaves == 1_000_000
    assert len(nnx.merge(graphdef, state)) == 1_000_000


def _states(held: Any) -> Any:
    return nnx.VariableState(nnx.Param, held)


def _graphdefs(held: Any) -> Any:
    node = Link()
    node.static = held
    return nnx.split(node)[0]


@pytest.mark.parametrize("wrap", [_states, _graphdefs])
def test_chains_of_what_holds_another_are_freed(wrap: Any) -> None:
    class End:
        pass

    held: Any = End()
    end = weakref.ref(held)
    for _ in range(DEPTH):
        held = wrap(held)
    del held
    assert end() is None


WALKS: dict[str, Callable[[Any], Any]] = {
    "eval": lambda model: model.eval(),
    "set_attributes": lambda model: model.set_attributes(
        nnx.BatchStat, rate=1, raise_if_not_found=False
    ),
    "repr": repr,
    "pop": lambda model: nnx.pop(model, nnx.Intermediate),
    "flat_state": lambda model: nnx.state(model).flat_state(),
    "repr of a State": lambda model: repr(nnx.state(model)),
    "copies that are equal": lambda model: nnx.state(model).copy() == nnx.state(model).copy(),
    "State.split": lambda model: nnx.state(model).copy().split(nnx.BatchStat, nnx.Param),
    "State.merge": lambda model: nnx.State.merge(nnx.state(model).copy(), nnx.state(model)),
    "to_pure_dict": lambda model: nnx.state(model).to_pure_dict(),
    "replace_by_pure_dict": lambda model: nnx.state(model).replace_by_pure_dict(
        nnx.state(model).to_pure_dict()
    ),
    "deepcopy of a State": lambda model: copy.deepcopy(nnx.state(model)),
}


def peak_memory(operation: Callable[[], Any]) -> int:
    """The most memory that Python held at once for an operation."""
    gc.collect()
    tracemalloc.start()
    try:
        operation()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", WALKS)
def test_walks_take_linear_space_and_time_with_depth(name: str) -> None:
    short, long = chain(2_000), chain(16_000)
    walk = WALKS[name]
    assert peak_memory(lambda: walk(long)) < 16 * peak_memory(lambda: walk(short))
    if name != "repr":  # of which the first levels are shown
        assert seconds(lambda: walk(long)) / seconds(lambda: walk(short)) < 32


@pytest.mark.parametrize("walk", [lambda m: nnx.iter_graph(m), lambda m: m.iter_modules()])
def test_paths_are_made_when_their_turn_comes_and_not_kept(walk: Any) -> None:
    """All of them together take the square of the depth."""

    def visit(model: Any) -> None:
        for path, _ in walk(model):
            assert type(path) is tuple

    short, long = chain(1_000), chain(8_000)
    assert peak_memory(lambda: visit(long)) < 16 * peak_memory(lambda: visit(short))


def test_states_with_an_entry_at_each_level_are_split_in_linear_time() -> None:
    def state(depth: int) -> Any:
        levels: Any = {"w": nnx.VariableState(nnx.BatchStat, 0)}
        for i in range(1, depth):
            kind = nnx.Param if i % 2 else nnx.BatchStat
            levels = {"inner": levels, "w": nnx.VariableState(kind, i)}
        return nnx.State(levels)

    short, long = state(1_000), state(8_000)
    for operation in (
        lambda s: s.split(nnx.Param, nnx.BatchStat),
        lambda s: s.to_pure_dict(),
        lambda s: s.filter(nnx.Param).merge(s.filter(nnx.BatchStat)),
        lambda s: s.replace_by_pure_dict(s.to_pure_dict()),
    ):
        operation(short)
        ratio = seconds(lambda: operation(long)) / seconds(lambda: operation(short))  # noqa: B023
        assert ratio < 32
    params, stats = short.split(nnx.Param, nnx.BatchStat)
    assert params.merge(stats) == short
    assert len(params.flat_state()) == len(stats.flat_state()) == 500


@pytest.mark.parametrize("name", WALKS)
def test_100_000_levels_are_walked(name: str) -> None:
    WALKS[name](chain(DEPTH))


def test_what_is_very_deep_is_left_out_of_the_text() -> None:
    text = repr(chain(100))
    assert text.count("Link(") == 65
    assert "Link(...)" in text
    assert "{...}" in repr(nnx.state(chain(100)))
    assert "..." not in repr(chain(50)) + repr(nnx.state(chain(50)))
