"""update: values and metadata go into the caller's own objects, all of them or none."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import treadle as nnx


class Model(nnx.Module):
    def __init__(self, value: float = 1.0) -> None:
        self.a = nnx.Param(jnp.full(2, value))
        self.b = nnx.BatchStat(jnp.full(3, value), tag="stat")
        self.inner = nnx.List([nnx.Param(jnp.full(4, value))])
        self.array = jnp.full(5, value)
        self.nested = {"x": (jnp.full(6, value), "static")}
        self.slot = nnx.Variable(None)


def snapshot(model: Any) -> Any:
    return [
        (path, id(leaf)) for path, leaf in nnx.iter_graph(model) if isinstance(leaf, jax.Array)
    ] + [id(obj.raw_value) for obj in nnx.flatten(model)[2] if isinstance(obj, nnx.Variable)]


@pytest.fixture(params=["untouched", "looked at", "mapped", "pure dict"])
def new_state(request: Any) -> Any:
    state = nnx.state(Model(2.0))
    if request.param == "looked at":
        state.flat_state()
    elif request.param == "mapped":
        return jax.tree.map(lambda x: x, state)
    elif request.param == "pure dict":
        return state.to_pure_dict()
    return state


def test_all_leaves_get_the_new_values_and_objects_stay(new_state: Any) -> None:
    model = Model()
    before = list(nnx.flatten(model)[2])
    nnx.update(model, new_state)
    assert nnx.state(model) == nnx.state(Model(2.0))
    after = list(nnx.flatten(model)[2])
    assert all(x is y for x, y in zip(before, after, strict=True))


def test_leaves_without_an_entry_stay() -> None:
    model = Model()
    kept = model.b.value
    nnx.update(model, nnx.state(Model(2.0), nnx.Param))
    assert model.b.value is kept
    assert float(model.inner[0].value[0]) == 2.0


def test_several_states_later_ones_win() -> None:
    model = Model()
    nnx.update(model, nnx.state(Model(2.0)), nnx.state(Model(3.0), nnx.Param))
    assert (float(model.a[0]), float(model.b[0])) == (3.0, 2.0)


def test_shared_variables_are_updated_once_for_all() -> None:
    weight = nnx.Param(1.0)
    model = nnx.Dict(x=weight, y=weight)
    nnx.update(model, {"x": 2.0})
    assert model.y.value == 2.0


def test_metadata_of_the_state_reaches_the_variable() -> None:
    model = Model()
    state = nnx.state(model)
    state.b = state.b.replace(tag="new")
    nnx.update(model, state)
    assert model.b.tag == "new"


def test_anything_may_take_the_place_of_what_was_no_array() -> None:
    model = Model()
    nnx.update(model, {"slot": "text"})
    assert model.slot.value == "text"


def test_hooks_do_not_run() -> None:
    model = nnx.Dict(x=nnx.Param(1.0, set_value_hooks=lambda v, x: x + 100))
    nnx.update(model, {"x": 2.0})
    assert model.x.raw_value == 2.0


def test_a_lone_variable_and_a_pytree_can_be_updated() -> None:
    variable, model = nnx.Param(1.0), Model()
    nnx.update([variable, {"m": model}], {0: 2.0, 1: {"m": {"a": jnp.zeros(2)}}})
    assert variable.value == 2.0
    assert float(model.a.sum()) == 0.0


# -- bad input changes nothing ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "error", "message"),
    [
        ({"a": jnp.zeros(2), "c": 1.0}, nnx.StateError, r"no place for: model\.c\. Remove"),
        ({"a": jnp.zeros(2), "inner": {1: 1.0}}, nnx.StateError, r"model\.inner\[1\]"),
        ({"b": jnp.zeros(2), "a": "text"}, nnx.LeafTypeError, r"model\.a .*'text' of type str"),
        ({"a": jnp.zeros(2), "array": None}, nnx.LeafTypeError, r"model\.array .*NoneType"),
        ({"a": jnp.zeros(2), "nested": {"x": {0: object()}}}, nnx.LeafTypeError, r"model\.nested"),
        (
            {"a": jnp.zeros(2), "b": nnx.VariableState(nnx.Param, 1.0)},
            nnx.LeafTypeError,
            r"model\.b is a BatchStat, but the State has a Param",
        ),
        (
            {"a": jnp.zeros(2), "array": nnx.VariableState(nnx.Param, 1.0)},
            nnx.LeafTypeError,
            r"model\.array is a bare array, but the State has a Param",
        ),
        (3, nnx.StateError, "Expected a State or a nested dict of values, got int"),
    ],
)
def test_bad_states_name_the_path_and_change_nothing(
    state: Any, error: type[Exception], message: str
) -> None:
    model = Model()
    before = snapshot(model)
    with pytest.raises(error, match=message):
        nnx.update(model, state)
    assert snapshot(model) == before


def test_an_update_from_another_trace_level_changes_nothing() -> None:
    model = Model()
    before = snapshot(model)
    for state in (nnx.state(Model(2.0)), nnx.state(Model(2.0)).to_pure_dict()):
        with pytest.raises(nnx.TraceContextError, match="from different trace level"):
            jax.jit(lambda state=state: nnx.update(model, state))()
        assert snapshot(model) == before


def test_new_metadata_from_another_trace_level_changes_nothing() -> None:
    model = nnx.Dict(x=nnx.Param(1.0, tag="old"))
    state = nnx.State({"x": nnx.VariableState(nnx.Param, 1.0, tag="new")})
    with pytest.raises(nnx.TraceContextError):
        jax.jit(lambda: nnx.update(model, state))()
    assert model.x.tag == "old"


def test_arrays_outside_any_node_cannot_be_updated_and_say_so() -> None:
    x = jnp.ones(2)
    variable = nnx.Param(1.0)
    with pytest.raises(nnx.GraphError, match=r"model\[1\].*outside any node"):
        nnx.update([variable, x], {0: 2.0, 1: np.zeros(2)})
    assert variable.value == 1.0
