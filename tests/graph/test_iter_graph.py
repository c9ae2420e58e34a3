"""iter_graph: everything once, with its first path, children before parents."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import pytest

import treadle as nnx


class Pair(NamedTuple):
    first: Any
    second: Any


def listed(node: Any) -> list[tuple[Any, str]]:
    return [(path, type(value).__name__) for path, value in nnx.iter_graph(node)]


def test_children_come_before_parents_in_canonical_order() -> None:
    model = nnx.Dict(b=nnx.List([nnx.Param(1), 2]), a=0.5)
    assert listed(model) == [
        (("a",), "float"),
        (("b", 0), "Param"),
        (("b", 1), "int"),
        (("b",), "List"),
        ((), "Dict"),
    ]


def test_shared_objects_come_once_and_cycles_end() -> None:
    shared = nnx.Dict(x=nnx.Param(1))
    model = nnx.Dict(a=shared, b=shared)
    model.me = model
    assert listed(model) == [(("a", "x"), "Param"), (("a",), "Dict"), ((), "Dict")]


def test_containers_with_nothing_of_the_graph_are_one_static() -> None:
    model = nnx.Module()
    model.size, model.table, model.none = (3, 3), {"a": [1]}, None
    assert listed(model) == [
        (("none",), "NoneType"),
        (("size",), "tuple"),
        (("table",), "dict"),
        ((), "Module"),
    ]


def test_containers_with_something_of_the_graph_are_entered() -> None:
    model = nnx.Module()
    model.pair = Pair(nnx.Param(1), 2)
    model.deep = ({"k": [jnp.ones(1)]}, "s")
    paths = [path for path, _ in nnx.iter_graph(model)]
    assert paths == [
        ("deep", 0, "k", 0),
        ("deep", 0, "k"),
        ("deep", 0),
        ("deep", 1),
        ("deep",),
        ("pair", "first"),
        ("pair", "second"),
        ("pair",),
        (),
    ]


def test_paths_agree_with_those_of_the_state() -> None:
    model = nnx.List([{"b": nnx.Param(1), "a": (nnx.Param(2), jnp.ones(1))}, Pair(nnx.Param(3), 4)])
    paths = {path for path, value in nnx.iter_graph(model)}
    assert set(nnx.state(model).flat_state()) <= paths


def test_deep_graphs_need_no_recursion() -> None:
    node: Any = nnx.Dict()
    for _ in range(5_000):
        node = nnx.Dict(child=node)
    assert sum(1 for _ in nnx.iter_graph(node)) == 5_001


@pytest.mark.parametrize(("value", "expected"), [(nnx.Param(1), 1), (3, 1), ([nnx.Param(1)], 2)])
def test_any_root_will_do(value: Any, expected: int) -> None:
    assert len(listed(value)) == expected
