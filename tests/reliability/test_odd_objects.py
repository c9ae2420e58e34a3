"""Odd classes and values as parts of a graph: they work, or are refused with a path."""

from __future__ import annotations

import abc
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import treadle as nnx

from .record import works_or_names


class Node(nnx.Module):
    """A plain module."""


def touch(model: Any) -> Any:
    model.w.value = model.w.value + 1
    return model.w.value


def assert_works(model: Any) -> None:
    """Split, merge, jit twice, and see the change."""
    merged = nnx.merge(*nnx.split(model))
    assert type(merged) is type(model)
    step = nnx.jit(touch)
    before = np.asarray(model.w.value)
    step(model)
    step(model)
    assert np.array_equal(np.asarray(model.w.value), before + 2)


def with_weight(model: Any) -> Any:
    model.w = nnx.Param(jnp.ones(2))
    return model


def test_slots_are_refused_because_a_walk_would_not_see_them() -> None:
    with pytest.raises(TypeError, match="hidden"):

        class Slotted(nnx.Module):
            __slots__ = ("hidden",)

    class Free:
        """Slots of foreign classes are their own affair."""

        __slots__ = ("x",)

    model = with_weight(Node())
    model.free = Free()
    assert_works(model)


def test_properties_and_descriptors() -> None:
    class Rich(nnx.Module):
        @property
        def doubled(self) -> Any:
            return self.w.value * 2

        @property
        def broken(self) -> Any:
            raise RuntimeError("a property must not run unasked")

    model = with_weight(Rich())
    assert_works(model)
    assert jnp.array_equal(model.doubled, jnp.full(2, 6.0))


def test_getattr_that_answers_everything() -> None:
    class Eager(nnx.Module):
        def __getattr__(self, name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            return lambda *_: 42

    assert_works(with_weight(Eager()))


def test_getattribute_is_not_called_for_the_walk() -> None:
    class Counting(nnx.Module):
        def __getattribute__(self, name: str) -> Any:
            if name == "forbidden":
                raise RuntimeError("read")
            return super().__getattribute__(name)

    model = with_weight(Counting())
    vars(model)["forbidden"] = 1
    assert_works(model)


def test_setattr_with_a_mind_of_its_own_does_not_see_the_scatter() -> None:
    class Guarded(nnx.Module):
        def __setattr__(self, name: str, value: Any) -> None:
            if name in vars(self):
                raise RuntimeError("already set")
            super().__setattr__(name, value)

    assert_works(with_weight(Guarded()))


def test_metaclasses() -> None:
    class Meta(type(nnx.Module)):
        def __eq__(cls, other: object) -> bool:
            return cls is other

        def __hash__(cls) -> int:
            return 7

        def __call__(cls, *args: Any, **kwargs: Any) -> Any:
            return super().__call__(*args, **kwargs)

    class Made(nnx.Module, metaclass=Meta):
        pass

    assert_works(with_weight(Made()))


def test_abstract_classes_have_no_instances_and_their_subclasses_work() -> None:
    class Layer(nnx.Module, abc.ABC):
        @abc.abstractmethod
        def __call__(self, x: Any) -> Any: ...

    class Scale(Layer):
        def __call__(self, x: Any) -> Any:
            return x * self.w.value

    class Weight(nnx.Variable, abc.ABC):
        @abc.abstractmethod
        def decay(self) -> float: ...

    class Decayed(Weight):
        def decay(self) -> float:
            return 0.5

    for make, method in ((Layer, "__call__"), (lambda: Weight(jnp.ones(2)), "decay")):
        with pytest.raises(TypeError, match=f"abstract class .* method '?{method}"):
            make()
    scale = Scale()
    scale.w = Decayed(jnp.ones(2))
    assert_works(scale)
    assert isinstance(nnx.merge(*nnx.split(scale)), Layer)


def test_instances_that_claim_another_class() -> None:
    class Liar:
        @property
        def __class__(self) -> type:  # type: ignore[override]
            return nnx.Param

        def __eq__(self, other: object) -> bool:
            return type(other) is Liar

        __hash__ = None  # type: ignore[assignment]

    class HashableLiar(Liar):
        __hash__ = object.__hash__  # type: ignore[assignment]

    model = with_weight(Node())
    model.liar = HashableLiar()
    nnx.split(model)


def test_isinstance_hooks_do_not_run_on_nodes() -> None:
    class Meta(type):
        def __instancecheck__(cls, instance: object) -> bool:
            raise RuntimeError("asked")

    class Odd(metaclass=Meta):
        pass

    model = with_weight(Node())
    model.odd = Odd
    assert_works(model)


def test_equality_that_gives_no_bool() -> None:
    class Vague:
        def __eq__(self, other: object) -> Any:
            return np.ones(3)

        def __hash__(self) -> int:
            return 1

    one, two = with_weight(Node()), with_weight(Node())
    one.vague, two.vague = Vague(), Vague()
    with pytest.raises(ValueError, match="ambiguous"):
        nnx.graphdef(one) == nnx.graphdef(two)  # noqa: B015
    assert nnx.graphdef(one) == nnx.graphdef(one)


def test_equality_that_lies_and_hashes_that_wander() -> None:
    class Restless:
        count = 0

        def __eq__(self, other: object) -> bool:
            Restless.count += 1
            return Restless.count % 2 == 0

        def __hash__(self) -> int:
            Restless.count += 1
            return Restless.count

    model = with_weight(Node())
    model.restless = Restless()
    step = nnx.jit(touch)
    for i in range(6):
        assert jnp.array_equal(step(model), jnp.full(2, 2.0 + i))


@pytest.mark.parametrize("value", [[1, bytearray(b"y")], bytearray(b"x")], ids=str)
def test_unhashable_statics_are_refused_with_their_path(value: Any) -> None:
    model = with_weight(Node())
    model.child = Node()
    model.child.bad = value
    with pytest.raises(TypeError, match=r"child\.bad"):
        hash(nnx.graphdef(model))
    with pytest.raises(TypeError, match=r"child\.bad"):
        nnx.jit(touch)(model)
    assert jnp.array_equal(model.w.value, jnp.ones(2))


def test_keys_that_do_not_sort_together() -> None:
    model = with_weight(Node())
    model.table = {1: nnx.Param(jnp.zeros(1)), "a": nnx.Param(jnp.zeros(1))}
    with works_or_names("table"):
        assert_works(model)
    assert list(model.table) == [1, "a"]


def test_attribute_names_that_are_no_strings() -> None:
    model = with_weight(Node())
    vars(model)[3] = nnx.Param(jnp.zeros(1))
    with works_or_names("keys"):
        assert_works(model)


def test_containers_that_contain_themselves_are_refused() -> None:
    for make in (_recursive_list, _recursive_dict, _recursive_through_pytree):
        model = with_weight(Node())
        model.child = make()
        with pytest.raises((RecursionError, ValueError), match="child"):
            nnx.split(model)
        with pytest.raises((RecursionError, ValueError), match="child"):
            nnx.jit(touch)(model)
        assert jnp.array_equal(model.w.value, jnp.ones(2))


def _recursive_list() -> Any:
    value: list[Any] = []
    value.append(value)
    return value


def _recursive_dict() -> Any:
    value: dict[str, Any] = {}
    value["self"] = [value]
    return value


class Knot:
    """A pytree for knots."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner


jax.tree_util.register_pytree_node(Knot, lambda k: ((k.inner,), None), lambda _, c: Knot(c[0]))


def _recursive_through_pytree() -> Any:
    knot = Knot(None)
    knot.inner = [knot]
    return knot


def test_subclasses_of_containers() -> None:
    class MyDict(dict):  # type: ignore[type-arg]
        pass

    class MyList(list):  # type: ignore[type-arg]
        __hash__ = object.__hash__  # type: ignore[assignment]

    model = with_weight(Node())
    model.items_ = MyList([1])
    nnx.split(model)
    del model.items_
    model.table = MyDict(a=1)
    with pytest.raises(TypeError, match="table"):
        hash(nnx.graphdef(model))


def test_statics_of_every_common_kind() -> None:
    import datetime
    import decimal
    import fractions
    import pathlib
    import re
    import uuid

    model = with_weight(Node())
    for i, value in enumerate(
        [
            None,
            True,
            2**100,
            -0.0,
            float("nan"),
            float("inf"),
            1j,
            "é" * 1000,
            b"\x00",
            ...,
            NotImplemented,
            range(3),
            slice(1, 2) if hash_works(slice(1, 2)) else range(1),
            frozenset({1}),
            len,
            "".join,
            jnp.sum,
            lambda: uuid,
            type,
            datetime.date(2020, 1, 1),
            decimal.Decimal("1.1"),
            fractions.Fraction(1, 3),
            pathlib.Path("a"),
            re.compile("a"),
            uuid.UUID(int=1),
            np.dtype("f4"),
            np.str_("text"),
            jax.devices()[0],
            jax.sharding.PartitionSpec("a"),
        ]
    ):
        setattr(model, f"s{i}", value)
    assert_works(model)
    traces = []

    @nnx.jit
    def count(model: Node) -> None:
        traces.append(1)

    for _ in range(3):
        count(model)
    assert len(traces) == 1


def hash_works(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def test_functions_with_recursive_closures_compare_without_end() -> None:
    def make() -> Any:
        def walk(n: int) -> int:
            return walk(n - 1) if n else 0

        return walk

    one, two = with_weight(Node()), with_weight(Node())
    one.f, two.f = make(), make()
    assert nnx.graphdef(one) == nnx.graphdef(two)


def test_numpy_arrays_with_odd_dtypes() -> None:
    model = with_weight(Node())
    for value in (np.array(["text"]), np.array([object()]), np.zeros(2, "M8[s]")):
        model.odd = value
        with pytest.raises((TypeError, ValueError), match="odd"):
            nnx.jit(touch)(model)
        assert jnp.array_equal(model.w.value, jnp.ones(2))
    model.odd = np.zeros((2, 2), order="F")[::-1]
    assert_works(model)


def test_a_replaced_instance_dictionary() -> None:
    model = with_weight(Node())
    step = nnx.jit(touch)
    step(model)
    model.__dict__ = {"w": nnx.Param(jnp.zeros(2)), "extra": 1}
    step(model)
    assert jnp.array_equal(model.w.value, jnp.ones(2))


def test_a_class_changed_after_the_fact() -> None:
    class One(nnx.Module):
        pass

    class Two(nnx.Module):
        pass

    model = with_weight(One())
    step = nnx.jit(touch)
    step(model)
    structure = nnx.graphdef(model)
    model.__class__ = Two
    assert nnx.graphdef(model) != structure
    step(model)
    assert jnp.array_equal(model.w.value, jnp.full(2, 3.0))


def test_a_type_that_is_collected_is_forgotten() -> None:
    """Types are known by address: a new type at an old address must not inherit its description."""
    for i in range(200):
        if i % 2:

            class Thing:  # hashable by identity
                pass
        else:

            class Thing:  # type: ignore[no-redef]
                __slots__ = ()  # nothing to read instead of a hash
                __hash__ = None  # type: ignore[assignment]

                def __eq__(self, other: object) -> bool:
                    return True

        model = with_weight(Node())
        model.thing = Thing()
        if i % 2:
            hash(nnx.graphdef(model))
        else:
            with pytest.raises(TypeError, match="thing"):
                hash(nnx.graphdef(model))
        del Thing, model


def test_variables_may_hold_none_and_pytrees() -> None:
    model = with_weight(Node())
    model.nothing = nnx.Variable(None)
    model.tree = nnx.Variable((jnp.ones(1), {"a": jnp.zeros(2)}))
    assert_works(model)

    @nnx.jit
    def exchange(model: Node) -> Any:
        first, rest = model.tree.value
        model.tree.value = None
        model.nothing.value = [first + 1]
        return rest

    assert jnp.array_equal(exchange(model)["a"], jnp.zeros(2))
    assert model.tree.value is None
    assert jnp.array_equal(model.nothing.value[0], jnp.full(1, 2.0))


def test_a_node_in_a_variable_is_refused_by_path() -> None:
    model = with_weight(Node())
    model.child = Node()
    model.child.bad = nnx.Variable(Node())
    with pytest.raises(TypeError, match=r"child\.bad"):
        nnx.jit(touch)(model)
    assert jnp.array_equal(model.w.value, jnp.ones(2))


class ShortFields(tuple):
    """Says that it has one field, whatever it holds."""

    _fields = ("a",)


def test_named_tuples_with_fewer_fields_than_values_are_refused():
    node = Node()
    node.pair = ShortFields(nnx.Param(jnp.ones(1)) for _ in range(3))
    with pytest.raises(nnx.GraphError, match=r"model\.pair .*_fields"):
        nnx.split(node)


class OddlyNamed(type):
    """Its classes say that their name is a number."""

    __name__ = property(lambda cls: 3)  # type: ignore[assignment]


def test_names_that_are_no_names_are_shown_as_they_are():
    class Unhashable(metaclass=OddlyNamed):
        __slots__ = ()

        def __eq__(self, other):
            return True

        __hash__ = None  # type: ignore[assignment]

    class Odd(nnx.Param, metaclass=OddlyNamed):
        pass

    node = Node()
    node.static = Unhashable()
    with pytest.raises(nnx.StaticError, match="type '3'"):
        nnx.split(node)
    odd = Odd(jnp.ones(()))
    with pytest.raises(nnx.TraceContextError, match="'3'"):
        jax.jit(lambda x: setattr(odd, "value", x))(1.0)


def test_modules_of_types_need_not_be_text_that_can_be_encoded():
    class Odd:
        def __eq__(self, other):
            return type(other) is Odd

        def __hash__(self):
            return 1

    Odd.__module__ = "\ud800"
    model = with_weight(Node())
    model.static = Odd()
    assert_works(model)


class Elsewhere:
    """A data descriptor that gives another object when the class is asked for it."""

    def __init__(self):
        self.kept = {}

    def __get__(self, instance, owner=None):
        return 42 if instance is None else self.kept.get(id(instance), "unset")

    def __set__(self, instance, value):
        self.kept[id(instance)] = value


def test_descriptors_of_variable_classes_handle_what_is_set():
    class Scaled(nnx.Param):
        scale: Any = Elsewhere()

    variable = Scaled(jnp.ones(()))
    variable.scale = 3
    assert variable.scale == 3
    assert "scale" not in variable.get_metadata()


class Moving:
    """A key that moves itself to the end of its dict when it is first compared."""

    def __init__(self, n):
        self.n = n

    def __hash__(self):
        return self.n

    def __eq__(self, other):
        return self is other

    def __lt__(self, other):
        if self.inside is not None:
            inside, self.inside, other.inside = self.inside, None, None
            first = next(iter(inside))
            inside[first] = inside.pop(first)
        return self.n < other.n


def test_a_dict_whose_order_changes_while_it_is_sorted_is_refused():
    one, two = Moving(1), Moving(2)
    inside = {one: jnp.array(1.0), two: jnp.array(2.0)}
    one.inside = two.inside = inside
    read = nnx.jit(lambda d: (d[one], d[two]))
    with pytest.raises(nnx.GraphError, match="changed while it was walked"):
        read(inside)
    assert read(inside) == (1, 2)
