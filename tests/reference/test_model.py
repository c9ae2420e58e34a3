"""The oracle itself, on graphs small enough to check by eye, of classes foreign to Treadle."""

from __future__ import annotations

from typing import Any

import numpy as np

from .model import (
    Entry,
    Kinds,
    NodeKind,
    changed_leaves,
    first_difference,
    matches,
    partition,
    rebuild,
    scatter,
    walk,
)


class Cup:
    """The toy Variable."""

    def __init__(self, value: Any, **metadata: Any) -> None:
        self.value = value
        self.metadata = metadata


class Tray:
    """The toy node."""

    def __init__(self, **children: Any) -> None:
        self.__dict__.update(children)


def _assign_tray(tray: Tray, children: list[tuple[Any, Any]]) -> None:
    tray.__dict__.clear()
    tray.__dict__.update(children)


def _assign_cup(cup: Cup, value: Any, metadata: Any) -> None:
    cup.value, cup.metadata = value, dict(metadata)


_TRAY = NodeKind(lambda t: vars(t).items(), lambda _: None, lambda cls, _: cls(), _assign_tray)
TOY = Kinds(
    node_kind=lambda value: _TRAY if isinstance(value, Tray) else None,
    is_variable=lambda value: isinstance(value, Cup),
    metadata=lambda cup: cup.metadata,
    value=lambda cup: cup.value,
    create_variable=lambda cls, value, metadata: cls(value, **metadata),
    assign_variable=_assign_cup,
)


def sample() -> Tray:
    shared = Cup(np.zeros(1), tag="x")
    tray = Tray(b=shared, a=[1, Cup(2.0), {"k": np.ones(2)}], rate=0.5)
    tray.me = tray
    tray.c = shared
    return tray


def test_walk_sorts_attributes_and_meets_everything_once() -> None:
    tray = sample()
    found = walk(tray, TOY)
    assert found.leaf_paths == [("a", 1), ("a", 2, "k"), ("b",)]
    assert found.ref_paths == [(), ("a", 1), ("b",)]
    assert found.leaf_refs == [1, -1, 2]
    assert found.refs == [tray, tray.a[1], tray.b]


def test_structure_ignores_arrays_but_not_insertion_order() -> None:
    one, two = sample(), sample()
    two.b.value = np.full(9, 9.0)
    assert first_difference(walk(one, TOY).root, walk(two, TOY).root) is None
    attributes = list(vars(two).items())
    _assign_tray(two, attributes[::-1])
    assert first_difference(walk(one, TOY).root, walk(two, TOY).root) == ()
    one, two = ({"z": 1, "a": 2}, {"a": 2, "z": 1})
    assert first_difference(walk(one, TOY).root, walk(two, TOY).root) is None
    inside = (walk(Tray(table=table), TOY).root for table in (one, two))
    assert first_difference(*inside) == ("table",)


def test_structure_sees_sharing_statics_types_and_metadata() -> None:
    def differs(change: Any) -> Any:
        tray = sample()
        change(tray)
        return first_difference(walk(sample(), TOY).root, walk(tray, TOY).root)

    assert differs(lambda t: setattr(t, "c", Cup(np.zeros(1), tag="x"))) == ("c",)
    assert differs(lambda t: setattr(t, "rate", 0.25)) == ("rate",)
    assert differs(lambda t: setattr(t, "rate", True)) == ("rate",)
    assert differs(lambda t: t.b.metadata.update(tag="y")) == ("b",)
    assert differs(lambda t: t.a.append(1)) == ("a", 3)
    assert differs(lambda t: delattr(t, "me")) == ("me",)
    assert differs(lambda t: setattr(t, "a", tuple(t.a))) == ("a",)
    assert differs(lambda t: None) is None


def test_rebuild_is_fresh_and_shared_alike() -> None:
    tray = sample()
    found = walk(tray, TOY)
    copied, made = rebuild(found.root, found.leaves, TOY)
    assert copied.me is copied is made[0]
    assert copied.b is copied.c
    assert copied.b is not tray.b
    assert first_difference(walk(copied, TOY).root, found.root) is None


def test_scatter_keeps_identity_and_brings_every_change() -> None:
    outer = sample()
    shared, inner_cup = outer.b, outer.a[1]
    before = walk(outer, TOY)
    stand_in, made = rebuild(before.root, before.leaves, TOY)
    stand_in.b.value = np.full(3, 3.0)
    stand_in.b, stand_in.a[1] = stand_in.a[1], stand_in.b
    stand_in.new = Tray(cup=Cup(1.0))
    del stand_in.c
    inner = [made[i] for i in range(len(made))]
    returned = scatter(walk((stand_in, stand_in.b), TOY), inner, before.refs, TOY)
    assert returned == (outer, inner_cup)
    assert outer.b is inner_cup
    assert outer.a[1] is shared
    assert shared.value.shape == (3,)
    assert not hasattr(outer, "c")
    assert outer.me is outer
    assert outer.new.cup.value == 1.0


def test_changed_leaves_go_by_identity() -> None:
    tray = sample()
    before = walk(tray, TOY)
    tray.b.value, tray.a[1].value = tray.a[1].value, tray.b.value
    assert changed_leaves(before, walk(tray, TOY)) == []
    tray.b.value = np.zeros(1)
    assert changed_leaves(before, walk(tray, TOY)) == [2]


def test_filters_by_description() -> None:
    entry = Entry(("a", 1), Cup(1.0), "x")
    assert matches(("all",), entry)
    assert not matches(("none",), entry)
    assert matches(("type", Cup), entry)
    assert not matches(("type", Tray), entry)
    assert matches(("every", ("tag", "x"), ("contains", 1), ("not", ("contains", "b"))), entry)
    assert matches(("any", ("none",), ("call", lambda path: len(path) == 2)), entry)
    assert partition([("tag", "y"), ("all",), ("type", Cup)], [entry]) == [1]
    assert partition([("tag", "y")], [entry]) == [-1]
