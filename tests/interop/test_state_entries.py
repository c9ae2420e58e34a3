"""Entries of a State pass for their Variables, and a State is a mapping."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import treadle as nnx


def model() -> Any:
    return nnx.BatchNorm(2, rngs=nnx.Rngs(0))


def entry() -> Any:
    return nnx.state(nnx.Dict(w=nnx.Param(jnp.arange(3.0), tag="t"))).w


def test_isinstance_says_so() -> None:
    e = entry()
    assert isinstance(e, nnx.Param)
    assert isinstance(e, nnx.Variable)
    assert isinstance(e, nnx.VariableState)
    assert not isinstance(e, nnx.BatchStat)
    assert not isinstance(e, nnx.Module)
    assert type(e) is nnx.VariableState
    assert e.type is nnx.Param


def test_filters_of_functions_see_it() -> None:
    m = model()
    for select in (
        lambda path, value: isinstance(value, nnx.Param),
        lambda path, value: isinstance(value, nnx.Variable) and value.shape == (2,),
    ):
        assert "scale" in nnx.state(m, select)
        assert "scale" in nnx.state(m).filter(select)
    assert list(nnx.state(m, lambda path, value: isinstance(value, nnx.BatchStat))) == [
        "mean",
        "var",
    ]


def test_it_has_what_its_value_has() -> None:
    e = entry()
    assert e.shape == (3,)
    assert e.dtype == jnp.float32
    assert e.ndim == 1
    assert len(e) == 3
    assert e[1] == 1
    assert e[...].shape == (3,)
    assert e.at[0].set(5)[0] == 5
    assert e.tag == "t"
    assert list(map(float, e)) == [0, 1, 2]
    assert (e + 1)[0] == 1
    assert (1 - e)[0] == 1
    assert (e * e)[2] == 4
    assert (e + nnx.Param(jnp.ones(3)))[0] == 1
    assert (nnx.Param(jnp.ones(3)) + e)[0] == 1
    assert (jnp.ones(3) + e)[0] == 1
    assert (np.ones(3) + e)[0] == 1
    assert (-e)[1] == -1
    assert (e > 1).tolist() == [False, False, True]
    assert (e == jnp.arange(3.0)).all()
    assert np.asarray(e).shape == (3,)
    with pytest.raises(AttributeError, match="nothing_like_it"):
        _ = e.nothing_like_it


def test_writing_changes_the_entry_and_nothing_else() -> None:
    m = nnx.Dict(w=nnx.Param(jnp.zeros(3)))
    state = nnx.state(m)
    state.w[...] = jnp.ones(3)
    assert state.w.value.tolist() == [1, 1, 1]
    state.w[0] = 7
    assert state.w[0] == 7
    state.w.value += 1
    state.w += 1
    assert state.w[0] == 9
    assert m.w[0] == 0
    nnx.update(m, state)
    assert m.w[0] == 9
    assert isinstance(state.w, nnx.Param)


def test_variables_take_entries() -> None:
    e = entry()
    assert nnx.Param(e).value is e.value
    v = nnx.Param(jnp.zeros(3))
    v.copy_from(e)
    assert v.tag == "t"
    assert v.replace(e).value is e.value
    with pytest.raises(nnx.errors.LeafTypeError):
        nnx.BatchStat(1.0).copy_from(e)
    v.update_from_state(e)


def test_equality_is_that_of_states() -> None:
    assert entry() == entry()
    assert (entry() != entry()) is False
    assert entry() != entry().replace(tag="u")
    with pytest.raises(TypeError):
        hash(entry())


@pytest.mark.parametrize(
    "again", [copy.copy, copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e))]
)
def test_copies_are_entries(again: Callable[[Any], Any]) -> None:
    made = again(entry())
    assert type(made) is nnx.VariableState
    assert made == entry()


def test_it_goes_through_jax_by_value() -> None:
    e = entry()
    assert type(jax.jit(lambda x: x)(e)) is nnx.VariableState
    assert jax.tree.leaves({"e": e}, is_leaf=lambda x: isinstance(x, nnx.Variable))[0] is e
    state = nnx.state(model())
    kinds = jax.tree.map(
        lambda v: v.type.__name__, state, is_leaf=lambda v: isinstance(v, nnx.Variable)
    )
    assert kinds["scale"] == "Param"
    assert kinds["mean"] == "BatchStat"


def test_entries_are_no_variables_of_the_graph() -> None:
    """By reference go objects, by value States."""
    state = nnx.state(nnx.Dict(w=nnx.Param(jnp.zeros(2))))

    @nnx.jit
    def f(s: Any) -> Any:
        s.w[...] = s.w[...] + 1
        return s

    assert f(state).w[0] == 1
    assert state.w[0] == 0
    assert not nnx.is_graph_node(state.w)


def test_very_deep_values_raise() -> None:
    held: Any = 1.0
    for _ in range(200_000):
        held = nnx.VariableState(nnx.Param, held)
    with pytest.raises(RecursionError):
        _ = held.nothing
    while isinstance(held, nnx.VariableState):
        held = held.value


def test_states_are_mappings() -> None:
    a = nnx.State({"x": nnx.VariableState(nnx.Param, 1.0)})
    b = nnx.State({"y": nnx.VariableState(nnx.Param, 2.0)})
    assert list(a | b) == ["x", "y"]
    assert list(a | {"y": 2.0}) == ["x", "y"]
    assert isinstance({"y": 2.0} | a, nnx.State)
    assert ({"x": 2.0, "y": 0.0} | a)["x"].value == 1.0
    same = a
    a |= b
    assert a is same
    assert list(a) == ["x", "y"]
    assert a == {"x": nnx.VariableState(nnx.Param, 1.0), "y": nnx.VariableState(nnx.Param, 2.0)}
    assert {"x": a.x, "y": a.y} == a
    assert a != {"x": a.x}
    assert a != 1
    assert dict(a.items())["x"] is a.x
    assert a.pop("x").value == 1.0
    assert a.pop("x", None) is None
    with pytest.raises(KeyError, match="entries: 'y'"):
        a.pop("x")
    with pytest.raises(KeyError, match="entries: 'y'"):
        a["kernel"]
    assert a.popitem()[0] == "y"
    assert not a
    with pytest.raises(TypeError):
        a | 1
