"""What a structure says of itself, word by word: its text, its differences, the outputs of a call."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import pytest

import treadle as nnx
from treadle import _core


class Part(nnx.Module):
    """Anything."""


def part(**attributes: Any) -> Part:
    made = Part()
    for name, value in attributes.items():
        setattr(made, name, value)
    return made


def test_every_line_has_its_whole_path() -> None:
    inner = part(w=nnx.Param(jnp.zeros(()), note="x"), nothing=None)
    model = part(
        a=nnx.List([inner, nnx.Dict({"": 1, "k": "v"})]),
        b=inner,
        c=part(deep=[(2.5, part())]),
        z=part(),
    )
    header, *lines = repr(nnx.graphdef(model)).split("\n  ")
    assert header.startswith("GraphDef(8 references, 1 leaves, hash=")
    assert lines == [
        "<root>: Part #0",
        "a: List #1",
        "a: list of length 2",
        "a.0: Part #2 (order: w, nothing)",
        "a.0.nothing: None",
        "a.0.w: Param #3 {'note': 'x'}",
        "a.1: Dict #4",
        "a.1: dict",
        "a.1.: 1",
        "a.1.k: 'v'",
        "b: shared Part #2",
        "c: Part #5",
        "c.deep: list of length 1",
        "c.deep.0: tuple of length 2",
        "c.deep.0.0: 2.5",
        "c.deep.0.1: Part #6",
        "z: Part #7",
    ]


@pytest.mark.parametrize(
    ("one", "two", "expected"),
    [
        (part(a=1, b=2), part(a=1, b=3), (("b",), 2, 3)),
        (part(a=part(x=1), b=2), part(a=part(), b=2), (("a", "x"), 1, "<absent>")),
        (part(a=part(), b=2), part(a=part(x=1), b=2), (("a", "x"), "<absent>", 1)),
        (part(a=part()), part(a=part(), b=2), (("b",), "<absent>", 2)),
        (part(a=part(), b=2), part(a=part()), (("b",), 2, "<absent>")),
        (part(a=part(x=1), b=2), part(b=2), (("a",), Part, "<absent>")),
        (
            part(a=[1, (2, 3)]),
            part(a=[1, (2,)]),
            (("a", 1), "tuple of length 2", "tuple of length 1"),
        ),
        (part(a=[1, None]), part(a=[1, jnp.zeros(())]), (("a", 1), "None", "array")),
        (part(a=part()), part(a=nnx.List([])), (("a",), Part, nnx.List)),
    ],
)
def test_the_first_difference_has_its_path_and_both_sides(
    one: Any, two: Any, expected: Any
) -> None:
    assert nnx.graphdef(one).difference(nnx.graphdef(two)) == expected


def test_a_node_shared_elsewhere_is_a_difference() -> None:
    shared = part()
    one, two = part(a=shared, b=part(c=shared)), part(a=part(), b=part(c=part()))
    assert nnx.graphdef(one).difference(nnx.graphdef(two)) == (("b", "c"), "shared Part", Part)


def test_outputs_have_the_path_that_reached_them_first() -> None:
    before = _core.flatten(part(kept=nnx.Param(jnp.zeros(())), sub=nnx.List([part(), part()])))
    model: Any
    model, refs = _core.unflatten(before.graphdef, before.leaves)
    new = part(deep=[{"k": (nnx.Param(jnp.zeros(())), jnp.zeros(()))}], back=model)
    model.sub[1].made = new
    model.kept.value = jnp.ones(())
    other = nnx.Dict(v=nnx.Param(jnp.zeros(())))
    result = {"again": new, "other": [other, jnp.zeros(())]}
    effects, _ = _core.trace_effects(refs, before.graphdef, before.leaves, result, True)
    assert sorted(effects.outputs(), key=repr) == [
        ("leaf", 0, ("kept",)),
        ("new", -1, ("sub", 1, "made", "deep", 0, "k", 0)),
        ("new", -1, ("sub", 1, "made", "deep", 0, "k", 1)),
        ("new", 1, ("other", 0, "v")),
        ("result", 0, ("other", 1)),
    ]
