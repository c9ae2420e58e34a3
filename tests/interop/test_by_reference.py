"""Transforms of treadle meet the node before the pytree: identity, sharing and structure go by reference as ever."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import pytest

import treadle as nnx


class Cell(nnx.Module):
    def __init__(self, value: float = 1.0) -> None:
        self.w = nnx.Param(jnp.full(2, value))
        self.seen = nnx.BatchStat(jnp.zeros(2))


class Pair(NamedTuple):
    first: Any
    second: Any


@jax.tree_util.register_dataclass
@dataclass
class Held:
    inner: Any
    number: Any


PLACES: dict[str, Callable[[Any], Any]] = {
    "itself": lambda x: x,
    "tuple": lambda x: (jnp.zeros(2), x),
    "list": lambda x: [x, [x]],
    "dict": lambda x: {"a": {"b": x}},
    "named tuple": lambda x: Pair(x, jnp.zeros(2)),
    "dataclass": lambda x: Held({"x": x}, jnp.zeros(2)),
    "State": lambda x: nnx.State({"x": x, "y": jnp.zeros(2)}),
    "List": lambda x: nnx.List([x]),
    "optax-like": lambda x: (Pair(jnp.zeros(2), {"mu": x}), ()),
}


def find(tree: Any) -> Any:
    """The first node or Variable with a `seen` in what was made by one of the PLACES."""
    for leaf in jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, (Cell, nnx.List))):
        if isinstance(leaf, Cell):
            return leaf
        if isinstance(leaf, nnx.List):
            return leaf[0]
    raise AssertionError(tree)


def bump(tree: Any) -> Any:
    cell = find(tree)
    cell.seen.value = cell.seen.value + 1
    return (cell.w.value * cell.seen.value).sum()


def by_scan(f: Callable[..., Any]) -> Callable[..., Any]:
    def run(tree: Any) -> Any:
        def step(carry: Any, x: Any) -> Any:
            f(carry)
            return carry, x

        return nnx.scan(step, length=None)(tree, jnp.ones(1))

    return run


def by_fori(f: Callable[..., Any]) -> Callable[..., Any]:
    def run(tree: Any) -> Any:
        def step(i: Any, carry: Any) -> Any:
            f(carry)
            return carry

        return nnx.fori_loop(0, 1, step, tree)

    return run


def by_while(f: Callable[..., Any]) -> Callable[..., Any]:
    def run(tree: Any) -> Any:
        def step(carry: Any) -> Any:
            f(carry[0])
            return carry[0], carry[1] + 1

        return nnx.while_loop(lambda carry: carry[1] < 1, step, (tree, 0))

    return run


LIFTS: dict[str, Callable[[Callable[..., Any]], Callable[..., Any]]] = {
    "jit": nnx.jit,
    "grad": nnx.grad,
    "value_and_grad": nnx.value_and_grad,
    "vmap": lambda f: nnx.vmap(f, in_axes=None, axis_size=1, out_axes=0),
    "remat": nnx.remat,
    "checkify": lambda f: nnx.checkify(f),
    "cond": lambda f: lambda tree: nnx.cond(True, f, f, tree),
    "switch": lambda f: lambda tree: nnx.switch(0, [f, f], tree),
    "scan": by_scan,
    "fori_loop": by_fori,
    "while_loop": by_while,
    "jit of grad": lambda f: nnx.jit(nnx.grad(f)),
    "jit of scan": lambda f: nnx.jit(lambda tree: by_scan(f)(tree) and None),
    "grad of cond": lambda f: nnx.grad(lambda tree: nnx.cond(True, f, f, tree)),
}
NO_GRADIENT = {
    ("State", name) for name in ("grad", "value_and_grad", "jit of grad", "grad of cond")
}


@pytest.mark.parametrize("lift", LIFTS)
@pytest.mark.parametrize("place", PLACES)
def test_a_change_reaches_the_callers_own_object(place: str, lift: str) -> None:
    cell = Cell()
    variables = cell.w, cell.seen
    tree = PLACES[place](cell)
    LIFTS[lift](bump)(tree)
    assert (cell.w, cell.seen) == variables or (
        cell.w is variables[0] and cell.seen is variables[1]
    )
    assert cell.seen.value.tolist() == [1.0, 1.0]
    assert find(tree) is cell


@pytest.mark.parametrize("place", [place for place in PLACES if place != "State"])
def test_results_hold_the_callers_own_object(place: str) -> None:
    cell = Cell()

    @nnx.jit
    def give(tree: Any) -> Any:
        return PLACES[place](find(tree)), nnx.Param(jnp.ones(1)), Cell(3.0)

    given, fresh, made = give(cell)
    assert find(given) is cell
    assert type(fresh) is nnx.Param
    assert type(made) is Cell


@pytest.mark.parametrize("place", PLACES)
def test_what_is_shared_between_arguments_is_one(place: str) -> None:
    cell = Cell()

    @nnx.jit
    def f(a: Any, b: Any, v: Any) -> Any:
        assert find(a) is find(b)
        assert find(a).w is v[0]
        v[0].value = v[0].value + 1
        return find(b).w.value

    assert f(PLACES[place](cell), {"again": cell}, [cell.w])[0] == 2
    assert cell.w[0] == 2


def test_structure_changes_come_back() -> None:
    tree = {"cell": Cell()}

    @nnx.jit
    def f(tree: Any) -> None:
        tree["cell"].more = nnx.Param(jnp.ones(3))
        del tree["cell"].seen

    f(tree)
    assert tree["cell"].more.shape == (3,)
    assert not hasattr(tree["cell"], "seen")


def test_vmap_axes_end_at_nodes() -> None:
    cell = nnx.vmap(lambda x: Cell(x), in_axes=0, out_axes=0)(jnp.arange(3.0))
    assert cell.w.shape == (3, 2)

    def f(tree: Any, x: Any) -> Any:
        tree["c"][0].seen.value = tree["c"][0].seen.value + x
        return tree["c"][0].w.value

    out = nnx.vmap(f, in_axes=({"c": [0]}, 0))({"c": [cell]}, jnp.arange(3.0))
    assert out.shape == (3, 2)
    assert cell.seen.value[:, 0].tolist() == [0.0, 1.0, 2.0]


@pytest.mark.parametrize(
    "held", [lambda: nnx.Param(jnp.ones(2)), Cell, lambda: [nnx.Param(jnp.ones(2))]]
)
def test_a_variable_that_holds_nodes_is_refused(held: Callable[[], Any]) -> None:
    """By value, what is done to them would be lost."""
    v = nnx.Param(1.0)
    v.value = held()
    m = nnx.Dict(v=v)
    for lift in (nnx.jit, nnx.remat, nnx.grad):
        with pytest.raises(TypeError, match=r"m\.v is a '\w+', which is not a valid JAX type"):
            lift(lambda m: jnp.float32(1.0))(m)

    def put(m: Any) -> Any:
        m.x.value = held()
        return jnp.float32(1.0)

    m = nnx.Dict(x=nnx.Param(jnp.ones(2)))
    for lift in (nnx.jit, nnx.remat, nnx.grad):
        with pytest.raises(TypeError, match=r"m\.x.* is a '\w+', which is not a valid JAX type"):
            lift(put)(m)
        assert m.x.value[0] == 1.0


def test_changing_at_another_level_raises_in_both_libraries_transforms() -> None:
    cell = Cell()

    def change(x: Any) -> Any:
        cell.w.value = x
        return x

    for lift in (jax.jit, jax.vmap, nnx.jit, nnx.vmap):
        with pytest.raises(nnx.errors.TraceContextError):
            lift(change)(jnp.ones(2))
    assert cell.w[0] == 1

    @jax.jit
    def outer(cell: Any) -> Any:
        cell.w.value = cell.w.value + 1  # made in here
        with pytest.raises(nnx.errors.TraceContextError):
            jax.vmap(lambda x: cell.w.set_metadata(x=1))(jnp.ones(2))
        with pytest.raises(nnx.errors.TraceContextError):
            jax.vmap(lambda x: setattr(cell, "y", x))(jnp.ones(2))
        return cell.w.value

    assert outer(cell)[0] == 2


# -- both libraries, one in the other ------------------------------------------------------------------


def test_ours_inside_of_plain_jit() -> None:
    cell = Cell()

    @jax.jit
    def f(cell: Any) -> Any:
        grads = nnx.grad(bump)(cell)
        assert isinstance(grads["w"], nnx.Param)
        return cell, grads

    out, grads = f(cell)
    assert out.seen[0] == 1
    assert cell.seen[0] == 0
    assert grads["w"][0] == 1


def test_plain_jit_inside_of_ours() -> None:
    cell = Cell()

    @nnx.jit
    def f(tree: Any) -> Any:
        inner = jax.jit(lambda c: (bump(c), c)[1])(tree[0])
        assert inner is not tree[0]
        tree[0].seen.value = inner.seen.value + 1
        doubled = jax.tree.map(lambda x: x * 2, tree[0])
        return doubled.w.value, jax.grad(bump)(tree[0])

    w, grads = f([cell])
    assert w[0] == 2
    assert type(grads) is Cell
    assert grads.w[0] == 3
    assert cell.seen[0] == 2


def test_in_turns_and_retraced_only_when_the_structure_changes() -> None:
    traces = []

    @nnx.jit
    def f(cell: Any) -> Any:
        traces.append(1)
        return bump(cell)

    cell = Cell()
    for _ in range(3):
        f(cell)
        cell = jax.tree.map(lambda x: x, cell)
        cell = jax.jit(lambda c: c)(cell)
        stacked = jax.vmap(lambda x, cell: jax.tree.map(lambda y: y * x, cell), (0, None))(
            jnp.ones(2), cell
        )
        assert stacked.w.shape == (2, 2)
    assert cell.seen[0] == 3
    assert len(traces) == 1


def test_constructors_in_plain_vmap() -> None:
    stacked = jax.vmap(Cell)(jnp.arange(3.0))
    assert type(stacked) is Cell
    assert stacked.w.value[:, 0].tolist() == [0.0, 1.0, 2.0]
    out = nnx.vmap(bump)(stacked)
    assert stacked.seen.shape == (3, 2)
    assert out.shape == (3,)
