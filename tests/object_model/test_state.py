"""State: mapping, views, paths, filters, pytrees, plain dicts, copies and text."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import treadle as nnx
from treadle._graph.state import State


class Layer(nnx.Module):
    def __init__(self, size: int) -> None:
        self.kernel = nnx.Param(jnp.full(size, 2.0))
        self.mean = nnx.BatchStat(jnp.zeros(size))


class Model(nnx.Module):
    def __init__(self) -> None:
        self.layers = nnx.List([Layer(2), Layer(3)])
        self.head = Layer(4)
        self.bare = jnp.arange(2)


def param(value: Any, **metadata: Any) -> nnx.VariableState:
    return nnx.VariableState(nnx.Param, value, **metadata)


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
def state(model: Model) -> State:
    return nnx.state(model)


PATHS = [
    ("bare",),
    ("head", "kernel"),
    ("head", "mean"),
    ("layers", 0, "kernel"),
    ("layers", 0, "mean"),
    ("layers", 1, "kernel"),
    ("layers", 1, "mean"),
]


# -- mapping and views -----------------------------------------------------------------------------


def test_entries_are_reached_by_item_and_by_attribute(model: Model, state: State) -> None:
    assert state["head"]["kernel"].value is model.head.kernel.value
    assert state.layers[1].mean.value is model.layers[1].mean.value
    assert state.bare is model.bare
    assert list(state) == ["bare", "head", "layers"]
    assert len(state) == 3
    assert "head" in state
    assert "tail" not in state


def test_writing_through_a_view_reaches_the_parent(state: State) -> None:
    view = state.layers[0]
    view.kernel = view.kernel.replace(1.0)
    view["extra"] = param(3.0)
    del view.mean
    assert state["layers"][0]["kernel"].value == 1.0
    assert state.layers[0].extra.value == 3.0
    assert "mean" not in state.layers[0]


def test_an_entry_of_a_state_can_be_changed_in_place(model: Model, state: State) -> None:
    state.head.kernel.value = 7.0
    assert nnx.merge(nnx.graphdef(model), state).head.kernel.value == 7.0
    np.testing.assert_array_equal(model.head.kernel.value, np.full(4, 2.0))


def test_a_state_put_into_a_state_is_copied_by_level(state: State) -> None:
    inner = State({"x": param(1.0)})
    state.added = inner
    inner.x = param(2.0)
    assert state.added.x.value == 1.0


def test_missing_entries_are_key_and_attribute_errors_that_name_what_is_there(
    state: State,
) -> None:
    with pytest.raises(KeyError, match="tail"):
        state["tail"]
    with pytest.raises(AttributeError, match=r"'tail' in State; entries: 'bare', 'head', 'layers'"):
        _ = state.tail
    with pytest.raises(AttributeError, match="tail"):
        del state.tail


def test_names_of_entries_are_offered_for_completion(state: State) -> None:
    assert {"head", "flat_state"} <= set(dir(state))


def test_construction_copies_levels_and_shares_entries() -> None:
    source = {"a": {"b": param(1.0)}}
    made = State(source)
    source["a"]["c"] = param(2.0)
    assert list(made.a) == ["b"]
    assert made.a.b is source["a"]["b"]
    assert State([("x", param(1.0))]).x.value == 1.0


# -- by path ---------------------------------------------------------------------------------------


def test_flat_state_is_in_canonical_order(state: State) -> None:
    assert list(state.flat_state()) == PATHS


def test_flat_state_round_trips(state: State) -> None:
    assert State.from_flat_state(state.flat_state()) == state
    assert State.from_flat_state(list(state.flat_state().items())) == state


def test_paths_that_run_through_an_entry_are_refused() -> None:
    with pytest.raises(nnx.StateError, match=r"state\.a\.b.*state\.a\b"):
        State.from_flat_state({("a",): param(1.0), ("a", "b"): param(2.0)})
    with pytest.raises(nnx.StateError, match=r"state\.a cannot be stored"):
        State.from_flat_state({("a", "b"): param(2.0), ("a",): param(1.0)})


def test_the_state_of_a_lone_variable_has_the_empty_path() -> None:
    variable = nnx.Param(1.0)
    graphdef, state = nnx.split(variable)
    assert state[()].value == 1.0
    assert list(state.flat_state()) == [()]
    assert nnx.merge(graphdef, state).value == 1.0
    assert State.from_flat_state(state.flat_state()) == state
    nnx.update(variable, jax.tree.map(lambda x: x + 1, state))
    assert variable.value == 2.0


@pytest.mark.parametrize("looked_at", [False, True])
def test_filter_takes_the_first_match_and_leaves_out_the_rest(
    state: State, looked_at: bool
) -> None:
    if looked_at:
        state.flat_state()
    only = state.filter(nnx.BatchStat)
    assert list(only.flat_state()) == [p for p in PATHS if p[-1] == "mean"]
    head, params = state.filter(nnx.PathContains("head"), nnx.Param)
    assert list(head.flat_state()) == PATHS[1:3]
    assert list(params.flat_state()) == [PATHS[3], PATHS[5]]


@pytest.mark.parametrize("looked_at", [False, True])
def test_split_wants_every_entry_selected(state: State, looked_at: bool) -> None:
    if looked_at:
        state.flat_state()
    params, rest = state.split(nnx.Param, ...)
    assert len(params.flat_state()) == 3
    assert len(rest.flat_state()) == 4
    with pytest.raises(nnx.FilterError, match=r"selects state\.bare, state\.head\.mean"):
        state.split(nnx.Param)
    with pytest.raises(nnx.FilterError, match="out of order"):
        state.split(..., nnx.Param)


@pytest.mark.parametrize("looked_at", [False, True])
def test_merge_undoes_split(model: Model, looked_at: bool) -> None:
    states = nnx.split(model, nnx.Param, nnx.BatchStat, ...)[1:]
    if looked_at:
        for state in states:
            state.flat_state()
    whole = nnx.state(model)
    assert State.merge(*states) == whole
    assert states[0] | states[1] | states[2] == whole
    assert states[2].merge(states[0], states[1]) == whole


def test_the_last_entry_counts_in_merge(state: State) -> None:
    other = State({"head": {"kernel": param(1.0)}})
    assert (state | other).head.kernel.value == 1.0
    assert (other | state).head.kernel.value is not other.head.kernel.value
    doubled = jax.tree.map(lambda x: 2 * x, state)
    np.testing.assert_array_equal(State.merge(state, doubled).head.kernel.value, np.full(4, 4.0))


def test_merge_refuses_an_entry_where_there_is_a_level(state: State) -> None:
    with pytest.raises(nnx.StateError, match=r"state\.head cannot be stored"):
        state.merge(State({"head": param(1.0)}))


# -- pytree ----------------------------------------------------------------------------------------


def test_tree_map_reaches_values_and_keeps_types_and_metadata() -> None:
    state = State({"a": {"b": param(1.0, tag="t")}})
    doubled = jax.tree.map(lambda x: 2 * x, state)
    assert isinstance(doubled, State)
    assert doubled.a.b == param(2.0, tag="t")
    assert state.a.b.value == 1.0


def test_key_paths_lead_to_the_value(state: State) -> None:
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    assert [jax.tree_util.keystr(path) for path, _ in leaves][:2] == [
        "['bare']",
        "['head']['kernel'].value",
    ]
    assert jax.tree_util.keystr(leaves[3][0]) == "['layers'][0]['kernel'].value"


def test_is_leaf_sees_variable_states(state: State) -> None:
    kinds = jax.tree.map(
        lambda leaf: leaf.type.__name__ if isinstance(leaf, nnx.VariableState) else "array",
        state,
        is_leaf=lambda leaf: isinstance(leaf, nnx.VariableState),
    )
    assert kinds.head.kernel == "Param"
    assert kinds.layers[0].mean == "BatchStat"
    assert kinds.bare == "array"


def test_states_of_equal_structure_have_equal_treedefs(model: Model) -> None:
    untouched = nnx.state(model)
    rebuilt = State.from_flat_state(reversed(list(nnx.state(model).flat_state().items())))
    assert jax.tree.structure(untouched) == jax.tree.structure(rebuilt)
    assert hash(jax.tree.structure(untouched)) == hash(jax.tree.structure(rebuilt))


@pytest.mark.parametrize(
    "other", [param(1.0, tag="u"), param(1.0), nnx.VariableState(nnx.BatchStat, 1.0, tag="t")]
)
def test_type_and_metadata_are_part_of_the_treedef(other: nnx.VariableState) -> None:
    a, b = State({"x": param(1.0, tag="t")}), State({"x": other})
    assert jax.tree.structure(a) != jax.tree.structure(b)


def test_unhashable_metadata_does_not_hurt_tree_functions() -> None:
    state = State({"x": param(jnp.ones(2), rules=[["a", "b"]])})
    assert float(jax.jit(lambda s: s.x.value.sum())(state)) == 2.0


def test_states_pass_through_jax_transforms(state: State) -> None:
    params = state.filter(nnx.Param)

    def loss(params: State) -> jax.Array:
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))

    grads = jax.jit(jax.grad(loss))(params)
    assert isinstance(grads, State)
    np.testing.assert_array_equal(grads.head.kernel.value, np.full(4, 4.0))
    moved = jax.device_put(state, jax.devices()[0])
    assert moved == state


def test_a_state_without_entries_is_a_pytree_without_leaves() -> None:
    assert jax.tree.leaves(State()) == []
    assert jax.tree.map(lambda x: x, State()) == State()


# -- plain dicts -----------------------------------------------------------------------------------


def test_pure_dicts_round_trip(model: Model, state: State) -> None:
    pure = state.to_pure_dict()
    assert pure["layers"][1]["kernel"] is model.layers[1].kernel.value
    assert type(pure["layers"]) is dict
    target = jax.tree.map(jnp.zeros_like, state)
    target.replace_by_pure_dict(pure)
    assert target == state


def test_keys_that_became_text_find_their_index(state: State) -> None:
    state.replace_by_pure_dict({"layers": {"1": {"kernel": 5.0}}})
    assert state.layers[1].kernel.value == 5.0


def test_replace_by_pure_dict_with_a_function(state: State) -> None:
    state.replace_by_pure_dict(
        {"head": {"kernel": 3.0}}, lambda old, new: old.replace(new, restored=True)
    )
    assert state.head.kernel.restored


def test_a_pure_dict_with_surplus_values_changes_nothing(state: State) -> None:
    before = state.head.kernel.value
    with pytest.raises(nnx.StateError, match=r"state\.head\.tail"):
        state.replace_by_pure_dict({"head": {"kernel": 1.0, "tail": 2.0}})
    assert state.head.kernel.value is before


# -- copies and comparison -------------------------------------------------------------------------


@pytest.mark.parametrize("duplicate", [copy.copy, State.copy, lambda s: State(s)])
def test_copies_have_their_own_levels(state: State, duplicate: Any) -> None:
    other = duplicate(state)
    del other.head["kernel"]
    assert "kernel" in state.head


def test_deep_copies_have_their_own_values() -> None:
    state = State({"x": param(np.zeros(2), tag="t")})
    other = copy.deepcopy(state)
    other.x.value[0] = 1
    assert state.x.value[0] == 0
    assert other.x.tag == "t"


def test_pickle_round_trips(state: State) -> None:
    restored = pickle.loads(pickle.dumps(state))
    assert isinstance(restored, State)
    assert restored == state


def test_equality_is_by_content() -> None:
    assert State({"x": param(jnp.ones(2))}) == State({"x": param(jnp.ones(2))})
    assert State({"x": param(jnp.ones(2))}) != State({"x": param(jnp.zeros(2))})
    assert State({"x": param(jnp.ones(2))}) != State({"x": param(jnp.ones(3))})
    assert State({"x": param(jnp.ones(2))}) != State({"x": param(np.ones(2, int))})
    assert State({"x": param(1.0)}) != State({"y": param(1.0)})
    assert State({"x": param(1.0)}) != State({"x": {"x": param(1.0)}})
    # A State is a mapping, and equal to another one of the same entries.
    assert State() == {}
    assert State({"x": param(1.0)}) == {"x": param(1.0)} != State({"x": param(2.0)})
    with pytest.raises(TypeError, match="unhashable"):
        hash(State())


# -- text ------------------------------------------------------------------------------------------


def test_repr_nests_levels() -> None:
    state = State({"a": {0: param((3,), tag="t")}, "b": jnp.zeros(2, jnp.int32)})
    assert repr(state) == (
        "State({\n"
        "  'a': {\n"
        "    0: VariableState(\n"
        "      type=Param,\n"
        "      value=(3,),\n"
        "      tag='t'\n"
        "    )\n"
        "  },\n"
        "  'b': Array([0, 0], dtype=int32)\n"
        "})"
    )


def test_repr_of_no_entries() -> None:
    assert repr(State()) == "State({})"


# -- VariableState ---------------------------------------------------------------------------------


def test_variable_state_attributes_and_replace() -> None:
    entry = param(1.0, tag="t")
    assert (entry.type, entry.value, entry.tag) == (nnx.Param, 1.0, "t")
    other = entry.replace(2.0, note="n")
    assert (other.value, other.get_metadata()) == (2.0, {"tag": "t", "note": "n"})
    assert entry.get_metadata() == {"tag": "t"}
    assert entry.replace(tag="u").value == 1.0
    with pytest.raises(AttributeError, match="nothing"):
        _ = entry.nothing


def test_variable_state_copies_and_pickles() -> None:
    entry = param(np.ones(2), tag="t")
    for other in (copy.deepcopy(entry), pickle.loads(pickle.dumps(entry)), entry.copy()):
        assert other == entry
        assert other is not entry


def test_a_missing_entry_names_what_there_is_the_like_first() -> None:
    state = nnx.state(Model())
    message = "No entry 'heda' in State; did you mean 'head'? entries: 'head', 'bare', 'layers'"
    for look in (
        lambda: state["heda"],
        lambda: state.__delitem__("heda"),
        lambda: state.pop("heda"),
    ):
        with pytest.raises(nnx.StateError) as raised:
            look()
        assert str(raised.value) == message
        assert isinstance(raised.value, KeyError)
    for look in (lambda: state.heda, lambda: delattr(state, "heda")):
        with pytest.raises(AttributeError) as failed:
            look()
        assert str(failed.value) == message
    with pytest.raises(nnx.StateError, match=r"No entry 7 in State; entries: 0, 1$"):
        state["layers"][7]
    with pytest.raises(nnx.StateError, match="entries: none"):
        nnx.State()["x"]
    wide = nnx.State({f"name{i}": nnx.VariableState(nnx.Param, i) for i in range(30)})
    with pytest.raises(nnx.StateError, match="and 20 more"):
        wide["other"]


def test_looking_for_an_entry_that_may_be_missing() -> None:
    state = nnx.state(Model())
    assert state.get("nothing") is None
    assert state.get("nothing", 3) == 3
    assert state.get("head")["mean"].type is nnx.BatchStat
    assert state.pop("nothing", 4) == 4
    assert not hasattr(state, "nothing")
    assert state.setdefault("new", nnx.VariableState(nnx.Param, 1.0)).value == 1.0
