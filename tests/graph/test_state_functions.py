"""The functions over States that newer NNX code calls: same values as flax's, by the same spelling."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx as flax_nnx

import treadle as nnx


def model(lib):
    return lib.Dict(
        layers=lib.List(
            [lib.Dict(w=lib.Param(jnp.arange(3.0))), lib.Dict(w=lib.Param(jnp.ones(2)))]
        ),
        seen=lib.BatchStat(jnp.array(2.0)),
    )


def plain(tree):
    """Nested dicts of lists, for comparison between the libraries."""
    if hasattr(tree, "items"):
        return {key: plain(value) for key, value in tree.items()}
    return np.asarray(getattr(tree, "value", tree)).tolist()


CASES = {
    "to_pure_dict": lambda lib, s: lib.to_pure_dict(s),
    "to_pure_dict with extract_fn": lambda lib, s: lib.to_pure_dict(s, lambda v: v.value * 2),
    "flat": lambda lib, s: {path: v.value for path, v in lib.to_flat_state(s)},
    "flat paths": lambda lib, s: {i: len(p) for i, p in enumerate(lib.to_flat_state(s).paths)},
    "flat leaves": lambda lib, s: {i: v.value for i, v in enumerate(lib.to_flat_state(s).leaves)},
    "there and back": lambda lib, s: lib.from_flat_state(lib.to_flat_state(s)),
    "from a dict": lambda lib, s: lib.from_flat_state(dict(lib.to_flat_state(s))),
    "from_flat_path": lambda lib, s: lib.State.from_flat_path(dict(lib.to_flat_state(s))),
    "map_state": lambda lib, s: lib.map_state(lambda p, v: v.replace(v.value + len(p)), s),
    "State.map": lambda lib, s: s.map(lambda p, v: v.replace(v.value - len(p))),
    "filter_state": lambda lib, s: lib.filter_state(s, lib.BatchStat),
    "filter_state, two": lambda lib, s: dict(
        enumerate(lib.filter_state(s, lib.BatchStat, lib.Param))
    ),
    "split_state": lambda lib, s: dict(enumerate(lib.split_state(s, lib.Param, ...))),
    "merge_state": lambda lib, s: lib.merge_state(*lib.split_state(s, lib.Param, ...)),
    "merge_state, last wins": lambda lib, s: lib.merge_state(
        s, lib.map_state(lambda p, v: v.replace(v.value * 3), lib.filter_state(s, lib.Param))
    ),
    "variables": lambda lib, s: lib.variables(model(lib), lib.Param),
    "as_pure": lambda lib, s: lib.as_pure(s),
    "restore_int_paths": lambda lib, s: lib.restore_int_paths({"a": {"0": 1, "-1": 2, "x": 3}}),
}


@pytest.mark.parametrize("name", CASES)
def test_as_in_flax(name):
    ours = CASES[name](nnx, nnx.state(model(nnx)))
    theirs = CASES[name](flax_nnx, flax_nnx.state(model(flax_nnx)))
    assert plain(ours) == plain(theirs)


def test_replace_by_pure_dict_takes_texts_of_indices():
    state = nnx.state(model(nnx))
    nnx.replace_by_pure_dict(state, {"layers": {"1": {"w": jnp.zeros(2)}}})
    assert plain(state["layers"][1]) == {"w": [0.0, 0.0]}
    assert plain(state["layers"][0]) == {"w": [0.0, 1.0, 2.0]}
    with pytest.raises(nnx.StateError, match="nothing"):
        nnx.replace_by_pure_dict(state, {"nothing": 1.0})


def test_split_state_says_what_no_filter_selects():
    with pytest.raises(nnx.FilterError, match="seen"):
        nnx.split_state(nnx.state(model(nnx)), nnx.Param)


def test_flat_states_are_pytrees_of_their_entries():
    flat = nnx.FlatState({("a",): jnp.ones(2), ("b", 0): jnp.zeros(3)})
    doubled = jax.tree_util.tree_map(lambda x: x + 1, flat)
    assert doubled.paths == flat.paths
    assert plain(dict(doubled)) == {("a",): [2.0, 2.0], ("b", 0): [1.0, 1.0, 1.0]}
    assert flat[0][0] == ("a",)
    assert flat[1:].paths == (("b", 0),)
    assert len(flat.to_nested_state().flat_state()) == 2


def test_map_makes_a_copy_with_the_sharing_kept():
    tied = nnx.Param(jnp.array(2.0))
    original = nnx.Dict(a=tied, b=nnx.Dict(c=tied))
    mapped = nnx.map(lambda path, entry: entry.replace(entry.value * 2), original)
    assert mapped["a"] is mapped["b"]["c"]
    assert float(mapped["a"].value) == 4.0
    assert float(original["a"].value) == 2.0


def test_find_duplicates():
    tied, shared = nnx.Param(1.0), nnx.Dict(w=nnx.Param(2.0))
    graph = nnx.Dict(a=tied, b=[tied, shared], c=shared, d=nnx.Param(1.0))
    assert nnx.find_duplicates(graph) == [[("a",), ("b", 0)], [("b", 1), ("c",)]]
    assert nnx.find_duplicates(graph, only=nnx.Param) == [[("a",), ("b", 0)]]
    graph["me"] = graph
    assert ["me"] in [
        [key for path in paths for key in path] for paths in nnx.find_duplicates(graph)
    ]


def test_iter_children_and_modules_take_any_node():
    graph = model(nnx)
    assert [key for key, _ in nnx.iter_children(graph)] == ["layers"]
    assert [path for path, _ in nnx.iter_modules(graph)] == [
        path for path, _ in graph.iter_modules()
    ]


def test_names_of_types():
    for name in ("params", "batch_stats", "cache", "intermediates", "perturbations"):
        kind = nnx.variable_type_from_name(name)
        assert kind.__name__ == flax_nnx.variable_type_from_name(name).__name__
        assert nnx.variable_name_from_type(kind) == name

    class OfOurs(nnx.Param):
        pass

    with pytest.raises(ValueError, match="OfOurs is not registered"):
        nnx.variable_name_from_type(OfOurs)
    assert nnx.variable_name_from_type(OfOurs, allow_register=True) == "OfOurs"
    with pytest.raises(ValueError, match="that of Param already"):
        nnx.register_variable_name("params", OfOurs)
    made = nnx.variable_type_from_name("made here", base=OfOurs, allow_register=True)
    assert issubclass(made, OfOurs)
