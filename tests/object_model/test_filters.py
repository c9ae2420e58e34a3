"""Filters: their predicates, their compiled form, and the agreement of both."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import treadle as nnx
from treadle._graph.filters import compile_filters, group_leaves


class Model(nnx.Module):
    def __init__(self) -> None:
        self.a = nnx.Param(jnp.ones(1), tag="first")
        self.b = nnx.BatchStat(jnp.ones(2))
        self.inner = nnx.Dict(a=nnx.Param(jnp.ones(3)), key=nnx.Intermediate(0))
        self.array = jnp.ones(4)
        self.numpy = np.ones(5)


PATHS = [("a",), ("array",), ("b",), ("inner", "a"), ("inner", "key"), ("numpy",)]


class EqualButUnhashable:
    __hash__ = None  # type: ignore[assignment]

    def __call__(self, path: Any, value: Any) -> bool:
        return "inner" in path


def select(filter: Any) -> list[tuple[Any, ...]]:
    return list(nnx.state(Model(), filter).flat_state())


CASES: list[tuple[Any, list[int]]] = [
    (nnx.Param, [0, 3]),
    (nnx.Variable, [0, 2, 3, 4]),
    (nnx.OfType(nnx.BatchStat), [2]),
    (jax.Array, [1]),
    (np.ndarray, [5]),
    ("first", [0]),
    (nnx.WithTag("first"), [0]),
    (..., [0, 1, 2, 3, 4, 5]),
    (True, [0, 1, 2, 3, 4, 5]),
    (None, []),
    (False, []),
    (nnx.PathContains("a"), [0, 3]),
    (nnx.PathContains("inner"), [3, 4]),
    ([nnx.BatchStat, "first"], [0, 2]),
    ((nnx.BatchStat, ["first", nnx.Intermediate]), [0, 2, 4]),
    ([], []),
    (nnx.Any(nnx.BatchStat, "first"), [0, 2]),
    (nnx.All(nnx.Param, nnx.PathContains("inner")), [3]),
    (nnx.All(), [0, 1, 2, 3, 4, 5]),
    (nnx.Any(), []),
    (nnx.Not(nnx.Variable), [1, 5]),
    (nnx.Not(nnx.Not("first")), [0]),
    (lambda path, value: len(path) == 2, [3, 4]),
    (lambda path, value: getattr(value, "type", None) is nnx.BatchStat, [2]),
    (lambda path, value: getattr(value, "tag", "") == "first", [0]),
    (EqualButUnhashable(), [3, 4]),
    (nnx.All(nnx.Param, lambda path, value: value.value.size > 1), [3]),
]


@pytest.mark.parametrize(("filter", "expected"), CASES)
def test_filters_select_the_same_in_the_core_and_as_predicates(
    filter: Any, expected: list[int]
) -> None:
    wanted = [PATHS[i] for i in expected]
    assert select(filter) == wanted
    predicate = nnx.to_predicate(filter)
    entries = nnx.state(Model()).flat_state()
    assert [path for path, entry in entries.items() if predicate(path, entry)] == wanted


@pytest.mark.parametrize("filter", [3, 2.5, {"a": 1}, object()])
def test_what_is_no_filter_is_refused(filter: Any) -> None:
    with pytest.raises(nnx.FilterError, match="is not a filter"):
        nnx.state(Model(), filter)
    with pytest.raises(nnx.FilterError, match="is not a filter"):
        nnx.to_predicate([nnx.Param, filter])


@pytest.mark.parametrize("filter", [case[0] for case in CASES])
def test_specs_are_hashable_and_equal_for_equal_filters(filter: Any) -> None:
    assert hash(nnx.to_filter_spec(filter)) == hash(nnx.to_filter_spec(filter))
    assert nnx.to_filter_spec(filter) == nnx.to_filter_spec(filter)


def test_filter_objects_compare_by_content_and_show_themselves() -> None:
    assert nnx.All(nnx.Param, "a") == nnx.All(nnx.Param, "a")
    assert nnx.All(nnx.Param, "a") != nnx.Any(nnx.Param, "a")
    assert hash(nnx.Not("a")) == hash(nnx.Not("a"))
    assert nnx.OfType(nnx.Param) == nnx.OfType(nnx.Param)
    assert nnx.WithTag("a") != nnx.PathContains("a")
    assert (
        repr(nnx.Any(nnx.OfType(nnx.Param), nnx.WithTag("a"))) == "Any(OfType(Param), WithTag('a'))"
    )


def test_all_selecting_filters_come_last() -> None:
    with pytest.raises(nnx.FilterError, match=r"out of order.*filter 0"):
        compile_filters((..., nnx.Param))
    with pytest.raises(nnx.FilterError, match=r"out of order.*filter 1"):
        compile_filters((nnx.Param, True, nnx.BatchStat))
    assert len(compile_filters((nnx.Param, ..., True))) == 3


def test_the_first_match_wins() -> None:
    _, inner, params, rest = nnx.split(Model(), nnx.PathContains("inner"), nnx.Param, ...)
    assert [len(s.flat_state()) for s in (inner, params, rest)] == [2, 1, 3]


def test_a_remainder_is_named_with_the_remedy() -> None:
    with pytest.raises(nnx.FilterError, match=r"model\.array.*model\.b.*`\.\.\.` as the last one"):
        nnx.split(Model(), nnx.Param)


def test_long_remainders_are_cut_short() -> None:
    model = nnx.List([nnx.Param(0) for _ in range(9)])
    with pytest.raises(nnx.FilterError, match=r"model\[4\] and 4 more"):
        nnx.split(model, nnx.BatchStat)


def test_an_error_in_a_predicate_comes_through() -> None:
    def broken(path: Any, value: Any) -> bool:
        raise RuntimeError("broken predicate")

    with pytest.raises(RuntimeError, match="broken predicate"):
        nnx.split(Model(), broken, ...)


def test_predicates_are_asked_each_time() -> None:
    model, wanted = Model(), {"name": "a"}

    def named(path: Any, value: Any) -> bool:
        return path[-1] == wanted["name"]

    assert len(nnx.state(model, named).flat_state()) == 2
    wanted["name"] = "b"
    assert list(nnx.state(model, named).flat_state()) == [("b",)]


def test_types_of_bare_leaves_are_asked_each_time() -> None:
    model = nnx.Dict(x=jnp.ones(1))
    assert len(nnx.state(model, np.ndarray)) == 0
    model.x = np.ones(1)
    assert len(nnx.state(model, np.ndarray)) == 1


def test_group_leaves_gives_ids_and_the_remainder() -> None:
    from treadle import _core

    flat = _core.flatten(Model())
    groups = group_leaves(flat.graphdef, flat.leaves, (nnx.Param, "none"), exhaustive=False)
    assert groups == ((0, 3), (), (1, 2, 4, 5))
