"""Object and Module: identity, attributes, dataclasses, copies, text, and what modules can do."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import treadle as nnx


class Block(nnx.Module):
    def __init__(self, size: int = 2) -> None:
        self.weight = nnx.Param(jnp.ones(size))
        self.deterministic = False
        self.rate = 0.1


class Model(nnx.Module):
    def __init__(self) -> None:
        self.blocks = nnx.List([Block(), Block()])
        self.pair = {"x": Block(), "y": 3}
        self.shared = self.blocks[0]
        self.use_running_average = False


@dataclasses.dataclass
class Point(nnx.Module):
    x: nnx.Param[Any]
    y: int = 2


class Looking(nnx.Module):
    """Has an equality of its own, but no hash."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Looking)


# -- identity --------------------------------------------------------------------------------------


def test_objects_equal_only_themselves() -> None:
    a, b = Block(), Block()
    assert a == a
    assert a != b
    assert len({a, b, a}) == 2


def test_dataclasses_equal_only_themselves_and_can_be_hashed() -> None:
    value = nnx.Param(jnp.ones(3))
    a, b = Point(value), Point(value)
    assert a == a
    assert a != b
    assert len({a, b}) == 2
    assert (a.y, dataclasses.replace(a, y=5).y) == (2, 5)


def test_a_class_keeps_its_own_equality_and_hashes_by_identity() -> None:
    a, b = Looking(), Looking()
    assert a == b
    assert len({a, b}) <= 2
    assert hash(a) == object.__hash__(a)


def test_slots_are_refused_with_the_remedy() -> None:
    with pytest.raises(TypeError, match=r"Slotted must not have __slots__.*slots=True"):

        class Slotted(nnx.Module):
            __slots__ = ("x",)

    with pytest.raises(TypeError, match="must not have __slots__"):

        @dataclasses.dataclass(slots=True)
        class SlottedData(nnx.Module):
            x: int


def test_arguments_that_nobody_takes_are_refused() -> None:
    class Plain(nnx.Module):
        a: int  # without @dataclass this makes no __init__

    for make in (lambda: Plain(3), lambda: Plain(a=3)):  # type: ignore[call-arg]
        with pytest.raises(TypeError, match=r"Plain\(\) takes no arguments"):
            make()

    class Made(nnx.Module):
        def __new__(cls, a: int) -> Made:
            made = super().__new__(cls, a)
            made.a = a
            return made

        def __init__(self, a: int) -> None: ...

    assert Made(3).a == 3
    Plain()


def test_frozen_dataclasses_are_refused_with_the_remedy() -> None:
    @dataclasses.dataclass(frozen=True)
    class Frozen(nnx.Module):
        w: nnx.Param

    with pytest.raises(TypeError, match=r"Frozen is a frozen dataclass.* Remove frozen=True"):
        Frozen(nnx.Param(jnp.ones(2)))


def test_dataclasses_round_trip() -> None:
    point = Point(nnx.Param(jnp.ones(3)), y=7)
    again = nnx.clone(point)
    assert type(again) is Point
    assert again.y == 7
    assert again.x is not point.x


# -- trace level -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        lambda m: setattr(m, "rate", 0.5),
        lambda m: setattr(m, "added", 0.5),
        lambda m: delattr(m, "rate"),
        lambda m: m.sow(nnx.Intermediate, "seen", 1.0),
        lambda m: m.set_attributes(rate=0.5),
        lambda m: m.eval(),
        lambda m: m.pop(nnx.Param),
    ],
)
def test_changes_from_another_trace_level_are_refused(change: Any) -> None:
    model = Block()
    before = dict(vars(model))
    with pytest.raises(nnx.TraceContextError, match="Cannot mutate 'Block' from different trace"):
        jax.jit(lambda: change(model))()
    assert vars(model) == before


def test_objects_made_in_a_trace_can_be_changed_there() -> None:
    @jax.jit
    def traced(x: jax.Array) -> jax.Array:
        model = Block()
        model.rate = 0.5
        model.weight.value *= x
        return model.weight.value * model.rate

    np.testing.assert_array_equal(traced(jnp.array(4.0)), [2.0, 2.0])


# -- copies ----------------------------------------------------------------------------------------


def cyclic() -> Model:
    model = Model()
    model.me = model
    return model


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), nnx.clone]
)
def test_copies_keep_sharing_and_cycles(duplicate: Any) -> None:
    model = cyclic()
    other = duplicate(model)
    assert type(other) is Model
    assert other is not model
    assert other.me is other
    assert other.shared is other.blocks[0]
    assert other.blocks[0] is not model.blocks[0]
    other.blocks[0].weight.value += 1
    np.testing.assert_array_equal(model.shared.weight.value, [1, 1])
    assert nnx.graphdef(other) == nnx.graphdef(model)
    assert nnx.state(other) != nnx.state(model)


def test_a_shallow_copy_shares_children() -> None:
    model = Model()
    other = copy.copy(model)
    assert other.blocks is model.blocks
    other.extra = 1
    assert not hasattr(model, "extra")


def test_a_variable_shared_by_two_copied_objects_stays_shared() -> None:
    weight = nnx.Param(jnp.ones(1))
    a, b = copy.deepcopy([nnx.Dict(w=weight), nnx.Dict(w=weight)])
    assert a.w is b.w
    assert a.w is not weight


def test_copies_can_be_changed_where_they_were_made() -> None:
    model = Block()

    @jax.jit
    def traced() -> jax.Array:
        other = copy.deepcopy(model)
        other.weight.value += 1
        other.rate = 0.5
        return other.weight.value

    np.testing.assert_array_equal(traced(), [2, 2])
    assert model.rate == 0.1


# -- text ------------------------------------------------------------------------------------------


def test_repr_is_indented_and_safe_for_cycles() -> None:
    inner = nnx.Module()
    inner.size = 2
    outer = nnx.Module()
    outer.inner, outer.parts, outer.me = inner, [inner, 1], outer
    assert repr(outer) == (
        "Module(\n"
        "  inner=Module(\n"
        "    size=2\n"
        "  ),\n"
        "  parts=[\n"
        "    Module(\n"
        "      size=2\n"
        "    ),\n"
        "    1\n"
        "  ],\n"
        "  me=Module(...)\n"
        ")"
    )


def test_repr_of_containers_shows_items() -> None:
    model = nnx.Dict(a=nnx.List([1]), b={"c": nnx.Module()})
    assert repr(model) == ("Dict(\n  a=List(\n    [0]=1\n  ),\n  b={\n    'c': Module()\n  }\n)")


def test_repr_of_a_dataclass_in_a_cycle_ends() -> None:
    point = Point(nnx.Param(1.0))
    point.y = point  # type: ignore[assignment]
    assert "..." in repr(point)


# -- sow and perturb -------------------------------------------------------------------------------


def test_sow_collects_a_tuple() -> None:
    model = nnx.Module()
    for value in (1, 2, 3):
        model.sow(nnx.Intermediate, "seen", value)
    assert model.seen.value == (1, 2, 3)
    assert nnx.pop(model, nnx.Intermediate).seen.value == (1, 2, 3)
    assert not hasattr(model, "seen")


def test_sow_with_functions_of_ones_own() -> None:
    model = nnx.Module()
    for value in (1, 2, 3):
        model.sow(nnx.Intermediate, "total", value, lambda a, b: a + b, lambda: 10)
    assert model.total.value == 16


@pytest.mark.parametrize("present", [nnx.Param(1.0), 3])
def test_sow_refuses_an_attribute_of_another_type(present: Any) -> None:
    model = nnx.Module()
    model.seen = present
    with pytest.raises(nnx.LeafTypeError, match=r"Cannot sow Intermediate 'seen' in Module"):
        model.sow(nnx.Intermediate, "seen", 1)
    assert model.seen is present


def test_perturb_adds_a_zero_that_gradients_see() -> None:
    model = nnx.Module()

    def loss(state: Any, graphdef: Any) -> jax.Array:
        model = nnx.merge(graphdef, state)
        return (model.perturb("h", jnp.array([1.0, 2.0])) ** 2).sum()

    model.perturb("h", jnp.ones(2))
    graphdef, state = nnx.split(model)
    np.testing.assert_array_equal(jax.grad(loss)(state, graphdef).h.value, [2.0, 4.0])


def test_perturb_refuses_an_attribute_of_another_type() -> None:
    model = nnx.Module()
    model.h = 1
    with pytest.raises(nnx.LeafTypeError, match="Cannot perturb with 'h' of Module"):
        model.perturb("h", 1.0)


# -- iteration and switches ------------------------------------------------------------------------


def test_iter_modules_gives_each_module_once_children_first() -> None:
    model = Model()
    assert [path for path, _ in model.iter_modules()] == [
        ("blocks", 0),
        ("blocks", 1),
        ("blocks",),
        ("pair", "x"),
        (),
    ]


def test_iter_children_gives_direct_children() -> None:
    model = Model()
    assert [key for key, _ in model.iter_children()] == ["blocks", "shared"]
    assert [key for key, _ in model.blocks.iter_children()] == [0, 1]


def test_set_attributes_reaches_all_modules_that_have_them() -> None:
    model = Model()
    model.set_attributes(rate=0.5)
    assert [m.rate for _, m in model.iter_modules() if isinstance(m, Block)] == [0.5] * 3


def test_set_attributes_with_filters() -> None:
    model = Model()
    model.set_attributes(nnx.PathContains("pair"), rate=0.5)
    assert (model.pair["x"].rate, model.blocks[0].rate) == (0.5, 0.1)
    model.set_attributes(Block, rate=0.7)
    assert model.blocks[1].rate == 0.7
    model.set_attributes(lambda path, module: path == ("blocks", 1), Model, rate=0.9)
    assert (model.blocks[1].rate, model.blocks[0].rate) == (0.9, 0.7)


def test_set_attributes_that_are_nowhere_change_nothing() -> None:
    model = Model()
    with pytest.raises(nnx.GraphError, match=r"No module in Model has the attribute\(s\) typo"):
        model.set_attributes(rate=0.5, typo=1)
    assert model.blocks[0].rate == 0.1
    model.set_attributes(rate=0.5, typo=1, raise_if_not_found=False)
    assert model.blocks[0].rate == 0.5


class Guarded(nnx.Module):
    def __init__(self) -> None:
        self.limit = nnx.Variable(1.0)

    @property
    def rate(self) -> float:
        return self.limit.value

    @rate.setter
    def rate(self, rate: float) -> None:
        self.limit.value = rate
        self.set_to = rate
        if rate > 1:
            raise ValueError("rate above 1")


def test_a_setter_that_raises_leaves_all_modules_as_they_were() -> None:
    model = nnx.Dict(a=Block(), b=Guarded(), rate=0.1, layers=nnx.List([Block()]))
    model.layers.rate = 0.2  # type: ignore[attr-defined]
    nodes = [node for _, node in nnx.iter_graph(model) if isinstance(node, nnx.Module)]
    before = nnx.graphdef(model)
    attributes = [list(vars(node).items()) for node in nodes]
    with pytest.raises(ValueError, match="rate above 1"):
        model.set_attributes(rate=5.0)
    assert nnx.graphdef(model) == before
    assert [list(vars(node).items()) for node in nodes] == attributes
    assert (model.rate, list(model), model.b.rate) == (0.1, ["a", "b", "rate", "layers"], 1.0)
    model.set_attributes(rate=0.5)
    assert (model.rate, model.a.rate, model.b.rate) == (0.5, 0.5, 0.5)


def test_train_and_eval_switch_both_flags() -> None:
    model = Model()
    model.eval()
    assert (model.blocks[0].deterministic, model.use_running_average) == (True, True)
    model.train(rate=0.3)
    assert (model.blocks[0].deterministic, model.use_running_average) == (False, False)
    assert model.blocks[1].rate == 0.3


def test_first_from_takes_the_first_that_is_not_none() -> None:
    assert nnx.first_from(None, False, True, error_msg="none") is False
    with pytest.raises(ValueError, match="no rngs given"):
        nnx.first_from(None, None, error_msg="no rngs given")


@pytest.mark.parametrize("name", ["train", "eval", "pop", "sow", "set_attributes", "iter_modules"])
def test_an_attribute_cannot_hide_a_method(name: str) -> None:
    for make in (nnx.Module, Block, lambda: nnx.List([1]), lambda: nnx.Dict(a=1)):
        module = make()
        with pytest.raises(AttributeError, match=rf"\.{name} is a"):
            setattr(module, name, True)
        module.train()
    table = nnx.Dict()
    table[name] = 3
    assert table[name] == 3


def test_a_class_may_have_a_method_or_attribute_of_such_a_name() -> None:
    class Flag(nnx.Module):
        train = True  # type: ignore[assignment]

        def eval(self, **attributes: Any) -> None:
            super().eval(**attributes)
            self.evaluated = True

    flag = Flag()
    flag.train = False
    flag.eval()
    assert (flag.train, flag.evaluated) == (False, True)
    nnx.Module.train(flag)


@pytest.mark.parametrize("name", ["train", "eval", "sow", "perturb", "pop", "set_attributes"])
@pytest.mark.parametrize("value", [True, 0.5, jnp.ones(2), "text", None])
def test_an_attribute_does_not_hide_a_method(name, value):
    class Model(nnx.Module):
        def __init__(self):
            setattr(self, name, value)

    with pytest.raises(AttributeError, match=rf"Model\.{name} is a method.*`is_{name}`"):
        Model()


def test_a_method_may_be_replaced_by_what_can_be_called():
    model = nnx.Module()
    model.inner = nnx.Dropout(0.5, rngs=nnx.Rngs(0))
    model.eval = lambda: "mine"
    assert model.eval() == nnx.clone(model).eval() == "mine"
    del model.eval
    model.eval()
    assert model.inner.deterministic
    with pytest.raises(AttributeError):
        del model.eval

    class Flagged(nnx.Module):
        train: bool = False

        def eval(self, **attributes):
            super().eval(**attributes)
            self.train = False

    flagged = Flagged()
    flagged.train = True
    flagged.inner = nnx.Dropout(0.5, rngs=nnx.Rngs(0))
    flagged.eval()
    assert (flagged.train, flagged.inner.deterministic) == (False, True)
