"""register_graph_node_type: users' own classes as nodes, and the errors they hope for."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import pytest

import treadle as nnx


def make_type(**broken: Any) -> type[Any]:
    """A fresh registered class; `broken` replaces some of its functions."""

    class Bag:
        def __init__(self, label: str) -> None:
            self.label, self.things = label, {}

    functions: dict[str, Any] = {
        "flatten": lambda bag: (bag.things.items(), bag.label),
        "create": Bag,
        "set_key": lambda bag, key, value: bag.things.__setitem__(key, value),
        "pop_key": lambda bag, key: bag.things.pop(key),
    }
    nnx.register_graph_node_type(Bag, **{**functions, **broken})
    return Bag


def full(bag: Any) -> Any:
    bag.things.update(w=nnx.Param(jnp.ones(2)), s="static", a=jnp.zeros(1))
    bag.things["me"] = bag
    return bag


def test_registered_types_round_trip_with_identity() -> None:
    bag = full(make_type()("mine"))
    model = nnx.Dict(x=bag, y=bag)
    assert nnx.is_graph_node(bag)
    assert list(nnx.state(model).flat_state()) == [("x", "a"), ("x", "w")]
    other = nnx.clone(model)
    assert other.x is other.y
    assert other.x.things["me"] is other.x
    assert (other.x.label, other.x.things["s"]) == ("mine", "static")
    assert other.x.things["w"] is not bag.things["w"]


def test_registered_types_update_and_pop() -> None:
    bag = full(make_type()("mine"))
    nnx.update(bag, {"w": jnp.zeros(2), "a": jnp.ones(1)})
    assert float(bag.things["w"].value.sum()) == 0.0
    assert float(bag.things["a"][0]) == 1.0
    nnx.pop(bag, nnx.Param)
    assert "w" not in bag.things


def test_registered_types_are_iterated() -> None:
    bag = full(make_type()("mine"))
    assert [path for path, _ in nnx.iter_graph(bag)] == [("a",), ("s",), ("w",), ()]


def test_statics_of_registered_types_are_structure() -> None:
    kind = make_type()
    assert nnx.graphdef(full(kind("a"))) == nnx.graphdef(full(kind("a")))
    assert nnx.graphdef(full(kind("a"))) != nnx.graphdef(full(kind("b")))


@pytest.mark.parametrize(
    ("flatten", "message"),
    [
        (lambda bag: list(bag.things), r"must return \(children, static\)"),
        (lambda bag: ([1, 2], None), r"children as \(key, child\) pairs"),
        (lambda bag: (3, None), r"children as \(key, child\) pairs"),
        (lambda bag: ([([], 1)], None), "a key that is not hashable"),
        (lambda bag: ([("k", 1), ("k", 2)], None), "the same key for several children"),
        (lambda bag: ([], {"a": 1}), "a static part that is not hashable.*tuples"),
    ],
)
def test_a_wrong_flatten_function_is_named_with_what_it_should_do(
    flatten: Any, message: str
) -> None:
    with pytest.raises(nnx.NodeTypeError, match=rf"flatten function of .* Bag .*{message}"):
        nnx.split(make_type(flatten=flatten)("mine"))


def test_an_error_in_the_flatten_function_comes_through() -> None:
    def broken(bag: Any) -> Any:
        raise RuntimeError("flatten failed")

    with pytest.raises(RuntimeError, match="flatten failed"):
        nnx.split(make_type(flatten=broken)("mine"))


def test_a_create_function_that_makes_something_else_is_named() -> None:
    kind = make_type(create=lambda label: label)
    graphdef, state = nnx.split(kind("mine"))
    with pytest.raises(
        nnx.NodeTypeError, match=r"create function .* Bag must return a Bag, got a str"
    ):
        nnx.merge(graphdef, state)


@pytest.mark.parametrize("function", ["flatten", "create", "set_key", "pop_key"])
def test_functions_must_be_callable(function: str) -> None:
    with pytest.raises(nnx.NodeTypeError, match=rf"{function} must be a function, got 3"):
        make_type(**{function: 3})


@pytest.mark.parametrize("kind", [3, "Bag", None])
def test_what_is_no_class_is_refused(kind: Any) -> None:
    f = len
    with pytest.raises(nnx.NodeTypeError, match="expected a class"):
        nnx.register_graph_node_type(kind, f, f, f, f)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [nnx.Module, nnx.Dict, nnx.Param, make_type()])
def test_what_is_registered_already_is_refused(kind: Any) -> None:
    f = len
    with pytest.raises(nnx.NodeTypeError, match="needs no registration"):
        nnx.register_graph_node_type(kind, f, f, f, f)  # type: ignore[arg-type]


def test_pytrees_are_refused() -> None:
    f = len
    for kind in (dict, list, tuple, jnp.ndarray):
        with pytest.raises(nnx.NodeTypeError, match=f"{kind.__name__} "):
            nnx.register_graph_node_type(kind, f, f, f, f)  # type: ignore[arg-type]


def test_registration_after_the_type_was_met_as_static_counts() -> None:
    class Late:
        def __init__(self) -> None:
            self.x = nnx.Param(1.0)

    late = Late()
    assert len(nnx.state(nnx.Dict(late=late))) == 0
    nnx.register_graph_node_type(
        Late,
        lambda node: (vars(node).items(), None),
        lambda static: Late.__new__(Late),
        setattr,
        delattr,
    )
    assert list(nnx.state(nnx.Dict(late=late)).flat_state()) == [("late", "x")]
