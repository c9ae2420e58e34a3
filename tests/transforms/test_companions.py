"""Nodes that functions bring along: instances of bound methods, modules that are called, bound arguments."""

from __future__ import annotations

import copy
import functools
import gc
import inspect
import warnings
import weakref
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import treadle as nnx


class Net(nnx.Module):
    def __init__(self, w: float = 2.0) -> None:
        self.w = nnx.Param(jnp.array(w))
        self.calls = nnx.BatchStat(jnp.array(0))

    def __call__(self, x: Any, by: Any = 1.0) -> Any:
        self.calls.value = self.calls.value + 1
        return x * self.w.value * by

    def carried(self, carry: Any) -> Any:
        return self(carry)

    def small(self, carry: Any) -> Any:
        return carry < 5 * self.w.value


def combined(first: Net, x: Any, second: Net, by: Any = 1.0) -> Any:
    return first(x) + second(x, by)


def over_nodes(net: Net) -> Any:
    return functools.partial(combined, net, second=net)


RUNS = {
    "jit": lambda f, x: nnx.jit(f)(x),
    "jit of jit": lambda f, x: nnx.jit(nnx.jit(f))(x),
    "grad": lambda f, x: nnx.value_and_grad(f)(x)[0],
    "jacrev": lambda f, x: nnx.jacrev(f)(x) * x,
    "vjp": lambda f, x: nnx.vjp(f, x)[0],
    "jvp": lambda f, x: nnx.jvp(f, (x,), (x,))[0],
    "remat": lambda f, x: nnx.remat(f)(x),
    "vmap": lambda f, x: nnx.vmap(f)(jnp.full(2, x))[0],
    "vmap, contract": lambda f, x: nnx.vmap(f, state_axes={...: 0})(jnp.full(2, x))[0],
    "pmap": lambda f, x: nnx.pmap(f)(jnp.full(1, x))[0],
    "scan": lambda f, x: nnx.scan(lambda c, x: (c, f(x)))(0.0, jnp.full(1, x))[1][0],
    "scan of it": lambda f, x: nnx.scan(f, in_axes=0, out_axes=0)(jnp.full(1, x))[0],
    "cond": lambda f, x: nnx.cond(jnp.array(True), f, lambda x: x, x),
    "switch": lambda f, x: nnx.switch(1, [lambda x: x, f], x),
    "checkify": lambda f, x: nnx.checkify(f, checkify.user_checks)(x)[1],
    "fori_loop": lambda f, x: nnx.fori_loop(0, 1, lambda _, x: f(x), x),
    "while_loop": lambda f, x: nnx.while_loop(lambda c: c < 4, f, x),
    "shard_map": lambda f, x: nnx.shard_map(
        f, mesh=Mesh(np.array(jax.devices()[:1]), ("d",)), in_specs=P(), out_specs=P()
    )(x),
    "split_rngs": lambda f, x: nnx.jit(nnx.split_rngs(splits=2)(f))(x),
}
# A function of their own calls `f` in the loop: it captures what `f` brings along, and may not change it.
CAPTURE = {"scan", "fori_loop"}
FUNCTIONS = {
    "method": (lambda net: net.__call__, 1),
    "module": (lambda net: net, 1),
    "partial": (lambda net: functools.partial(net, by=1.0), 1),
    "partial over nodes": (over_nodes, 2),
}


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("run", sorted(RUNS.keys() - CAPTURE))
def test_values_and_effects_are_those_of_the_function(run: str, function: str) -> None:
    make, calls = FUNCTIONS[function]
    net = Net()
    f = make(net)
    np.testing.assert_allclose(RUNS[run](f, jnp.array(3.0)), 6.0 * calls)
    assert int(net.calls.value) == calls
    assert not isinstance(net.calls.value, jax.core.Tracer)


def test_eval_shape_changes_nothing() -> None:
    net = Net()
    assert nnx.eval_shape(net, jnp.ones(3)).shape == (3,)
    assert int(net.calls.value) == 0


def test_loops_carry_the_instances_of_both_functions() -> None:
    net, limit = Net(), Net(4.0)
    assert float(nnx.while_loop(limit.small, net.carried, jnp.array(1.0))) == 32.0
    assert int(net.calls.value) == 5
    assert float(nnx.fori_loop(0, 3, lambda i, c: c, jnp.array(1.0))) == 1.0

    class Adder(Net):
        def add(self, i: Any, total: Any) -> Any:
            self.calls.value = self.calls.value + i
            return total + self.w.value

    adder = Adder()
    assert float(nnx.fori_loop(0, 3, adder.add, jnp.array(0.0))) == 6.0
    assert int(adder.calls.value) == 3


def test_branches_have_an_instance_each() -> None:
    a, b = Net(2.0), Net(5.0)
    for index, expected in enumerate((2.0, 5.0, 5.0)):
        assert float(nnx.switch(index, [a, b.__call__, b], jnp.array(1.0))) == expected
    assert (int(a.calls.value), int(b.calls.value)) == (1, 2)


def test_one_node_as_instance_and_as_argument() -> None:
    class Pair(Net):
        def both(self, other: Net) -> Any:
            other.w.value = other.w.value + 1
            return self.w.value

    pair = Pair()
    assert float(nnx.jit(pair.both)(pair)) == 3.0
    assert float(pair.w.value) == 3.0


def test_random_streams_of_the_instance() -> None:
    class Noisy(nnx.Module):
        def __init__(self) -> None:
            self.rngs = nnx.Rngs(0)

        def __call__(self, x: Any) -> Any:
            return x + jax.random.normal(self.rngs())

    noisy = Noisy()
    out = nnx.vmap(noisy)(jnp.zeros(3))
    assert out[0] == out[1] == out[2]
    assert int(noisy.rngs.default.count.value) == 1
    drawn = nnx.scan(noisy, in_axes=0, out_axes=0)(jnp.zeros(3))
    assert len(set(drawn.tolist())) == 3
    assert int(noisy.rngs.default.count.value) == 4


def test_positions_axes_and_names_are_the_users() -> None:
    net = Net()
    assert float(nnx.grad(net, argnums=1)(3.0, 1.0)) == 6.0
    np.testing.assert_allclose(nnx.vmap(net, in_axes=(None, 0))(1.0, jnp.arange(3.0)), [0, 2, 4])
    assert float(nnx.jit(net, static_argnames="by")(1.0, by=3)) == 6.0
    assert float(nnx.remat(net, static_argnums=1)(1.0, 3)) == 6.0
    assert list(inspect.signature(nnx.jit(net)).parameters) == ["x", "by"]
    assert list(inspect.signature(nnx.remat(net.__call__)).parameters) == ["x", "by"]
    assert not hasattr(nnx.remat(net), "w")


def test_messages_name_the_instance() -> None:
    net = Net()
    net.w.value = "text"
    for f in (nnx.jit(net), nnx.remat(net.__call__), nnx.vmap(net)):
        with pytest.raises(TypeError, match=r"self\.w"):
            f(jnp.ones(2))
    with pytest.raises(TypeError, match=r"first\.w"):
        nnx.jit(over_nodes(net))(1.0)


def test_structure_of_the_instance_is_part_of_the_key() -> None:
    net = Net()
    net.scale = 2
    f = nnx.jit(lambda self, x: self(x) * self.scale)
    g = nnx.jit(functools.partial(lambda self, x: self(x) * self.scale, net))
    for scale in (2, 3):
        net.scale = scale
        assert float(f(net, 1.0)) == float(g(1.0)) == 2.0 * scale
    assert g.num_traces == 2


def test_calls_are_hot_and_the_instance_may_be_given() -> None:
    net, other = Net(), Net(7.0)
    f = nnx.jit(net)
    for _ in range(4):
        f(1.0)
    f(1.0, by=2.0), f(1.0, by=2.0)
    assert f._counts["hot"] == 4
    name = next(iter(f.companions))
    assert float(f(1.0, **{name: other})) == 7.0
    assert int(other.calls.value) == 1


def test_ahead_of_time() -> None:
    net = Net()
    compiled = nnx.jit(net).lower(jnp.ones(2)).compile()
    net.w.value = jnp.array(3.0)
    np.testing.assert_allclose(compiled(jnp.ones(2)), [3, 3])
    assert int(net.calls.value) == 1
    assert nnx.jit(net).eval_shape(jnp.ones(2)).shape == (2,)
    assert int(net.calls.value) == 1
    assert nnx.profile(nnx.jit(net), jnp.ones(2)).call_class == "hot"
    assert int(net.calls.value) == 1


def test_in_shardings_speak_of_the_arguments() -> None:
    net = Net()
    sharding = NamedSharding(Mesh(np.array(jax.devices()[:1]), ("d",)), P())
    np.testing.assert_allclose(nnx.jit(net, in_shardings=(sharding,))(jnp.ones(2)), [2, 2])
    with pytest.raises(ValueError, match="keyword argument by"):
        nnx.jit(net, in_shardings=(sharding,))(jnp.ones(2), by=1.0)


def test_a_deep_copy_has_its_own_instance() -> None:
    net = Net()
    f = nnx.jit(net)
    clone, jitted = copy.deepcopy((net, f))
    clone.w.value = jnp.array(5.0)
    assert (float(f(1.0)), float(jitted(1.0))) == (2.0, 5.0)


@pytest.mark.parametrize("transform", [nnx.jit, nnx.remat, nnx.grad])
def test_nothing_outlives_the_function(transform: Any) -> None:
    net = Net()
    f = transform(net)
    f(1.0)
    reference = weakref.ref(net)
    net.itself = None
    del net, f
    gc.collect()
    assert reference() is None


def test_custom_vjp_of_a_method() -> None:
    class Clipped(Net):
        def forward(self, x: Any, by: Any) -> Any:
            return self(x, by), self.w.value

    net = Clipped(3.0)
    f = nnx.custom_vjp(net.__call__)
    f.defvjp(net.forward, lambda w, g: (jnp.clip(g[1] * w, -1, 1), None))
    assert float(f(2.0)) == 6.0
    assert float(nnx.grad(f)(2.0)) == 1.0
    net.w.value = jnp.array(0.5)
    assert float(nnx.grad(f)(2.0)) == 0.5
    assert float(nnx.jit(f)(2.0)) == 1.0
    assert int(net.calls.value) == 4


def test_an_exception_leaves_the_instance_as_it_was() -> None:
    class Fails(Net):
        def fail(self, x: Any) -> Any:
            self(x)
            raise RuntimeError("stop")

    net = Fails()
    before = net.calls.value
    for transform in (nnx.jit, nnx.remat, nnx.vmap, nnx.grad):
        with pytest.raises(RuntimeError, match="stop"):
            transform(net.fail)(jnp.ones(2))
    assert net.calls.value is before


# -- nodes that are not brought along ----------------------------------------------------------------


NET = Net()
NETS = [NET]


def reads_a_global(x: Any) -> Any:
    return x * NET.w.value


def reads_a_list(x: Any) -> Any:
    return x * NETS[0].w.value


def reads_by_another(x: Any) -> Any:
    return reads_a_global(x)


def by_default(x: Any, net: Net = NET) -> Any:
    return x * net.w.value


READERS = {
    reads_a_global: "reads_a_global reads NET, a Net",
    reads_a_list: r"reads NETS\[0\], a Net",
    reads_by_another: "reads_a_global reads NET",
    by_default: "reads net, a Net",
}


@pytest.mark.parametrize("function", READERS)
@pytest.mark.parametrize("transform", [nnx.jit, nnx.remat, nnx.checkify])
def test_a_node_that_is_read_and_not_passed_is_named(transform: Any, function: Any) -> None:
    with pytest.warns(nnx.CapturedNodeWarning, match=READERS[function]) as seen:
        transform(function)(1.0)
    assert seen[0].filename == __file__


def of_the_name(x: Any) -> Any:
    class Holder:
        NET = 3.0

    return x * Holder.NET


def test_nothing_is_said_of_what_is_passed_or_only_has_the_name() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nnx.jit(of_the_name)(1.0)
        nnx.jit(lambda NET, x: NET(x))(NET, 1.0)  # noqa: N803
        nnx.jit(NET)(1.0)
        nnx.vmap(reads_a_global)(jnp.ones(2))
        nnx.grad(reads_a_global)(1.0)
