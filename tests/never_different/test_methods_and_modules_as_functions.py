"""A bound method or a module as the function brings its instance along by reference (points 9, 11)."""

from __future__ import annotations

import functools
import importlib
import sys
import types
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import treadle as nnx
from tests.open_points import cases, pairs


class Net(nnx.Module):
    def __init__(self, w=2.0):
        self.w = nnx.Param(jnp.array(w))
        self.seen = nnx.BatchStat(jnp.array(0))

    def __call__(self, x):
        self.seen.value = self.seen.value + 1
        return x * self.w.value

    def pure(self, x):
        return x * self.w.value


FUNCTIONS = {
    "method": lambda net: net.pure,
    "__call__": lambda net: net.__call__,
    "module": lambda net: net,
    "partial": lambda net: functools.partial(net.pure),
}
RUNS = {
    "jit": lambda f: nnx.jit(f),
    "remat": lambda f: nnx.remat(f),
    "jit of remat": lambda f: nnx.jit(nnx.remat(f)),
    "vmap": lambda f: lambda x: nnx.vmap(f)(jnp.full(2, x))[0],
    "value_and_grad": lambda f: lambda x: nnx.value_and_grad(f)(x)[0],
    "scan": lambda f: lambda x: nnx.scan(f, in_axes=(0,), out_axes=0)(jnp.full(2, x))[0],
}


@pytest.mark.parametrize(("function", "run"), cases(pairs(FUNCTIONS, RUNS)))
def test_new_weights_are_seen(function, run):
    net = Net()
    f = run(function(net))
    np.testing.assert_allclose(f(3.0), 6.0)
    net.w.value = jnp.array(5.0)
    np.testing.assert_allclose(f(3.0), 15.0)


@pytest.mark.parametrize("run", ["jit", "remat", "vmap", "value_and_grad", "scan", "cond"])
def test_state_is_written_back(run):
    net = Net()
    runs = {
        "jit": lambda: nnx.jit(net)(1.0),
        "remat": lambda: nnx.remat(net.__call__)(1.0),
        "vmap": lambda: nnx.vmap(net)(jnp.ones(2)),
        "value_and_grad": lambda: nnx.value_and_grad(net)(1.0),
        "scan": lambda: nnx.scan(net, in_axes=(0,), out_axes=0)(jnp.ones(1)),
        "cond": lambda: nnx.cond(jnp.array(True), net, net.__call__, 1.0),
    }
    runs[run]()
    assert int(net.seen.value) == 1
    assert not isinstance(net.seen.value, jax.core.Tracer)


def test_argnums_count_what_the_user_passes():
    net = Net()
    np.testing.assert_allclose(nnx.grad(net.pure)(3.0), 2.0)
    np.testing.assert_allclose(nnx.grad(net.pure, argnums=0)(3.0), 2.0)
    f = nnx.jit(lambda self, n, x: x * n * self.w.value, static_argnums=1)
    assert float(f(net, 2, 1.0)) == 4.0

    class Powers(Net):
        def power(self, x, n):
            return self.w.value * sum([x] * n)

    g = nnx.jit(Powers().power, static_argnums=1)
    assert float(g(1.0, 3)) == 6.0


def test_the_instance_is_none_in_vmap_and_carried_in_scan():
    net = Net()
    np.testing.assert_allclose(nnx.vmap(net.pure, in_axes=0)(jnp.arange(3.0)), [0, 2, 4])

    class Sum(nnx.Module):
        def __init__(self):
            self.total = nnx.BatchStat(jnp.array(0.0))

        def add(self, x):
            self.total.value = self.total.value + x
            return self.total.value

    s = Sum()
    out = nnx.scan(s.add, in_axes=0, out_axes=0)(jnp.arange(4.0))
    np.testing.assert_allclose(out, [0, 1, 3, 6])
    np.testing.assert_allclose(s.total.value, 6.0)


def test_donate_state_donates_the_instance():
    class Counter(nnx.Module):
        def __init__(self):
            self.counts = nnx.BatchStat(jnp.arange(1024))

        def __call__(self):
            self.counts.value = self.counts.value + 1

    counter = Counter()
    # By its buffer: an array that this test held itself would be copied (point 17).
    pointer = counter.counts.value.unsafe_buffer_pointer()
    nnx.jit(counter, donate_state=True)()
    assert counter.counts.value.unsafe_buffer_pointer() == pointer
    np.testing.assert_array_equal(counter.counts.value, np.arange(1024) + 1)


def test_flax_methods_as_functions():
    flax = pytest.importorskip("flax.nnx", reason="flax has no release for this Python")
    layer = flax.Linear(2, 2, rngs=flax.Rngs(0))
    f = nnx.jit(layer.__call__)
    x = jnp.ones(2)
    np.testing.assert_allclose(f(x), layer(x), rtol=1e-6)
    layer.kernel[...] = layer.kernel[...] * 2
    np.testing.assert_allclose(f(x), layer(x), rtol=1e-6)


@pytest.mark.parametrize("transform", [nnx.jit, nnx.remat], ids=["jit", "remat"])
def test_a_top_level_function_that_closes_over_a_node_says_so(transform):
    net = Net()
    with pytest.warns(Warning, match="net"):
        transform(lambda x: net.pure(x))(1.0)


def test_a_scan_that_closes_over_a_node_says_so():
    net = Net()
    with pytest.warns(Warning, match="net"):
        nnx.scan(lambda c, x: (c + net.pure(x), None))(0.0, jnp.ones(2))


def test_closing_over_a_node_says_so_once():
    net = Net()
    f = nnx.jit(lambda x: net.pure(x))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        f(1.0), f(jnp.ones(2)), f(jnp.ones(3))
    assert len([w for w in seen if "net" in str(w.message)]) == 1


def test_nothing_is_said_inside_another_transform():
    net = Net()

    @nnx.jit
    def step(net):
        return nnx.grad(lambda x: net.pure(x))(1.0)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert float(step(net)) == 2.0


# -- classes that change (point 11) --------------------------------------------------------------


class Layer(nnx.Module):
    factor = 2.0

    def __init__(self, rngs):
        self.w = nnx.Param(jnp.array(3.0))

    def __call__(self, x):
        return x * self.w.value * self.factor


@pytest.fixture
def patched(monkeypatch):
    def method(self, x):
        return x + self.w.value

    return lambda: monkeypatch.setattr(Layer, "__call__", method)


KINDS = {
    "Remat": lambda: nnx.Remat(Layer),
    "Jit": lambda: nnx.Jit(Layer),
    "Vmap": lambda: nnx.Vmap(Layer, axis_size=2, in_axes=(None, None), out_axes=0),
    "Scan": lambda: nnx.Scan(Layer, length=1, scan_output=False),
    "Remat of Jit": lambda: nnx.Remat(nnx.Jit(Layer)),
}


def one(out):
    return float(jnp.ravel(jnp.asarray(out))[0])


@pytest.mark.parametrize("kind", cases(KINDS))
def test_lifted_classes_follow_a_patched_method(kind, patched):
    layer = kind()(nnx.Rngs(0))
    assert one(layer(1.0)) == 6.0
    patched()
    assert one(layer(1.0)) == 4.0


@pytest.mark.parametrize("kind", cases(KINDS))
def test_lifted_classes_follow_a_class_attribute(kind, monkeypatch):
    layer = kind()(nnx.Rngs(0))
    assert one(layer(1.0)) == 6.0
    monkeypatch.setattr(Layer, "factor", 5.0)
    assert one(layer(1.0)) == 15.0


def test_grad_of_a_lifted_class_follows_a_patched_method(patched):
    layer = nnx.Grad(Layer, wrt=nnx.Param)(nnx.Rngs(0))
    assert float(layer(2.0)["w"].value) == 4.0
    patched()
    assert float(layer(2.0)["w"].value) == 1.0


def redefined(factor):
    class Cell(nnx.Module):
        def __init__(self):
            self.w = nnx.Param(jnp.array(3.0))

        def __call__(self, x):
            return x * self.w.value * factor

    return Cell


def test_a_class_that_was_redefined_is_another_class():
    f = nnx.jit(lambda m, x: m(x))
    r = lambda m, x: nnx.remat(lambda m, x: m(x))(m, x)  # noqa: E731
    for factor in (2.0, 5.0):
        cell = redefined(factor)()
        assert float(f(cell, 1.0)) == 3.0 * factor
        assert float(r(cell, 1.0)) == 3.0 * factor


def test_lifted_classes_over_a_redefined_class():
    for factor in (2.0, 5.0):
        assert float(nnx.Remat(redefined(factor))()(1.0)) == 3.0 * factor
        assert float(nnx.Jit(redefined(factor))()(1.0)) == 3.0 * factor


def test_a_reloaded_module(tmp_path, monkeypatch):
    source = tmp_path / "reloaded_net.py"
    text = (
        "import treadle as nnx, jax.numpy as jnp\n"
        "def helper(x):\n    return x * {}\n"
        "class Net(nnx.Module):\n"
        "    def __init__(self):\n        self.w = nnx.Param(jnp.array(3.0))\n"
        "    def __call__(self, x):\n        return helper(x) * self.w.value\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    f = nnx.jit(lambda m, x: m(x))
    g = lambda m: nnx.cond(jnp.array(True), lambda m: m(1.0), lambda m: m(1.0), m)  # noqa: E731
    for factor in (2.0, 5.0):
        source.write_text(text.format(factor))
        sys.modules.pop("reloaded_net", None)
        importlib.invalidate_caches()
        net = importlib.import_module("reloaded_net").Net()
        assert float(f(net, 1.0)) == 3.0 * factor
        assert float(g(net)) == 3.0 * factor
    sys.modules.pop("reloaded_net", None)


def test_a_method_set_on_an_instance():
    net = Net()
    f = nnx.jit(lambda m, x: m.forward(x))
    net.forward = types.MethodType(lambda self, x: x * self.w.value, net)
    assert float(f(net, 1.0)) == 2.0
    net.forward = types.MethodType(lambda self, x: x + self.w.value, net)
    assert float(f(net, 1.0)) == 3.0
    net.w.value = jnp.array(7.0)
    assert float(f(net, 1.0)) == 8.0
