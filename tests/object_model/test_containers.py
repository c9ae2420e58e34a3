"""Dict, List and Sequential: containers with identity and a trace check."""

from __future__ import annotations

import copy
import pickle
from collections.abc import MutableMapping, MutableSequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import treadle as nnx


def test_dict_behaves_as_a_mutable_mapping() -> None:
    d = nnx.Dict({"a": 1}, b=2)
    assert isinstance(d, MutableMapping)
    d["c"] = 3
    d.update(d=4)
    assert dict(d.items()) == {"a": 1, "b": 2, "c": 3, "d": 4}
    assert list(d.keys()) == ["a", "b", "c", "d"]
    assert d.pop("a") == 1
    assert d.pop("a", None) is None
    with pytest.raises(KeyError):
        d.pop("a")
    assert d.setdefault("e", 5) == 5
    assert d.popitem()[0] not in d
    del d["e"]
    assert ("d" in d, "e" in d, len(d), d.get("x", 7)) == (True, False, 2, 7)
    d.clear()
    assert len(d) == 0


def test_dict_items_are_attributes_too() -> None:
    d = nnx.Dict(a=1)
    d.b = 2
    assert (d.a, d["b"]) == (1, 2)
    del d.a
    assert "a" not in d
    with pytest.raises(AttributeError, match=r"'Dict' has no attribute or item 'a'"):
        _ = d.a
    with pytest.raises(AttributeError, match=r"'Dict' has no item 'a'"):
        del d.a


def test_list_behaves_as_a_mutable_sequence() -> None:
    x = nnx.List([1, 2])
    assert isinstance(x, MutableSequence)
    x.append(3)
    x.extend([4, 5])
    x.insert(0, 0)
    x[1] = 10
    x[2:4] = [20, 30]
    assert list(x) == [0, 10, 20, 30, 4, 5]
    assert (x[-1], x[1:3], len(x), 30 in x, x.index(30), x.count(4)) == (5, [10, 20], 6, True, 3, 1)
    assert x.pop() == 5
    assert x.pop(0) == 0
    x.remove(10)
    x.reverse()
    assert list(reversed(x)) == [20, 30, 4]
    x.sort()
    assert list(x) == [4, 20, 30]
    x.sort(key=lambda v: -v)
    x += [1]
    del x[0]
    assert list(x) == [20, 4, 1]
    assert list(x + (v for v in [7])) == [20, 4, 1, 7]
    assert list((v for v in [7]) + x) == [7, 20, 4, 1]
    assert list(x * 2) == [20, 4, 1, 20, 4, 1]
    x.clear()
    assert list(x) == []
    with pytest.raises(IndexError):
        x.pop()


@pytest.mark.parametrize(
    "change",
    [
        lambda d, x: d.__setitem__("a", 2),
        lambda d, x: d.__delitem__("a"),
        lambda d, x: setattr(d, "a", 2),
        lambda d, x: delattr(d, "a"),
        lambda d, x: d.pop("a"),
        lambda d, x: d.popitem(),
        lambda d, x: d.clear(),
        lambda d, x: d.update(a=2),
        lambda d, x: d.setdefault("b", 2),
    ],
)
def test_changing_a_dict_from_another_trace_level_is_refused(change: Any) -> None:
    d = nnx.Dict(a=1)
    with pytest.raises(nnx.TraceContextError, match="Cannot mutate 'Dict' from different trace"):
        jax.jit(lambda: change(d, None))()
    assert dict(d) == {"a": 1}


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.append(1),
        lambda x: x.extend([1]),
        lambda x: x.insert(0, 1),
        lambda x: x.__setitem__(0, 5),
        lambda x: x.__delitem__(0),
        lambda x: x.pop(),
        lambda x: x.remove(2),
        lambda x: x.reverse(),
        lambda x: x.sort(),
        lambda x: x.clear(),
        lambda x: x.__iadd__([1]),
    ],
)
def test_changing_a_list_from_another_trace_level_is_refused(change: Any) -> None:
    x = nnx.List([2, 1])
    with pytest.raises(nnx.TraceContextError, match="Cannot mutate 'List' from different trace"):
        jax.jit(lambda: change(x))()
    assert list(x) == [2, 1]


def test_containers_are_nodes_with_identity() -> None:
    d = nnx.Dict(a=1)
    assert nnx.is_graph_node(d)
    assert d != nnx.Dict(a=1)
    assert d == d
    assert len({d, nnx.Dict(a=1), nnx.List(), nnx.List()}) == 4


def test_items_lie_directly_below_the_container_in_paths() -> None:
    model = nnx.Dict(b=nnx.List([nnx.Param(1), {"x": nnx.Param(2)}]), a=nnx.Param(3))
    assert list(nnx.state(model).flat_state()) == [("a",), ("b", 0), ("b", 1, "x")]


def test_insertion_order_of_a_dict_is_structure() -> None:
    assert nnx.graphdef(nnx.Dict(a=1, b=2)) != nnx.graphdef(nnx.Dict(b=2, a=1))
    assert nnx.graphdef(nnx.Dict(a=1, b=2)) == nnx.graphdef(nnx.Dict(a=1, b=2))


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), nnx.clone]
)
def test_containers_copy_with_sharing_and_cycles(duplicate: Any) -> None:
    d = nnx.Dict(x=nnx.List([nnx.Param(1)]))
    d.y, d.me = d.x, d
    other = duplicate(d)
    assert type(other) is nnx.Dict
    assert other.me is other
    assert other.x is other.y
    assert other.x is not d.x
    other.x.append(3)
    assert (len(other.y), len(d.y)) == (2, 1)


def test_subclasses_may_have_attributes_beside_items() -> None:
    class Stack(nnx.List[Any]):
        def __init__(self, items: Any) -> None:
            super().__init__(items)
            self.scale = nnx.Param(2.0)

    stack = Stack([nnx.Param(1.0)])
    assert set(nnx.state(stack).flat_state()) == {(0,), ("scale",)}
    other = nnx.clone(stack)
    assert (other.scale.value, other[0].value, type(other)) == (2.0, 1.0, Stack)


# -- Sequential ------------------------------------------------------------------------------------


class Scale(nnx.Module):
    def __init__(self, factor: float) -> None:
        self.factor = nnx.Param(jnp.array(factor))

    def __call__(self, x: jax.Array) -> jax.Array:
        return x * self.factor


def test_sequential_calls_one_after_the_other() -> None:
    model = nnx.Sequential(Scale(2.0), jnp.sin, Scale(3.0))
    np.testing.assert_allclose(model(1.0), 3 * np.sin(2.0), rtol=1e-6)
    assert list(nnx.state(model).flat_state()) == [(0, "factor"), (2, "factor")]


def test_sequential_spreads_tuples_and_dicts() -> None:
    model = nnx.Sequential(
        lambda a, b: (a + b, a - b), lambda s, d: {"x": s, "y": d}, lambda *, x, y: x * y
    )
    assert model(5, b=3) == 16


def test_sequential_hands_rngs_to_those_who_take_them() -> None:
    def noisy(x: int, *, rngs: Any) -> tuple[int, Any]:
        return x, rngs

    model = nnx.Sequential(lambda x: x + 1, noisy, lambda x, rngs_seen: (x, rngs_seen))
    assert model(1, rngs="keys") == (2, "keys")


def test_sequential_without_layers_passes_its_argument_on() -> None:
    assert nnx.Sequential()(3) == 3


def test_sequential_names_the_item_that_cannot_be_called() -> None:
    with pytest.raises(TypeError, match="Item 1 of Sequential, a int, cannot be called"):
        nnx.Sequential(abs, 3)(1)


def test_sequential_is_a_list() -> None:
    model = nnx.Sequential(abs)
    model.append(lambda x: x + 1)
    assert model(-2) == 3
    assert isinstance(nnx.clone(model), nnx.Sequential)


@pytest.mark.parametrize(
    "container", [nnx.List([1]), nnx.Sequential(1)], ids=lambda c: type(c).__name__
)
def test_a_shallow_copy_of_a_list_has_items_of_its_own(container: nnx.List[Any]) -> None:
    made = copy.copy(container)
    made.append(2)
    assert (type(made), list(made), list(container)) == (type(container), [1, 2], [1])


def test_a_shallow_copy_of_a_dict_has_items_of_its_own() -> None:
    d = nnx.Dict(w=nnx.Param(1.0))
    made = copy.copy(d)
    made.b = 2
    del made.w
    assert (list(made), list(d)) == (["b"], ["w"])
    assert copy.copy(d).w is d.w


def test_a_shallow_copy_keeps_other_attributes() -> None:
    layers = nnx.List([1])
    layers.name = "encoder"  # type: ignore[attr-defined]
    assert copy.copy(layers).name == "encoder"  # type: ignore[attr-defined]


def test_an_item_may_be_called_as_the_attribute_that_holds_the_items() -> None:
    d: nnx.Dict[Any] = nnx.Dict({"_items": nnx.Param(1.0), "x": nnx.Param(2.0)})
    popped = nnx.pop(d, nnx.PathContains("_items"))
    assert (popped["_items"].value, list(d)) == (1.0, ["x"])
    nnx.update(d, nnx.State({"x": 3.0}))
    assert list(nnx.clone(d)) == ["x"]
