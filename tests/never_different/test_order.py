"""Nodes, attributes and dicts in attributes keep the order in which the caller filled them (point 3)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import treadle as nnx


def filled():
    d = nnx.Dict()
    d["z"] = nnx.Param(jnp.array(2.0))
    d["a"] = nnx.Param(jnp.array(3.0))
    return d


class Net(nnx.Module):
    def __init__(self):
        self.z = nnx.Param(jnp.array(2.0))
        self.a = nnx.Param(jnp.array(3.0))
        self.table = {"y": nnx.Param(jnp.array(5.0)), "b": nnx.Param(jnp.array(7.0))}


def chain(variables, x):
    """Depends on the order: x -> x * w + w, one after the other."""
    for v in variables:
        x = x * v.value + v.value
    return x


READERS = {
    "Dict": (filled, lambda d: d.values()),
    "vars": (Net, lambda m: [v for v in vars(m).values() if isinstance(v, nnx.Variable)]),
    "dict in an attribute": (Net, lambda m: m.table.values()),
    "dict in a list": (
        lambda: nnx.Dict(x=[{"z": nnx.Param(jnp.array(2.0)), "a": nnx.Param(jnp.array(3.0))}]),
        lambda m: m["x"][0].values(),
    ),
    "Dict in a module": (lambda: nnx.Dict(inner=filled()), lambda m: m["inner"].values()),
}

RUNS = {
    "jit": lambda f: nnx.jit(f),
    "grad": lambda f: lambda m, x: nnx.value_and_grad(f)(m, x)[0],
    "remat": lambda f: nnx.remat(f),
    "vmap": lambda f: lambda m, x: nnx.vmap(f, in_axes=(None, 0), state_axes={})(m, x[None])[0],
    "scan": lambda f: (
        lambda m, x: nnx.scan(lambda c, m: (f(m, c), None), length=1, state_axes={})(x, m)[0]
    ),
    "cond": lambda f: lambda m, x: nnx.cond(True, f, f, m, x),
    "clone": lambda f: lambda m, x: f(nnx.clone(m), x),
    "split and merge": lambda f: lambda m, x: f(nnx.merge(*nnx.split(m)), x),
    "while_loop": lambda f: (
        lambda m, x: nnx.while_loop(
            lambda c: c[2] < 1, lambda c: (c[0], f(c[0], c[1]), c[2] + 1), (m, x, jnp.array(0))
        )[1]
    ),
}


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("reader", READERS)
def test_a_loop_runs_in_the_callers_order(reader, run):
    make, variables = READERS[reader]

    def f(m, x):
        return chain(variables(m), x)

    np.testing.assert_allclose(RUNS[run](f)(make(), jnp.array(1.0)), f(make(), jnp.array(1.0)))


def test_what_a_call_adds_comes_last():
    d = filled()

    @nnx.jit
    def f(d):
        d["m"] = nnx.Param(jnp.array(1.0))

    f(d)
    assert list(d) == ["z", "a", "m"]
    f(d)
    assert list(d) == ["z", "a", "m"]


def test_attributes_that_a_call_adds_come_last():
    net = Net()

    @nnx.remat
    def f(net):
        net.m = nnx.Param(jnp.array(1.0))
        net.table["c"] = nnx.Param(jnp.array(1.0))

    f(net)
    assert [k for k in vars(net) if not k.startswith("_")] == ["z", "a", "table", "m"]
    assert list(net.table) == ["y", "b", "c"]


def test_an_entry_that_was_put_last_again_is_last():
    d = filled()

    def f(d):
        z = d["z"]
        del d["z"]
        d["z"] = z

    eager = filled()
    f(eager)
    nnx.jit(f)(d)
    assert list(d) == list(eager) == ["a", "z"]


def test_a_new_node_comes_back_in_its_order():
    made = nnx.jit(filled)()
    assert list(made) == ["z", "a"]
    assert list(nnx.eval_shape(filled)) == ["z", "a"]


def test_another_order_is_another_structure():
    traces = []

    @nnx.jit
    def f(d, x):
        traces.append(1)
        return chain(d.values(), x)

    other = nnx.Dict()
    other["a"] = nnx.Param(jnp.array(3.0))
    other["z"] = nnx.Param(jnp.array(2.0))
    first, second = f(filled(), 1.0), f(other, 1.0)
    assert float(first) == (1 * 2 + 2) * 3 + 3
    assert float(second) == (1 * 3 + 3) * 2 + 2
    f(filled(), 1.0), f(other, 1.0)
    assert len(traces) == 2
    assert nnx.graphdef(filled()) != nnx.graphdef(other)


def test_states_and_leaves_stay_sorted():
    d = filled()
    assert list(nnx.state(d)) == ["a", "z"]
    assert [float(x) for x in jax.tree.leaves(nnx.state(d))] == [3.0, 2.0]
    assert list(nnx.state(d).flat_state()) == [("a",), ("z",)]


def test_dicts_outside_nodes_are_sorted_as_everywhere_in_jax():
    seen = []

    @nnx.jit
    def f(table):
        seen.append(list(table))
        return table

    assert list(f({"z": 1.0, "a": 2.0})) == ["a", "z"]
    assert seen == [["a", "z"]]


def test_code_like_sequential():
    class Stack(nnx.Module):
        def __init__(self):
            self.layers = {"two": nnx.Param(jnp.array(2.0)), "one": nnx.Param(jnp.array(3.0))}

        def __call__(self, x):
            return chain(self.layers.values(), x)

    m = Stack()
    np.testing.assert_allclose(nnx.jit(lambda m: m(1.0))(m), m(1.0))
    grads, eager = nnx.grad(lambda m: m(1.0))(m), jax.grad(lambda w: (1 * w + w) * 3 + 3)(2.0)
    np.testing.assert_allclose(grads["layers"]["two"].value, eager)


def test_flax_objects_keep_their_order():
    flax = pytest.importorskip("flax.nnx", reason="flax has no release for this Python")

    class FlaxNet(flax.Module):
        def __init__(self):
            self.z = flax.Param(jnp.array(2.0))
            self.a = flax.Param(jnp.array(3.0))

    def f(m):
        x = jnp.array(1.0)
        for v in vars(m).values():
            if isinstance(v, flax.Variable):
                x = x * v[...] + v[...]
        return x

    np.testing.assert_allclose(nnx.jit(f)(FlaxNet()), f(FlaxNet()))
    np.testing.assert_allclose(nnx.remat(f)(FlaxNet()), f(FlaxNet()))


class Bag:
    """A registered node, in the order of its dict."""

    def __init__(self, locked=False):
        self.locked = locked
        self.things = {}


def unpack(bag, key):
    if bag.locked:
        raise RuntimeError("locked")
    del bag.things[key]


nnx.register_graph_node_type(
    Bag,
    flatten=lambda bag: (bag.things.items(), bag.locked),
    create=Bag,
    set_key=lambda bag, key, child: bag.things.__setitem__(key, child),
    pop_key=unpack,
)


def bag_of(names, **options):
    bag = Bag(**options)
    for i, name in enumerate(names):
        bag.things[name] = nnx.Param(jnp.array(float(i)))
    return bag


def put_last(items, key):
    items[key] = items.pop(key)


def test_registered_nodes_keep_their_order():
    assert list(nnx.clone(bag_of("zab")).things) == list("zab")
    seen = []

    @nnx.jit
    def f(bag):
        seen.append(list(bag.things))
        put_last(bag.things, "z")
        bag.things["c"] = nnx.Param(jnp.array(1.0))

    bag = bag_of("zab")
    before = dict(bag.things)
    f(bag)
    assert seen == [list("zab")]
    assert list(bag.things) == list("abzc")
    assert all(bag.things[key] is before[key] for key in before)


def test_an_order_is_taken_back_if_a_later_change_fails():
    model = nnx.Module()
    model.z = nnx.Param(jnp.array(1.0))
    model.a = nnx.Param(jnp.array(2.0))
    model.bag = bag_of("zab", locked=True)

    @nnx.jit
    def f(model):
        put_last(vars(model), "z")
        model.new = 1
        model.bag.locked = False
        put_last(model.bag.things, "z")
        model.bag.locked = True
        model.a.value = model.a.value + 1

    with pytest.raises(RuntimeError, match="locked"):
        f(model)
    assert list(vars(model)) == ["z", "a", "bag"]
    assert list(model.bag.things) == list("zab")
    assert float(model.a.value) == 2.0


def test_names_that_sort_are_no_exception():
    """One name among many, and keys that are no texts."""
    model = nnx.Module()
    names = [f"n{i:03}" for i in range(100)]
    names = names[50:] + names[:50]
    for name in names:
        setattr(model, name, nnx.Param(jnp.array(1.0)))
    model.table = {3: 1, 1: nnx.Param(jnp.array(2.0)), 2: {"b": 1, "a": 2}}
    copy = nnx.clone(model)
    assert list(vars(copy)) == [*names, "table"]
    assert list(copy.table) == [3, 1, 2]
    assert list(copy.table[2]) == ["b", "a"]
    f = nnx.jit(lambda m: chain([v for v in m.table.values() if isinstance(v, nnx.Param)], 1.0))
    assert float(f(copy)) == float(f(copy)) == 4.0
    assert f._counts["hot"] == 1


def test_a_reordered_dict_is_seen_by_a_hot_call():
    m = Net()
    f = nnx.jit(lambda m: (list(m.table), chain(m.table.values(), 1.0))[1])
    first = float(f(m)), float(f(m))
    assert first == (((1 * 5 + 5) * 7 + 7),) * 2
    put_last(m.table, "y")
    assert float(f(m)) == (1 * 7 + 7) * 5 + 5
    assert f.num_traces == 2
    # A key that was made at run time is the same key.
    put_last(m.table, "b")
    m.table["".join(["y"])] = m.table.pop("y")
    assert list(m.table) == ["b", "y"]
    hot = f._counts["hot"]
    f(m), f(m)
    assert f.num_traces == 2
    assert f._counts["hot"] > hot


def conditional(f):
    return lambda m: nnx.cond(True, f, f, m)


def test_only_the_order_changed():
    for run in (nnx.jit, nnx.remat, conditional):
        m, eager = Net(), Net()

        def f(m):
            put_last(vars(m), "z")
            put_last(m.table, "y")

        f(eager)
        variables = dict(vars(m))
        run(f)(m)
        assert list(vars(m)) == list(vars(eager))
        assert list(m.table) == list(eager.table)
        assert m.z is variables["z"]
        assert m.a is variables["a"]


def test_loops_say_that_the_order_changed():
    m = Net()

    def body(i, m):
        put_last(vars(m), "z")
        return m

    with pytest.raises(Exception, match="order"):
        nnx.fori_loop(0, 2, body, m)
    assert list(vars(m)) == ["z", "a", "table"]
