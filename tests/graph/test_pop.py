"""pop: Variables leave their nodes and come back as State, all of them or none."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest

import treadle as nnx


class Model(nnx.Module):
    def __init__(self) -> None:
        self.weight = nnx.Param(jnp.ones(2))
        self.seen = nnx.Intermediate(1.0)
        self.parts = nnx.List([nnx.Intermediate(2.0), nnx.Param(3.0), nnx.Intermediate(4.0)])
        self.table = nnx.Dict(x=nnx.Intermediate(5.0), y=nnx.Cache(6.0))


def test_popped_variables_are_gone_and_returned() -> None:
    model = Model()
    state = nnx.pop(model, nnx.Intermediate)
    assert {path: entry.value for path, entry in state.flat_state().items()} == {
        ("seen",): 1.0,
        ("parts", 0): 2.0,
        ("parts", 2): 4.0,
        ("table", "x"): 5.0,
    }
    assert not hasattr(model, "seen")
    assert [v.value for v in model.parts] == [3.0]
    assert list(model.table) == ["y"]
    assert nnx.pop(model, nnx.Intermediate) == nnx.State()


def test_several_filters_give_several_states() -> None:
    cache, rest = nnx.pop(Model(), nnx.Cache, nnx.Intermediate)
    assert list(cache.flat_state()) == [("table", "y")]
    assert len(rest.flat_state()) == 4


def test_a_shared_variable_leaves_every_holder_and_is_returned_once() -> None:
    seen = nnx.Intermediate(1.0)
    model = nnx.Dict(a=seen, b=nnx.Dict(c=seen), d=nnx.List([seen, nnx.Param(1)]))
    state = nnx.pop(model, nnx.Intermediate)
    assert list(state.flat_state()) == [("a",)]
    assert nnx.state(model, nnx.Intermediate) == nnx.State()
    assert len(model.d) == 1


def test_pop_by_path_and_predicate() -> None:
    model = Model()
    nnx.pop(model, lambda path, value: path[0] == "table" and value.value > 5)
    assert list(model.table) == ["x"]
    nnx.pop(model, nnx.PathContains("weight"))
    assert not hasattr(model, "weight")


def test_pop_walks_cycles_and_nodes_in_plain_containers() -> None:
    model = Model()
    model.me, model.extra = model, [{"deep": nnx.Dict(z=nnx.Intermediate(7.0))}]
    state = nnx.pop(model, nnx.Intermediate)
    assert state.extra[0].deep.z.value == 7.0
    assert len(model.extra[0]["deep"]) == 0


@pytest.mark.parametrize("holder", [lambda v: (v,), lambda v: [v], lambda v: {"k": v}])
def test_variables_in_plain_containers_are_refused_and_nothing_is_removed(holder: Any) -> None:
    model = Model()
    model.zipped = holder(nnx.Intermediate(9.0))
    before = nnx.graphdef(model)
    with pytest.raises(nnx.GraphError, match=r"Cannot pop model\.zipped.*Keep such Variables in"):
        nnx.pop(model, nnx.Intermediate)
    assert nnx.graphdef(model) == before


def test_a_lone_variable_is_refused() -> None:
    with pytest.raises(nnx.GraphError, match="Cannot pop model:"):
        nnx.pop(nnx.Param(1.0), nnx.Param)


def test_filters_out_of_order_are_refused() -> None:
    model = Model()
    with pytest.raises(nnx.FilterError, match="out of order"):
        nnx.pop(model, ..., nnx.Param)
    assert hasattr(model, "weight")


def test_pop_from_another_trace_level_removes_nothing() -> None:
    inner = nnx.Dict(x=nnx.Intermediate(1.0))

    def traced() -> None:
        outer = nnx.Dict(mine=nnx.Intermediate(2.0), other=inner)
        with pytest.raises(nnx.TraceContextError, match="Cannot mutate 'Dict'"):
            nnx.pop(outer, nnx.Intermediate)
        assert set(outer) == {"mine", "other"}

    jax.jit(traced)()
    assert list(inner) == ["x"]


def test_a_registered_type_that_fails_puts_everything_back() -> None:
    class Stubborn:
        def __init__(self) -> None:
            self.things = {"s": nnx.Intermediate(1.0)}

    def refuse(node: Any, key: Any) -> None:
        raise RuntimeError("will not let go")

    nnx.register_graph_node_type(
        Stubborn,
        lambda node: (node.things.items(), None),
        lambda static: Stubborn(),
        lambda node, key, value: node.things.__setitem__(key, value),
        refuse,
    )
    model = nnx.List([Stubborn(), nnx.Intermediate(2.0), nnx.Intermediate(3.0)])
    with pytest.raises(RuntimeError, match="will not let go"):
        nnx.pop(model, nnx.Intermediate)
    assert [type(item).__name__ for item in model] == ["Stubborn", "Intermediate", "Intermediate"]
    assert [item.value for item in model[1:]] == [2.0, 3.0]
