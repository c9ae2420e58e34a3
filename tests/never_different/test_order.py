"""Nodes, attributes and dicts in attributes keep the order in which the caller filled them (point 3)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import treadle as nnx
from tests.open_points import open_point


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


@open_point(18, "3")
@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("reader", READERS)
def test_a_loop_runs_in_the_callers_order(reader, run):
    make, variables = READERS[reader]

    def f(m, x):
        return chain(variables(m), x)

    np.testing.assert_allclose(RUNS[run](f)(make(), jnp.array(1.0)), f(make(), jnp.array(1.0)))


@open_point(18, "3")
def test_what_a_call_adds_comes_last():
    d = filled()

    @nnx.jit
    def f(d):
        d["m"] = nnx.Param(jnp.array(1.0))

    f(d)
    assert list(d) == ["z", "a", "m"]
    f(d)
    assert list(d) == ["z", "a", "m"]


@open_point(18, "3")
def test_attributes_that_a_call_adds_come_last():
    net = Net()

    @nnx.remat
    def f(net):
        net.m = nnx.Param(jnp.array(1.0))
        net.table["c"] = nnx.Param(jnp.array(1.0))

    f(net)
    assert [k for k in vars(net) if not k.startswith("_")] == ["z", "a", "table", "m"]
    assert list(net.table) == ["y", "b", "c"]


@open_point(18, "3")
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


@open_point(18, "3")
def test_a_new_node_comes_back_in_its_order():
    made = nnx.jit(filled)()
    assert list(made) == ["z", "a"]
    assert list(nnx.eval_shape(filled)) == ["z", "a"]


@open_point(18, "3")
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


@open_point(18, "3")
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


@open_point(18, "3")
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
