"""What is stored: pickles at every protocol, the names in them, their formats, and deep copies."""

from __future__ import annotations

import copy
import pickle
import pickletools
from typing import Any

import cloudpickle
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import treadle as nnx
from treadle import pickles

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


class Model(nnx.Module):
    def __init__(self) -> None:
        self.w = nnx.Param(jnp.arange(3.0), tag="decay")
        self.layers = nnx.List([nnx.Dict(a=nnx.BatchStat(jnp.ones(2)))])
        self.dense = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
        self.tied, self.me = self.w, self

    def total(self) -> Any:
        return self.w.value.sum()


def total(model: Model) -> Any:
    return model.total()


@nnx.jit
def jitted(model: Model) -> Any:
    return model.total()


class WithArguments(nnx.Object):
    """Makes itself of what `__getnewargs__` says."""

    def __new__(cls, size: int) -> WithArguments:
        made = super().__new__(cls)
        vars(made)["made_of"] = size
        return made

    def __init__(self, size: int) -> None:
        self.size = size

    def __getnewargs__(self) -> tuple[int]:
        return (self.size,)


def public_objects() -> dict[str, Any]:
    model = Model()
    return {
        "module": model,
        "object with arguments": WithArguments(3),
        "variable": nnx.Param(jnp.ones(2), sharding=("a",)),
        "variable metadata": nnx.VariableMetadata(1.0, {"tag": "x"}),
        "variable state": nnx.VariableState(nnx.Param, 1.0, tag="x"),
        "state": nnx.state(model),
        "state looked into": nnx.state(model).copy(),
        "graphdef": nnx.graphdef(model),
        "refs": nnx.flatten(model)[2],
        "rngs": nnx.Rngs(0, dropout=1),
        "dict": nnx.Dict(a=1),
        "list": nnx.List([1, nnx.Dict()]),
        "sequential": nnx.Sequential(nnx.Linear(2, 2, rngs=nnx.Rngs(0))),
        "norm": nnx.BatchNorm(2, rngs=nnx.Rngs(0)),
        "metrics": nnx.MultiMetric(loss=nnx.metrics.Average(), accuracy=nnx.metrics.Accuracy()),
        "filters": [
            nnx.All(nnx.Param, nnx.Not(nnx.PathContains("a"))),
            nnx.Any(nnx.WithTag("x"), nnx.OfType(nnx.Param)),
            nnx.to_filter_spec([nnx.Param, ...]),
        ],
        "state axes": nnx.StateAxes({nnx.Param: 0, ...: None}),
        "state sharding": nnx.StateSharding({...: jax.sharding.PartitionSpec()}),
        "diff state": nnx.DiffState(0, nnx.Param),
        "error": nnx.StateError("an entry is missing"),
        "located error": nnx.errors.engine_error("is odd", ("a", 1)),
        "jitted by name": jitted,
        "jitted": nnx.jit(total, keep_unused=True),
        "jitted method": nnx.jit(model.total),
        "lifted class": nnx.Scan(nnx.Linear, length=2),
        "lifted with axes": nnx.Vmap(
            nnx.Linear, axis_size=2, state_axes={nnx.Param: 0, ...: None}, in_axes=None
        ),
        "lifted module": nnx.Remat(nnx.Linear)(2, 2, rngs=nnx.Rngs(0)),
    }


OBJECTS = sorted(public_objects())


def names_in(data: bytes) -> set[str]:
    """The globals that a pickle names."""
    found, texts = set(), []
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name == "GLOBAL":
            found.add(argument.replace(" ", "."))
        elif opcode.name == "STACK_GLOBAL":
            found.add(".".join(texts[-2:]))
        elif opcode.name.endswith("UNICODE"):
            texts.append(argument)
    return found


@pytest.mark.parametrize("name", OBJECTS)
def test_pickles_name_public_places_only(name: str) -> None:
    obj = public_objects()[name]
    for protocol in (0, 1, 2, 3):  # later ones refer to texts by number
        ours = {found for found in names_in(pickle.dumps(obj, protocol)) if found[:7] == "treadle"}
        assert [found for found in ours if any(p[0] == "_" for p in found.split("."))] == []


def test_the_names_are_found() -> None:
    data = pickle.dumps([nnx.Param(1.0), nnx.VariableState(nnx.Param, 1.0), nnx.Module()], 2)
    assert {"treadle.pickles.variable", "treadle.pickles.variable_state"} <= names_in(data)
    assert names_in(pickle.dumps(nnx.graphdef(nnx.Module()), 2)) >= {"treadle.pickles.graphdef"}
    for name in pickles.__all__:
        found = getattr(pickles, name)
        assert (found.__module__, found.__qualname__) == ("treadle.pickles", name)
        assert found.__doc__


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", OBJECTS)
def test_everything_public_pickles_at_every_protocol(name: str, protocol: int) -> None:
    obj = public_objects()[name]
    loaded = pickle.loads(pickle.dumps(obj, protocol))
    assert type(loaded) is type(obj)
    if isinstance(obj, nnx.Object):
        assert nnx.graphdef(loaded) == nnx.graphdef(obj)
        assert nnx.state(loaded) == nnx.state(obj)
    if isinstance(obj, nnx.VariableMetadata):
        assert (loaded.raw_value, loaded.metadata) == (1.0, {"tag": "x"})
    if isinstance(obj, (nnx.State, nnx.GraphDef, nnx.VariableState)):
        assert loaded == obj
    if isinstance(obj, Exception):
        assert str(loaded) == str(obj)
        assert vars(loaded) == vars(obj)
    if name == "module":
        assert loaded.me is loaded
        assert loaded.tied is loaded.w
        assert loaded.w.tag == "decay"
    if name == "object with arguments":
        assert loaded.made_of == loaded.size == 3
    if name == "refs":
        assert [type(ref) for ref in loaded] == [type(ref) for ref in obj]


def test_another_format_says_so_in_one_sentence() -> None:
    for obj in (nnx.Param(1.0), nnx.VariableState(nnx.Param, 1.0), nnx.Dict(), Model()):
        load, (version, *arguments), *_ = obj.__reduce_ex__(2)
        assert load(version, *arguments) is not None
        with pytest.raises(
            ValueError, match=r"pickled in format 9, and this treadle reads format 1"
        ):
            load(9, *arguments)


@pytest.mark.parametrize("kind", [None, 1, int, nnx.Module, "Param", jnp.ndarray])
def test_states_of_what_is_no_variable_type_are_refused_when_made(kind: Any) -> None:
    with pytest.raises(TypeError, match=r"must be a Variable type such as treadle\.Param, got"):
        nnx.VariableState(kind, 1.0)
    with pytest.raises(TypeError, match="must be a Variable type"):
        pickles.variable_state(1, kind, 1.0, None)


def test_a_deep_copy_shares_jitted_functions_and_binds_methods_to_the_copy() -> None:
    model = Model()
    model.step = nnx.jit(total)
    model.bound = nnx.jit(model.total, keep_unused=True)
    copied = copy.deepcopy(model)
    assert copied.step is model.step
    assert copied.bound is not model.bound
    assert copied.bound.__wrapped__.__self__ is copied
    copied.w.value = copied.w.value + 1
    assert float(copied.step(copied)) == 6.0
    assert float(model.step(model)) == 3.0
    assert copy.copy(jitted) is jitted
    assert copy.deepcopy([jitted])[0] is jitted


def test_jitted_functions_keep_what_they_were_given() -> None:
    def scaled(model: Model, by: Any, *, twice: bool) -> Any:
        return model.w.value * by * (2 if twice else 1)

    step = nnx.jit(scaled, static_argnames="twice", donate_state=True)
    loaded = cloudpickle.loads(cloudpickle.dumps(step))
    model = Model()
    pointer = model.w.value.unsafe_buffer_pointer()
    np.testing.assert_array_equal(loaded(model, 2.0, twice=True), [0, 4, 8])
    assert model.w.value.unsafe_buffer_pointer() == pointer
    assert loaded.num_traces == 1
    assert step.num_traces == 0


def test_a_jitted_local_function_does_not_pickle_and_says_why() -> None:
    with pytest.raises((AttributeError, pickle.PicklingError), match="local"):
        pickle.dumps(nnx.jit(lambda x: x))
