"""Structure and state of flax objects through treadle's graph functions, and on their way to other places."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import treadle

pytest.importorskip("flax.nnx", reason="flax has no release for this Python")
from flax import nnx


class Net(nnx.Module):
    def __init__(self, seed: int) -> None:
        rngs = nnx.Rngs(seed)
        self.dense = nnx.Linear(2, 3, rngs=rngs)
        self.norm = nnx.BatchNorm(3, rngs=rngs)
        self.tied = self.dense


class TreadleNet(treadle.Module):
    def __init__(self, seed: int) -> None:
        rngs = treadle.Rngs(seed)
        self.dense = treadle.Linear(2, 3, rngs=rngs)
        self.norm = treadle.BatchNorm(3, rngs=rngs)
        self.tied = self.dense


PATHS = [
    ("dense", "bias"),
    ("dense", "kernel"),
    ("norm", "bias"),
    ("norm", "mean"),
    ("norm", "scale"),
    ("norm", "var"),
]


def test_split_and_merge_make_equal_objects() -> None:
    net = Net(0)
    graphdef, state = treadle.split(net)
    assert list(state.flat_state()) == PATHS
    copy = treadle.merge(graphdef, state)
    assert type(copy) is Net
    assert copy.tied is copy.dense is not net.dense
    assert treadle.graphdef(copy) == graphdef == treadle.graphdef(Net(1))
    # flax takes the copy for one of its own.
    assert jax.tree.structure(nnx.state(copy)) == jax.tree.structure(nnx.state(net))
    copy.dense.kernel = nnx.Param(jnp.zeros((2, 3)))


def test_filters_of_either_library_select() -> None:
    net = Net(0)
    statistics = [("norm", "mean"), ("norm", "var")]
    rest = [path for path in PATHS if path not in statistics]
    for selects in (
        nnx.BatchStat,
        treadle.BatchStat,
        nnx.OfType(nnx.BatchStat),
        nnx.Not(nnx.Param),
    ):
        assert list(treadle.state(net, selects).flat_state()) == statistics
    for selects in (
        nnx.Param,
        treadle.Param,
        nnx.All(nnx.Param, ...),
        treadle.Not(treadle.BatchStat),
    ):
        assert list(treadle.state(net, selects).flat_state()) == rest
    assert list(treadle.state(net, nnx.PathContains("mean")).flat_state()) == statistics[:1]
    assert list(treadle.state(nnx.Rngs(noise=0), nnx.WithTag("noise")).flat_state()) == [
        ("noise", "count"),
        ("noise", "key"),
    ]
    assert treadle.to_filter_spec(nnx.Any(nnx.Param, "tag")) == treadle.to_filter_spec(
        [nnx.Param, "tag"]
    )


def test_predicates_see_flax_variables() -> None:
    matches = treadle.to_predicate(treadle.Param)
    assert matches((), nnx.Param(jnp.ones(1)))
    assert not matches((), nnx.BatchStat(jnp.ones(1)))
    assert treadle.to_predicate("noise")((), nnx.Rngs(noise=0).noise.key)


@pytest.mark.parametrize(("source", "target"), [(TreadleNet, Net), (Net, TreadleNet), (Net, Net)])
def test_state_moves_between_models_of_the_same_structure(source: Any, target: Any) -> None:
    given, taking = source(1), target(0)
    metadata = dict(treadle.state(taking).dense.kernel._metadata)
    treadle.update(taking, treadle.state(given))
    for a, b in zip(
        jax.tree.leaves(treadle.state(taking)), jax.tree.leaves(treadle.state(given)), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    assert dict(treadle.state(taking).dense.kernel._metadata) == metadata


def test_states_of_flax_are_taken_too() -> None:
    net, other = Net(0), Net(1)
    treadle.update(net, nnx.state(other))
    np.testing.assert_array_equal(net.dense.kernel[...], other.dense.kernel[...])


def test_an_update_that_does_not_fit_changes_nothing() -> None:
    net = Net(0)
    before = net.dense.kernel[...]
    wrong = treadle.State(
        {"dense": {"kernel": treadle.VariableState(treadle.BatchStat, jnp.zeros((2, 3)))}}
    )
    with pytest.raises(treadle.LeafTypeError, match=r"dense\.kernel is a Param"):
        treadle.update(net, wrong)
    with pytest.raises(treadle.StateError, match="no place"):
        treadle.update(net, {"dense": {"kernel": jnp.zeros((2, 3)), "gone": jnp.zeros(1)}})
    assert net.dense.kernel[...] is before


def test_pop_takes_variables_out_and_flax_agrees() -> None:
    net = Net(0)
    popped = treadle.pop(net, nnx.BatchStat)
    assert list(popped.flat_state()) == [("norm", "mean"), ("norm", "var")]
    assert not hasattr(net.norm, "mean")
    assert "mean" not in nnx.state(net)["norm"]


def test_clone_and_iter_graph() -> None:
    net = Net(0)
    copy = treadle.clone(net)
    assert copy.dense is copy.tied
    assert copy.dense.kernel is not net.dense.kernel
    paths = [path for path, _ in treadle.iter_graph(net)]
    assert ("dense", "kernel") in paths
    assert not any(str(key).startswith("_pytree__") for path in paths for key in path)


def test_an_entry_becomes_a_variable_of_flax() -> None:
    entry = treadle.state(Net(0)).dense.bias
    variable = entry.to_variable()
    assert type(variable) is nnx.Param
    assert variable[...] is entry.value


def test_orbax_saves_and_restores(tmp_path: Path) -> None:
    ocp = pytest.importorskip("orbax.checkpoint", reason="orbax is not installed")
    net, other = Net(0), Net(1)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", treadle.state(net).to_pure_dict())
        checkpointer.save(tmp_path / "tree", treadle.state(net))
        checkpointer.wait_until_finished()
        shapes = jax.tree.map(
            jax.ShapeDtypeStruct.like
            if hasattr(jax.ShapeDtypeStruct, "like")
            else lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype),
            treadle.state(other),
        )
        pure = checkpointer.restore(tmp_path / "state", shapes.to_pure_dict())
        whole = checkpointer.restore(tmp_path / "tree", shapes)
    for restored in (pure, whole):
        fresh = Net(1)
        treadle.update(fresh, restored)
        np.testing.assert_array_equal(fresh.dense.kernel[...], net.dense.kernel[...])
        np.testing.assert_array_equal(fresh.norm.var[...], net.norm.var[...])


def test_values_and_not_entries_reach_models_of_either_library() -> None:
    ours, theirs = TreadleNet(0), Net(1)
    pairs: list[tuple[Any, Any]] = [
        (theirs, ours),
        (ours, theirs),
        (theirs, Net(2)),
        (ours, TreadleNet(3)),
    ]
    for target, source in pairs:
        for state in (treadle.state(source), treadle.state(source).copy()):
            treadle.update(target, state)
            for variable in treadle.flatten(target)[2]:
                if isinstance(variable, (treadle.Variable, nnx.Variable)):
                    assert isinstance(treadle._core.raw_value(variable), jax.Array)
    nnx.update(theirs, treadle.state(TreadleNet(4)).to_pure_dict())
    np.testing.assert_array_equal(theirs.dense.kernel[...], TreadleNet(4).dense.kernel.value)
