"""Copies and pickles of whatever a module holds (point 21)."""

from __future__ import annotations

import copy
import functools
import pickle

import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

import treadle as nnx
from tests.open_points import cases, pairs


def double(m, x):
    return m["w"].value * x * 2


JITTED = nnx.jit(double)


class Net(nnx.Module):
    def __init__(self, step):
        self.w = nnx.Param(jnp.array(3.0))
        self.step = step


WRAPPED = {
    "jit": nnx.jit(lambda x: x * 2),
    "remat": nnx.remat(lambda x: x * 2),
    "grad": nnx.grad(lambda x: x**2),
    "vmap": nnx.vmap(lambda x: x * 2, in_axes=None, axis_size=1),
    "jit of grad": nnx.jit(nnx.grad(lambda x: x**2)),
}


@pytest.mark.parametrize("wrapped", cases(WRAPPED))
def test_deepcopy_of_a_module_that_holds_a_wrapped_function(wrapped):
    net = Net(wrapped)
    twin = copy.deepcopy(net)
    assert twin.w is not net.w
    np.testing.assert_allclose(twin.step(3.0), net.step(3.0))
    twin.w.value = jnp.array(4.0)
    assert float(net.w.value) == 3.0


def test_deepcopy_of_a_jitted_function_itself():
    assert float(copy.deepcopy(JITTED)(nnx.Dict(w=nnx.Param(1.0)), 2.0)) == 4.0
    assert float(copy.copy(JITTED)(nnx.Dict(w=nnx.Param(1.0)), 2.0)) == 4.0


def test_deepcopy_of_a_jitted_method():
    class Stepper(nnx.Module):
        def __init__(self):
            self.w = nnx.Param(jnp.array(3.0))

        @nnx.jit
        def __call__(self, x):
            return self.w.value * x

    twin = copy.deepcopy(Stepper())
    assert float(twin(2.0)) == 6.0


NODES = {
    "Param": lambda: nnx.Param(jnp.arange(2.0), tag="t"),
    "Dict": lambda: nnx.Dict(w=nnx.Param(jnp.arange(2.0))),
    "List": lambda: nnx.List([nnx.Param(jnp.arange(2.0))]),
    "Linear": lambda: nnx.Linear(2, 3, rngs=nnx.Rngs(0)),
    "Rngs": lambda: nnx.Rngs(0, noise=1),
    "State": lambda: nnx.state(nnx.Dict(w=nnx.Param(jnp.arange(2.0)))),
    "GraphDef": lambda: nnx.graphdef(nnx.Dict(w=nnx.Param(jnp.arange(2.0)))),
    "VariableState": lambda: nnx.VariableState(nnx.Param, 1.0),
    "filters": lambda: (nnx.All(nnx.Param), nnx.Not(nnx.PathContains("a")), nnx.WithTag("t")),
    "StateAxes": lambda: nnx.StateAxes({nnx.Param: 0, ...: None}),
    "lifted": lambda: nnx.Remat(nnx.Linear)(2, 3, rngs=nnx.Rngs(0)),
    "BatchNorm": lambda: nnx.BatchNorm(3, rngs=nnx.Rngs(0)),
}


PROTOCOLS = {str(protocol): protocol for protocol in range(pickle.HIGHEST_PROTOCOL + 1)}


@pytest.mark.parametrize(("make", "protocol"), cases(pairs(NODES, PROTOCOLS)))
def test_every_protocol(make, protocol):
    before = make()
    after = pickle.loads(pickle.dumps(before, protocol))
    assert type(after) is type(before)
    if nnx.is_graph_node(before):
        assert nnx.graphdef(after) == nnx.graphdef(before)
        for a, b in zip(
            nnx.state(after).flat_state().values(),
            nnx.state(before).flat_state().values(),
            strict=True,
        ):
            assert str(a) == str(b)


@pytest.mark.parametrize("kind", [None, int, "Param", object, jnp.ndarray], ids=str)
def test_a_variable_state_needs_a_type_of_variable(kind):
    with pytest.raises(TypeError, match="Variable"):
        nnx.VariableState(kind, 1.0)


class Stepping(nnx.Module):
    """Holds what transforms make of its own methods, in each place where that may be."""

    def __init__(self):
        self.w = nnx.Param(jnp.array(3.0))
        self.remat = nnx.remat(self.times)
        self.jitted = nnx.jit(self.times)
        self.inside = {"list": [nnx.vmap(self.times, in_axes=None, axis_size=1)]}
        self.partial = functools.partial(nnx.remat(self.times), 2.0)
        self.of_partial = nnx.remat(functools.partial(self.times, 2.0))
        self.nested = nnx.jit(nnx.remat(self.times))
        self.optioned = nnx.checkify(self.times, errors=checkify.float_checks)

    def times(self, x):
        return self.w.value * x

    def results(self):
        return [
            float(self.remat(2.0)),
            float(self.jitted(2.0)),
            float(self.inside["list"][0](2.0)[0]),
            float(self.partial()),
            float(self.of_partial()),
            float(self.nested(2.0)),
            float(self.optioned(2.0)[1]),
        ]


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda m: pickle.loads(pickle.dumps(m)),
    "protocol 0": lambda m: pickle.loads(pickle.dumps(m, 0)),
    "clone": nnx.clone,
    "deepcopy in a list": lambda m: copy.deepcopy([m, m])[1],
}


@pytest.mark.parametrize("again", cases(COPIES))
def test_a_copy_calls_its_own_transformed_methods(again):
    m = Stepping()
    assert m.results() == [6.0] * 7
    twin = again(m)
    twin.w.value = jnp.array(4.0)
    assert twin.results() == [8.0] * 7
    assert m.results() == [6.0] * 7


def test_a_shallow_copy_shares_what_it_holds():
    m = Stepping()
    other = copy.copy(m)
    assert {k: v for k, v in vars(other).items() if v is not vars(m)[k]} == {}
    assert other.results() == [6.0] * 7


def test_copying_leaves_the_original_as_it_is():
    m = Stepping()
    before = dict(vars(m))
    copy.deepcopy(m)
    pickle.dumps(m)
    assert all(vars(m)[name] is value for name, value in before.items())


def test_a_copied_closure_is_shared_as_python_has_it():
    m = Stepping()
    m.closure = lambda x: x
    assert copy.deepcopy(m).closure is m.closure
