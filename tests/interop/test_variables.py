"""Variables as pytrees: one child, the value; type and metadata are structure."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import treadle as nnx


class Special(nnx.Param[Any]):
    """A user's own type."""


@pytest.mark.parametrize("kind", [nnx.Variable, nnx.Param, nnx.BatchStat, Special, nnx.RngCount])
def test_a_variable_flattens_to_its_value_and_comes_back(kind: type[nnx.Variable[Any]]) -> None:
    v = kind(jnp.arange(3.0), tag="t", sharding=("x",))
    leaves, tree = jax.tree.flatten(v)
    assert len(leaves) == 1
    assert leaves[0] is v.raw_value
    back = jax.tree.unflatten(tree, leaves)
    assert type(back) is kind
    assert back is not v
    assert back.raw_value is v.raw_value
    assert back.get_metadata() == v.get_metadata()


def test_its_key_is_value() -> None:
    ((path, _),) = jax.tree_util.tree_flatten_with_path({"w": nnx.Param(1.0)})[0]
    assert jax.tree_util.keystr(path) == "['w'].value"


def test_a_value_may_be_a_pytree() -> None:
    v = nnx.Intermediate((jnp.ones(1), {"a": jnp.ones(2)}))
    assert [leaf.shape for leaf in jax.tree.leaves(v)] == [(1,), (2,)]
    assert jax.tree.map(jnp.shape, v).raw_value == ((1,), {"a": (2,)})


def test_type_and_metadata_are_structure() -> None:
    a = jax.tree.structure(nnx.Param(1.0, tag="a"))
    assert a == jax.tree.structure(nnx.Param(2.0, tag="a"))
    assert a != jax.tree.structure(nnx.Param(1.0, tag="b"))
    assert a != jax.tree.structure(nnx.BatchStat(1.0, tag="a"))
    assert hash(a) == hash(jax.tree.structure(nnx.Param(2.0, tag="a")))
    with pytest.raises(ValueError, match="tag"):
        jax.tree.map(jnp.add, nnx.Param(1.0, tag="a"), nnx.Param(1.0, tag="b"))


@pytest.mark.parametrize("there", [None, object(), "text", jax.ShapeDtypeStruct((2,), jnp.float32)])
def test_anything_may_stand_for_the_value(there: Any) -> None:
    def refuse(variable: Any, value: Any) -> Any:
        raise AssertionError("a hook ran")

    v = nnx.Param(jnp.ones(2), on_set_value=refuse, on_get_value=refuse)
    tree = jax.tree.structure(v)
    made = jax.tree.unflatten(tree, [there])
    assert made.raw_value is there
    assert jax.tree.leaves(made, is_leaf=lambda x: x is there) == [there]


def test_mapping_gives_a_variable() -> None:
    v = nnx.Param(jnp.ones(2), tag="t")
    w = jax.tree.map(lambda x: x + 1, v)
    assert type(w) is nnx.Param
    assert w.tag == "t"
    assert w[0] == 2
    assert v[0] == 1
    assert jax.tree.map(lambda x, y: x + y, v, w)[0] == 3


def test_device_put_and_jit_give_variables() -> None:
    v = nnx.Param(jnp.ones(2))
    assert type(jax.device_put(v)) is nnx.Param
    assert type(jax.jit(lambda x: x)(v)) is nnx.Param

    @jax.jit
    def change(x: Any) -> Any:
        x.value = x.value + 1
        return x

    assert change(v)[0] == 2
    assert v[0] == 1, "a change comes out only through what is returned"


def test_a_variable_of_a_plain_jit_belongs_to_its_trace() -> None:
    @jax.jit
    def f(x: Any) -> Any:
        @jax.jit
        def inner(y: Any) -> Any:
            x.value = y
            return y

        return inner(jnp.ones(2))

    with pytest.raises(nnx.errors.TraceContextError):
        f(nnx.Param(jnp.ones(2)))


def test_gradients_of_plain_jax_are_variables() -> None:
    g = jax.grad(lambda p: (p**2).sum())(nnx.Param(jnp.array([1.0, 2.0])))
    assert type(g) is nnx.Param
    assert g.value.tolist() == [2.0, 4.0]


def test_is_leaf_stops_at_variables() -> None:
    tree = {"a": nnx.Param(1.0), "b": [nnx.BatchStat(2.0)]}
    found = jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, nnx.Variable))
    assert found[0] is tree["a"]
    assert found[1] is tree["b"][0]


def test_retracing_follows_type_and_metadata_only() -> None:
    traces = []

    @jax.jit
    def f(x: Any) -> Any:
        traces.append(x)
        return x.value

    f(nnx.Param(jnp.ones(2), tag="a"))
    f(nnx.Param(jnp.zeros(2), tag="a"))
    assert len(traces) == 1
    f(nnx.Param(jnp.zeros(2), tag="b"))
    assert len(traces) == 2


def test_a_users_own_registration_counts() -> None:
    @jax.tree_util.register_pytree_node_class
    class Own(nnx.Param[Any]):
        def tree_flatten(self) -> Any:
            return (self.raw_value, 7), None

        @classmethod
        def tree_unflatten(cls, aux: Any, children: Any) -> Any:
            return cls(children[0])

    assert jax.tree.leaves(Own(1.0)) == [1.0, 7]
    model = nnx.Dict(w=Own(jnp.ones(2)))
    nnx.jit(lambda m: m.w.set_metadata(seen=True))(model)
    assert model.w.seen, "and ours still goes by reference"


def test_it_is_the_first_instance_that_registers() -> None:
    class Unused(nnx.Param[Any]):
        pass

    watched = weakref.ref(Unused)
    del Unused
    gc.collect()
    assert watched() is None

    class Used(nnx.Param[Any]):
        pass

    assert jax.tree.leaves(Used) == [Used]
    Used(1.0)
    watched = weakref.ref(Used)
    del Used
    gc.collect()
    assert watched() is not None, "JAX keeps what is registered"


def test_copies_and_pickles_are_as_before() -> None:
    v = Special(jnp.ones(2), tag="t")
    for made in (copy.copy(v), copy.deepcopy(v), pickle.loads(pickle.dumps(v))):
        assert type(made) is Special
        assert made.tag == "t"
        assert np.array_equal(np.asarray(made), np.ones(2))
    assert weakref.ref(v)() is v
