"""Bound methods, partials and wrapped functions in attributes see the node they belong to (point 2)."""

from __future__ import annotations

import functools
import pickle
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import treadle as nnx


class Net(nnx.Module):
    """A module that keeps a way to call itself."""

    def __init__(self, w=2.0, how="method"):
        self.w = nnx.Param(jnp.array(w))
        self.seen = nnx.BatchStat(jnp.array(0.0))
        self.impl = HOW[how](self)

    def _fast(self, x):
        self.seen.value = self.seen.value + 1
        return x * self.w.value

    def __call__(self, x):
        return self.impl(x)


HOW = {
    "method": lambda self: self._fast,
    "partial": lambda self: functools.partial(Net._fast, self),
    "partial of a method": lambda self: functools.partial(self._fast),
    "keyword of a partial": lambda self: functools.partial(lambda x, net: net._fast(x), net=self),
    "partial of a Variable": lambda self: functools.partial(lambda v, x: x * v.value, self.w),
    "jitted method": lambda self: nnx.jit(self._fast),
    "rematerialized method": lambda self: nnx.remat(self._fast),
    "in a list": lambda self: Listed([self._fast]),
}


class Listed(nnx.List):
    def __call__(self, x):
        return self[0](x)


how = pytest.mark.parametrize("how", HOW)


@how
def test_gradients_reach_the_weights(how):
    grads = nnx.grad(lambda m: m(3.0))(Net(how=how))
    np.testing.assert_allclose(grads["w"].value, 3.0)


@how
def test_jit_sees_new_weights(how):
    net = Net(how=how)
    f = nnx.jit(lambda m, x: m(x))
    assert float(f(net, 3.0)) == 6.0
    net.w.value = jnp.array(5.0)
    assert float(f(net, 3.0)) == 15.0


@how
def test_another_instance_of_one_structure_is_used(how):
    f = nnx.jit(lambda m, x: m(x))
    assert float(f(Net(2.0, how), 3.0)) == 6.0
    assert float(f(Net(7.0, how), 3.0)) == 21.0


@how
def test_a_clone_calls_itself(how):
    net = Net(how=how)
    copy = nnx.clone(net)
    copy.w.value = jnp.array(10.0)
    assert float(copy(3.0)) == 30.0
    assert float(net(3.0)) == 6.0


@how
def test_split_and_merge_build_a_net_that_calls_itself(how):
    net = Net(how=how)
    graphdef, state = nnx.split(net)
    merged = nnx.merge(graphdef, jax.tree.map(lambda x: x * 2, state))
    assert float(merged(3.0)) == 12.0


@how
def test_under_vmap(how):
    net = Net(how=how)
    f = nnx.vmap(lambda m, x: m(x), state_axes={}, in_axes=(None, 0))
    np.testing.assert_allclose(f(net, jnp.arange(3.0)), [0, 2, 4])


def test_updates_inside_reach_the_caller():
    net = Net()
    nnx.jit(lambda m: m(1.0))(net)
    nnx.remat(lambda m: m(1.0))(net)
    assert float(net.seen.value) == 2.0


def test_the_method_is_the_callers_afterwards():
    net = Net()

    @nnx.jit
    def f(m):
        m.other = m._fast
        return m.other(2.0)

    assert float(f(net)) == 4.0
    assert net.impl.__self__ is net
    assert net.other.__self__ is net


def test_one_step_of_gradient_descent_as_eagerly():
    eager, jitted = Net(), Net()

    def step(m):
        grads = nnx.grad(lambda m: m(3.0) ** 2)(m)
        m.w.value = m.w.value - 0.01 * grads["w"].value

    for _ in range(3):
        w = eager.w.value
        eager.w.value = w - 0.01 * 2 * (3 * w) * 3
    run = nnx.jit(step)
    for _ in range(3):
        run(jitted)
    np.testing.assert_allclose(jitted.w.value, eager.w.value, rtol=1e-6)


def test_a_method_of_a_child_is_of_the_child_inside():
    class Outer(nnx.Module):
        def __init__(self):
            self.inner = Net()
            self.call = self.inner._fast

    outer = Outer()
    grads = nnx.grad(lambda m: m.call(3.0))(outer)
    np.testing.assert_allclose(grads["inner"]["w"].value, 3.0)
    copy = nnx.clone(outer)
    assert copy.call.__self__ is copy.inner


def test_methods_pickle_with_their_instance():
    net = pickle.loads(pickle.dumps(Net()))
    assert net.impl.__self__ is net


def test_a_closure_over_the_node_is_refused_by_path():
    net = Net()
    net.impl = lambda x: x * net.w.value
    with pytest.raises(nnx.errors.GraphError, match=r"net\.impl|m\.impl"):
        nnx.jit(lambda m: m(1.0))(net)


def test_a_default_that_holds_the_node_is_refused_by_path():
    net = Net()

    def impl(x, net=net):
        return x * net.w.value

    net.impl = impl
    with pytest.raises(nnx.errors.GraphError, match=r"m\.impl"):
        nnx.grad(lambda m: m(1.0))(net)


def test_a_foreign_object_that_holds_the_node_is_refused_by_path():
    class Caller:
        def __init__(self, net):
            self.net = net

        def __call__(self, x):
            return self.net._fast(x)

    net = Net()
    net.impl = Caller(net)
    with pytest.raises((nnx.errors.GraphError, nnx.StaticError), match=r"m\.impl"):
        nnx.grad(lambda m: m(1.0))(net)


def test_a_captured_node_from_outside_is_a_constant():
    other = Net(4.0)
    net = Net()
    net.impl = lambda x: x * other.w.value
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        np.testing.assert_allclose(nnx.jit(lambda m: m(3.0))(net), 12.0)


def test_flax_modules_may_hold_their_methods():
    flax = pytest.importorskip("flax.nnx", reason="flax has no release for this Python")

    class FlaxNet(flax.Module):
        def __init__(self):
            self.w = flax.Param(jnp.array(2.0))
            self.impl = self._fast

        def _fast(self, x):
            return x * self.w[...]

        def __call__(self, x):
            return self.impl(x)

    net = FlaxNet()
    grads = nnx.grad(lambda m: m(3.0), wrt=flax.Param)(net)
    np.testing.assert_allclose(grads["w"].value, 3.0)
    f = nnx.jit(lambda m: m(3.0))
    f(net)
    net.w[...] = jnp.array(5.0)
    np.testing.assert_allclose(f(net), 15.0)
