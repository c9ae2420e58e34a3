"""`data` and `static`: what the user says is data is a leaf, what is static holds none."""

from __future__ import annotations

import copy
import dataclasses
import functools
import pickle
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import treadle as nnx


class Scale(nnx.Pytree):
    def __init__(self, rate: Any = 0.5) -> None:
        self.first = 1
        self.rate = nnx.data(rate)
        self.table = nnx.data([1, {"b": 2.0, "a": jnp.ones(2)}])
        self.name = nnx.static("scale")


@nnx.dataclass
class Point(nnx.Pytree):
    x: float = nnx.data()
    name: str = nnx.static(default="p")
    parts: list[Any] = nnx.data(default_factory=list)
    plain: int = 3


@nnx.dataclass
class Point3(Point):
    z: float = nnx.data(default=0.0, kw_only=True)


class Declared(nnx.Module):
    rate: float = nnx.data()
    name: str = nnx.static()

    def __init__(self) -> None:
        self.rate = 0.5
        self.name = "declared"


# What each has as leaves, and how it is made.
MAKES: dict[str, tuple[Callable[[], Any], list[Any]]] = {
    "assigned": (Scale, [0.5, 1, 1.0, 2.0]),
    "fields": (lambda: Point(1.5, parts=[1, 2]), [1, 2, 1.5]),
    "inherited": (lambda: Point3(1.5, z=2.5), [1.5, 2.5]),
    "declared": (Declared, [0.5]),
    "below": (lambda: nnx.Dict(a=Point(1.5)), [1.5]),
}


def keys(tree: Any) -> list[str]:
    return [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]


def leaves(tree: Any) -> list[Any]:
    return [float(jnp.max(leaf)) for leaf in jax.tree.leaves(tree)]


@pytest.fixture(params=MAKES)
def made(request: pytest.FixtureRequest) -> tuple[Any, list[Any]]:
    make, expected = MAKES[request.param]
    return make(), expected


def through_split(node: Any) -> Any:
    return nnx.merge(*nnx.split(node))


def through_pickle(node: Any) -> Any:
    return pickle.loads(pickle.dumps(node))


def through_jax(node: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf, node)


def through_plain_jit(node: Any) -> Any:
    return jax.jit(lambda node: node)(node)


def through_our_jit(node: Any) -> Any:
    @nnx.jit
    def made_inside(node: Any) -> Any:
        return nnx.clone(node)

    return made_inside(node)


def through_vmap(node: Any) -> Any:
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf]), node)
    return jax.tree.map(lambda leaf: leaf[0], jax.vmap(lambda node: node)(stacked))


WAYS: list[Callable[[Any], Any]] = [
    nnx.clone, copy.copy, copy.deepcopy, through_split, through_pickle, through_jax,
    through_plain_jit, through_our_jit, through_vmap,
]  # fmt: skip


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_marks_survive(way: Callable[[Any], Any], made: tuple[Any, list[Any]]) -> None:
    node, expected = made
    assert leaves(node) == expected
    assert leaves(way(node)) == expected
    assert leaves(way(way(node))) == expected
    assert list(vars(way(node))) == list(vars(node))
    assert leaves(node) == expected


def test_the_text_of_a_node_is_as_before() -> None:
    assert repr(Point(1.5)) == "Point(\n  x=1.5,\n  name='p',\n  parts=[],\n  plain=3\n)"
    assert "_names_" not in repr(Scale())


def test_numbers_that_are_data_do_not_retrace() -> None:
    traces: list[int] = []

    @nnx.jit
    def advance(node: Scale) -> Any:
        traces.append(1)
        node.rate = node.rate + 1
        return node.rate * node.first

    node = Scale()
    for turn in range(4):
        assert advance(node) == turn + 1.5
    assert traces == [1]
    assert float(node.rate) == 4.5
    other = Scale(2.5)
    assert advance(other) == 3.5
    assert advance(Scale(7.5)) == 8.5
    assert len(traces) == 1
    node.first = 2
    assert advance(node) == 11.0
    assert len(traces) == 2


def test_a_mark_is_part_of_the_structure() -> None:
    traces: list[int] = []

    @nnx.jit
    def rate(node: Any) -> Any:
        traces.append(1)
        return node.rate * 1

    node = nnx.Module()
    node.rate = 3
    assert rate(node) == 3
    assert rate(node) == 3
    node.rate = nnx.data(3)
    assert rate(node) == 3
    assert len(traces) == 2
    node.rate = 4
    assert rate(node) == 4
    assert len(traces) == 2, "still data"
    del node.rate
    node.rate = 5
    assert rate(node) == 5
    node.rate = 6
    assert rate(node) == 6
    assert len(traces) == 4, "no more"


def test_marks_that_a_call_makes_come_back() -> None:
    @nnx.jit
    def mark(node: Any) -> None:
        node.added = nnx.data([jnp.ones(()), 2])
        del node.rate

    node = Scale()
    mark(node)
    assert leaves(node) == [1.0, 2.0, 1.0, 1.0, 2.0]
    node.rate = 3
    assert leaves(node) == [1.0, 2.0, 1.0, 1.0, 2.0]


def test_what_fails_leaves_the_marks_alone() -> None:
    @nnx.jit
    def fail(node: Any) -> None:
        node.first = nnx.data(1)
        raise RuntimeError

    node = Scale()
    before = dict(vars(node))
    with pytest.raises(RuntimeError):
        fail(node)
    assert vars(node) == before


def test_states_hold_what_is_data() -> None:
    node = Point(1.5, parts=[1])
    assert dict(nnx.to_flat_state(nnx.state(node))) == {("parts", 0): 1, ("x",): 1.5}
    nnx.update(node, {"x": 2.5})
    assert node.x == 2.5
    graphdef, state = nnx.split(node)
    again = nnx.merge(pickle.loads(pickle.dumps(graphdef)), state)
    assert leaves(again) == [1.0, 2.5]


def test_all_transforms_take_numbers_that_are_data() -> None:
    node = Scale(2.0)
    assert nnx.cond(True, lambda n: n.rate * 2, lambda n: n.rate * 3, node) == 4
    assert nnx.remat(lambda n: n.rate * 2)(node) == 4
    out = nnx.vmap(lambda n, x: n.rate * x, in_axes=(None, 0))(node, jnp.arange(2.0))
    np.testing.assert_array_equal(out, [0.0, 2.0])
    grads = jax.grad(lambda n: n.x**2)(Point(3.0))
    assert type(grads) is Point
    assert (grads.x, grads.name) == (6, "p")


def test_jax_gets_everything_that_is_data() -> None:
    node = Point("text", parts=[functools.partial(max, 1)])  # type: ignore[arg-type]
    assert jax.tree.leaves(node)[-1] == "text"
    assert jax.tree.map(lambda leaf: leaf, node).x == "text"
    with pytest.raises(TypeError, match="x"):
        jax.jit(lambda node: 1)(Point("text"))  # type: ignore[arg-type]
    # A transform of ours leaves it static.
    assert nnx.jit(lambda node: len(node.x))(Point("text")) == 4  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "value",
    [jnp.ones(1), np.ones(1), nnx.Param(1), nnx.Module(), [1, {"a": jnp.ones(1)}], (nnx.Param(1),)],
    ids=lambda value: type(value).__name__,
)
def test_data_cannot_be_static(value: Any) -> None:
    node = nnx.Module()
    with pytest.raises(
        nnx.StaticError, match=r"Module\.a is marked as static, but its value holds"
    ):
        node.a = nnx.static(value)
    assert vars(node) == {}
    with pytest.raises(ValueError, match="static"):
        node.a = nnx.static(value)
    # What comes later is found where it matters.
    node.inner = nnx.Module()
    node.inner.a = nnx.static([1])
    node.inner.a = value
    for use in (nnx.split, jax.tree.leaves, nnx.jit(lambda node: None)):
        with pytest.raises(nnx.StaticError, match=r"inner\.a.* marked as static"):
            use(node)
    node.inner.a = nnx.data(value)
    graphdef, state = nnx.split(node)
    assert vars(nnx.merge(graphdef, state).inner).keys() == vars(node.inner).keys()


def test_a_partial_over_a_node_cannot_be_static_either() -> None:
    node = nnx.Module()
    node.call = nnx.static(functools.partial(max, key=nnx.Module()))
    with pytest.raises(nnx.StaticError, match="marked as static"):
        nnx.split(node)


def test_what_cannot_be_meant_says_so() -> None:
    node = nnx.Module()
    node.parts = [nnx.data(1)]
    with pytest.raises(nnx.GraphError, match=r"parts\[0\].*assign what they give to the attribute"):
        nnx.split(node)
    with pytest.raises(TypeError, match=r"Module\.a is set to treadle\.data\(\) without a value"):
        node.a = nnx.data()
    with pytest.raises(TypeError, match="Mark it once"):
        node.a = nnx.data(nnx.static(1))
    with pytest.raises(TypeError, match="not both"):
        nnx.static(1, default=2)  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="entry 'static'"):
        nnx.data(metadata={"static": True})
    with pytest.raises(TypeError, match="is declared static, but a base class declares it data"):

        class Wrong(Point):
            x: float = nnx.static()

    with pytest.raises(TypeError, match="is not a node"):

        @nnx.dataclass
        class Plain:
            x: int = nnx.data()

    with pytest.raises(TypeError, match="must be True or False"):

        class Odd(nnx.Pytree):
            x: int = dataclasses.field(metadata={"static": 1})

    class Property(nnx.Pytree):
        @property
        def x(self) -> int:
            return 1

        @x.setter
        def x(self, value: int) -> None:
            raise AssertionError

    with pytest.raises(TypeError, match="is a property"):
        Property().x = nnx.data(1)


def test_other_fields_are_values() -> None:
    node = nnx.Module()
    node.field = dataclasses.field()
    assert type(node.field) is dataclasses.Field

    @dataclasses.dataclass
    class Standard(nnx.Pytree):
        x: float = nnx.data(metadata={"unit": "m"})
        y: float = dataclasses.field(default=2.0, metadata={"static": False})

    assert jax.tree.leaves(Standard(1.0)) == [1.0, 2.0]
    assert dataclasses.fields(Standard)[0].metadata["unit"] == "m"
    assert jax.tree.leaves(dataclasses.replace(Standard(1.0), x=3.0)) == [3.0, 2.0]


def test_is_data() -> None:
    is_data: list[Any] = [
        jnp.ones(1),
        np.ones(1),
        nnx.Param(1),
        nnx.Module(),
        nnx.Rngs(0),
        nnx.List([]),
    ]
    assert all(nnx.is_data(value) for value in is_data)
    is_not: list[Any] = [1, 1.0, "a", None, [jnp.ones(1)], (), {}, np.float32(1), max]
    assert not any(nnx.is_data(value) for value in is_not)
    seen: list[bool] = []
    jax.jit(lambda x: seen.append(nnx.is_data(x)))(1.0)
    assert seen == [True]


def test_a_class_may_stay_out_of_jaxs_pytrees() -> None:
    class Opaque(nnx.Module, pytree=False):
        def __init__(self) -> None:
            self.parts = [nnx.Param(jnp.ones(1))]

    class Again(Opaque):
        pass

    node = Opaque()
    assert jax.tree.leaves(node) == [node]
    assert keys(Again()) == [".parts.0.value"]
    with pytest.raises(TypeError, match="Opaque"):
        jax.jit(lambda node: 1)(node)

    @nnx.jit
    def advance(node: Opaque) -> None:
        node.parts[0].value += 1

    advance(node)
    assert node.parts[0].value == 2
