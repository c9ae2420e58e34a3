"""split, merge, state, graphdef, clone, flatten, unflatten: round trips of every kind of graph."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import treadle as nnx


class Layer(nnx.Module):
    def __init__(self, value: float = 1.0) -> None:
        self.kernel = nnx.Param(jnp.full(2, value, jnp.float32))
        self.mean = nnx.BatchStat(jnp.zeros(2))
        self.name = "layer"


@dataclasses.dataclass
class Data(nnx.Module):
    inner: Layer
    size: int


class Pair(NamedTuple):
    first: Any
    second: Any


def tied() -> Any:
    encoder, decoder = Layer(), Layer()
    decoder.kernel = encoder.kernel
    return nnx.Dict(encoder=encoder, decoder=decoder)


def shared_module() -> Any:
    layer = Layer()
    return nnx.List([layer, layer, [layer]])


def self_reference() -> Any:
    node = nnx.Dict(x=nnx.Param(1.0))
    node.me = node
    node.child = nnx.Dict(parent=node)
    return node


def containers() -> Any:
    node = nnx.Module()
    node.pair = Pair(Layer(), 3)
    node.items = {"b": (Layer(), None), "a": [nnx.Param(2.0), "static"]}
    node.array, node.numpy, node.nothing = jnp.ones(2), np.ones(3), None
    return node


def no_leaves() -> Any:
    node = nnx.Module()
    node.rate = 0.1
    return node


GRAPHS = [
    tied,
    shared_module,
    self_reference,
    containers,
    no_leaves,
    lambda: Data(Layer(), 3),
    lambda: nnx.Dict(),
    lambda: nnx.List([Data(Layer(), 1), nnx.Dict(x=Layer())]),
    lambda: nnx.Rngs(0, dropout=1),
    lambda: nnx.Param(jnp.ones(2), tag="lone"),
    lambda: [Layer(), (Layer(), {"x": nnx.Param(1.0)})],
    lambda: nnx.Dict(odd=nnx.Variable(None), pytree=nnx.Variable((1.0, {"a": 2.0}))),
]


@pytest.mark.parametrize("make", GRAPHS)
def test_merge_undoes_split(make: Any) -> None:
    node = make()
    graphdef, state = nnx.split(node)
    other = nnx.merge(graphdef, state)
    assert type(other) is type(node)
    assert nnx.graphdef(other) == graphdef
    assert nnx.state(other) == nnx.state(node)
    mine = {id(obj) for obj in nnx.flatten(node)[2]}
    assert not mine & {id(obj) for obj in nnx.flatten(other)[2]}


@pytest.mark.parametrize("make", GRAPHS)
def test_merge_takes_states_that_were_looked_into_mapped_or_made_plain(make: Any) -> None:
    node = make()
    graphdef, state = nnx.split(node)
    whole = nnx.state(node)
    for form in (
        nnx.State.from_flat_state(state.flat_state()),
        jax.tree.map(lambda x: x, state),
        state.to_pure_dict(),
        pickle.loads(pickle.dumps(state)),
    ):
        other = nnx.merge(graphdef, form)
        assert nnx.graphdef(other) == graphdef
        assert nnx.state(other) == whole


@pytest.mark.parametrize("make", GRAPHS)
def test_merge_of_several_states(make: Any) -> None:
    node = make()
    graphdef, *states = nnx.split(node, nnx.Param, nnx.BatchStat, ...)
    assert nnx.state(nnx.merge(graphdef, *states)) == nnx.state(node)
    assert nnx.state(nnx.merge(graphdef, *reversed(states))) == nnx.state(node)


@pytest.mark.parametrize("make", GRAPHS)
def test_graphdefs_are_equal_hashable_and_survive_copies(make: Any) -> None:
    graphdef = nnx.graphdef(make())
    for other in (
        nnx.graphdef(make()),
        copy.deepcopy(graphdef),
        copy.copy(graphdef),
        pickle.loads(pickle.dumps(graphdef)),
    ):
        assert other == graphdef
        assert hash(other) == hash(graphdef)


def test_a_tied_weight_is_one_leaf_and_stays_tied() -> None:
    model = tied()
    graphdef, state = nnx.split(model)
    assert list(state.flat_state()) == [
        ("decoder", "kernel"),
        ("decoder", "mean"),
        ("encoder", "mean"),
    ]
    other = nnx.merge(graphdef, state)
    assert other.encoder.kernel is other.decoder.kernel


def test_self_references_and_shared_modules_stay() -> None:
    node = nnx.clone(self_reference())
    assert node.me is node
    assert node.child.parent is node
    a, b, (c,) = nnx.clone(shared_module())
    assert a is b is c


def test_plain_containers_and_statics_come_back() -> None:
    node = nnx.clone(containers())
    assert isinstance(node.pair, Pair)
    assert node.pair.second == 3
    assert node.items["b"][1] is None
    assert node.items["a"][1] == "static"
    assert type(node.numpy) is np.ndarray
    assert node.nothing is None


def test_a_pytree_with_the_same_object_twice_shares_it_after_merge() -> None:
    layer = Layer()
    a, (b, plain) = nnx.merge(*nnx.split([layer, (layer, jnp.ones(1))]))
    assert a is b
    assert plain.shape == (1,)


def test_values_are_shared_not_copied() -> None:
    layer = Layer()
    assert nnx.clone(layer).kernel.value is layer.kernel.value


def test_metadata_and_hooks_come_back() -> None:
    variable = nnx.Param(1.0, tag="t", get_value_hooks=lambda v, x: x + 1)
    other = nnx.clone(nnx.Dict(x=variable)).x
    assert (other.tag, other.value, other.raw_value) == ("t", 2.0, 1.0)


def test_metadata_of_a_state_reaches_the_merged_variable() -> None:
    graphdef, state = nnx.split(nnx.Dict(x=nnx.Param(1.0, tag="old"), y=nnx.Param(2.0, tag="same")))
    state.x = state.x.replace(tag="new")
    model = nnx.merge(graphdef, state)
    assert (model.x.tag, model.y.tag) == ("new", "same")


@pytest.mark.parametrize(
    "change",
    [
        lambda m: setattr(m, "name", "other"),
        lambda m: setattr(m, "added", 1),
        lambda m: delattr(m, "name"),
        lambda m: setattr(m, "mean", m.kernel),
        lambda m: setattr(m, "kernel", nnx.BatchStat(m.kernel.value)),
        lambda m: setattr(m.kernel, "tag", "t"),
    ],
)
def test_graphdefs_differ_when_structure_does(change: Any) -> None:
    a, b = Layer(), Layer()
    change(b)
    assert nnx.graphdef(a) != nnx.graphdef(b)


def test_graphdefs_depend_on_insertion_order_but_not_on_values() -> None:
    a, b = Layer(1.0), nnx.clone(Layer(2.0))
    b.kernel.value = jnp.ones((7, 7))
    assert nnx.graphdef(a) == nnx.graphdef(b)
    kernel = b.kernel
    del b.kernel
    b.kernel = kernel
    assert nnx.graphdef(a) != nnx.graphdef(b)
    assert nnx.state(a).flat_state().keys() == nnx.state(b).flat_state().keys()


def test_graphdefs_and_states_pass_through_jit() -> None:
    traces = 0

    @jax.jit
    def double(graphdef: Any, state: Any) -> Any:
        nonlocal traces
        traces += 1
        model = nnx.merge(graphdef, state)
        model.kernel.value *= 2
        return nnx.split(model)

    for value in (1.0, 3.0):
        model = nnx.merge(*double(*nnx.split(Layer(value))))
        np.testing.assert_array_equal(model.kernel.value, np.full(2, 2 * value))
    assert traces == 1


def test_states_made_under_eval_shape_hold_shapes() -> None:
    state = jax.eval_shape(lambda: nnx.state(Layer()))
    assert state.kernel.value == jax.ShapeDtypeStruct((2,), jnp.float32)
    graphdef = nnx.graphdef(Layer())
    model = nnx.merge(graphdef, state)
    assert nnx.state(model) == state


def test_state_with_filters() -> None:
    model = tied()
    params, rest = nnx.state(model, nnx.Param, ...)
    assert list(params.flat_state()) == [("decoder", "kernel")]
    assert len(rest.flat_state()) == 2
    assert nnx.state(model, nnx.Cache) == nnx.State()
    assert isinstance(nnx.state(model, nnx.Param), nnx.State)


def test_flatten_tells_ids_and_unflatten_keeps_them() -> None:
    model = tied()
    graphdef, state, refs = nnx.flatten(model)
    assert len(refs) == 6
    assert model.encoder.kernel in refs
    assert refs.id_of(model.encoder.kernel) == refs.id_of(model.decoder.kernel)
    other, other_refs = nnx.unflatten(graphdef, state)
    assert [type(obj) for obj in other_refs] == [type(obj) for obj in refs]
    assert other_refs[refs.id_of(model.encoder)] is other.encoder
    assert model not in other_refs
    with pytest.raises(KeyError, match="This Layer is not part of the graph"):
        refs.id_of(Layer())


def test_deep_graphs_need_no_recursion() -> None:
    node = nnx.Dict(x=nnx.Param(1.0))
    for _ in range(20_000):
        node = nnx.Dict(child=node)
    graphdef, state = nnx.split(node)
    assert nnx.graphdef(nnx.merge(graphdef, state)) == graphdef


# -- bad input -------------------------------------------------------------------------------------


@pytest.mark.parametrize("node", [3, "text", None, jnp.ones(2), np.ones(2)])
def test_what_is_no_graph_is_refused(node: Any) -> None:
    for function in (nnx.split, nnx.state, nnx.graphdef, nnx.clone, nnx.flatten):
        with pytest.raises(nnx.GraphError, match="Expected a module, a Variable, or a pytree"):
            function(node)


@pytest.mark.parametrize("static", [bytearray(b"x"), (bytearray(b"x"),)])
def test_unhashable_statics_are_named_with_the_remedy(static: Any) -> None:
    model = nnx.Dict(inner=nnx.Dict(config=static))
    with pytest.raises(nnx.StaticError, match=r"model\.inner\.config.*not hashable; use"):
        nnx.split(model)


def test_missing_entries_are_named_with_the_remedy() -> None:
    graphdef, params, _ = nnx.split(tied(), nnx.Param, ...)
    with pytest.raises(nnx.StateError, match=r"lacks entries for model\.decoder\.mean, model\.enc"):
        nnx.merge(graphdef, params)


@pytest.mark.parametrize("extra", [("tail",), ("encoder", "tail"), ("encoder", "mean", "x")])
def test_surplus_entries_are_named_with_the_remedy(extra: Any) -> None:
    graphdef, state = nnx.split(tied())
    flat = state.flat_state()
    if extra[:2] in flat:
        del flat[extra[:2]]
    flat[extra] = nnx.VariableState(nnx.Param, 1.0)
    path = ".".join(("model", *extra))
    with pytest.raises(nnx.StateError, match=rf"no place for: {path}\. Remove them"):
        nnx.merge(graphdef, nnx.State.from_flat_state(flat))


def test_the_second_path_of_a_shared_variable_is_surplus() -> None:
    graphdef, state = nnx.split(tied())
    state.encoder.kernel = state.decoder.kernel
    with pytest.raises(nnx.StateError, match=r"no place for: model\.encoder\.kernel"):
        nnx.merge(graphdef, state)


def test_entries_of_another_type_are_named() -> None:
    graphdef, state = nnx.split(nnx.Dict(x=nnx.Param(1.0), a=jnp.ones(1)))
    wrong = state.copy()
    wrong.x = nnx.VariableState(nnx.BatchStat, 1.0)
    with pytest.raises(nnx.LeafTypeError, match=r"model\.x is a Param, but .* a BatchStat there"):
        nnx.merge(graphdef, wrong)
    wrong = state.copy()
    wrong.a = nnx.VariableState(nnx.Param, 1.0)
    with pytest.raises(nnx.LeafTypeError, match=r"model\.a is a bare array, but .* a Param there"):
        nnx.merge(graphdef, wrong)
    wrong = state.copy()
    wrong.a = "text"
    with pytest.raises(
        nnx.LeafTypeError, match=r"model\.a holds an array, but .*'text' of type str"
    ):
        nnx.merge(graphdef, wrong)


def test_arguments_in_the_wrong_order_are_explained() -> None:
    graphdef, state = nnx.split(tied())
    with pytest.raises(nnx.GraphError, match=r"must be a GraphDef, got State.*in that order"):
        nnx.merge(state, graphdef)
    with pytest.raises(nnx.StateError, match="Expected a State or a nested dict"):
        nnx.merge(graphdef, 3)
