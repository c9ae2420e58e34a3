"""Modules as pytrees: the distinct Variables and bare arrays are the children, the rest is structure."""

from __future__ import annotations

import copy
import functools
import gc
import pickle
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import treadle as nnx


def is_variable(value: Any) -> bool:
    return isinstance(value, nnx.Variable)


class Pair(NamedTuple):
    first: Any
    second: Any


class Model(nnx.Module):
    """A bit of everything."""

    def __init__(self) -> None:
        self.layer = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
        self.tied = self.layer.kernel
        self.table = jnp.arange(3.0)
        self.parts = (
            jnp.ones(1),
            "text",
            [nnx.BatchStat(jnp.zeros(2))],
            {"b": 1, "a": jnp.ones(2)},
        )
        self.pair = Pair(jnp.ones(1), 3)
        self.blocks = nnx.List([nnx.Param(jnp.full(1, float(i))) for i in range(2)])
        self.named = nnx.Dict(one=nnx.Param(jnp.ones(1), tag="one"))
        self.rate = 0.5
        self.nothing = None
        self.me = self

    def __call__(self, x: Any) -> Any:
        return self.layer(x) * self.rate


def keys(tree: Any) -> list[str]:
    return [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]


def test_children_are_distinct_variables_and_arrays_under_their_paths() -> None:
    assert sorted(keys(Model())) == [
        ".blocks.0.value",
        ".blocks.1.value",
        ".layer.bias.value",
        ".layer.kernel.value",
        ".named.one.value",
        ".pair.first",
        ".parts.0",
        ".parts.2.0.value",
        ".parts.3.a",
        ".table",
    ]
    assert keys(nnx.List([jnp.ones(1)])) == ["[0]"]
    assert keys({"m": nnx.Dict(w=nnx.Param(1.0))}) == ["['m'].w.value"]


def test_flattening_and_unflattening() -> None:
    m = Model()
    leaves, tree = jax.tree.flatten(m)
    back = jax.tree.unflatten(tree, leaves)
    assert type(back) is Model
    assert back is not m
    assert back.me is back
    assert back.tied is back.layer.kernel, "sharing is kept"
    assert back.layer.kernel is not m.layer.kernel
    assert back.layer.kernel.raw_value is m.layer.kernel.raw_value
    assert back.table is m.table
    assert back.rate == 0.5
    assert back.parts[1] == "text"
    assert jax.tree.structure(back) == tree
    assert hash(jax.tree.structure(back)) == hash(tree)


def in_order() -> Any:
    m = nnx.Module()
    m.zeta = nnx.Param(jnp.ones(1))
    m.table = {"z": jnp.ones(1), "a": 1, "m": {"y": nnx.Param(jnp.ones(1)), "b": "text"}}
    m.named = nnx.Dict(second=nnx.Param(jnp.ones(1)), first=jnp.ones(1), zero=0)
    m.blocks = nnx.List([nnx.Dict(b=1, a=jnp.ones(1)), nnx.Module()])
    m.call = functools.partial(max, 1, key={"q": m.zeta, "d": 1})
    m.alpha = [nnx.Dict(y=1, x=2)]
    m.step = nnx.data(1)
    return m


def orders(m: Any) -> Any:
    return [
        list(vars(m)),
        [*m.table, *m.table["m"]],
        [list(m.named), list(vars(m.named)), list(m.blocks[0]), list(m.alpha[0])],
        list(m.call.keywords["key"]),
    ]


@pytest.mark.parametrize("there", [1.0, None, "spec", jnp.ones(1)], ids=str)
def test_order_survives_whatever_stands_for_the_leaves(there: Any) -> None:
    m = in_order()
    once = jax.tree.map(lambda _: there, m)
    twice = jax.tree.map(lambda _: there, once, is_leaf=lambda v: v is there)
    by_variable = jax.tree.map(lambda _: there, m, is_leaf=is_variable)
    for made in (once, twice, by_variable):
        assert orders(made) == orders(m)


@pytest.mark.parametrize(
    "way",
    [
        jax.jit(lambda m: m),
        lambda m: jax.vmap(lambda m: m)(m),
        lambda m: jax.eval_shape(lambda m: m, m),
        lambda m: jax.lax.scan(lambda m, _: (m, None), m, jnp.arange(2))[0],
        lambda m: jax.tree.transpose(
            jax.tree.structure(m), jax.tree.structure([0, 0]), jax.tree.map(lambda a: [a, a], m)
        )[1],
        lambda m: nnx.clone(jax.jit(nnx.jit(nnx.clone))(m)),
        jax.device_put,
    ],
    ids=["jit", "vmap", "eval_shape", "scan", "transpose", "ours", "device_put"],
)
def test_order_survives_functions_of_jax(way: Callable[[Any], Any]) -> None:
    m = in_order()
    m.step = jnp.ones(1)
    assert orders(way(m)) == orders(m)


def test_another_order_is_another_structure() -> None:
    for change in (
        lambda m: m.table.update(z=m.table.pop("z")),
        lambda m: m.table["m"].update(y=m.table["m"].pop("y")),
        lambda m: vars(m).update(zeta=vars(m).pop("zeta")),
        lambda m: setattr(m.named, "second", m.named.pop("second")),
    ):
        m, other = in_order(), in_order()
        assert jax.tree.structure(m) == jax.tree.structure(other)
        change(other)
        assert orders(m) != orders(other)
        assert jax.tree.structure(m) != jax.tree.structure(other)


def test_an_attribute_comes_before_the_way_through_a_partial() -> None:
    m = nnx.Module()
    m.apply = functools.partial(jnp.dot, nnx.Param(jnp.ones(1)))
    m.weight = m.apply.args[0]
    m.later = functools.partial(jnp.dot, m.weight)
    assert keys(m) == [".weight.value"]
    m.inner = nnx.Dict(call=functools.partial(max, nnx.Param(1.0), nnx.Param(2.0)))
    m.own = [m.inner.call.args[1]]
    assert sorted(keys(m)) == [".inner.call.args.0.value", ".own.0.value", ".weight.value"]
    assert sorted(
        map(".".join, (map(str, path) for path in nnx.to_flat_state(nnx.state(m)).paths))
    ) == [
        "inner.call.args.0",
        "own.0",
        "weight",
    ]


def test_is_leaf_stops_at_variables() -> None:
    m = Model()
    found = jax.tree.leaves(m, is_leaf=is_variable)
    assert sum(map(is_variable, found)) == 6
    assert any(v is m.layer.kernel for v in found)


def test_plain_jit_takes_modules() -> None:
    m = Model()
    x = jnp.ones((1, 2))
    traces = []

    @jax.jit
    def f(model: Any, x: Any) -> Any:
        traces.append(model)
        return model(x)

    assert jnp.allclose(f(m, x), m(x))
    assert jnp.allclose(f(Model(), x), m(x))
    assert len(traces) == 1
    m.rate = 0.25
    assert jnp.allclose(f(m, x), m(x))
    assert len(traces) == 2
    assert jnp.allclose(jax.jit(m)(x), m(x))


def test_a_mutation_comes_out_only_through_what_is_returned() -> None:
    m = Model()

    @jax.jit
    def f(model: Any) -> Any:
        model.layer.bias.value = model.layer.bias.value + 1
        model.extra = model.table * 2
        model.tied.value = model.tied.value * 0
        return model

    out = f(m)
    assert out.layer.bias[0] == 1
    assert out.extra[1] == 2
    assert out.tied is out.layer.kernel
    assert not out.layer.kernel.value.any()
    assert m.layer.bias[0] == 0
    assert not hasattr(m, "extra")
    assert m.layer.kernel.value.any()


def test_plain_grad_gives_a_module() -> None:
    m = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    x = jnp.ones((1, 2))
    grads = jax.grad(lambda m: m(x).sum())(m)
    expected = nnx.grad(lambda m: m(x).sum())(m)
    assert type(grads) is nnx.Linear
    assert jnp.allclose(grads.kernel.value, expected.kernel.value)
    shared = nnx.Dict(a=nnx.Param(jnp.array(2.0)))
    shared.b = shared.a
    grads = jax.grad(lambda m: m.a.value * m.b.value)(shared)
    assert grads.a.value == 4.0, "what is shared is one"
    assert grads.a is grads.b


def test_plain_vmap_and_scan_take_stacked_modules() -> None:
    made = [nnx.Linear(2, 2, rngs=nnx.Rngs(i)) for i in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *made)
    assert type(stacked) is nnx.Linear
    x = jnp.ones((3, 2))
    out = jax.vmap(lambda m, x: m(x))(stacked, x)
    for i, m in enumerate(made):
        assert jnp.allclose(out[i], m(x[i]), atol=1e-6)

    y, _ = jax.lax.scan(lambda carry, m: (m(carry), None), jnp.ones(2), stacked)
    expected = jnp.ones(2)
    for m in made:
        expected = m(expected)
    assert jnp.allclose(y, expected, atol=1e-5)

    def step(m: Any, x: Any) -> Any:
        m.bias.value = m.bias.value + x
        return m, m(x)

    carried, _ = jax.lax.scan(step, made[0], x)
    assert jnp.allclose(carried.bias.value, 3.0)
    assert jnp.allclose(made[0].bias.value, 0.0)


def test_mapping_over_two_and_a_mismatch_that_shows_the_order() -> None:
    a, b = Model(), Model()
    both = jax.tree.map(lambda x, y: x + y, a, b)
    assert jnp.allclose(both.table, 2 * a.table)
    b.rate = 0.125
    with pytest.raises(ValueError, match=r"rate: 0\.125"):
        jax.tree.map(lambda x, y: x + y, a, b)


def test_other_functions_of_jax() -> None:
    m = Model()
    x = jnp.ones((1, 2))
    assert type(jax.device_put(m)) is Model
    shapes = jax.eval_shape(lambda m: m, m)
    assert shapes.layer.kernel.value == jax.ShapeDtypeStruct((2, 3), jnp.float32)
    assert jnp.allclose(jax.checkpoint(lambda m, x: m(x))(m, x), m(x))
    assert jnp.allclose(jax.lax.cond(True, lambda m: m(x), lambda m: m(x) * 2, m), m(x))
    out, pullback = jax.vjp(lambda m: m(x).sum(), m.layer)
    assert type(pullback(jnp.ones_like(out))[0]) is nnx.Linear
    counted = jax.lax.fori_loop(0, 3, lambda i, m: jax.tree.map(lambda v: v + 1, m), m.named)
    assert counted.one[0] == 4
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    assert jax.device_put(m, sharding).table.sharding == sharding
    shardings = jax.tree.map(lambda _: sharding, m)
    assert jax.device_put(m, shardings).table.sharding == sharding
    closed = jax.make_jaxpr(lambda m: m(x))(m)
    assert closed.out_avals[0].shape == (1, 3)


# -- what JAX puts in the place of a leaf --------------------------------------------------------------


SPEC = jax.sharding.PartitionSpec("x")


@pytest.mark.parametrize(
    "there",
    [object(), None, "text", 1.5, SPEC, jax.ShapeDtypeStruct((2,), jnp.float32), (), [1, 2]],
)
def test_what_stands_for_a_leaf_stays_one(there: Any) -> None:
    m = Model()
    leaves, tree = jax.tree.flatten(m)
    made = jax.tree.unflatten(tree, [there] * len(leaves))
    found, structure = jax.tree.flatten(made, is_leaf=lambda x: x is there)
    assert len(found) == len(leaves)
    assert all(leaf is there for leaf in found)
    assert structure == tree


@pytest.mark.parametrize("there", [object(), None, "text", 1.5, SPEC, jnp.ones(1), (), {"a": 1}])
def test_what_stands_for_a_variable_stays_one(there: Any) -> None:
    m = Model()
    made = jax.tree.map(lambda _: there, m, is_leaf=is_variable)
    assert made.layer.kernel is there

    def is_leaf(x: Any) -> bool:
        return is_variable(x) or x is there

    children, tree = jax.tree.flatten(made, is_leaf=is_leaf)
    assert len(children) == 10
    assert all(child is there for child in children)
    # The other way round, and with the parts of either.
    pairs = []
    jax.tree.map(lambda v, x: pairs.append((v, x)), m, made, is_leaf=is_leaf)
    assert len(pairs) == 10
    assert all(x is there for _, x in pairs)
    pairs.clear()
    jax.tree.map(lambda v, x: pairs.append((v, x)), m.layer, made.layer, is_leaf=is_leaf)
    assert len(pairs) == 2
    pairs.clear()
    jax.tree.map(lambda v, x: pairs.append((v, x)), m.blocks, made.blocks, is_leaf=is_leaf)
    assert len(pairs) == 2
    again = jax.tree.map(lambda x: x, made, is_leaf=is_leaf)
    assert jax.tree.structure(again, is_leaf=is_leaf) == tree


def test_masks_are_prefixes() -> None:
    m = Model()
    mask = jax.tree.map(lambda v: isinstance(v, nnx.Param), m, is_leaf=is_variable)
    chosen = jax.tree.map(lambda yes, v: v if yes else None, mask, m)
    assert chosen.layer.kernel.value is m.layer.kernel.value
    assert chosen.parts[2][0] is None
    assert chosen.table is None


def test_what_is_changed_later_is_what_counts() -> None:
    m = nnx.Dict(w=nnx.Param(jnp.ones(1)), rate=1)
    specs = jax.tree.map(lambda _: SPEC, m, is_leaf=is_variable)
    specs.w = jax.sharding.PartitionSpec("y")
    assert jax.tree.leaves(specs) == [jax.sharding.PartitionSpec("y")]
    specs.more = jnp.ones(1)
    assert len(jax.tree.leaves(specs)) == 2
    del specs.w
    assert len(jax.tree.leaves(specs)) == 1
    specs.w = nnx.Param(jnp.ones(1))
    assert len(jax.tree.leaves(specs)) == 2


def test_nodes_may_stand_for_leaves() -> None:
    m = nnx.Dict(a=nnx.Param(jnp.ones(1)), b=nnx.Param(jnp.ones(2)))
    nested = jax.tree.map(lambda v: nnx.Dict(mu=v, nu=jnp.zeros(1)), m, is_leaf=is_variable)
    assert sorted(keys(nested)) == [".a.mu.value", ".a.nu", ".b.mu.value", ".b.nu"]


# -- kinds of nodes ------------------------------------------------------------------------------------


def node_kinds() -> dict[str, Callable[[], Any]]:
    import optax

    return {
        "Linear": lambda: nnx.Linear(2, 2, rngs=nnx.Rngs(0)),
        "List": lambda: nnx.List([nnx.Param(jnp.ones(1)), jnp.ones(2), 3]),
        "Dict": lambda: nnx.Dict(b=nnx.Param(jnp.ones(1)), a={"x": jnp.ones(2)}),
        "Sequential": lambda: nnx.Sequential(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), nnx.relu),
        "Rngs": lambda: nnx.Rngs(0, dropout=1),
        "Dropout": lambda: nnx.Dropout(0.5, rngs=nnx.Rngs(0)),
        "BatchNorm": lambda: nnx.BatchNorm(2, rngs=nnx.Rngs(0)),
        "Optimizer": lambda: nnx.Optimizer(
            nnx.Linear(2, 2, rngs=nnx.Rngs(0)), optax.adam(1e-3), wrt=nnx.Param
        ),
        "ModelAndOptimizer": lambda: nnx.ModelAndOptimizer(
            nnx.Linear(2, 2, rngs=nnx.Rngs(0)), optax.adamw(1e-3)
        ),
        "Accuracy": lambda: nnx.metrics.Accuracy(),
        "MultiMetric": lambda: nnx.MultiMetric(loss=nnx.metrics.Average("loss")),
        "empty": lambda: nnx.Module(),
    }


@pytest.mark.parametrize("name", node_kinds())
def test_all_kinds_of_nodes_go_through_plain_jit(name: str) -> None:
    node = node_kinds()[name]()
    leaves, tree = jax.tree.flatten(node)
    assert len(leaves) == len(jax.tree.leaves(nnx.state(node)))
    out = jax.jit(lambda n: n)(node)
    assert type(out) is type(node)
    assert jax.tree.structure(out) == tree
    assert nnx.graphdef(out) == nnx.graphdef(node)
    for a, b in zip(jax.tree.leaves(out), leaves, strict=True):
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_random_streams_and_updates_work_inside() -> None:
    import optax

    model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
    optimizer = nnx.ModelAndOptimizer(model, optax.sgd(0.1))
    rngs = nnx.Rngs(0)

    @jax.jit
    def step(optimizer: Any, rngs: Any) -> Any:
        x = jax.random.normal(rngs(), (3, 2))
        grads = nnx.grad(lambda m: (m(x) ** 2).mean())(optimizer.model)
        optimizer.update(grads)
        return optimizer, rngs

    out, rngs_after = step(optimizer, rngs)
    assert int(out.step.value) == 1
    assert int(rngs_after.default.count.value) == 1
    assert int(rngs.default.count.value) == 0
    assert not jnp.allclose(out.model.kernel.value, model.kernel.value)


def test_a_registered_type_inside_is_walked() -> None:
    class Bag:
        def __init__(self, label: Any) -> None:
            self.label, self.things = label, {}

    nnx.register_graph_node_type(
        Bag,
        flatten=lambda bag: (bag.things.items(), bag.label),
        create=Bag,
        set_key=lambda bag, key, child: bag.things.__setitem__(key, child),
        pop_key=lambda bag, key: bag.things.pop(key),
    )
    bag = Bag("mine")
    bag.things["w"] = nnx.Param(jnp.ones(2))
    m = nnx.Dict(bag=bag, again=bag)
    out = jax.jit(lambda m: m)(m)
    assert out.bag is out.again
    assert out.bag.things["w"].shape == (2,)


def test_users_own_registration_counts() -> None:
    @jax.tree_util.register_pytree_node_class
    class Own(nnx.Module):
        def tree_flatten(self) -> Any:
            return (1, 2), None

        @classmethod
        def tree_unflatten(cls, aux: Any, children: Any) -> Any:
            return cls()

    assert jax.tree.leaves(Own()) == [1, 2]


def test_what_cannot_be_compared_is_refused_with_its_path() -> None:
    m = nnx.Dict(inner=nnx.Dict(sizes=bytearray(2)))
    with pytest.raises(nnx.errors.StaticError, match=r"inner\.sizes"):
        jax.tree.leaves(m)


# -- lifetime ------------------------------------------------------------------------------------------


def test_objects_are_freed_and_classes_with_instances_are_kept() -> None:
    class Passing(nnx.Module):
        pass

    class Never(nnx.Module):
        pass

    m = Passing()
    m.w = nnx.Param(jnp.ones(2))
    m.again = jax.jit(lambda m: m)(m)
    watched = [weakref.ref(m), weakref.ref(m.w), weakref.ref(m.w.value)]
    kept, never = weakref.ref(Passing), weakref.ref(Never)
    del m, Passing, Never
    jax.clear_caches()
    gc.collect()
    assert [ref() for ref in watched] == [None] * 3
    assert kept() is not None
    assert never() is None


def test_what_stands_for_leaves_is_freed() -> None:
    class Token:
        pass

    m = nnx.Dict(w=nnx.Param(jnp.ones(2)))
    made = jax.tree.map(lambda _: Token(), m, is_leaf=is_variable)
    made.cycle = made
    watched = weakref.ref(made.w)
    del made
    gc.collect()
    assert watched() is None


def test_a_class_defined_again_is_another_class() -> None:
    def define() -> Any:
        class Cell(nnx.Module):
            def __init__(self) -> None:
                self.w = nnx.Param(jnp.ones(1))

        return Cell

    first, second = define(), define()
    assert jax.tree.structure(first()) != jax.tree.structure(second())
    assert type(jax.tree.map(lambda x: x, second())) is second


def test_copies_and_pickles() -> None:
    import cloudpickle

    m = Model()
    for made in (copy.deepcopy(m), cloudpickle.loads(cloudpickle.dumps(m))):
        assert jax.tree.structure(made) == jax.tree.structure(m)
    v = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    assert jax.tree.structure(pickle.loads(pickle.dumps(v))) == jax.tree.structure(v)


@pytest.mark.parametrize(
    "put",
    [
        lambda m, inner: inner,
        lambda m, inner: [inner, m],
        lambda m, inner: {"back": m},
        lambda m, inner: m.part,
    ],
    ids=["a node", "a list with a cycle", "a dict with a cycle", "a shared node"],
)
def test_nodes_put_in_the_place_of_an_array_are_part_of_the_graph(put):
    """What JAX made of a module remembers where leaves were; what comes there later is looked into."""
    m = nnx.Module()
    m.part = nnx.Dict(w=nnx.Param(jnp.ones(2)))
    m.bare = jnp.zeros(3)
    m = jax.tree.map(lambda leaf: leaf + 1, m)
    m.bare = put(m, nnx.Dict(v=nnx.Param(jnp.ones(4)), m=m))
    again = jax.tree.map(lambda leaf: leaf * 2, m)
    expected = jax.tree.map(lambda leaf: leaf * 2, nnx.clone(m))
    assert nnx.graphdef(again) == nnx.graphdef(expected)
    ours, theirs = jax.tree.leaves(again), jax.tree.leaves(expected)
    assert [leaf.tolist() for leaf in ours] == [leaf.tolist() for leaf in theirs]
    np.testing.assert_allclose(again.part["w"].value, 4.0)
