"""Promises of Vmap, Scan, Remat, Jit and Grad."""

from __future__ import annotations

import copy
import importlib
import inspect
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import treadle as nnx
from tests.transforms.models import Block, assert_same


class Layer(nnx.Module):
    """A scan-able layer: returns (carry, out)."""

    def __init__(self, width, *, rngs):
        self.block = Block(width, rngs=rngs)

    def __call__(self, x):
        return self.block(x), x.sum()

    def twice(self, x):
        return self.block(self.block(x)), None


def test_vmap_builds_split_and_calls_mapped():
    stack = nnx.Vmap(Block, axis_size=4)(3, rngs=nnx.Rngs(0))
    assert isinstance(stack, nnx.Vmap)
    keys = jax.random.split(jax.random.key(0), 4)
    for i, key in enumerate(keys):
        one = Block(3, rngs=nnx.Rngs(key))
        np.testing.assert_allclose(stack.vmap_module.kernel.value[i], one.kernel.value)
    x = jax.random.normal(jax.random.key(1), (4, 2, 3))
    expected = [jnp.tanh(v @ k) for v, k in zip(x, stack.vmap_module.kernel.value, strict=True)]
    np.testing.assert_allclose(stack(x), jnp.stack(expected), atol=1e-6)
    assert stack.vmap_module.calls.value.tolist() == [1] * 4


def test_scan_builds_split_and_calls_in_turn():
    stack = nnx.Scan(Layer, length=4)(3, rngs=nnx.Rngs(0))
    assert isinstance(stack, nnx.Scan)
    x = jnp.ones((2, 3))
    out, sums = stack(x)
    for kernel in stack.scan_module.block.kernel.value:
        x = jnp.tanh(x @ kernel)
    np.testing.assert_allclose(out, x, atol=1e-6)
    assert sums.shape == (4,)


def test_unselected_state_is_made_once_and_carried():
    stack = nnx.Scan(Layer, length=4, state_axes={nnx.Param: 0})(3, rngs=nnx.Rngs(0))
    assert stack.scan_module.block.seen.shape == (3,)
    stack(jnp.ones((2, 3)))
    assert int(stack.scan_module.block.calls.value) == 4


def test_remat_jit_and_grad():
    rematted = nnx.Remat(Block, True, (), jax.checkpoint_policies.dots_saveable)(
        3, rngs=nnx.Rngs(0)
    )
    assert rematted(jnp.ones((2, 3))).shape == (2, 3)
    assert rematted.remat_module.calls.value == 1
    jitted = nnx.Jit(Block)(3, rngs=nnx.Rngs(0))
    assert jitted(jnp.ones((2, 3))).shape == (2, 3)
    assert jitted.jit_module.calls.value == 1

    class Loss(nnx.Module):
        def __init__(self):
            self.w = nnx.Param(jnp.array(3.0))

        def __call__(self, x):
            return self.w.value * x, x

    grads, aux = nnx.Grad(Loss, has_aux=True)()(jnp.array(2.0))
    assert float(grads["w"].value) == 2.0
    assert float(aux) == 2.0
    both = nnx.Grad(Loss, (0, 1), True)()(jnp.array(2.0))[0]
    assert float(both[1]) == 3.0


@pytest.mark.parametrize(
    ("kind", "parameters", "attribute"),
    [
        (nnx.Vmap, {"axis_size": 4}, "vmap_module"),
        (nnx.Scan, {"length": 4}, "scan_module"),
        (nnx.Remat, {}, "remat_module"),
        (nnx.Jit, {}, "jit_module"),
        (nnx.Grad, {}, "grad_module"),
    ],
)
def test_attribute_constructor_pickle_and_clone(kind, parameters, attribute):
    made = kind(Layer, **parameters)
    assert made == kind.constructor(Layer, **parameters)
    instance = made(3, rngs=nnx.Rngs(0))
    assert type(getattr(instance, attribute)) is Layer
    assert isinstance(instance, kind)
    for other in (
        pickle.loads(pickle.dumps(instance)),
        nnx.clone(instance),
        copy.deepcopy(instance),
    ):
        assert nnx.graphdef(other) == nnx.graphdef(instance)
        assert_same(nnx.state(other), nnx.state(instance))
    assert pickle.loads(pickle.dumps(made)) == made


def test_call_reaches_any_method():
    stack = nnx.Scan(Layer, length=4)(3, rngs=nnx.Rngs(0))
    out, nothing = stack.call.twice(jnp.ones((2, 3)))
    assert nothing is None
    x = jnp.ones((2, 3))
    for kernel in stack.scan_module.block.kernel.value:
        x = jnp.tanh(jnp.tanh(x @ kernel) @ kernel)
    np.testing.assert_allclose(out, x, atol=1e-6)
    inner = nnx.Vmap(Layer, axis_size=2)(3, rngs=nnx.Rngs(0))
    assert inner.call.block(jnp.ones((2, 1, 3))).shape == (2, 1, 3)


@pytest.mark.parametrize(
    "nesting", ["scan-remat", "remat-scan", "vmap-scan", "scan-vmap", "jit-scan"]
)
def test_nesting(nesting):
    makers = {
        "scan-remat": lambda: nnx.Scan(nnx.Remat(Layer), length=3),
        "remat-scan": lambda: nnx.Remat(nnx.Scan(Layer, length=3)),
        "vmap-scan": lambda: nnx.Vmap(nnx.Scan(Layer, length=3), axis_size=2),
        "scan-vmap": lambda: nnx.Scan(nnx.Vmap(Layer, axis_size=2, out_axes=0), length=3),
        "jit-scan": lambda: nnx.Jit(nnx.Scan(Layer, length=3)),
    }
    instance = makers[nesting]()(3, rngs=nnx.Rngs(0))
    mapped = "vmap" in nesting
    x = jnp.ones((2, 4, 3)) if mapped else jnp.ones((4, 3))
    out, _ = instance(x)
    assert out.shape == x.shape
    kernels = next(
        v.value for p, v in nnx.state(instance).flat_state().items() if p[-1] == "kernel"
    )
    assert kernels.shape == ((2, 3) if nesting == "vmap-scan" else (3, 2) if mapped else (3,)) + (
        3,
        3,
    )
    if nesting == "vmap-scan":
        kernels = jnp.swapaxes(kernels, 0, 1)
    for kernel in kernels:
        x = jnp.tanh(x @ kernel)
    np.testing.assert_allclose(out, x, atol=1e-6)


def test_metadata_of_stacked_parameters():
    def make(rngs):
        return nnx.Dict(w=nnx.Param(jnp.ones(2), sharding=("model",)))

    names = {nnx.PARTITION_NAME: "layers"}
    for kind, parameters in ((nnx.Scan, {"length": 3}), (nnx.Vmap, {"axis_size": 3})):
        stack = kind(make, transform_metadata=names, **parameters)(nnx.Rngs(0))
        module = stack.scan_module if kind is nnx.Scan else stack.vmap_module
        assert module["w"].sharding == ("layers", "model")


def test_later_spelling():
    axes = nnx.StateAxes({nnx.Param: 0, ...: nnx.Carry})
    stack = nnx.Scan(Layer, length=3, in_axes=(axes, nnx.Carry), out_axes=(nnx.Carry, 0))(
        3, rngs=nnx.Rngs(0)
    )
    assert stack.scan_module.block.kernel.shape == (3, 3, 3)
    assert stack.scan_module.block.seen.shape == (3,)
    x, _ = stack(jnp.ones((2, 3)))
    assert x.shape == (2, 3)
    assert int(stack.scan_module.block.calls.value) == 3


def test_static_argnums_count_the_module_as_argument_0():
    class Gated(nnx.Module):
        def __call__(self, x, train):
            assert train is True
            return x

    nnx.Remat(Gated, static_argnums=2)()(1.0, True)


def test_shared_argument_is_the_same_in_each_slice():
    class Head(nnx.Module):
        def __init__(self, scale, *, rngs):
            self.w = nnx.Param(jax.random.normal(rngs(), ()) * scale)

    stack = nnx.Vmap(Head, axis_size=3)(jnp.array(2.0), rngs=nnx.Rngs(0))
    expected = nnx.Vmap(Head, axis_size=3)(jnp.array(1.0), rngs=nnx.Rngs(0)).vmap_module.w.value * 2
    np.testing.assert_allclose(stack.vmap_module.w.value, expected)


def test_gradient_through_a_scanned_stack():
    stack = nnx.Scan(nnx.Remat(Layer), length=3)(3, rngs=nnx.Rngs(0))
    grads = nnx.grad(lambda m, x: m(x)[0].sum())(stack, jnp.ones((2, 3)))
    assert grads["scan_module"]["remat_module"]["block"]["kernel"].value.shape == (3, 3, 3)


def test_signatures_are_those_of_the_transforms():
    for kind, transform in ((nnx.Vmap, nnx.vmap), (nnx.Scan, nnx.scan), (nnx.Remat, nnx.remat)):
        of_class = inspect.signature(kind).parameters
        of_function = dict(list(inspect.signature(transform).parameters.items())[1:])
        assert list(of_class)[1:] == list(of_function)
        for name, parameter in of_function.items():
            expected = 1 if (kind, name) == (nnx.Scan, "carry_argnum") else parameter.default
            assert of_class[name].default == expected


def test_errors():
    with pytest.raises(ValueError, match="Pass length"):
        nnx.Scan(Layer)(3, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="Pass axis_size"):
        nnx.Vmap(Layer)(3, rngs=nnx.Rngs(0))
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        nnx.Scan(Layer, size=3)
    with pytest.raises(TypeError, match="in_axes takes ints"):
        nnx.Vmap(Layer, in_axes="x")
    with pytest.raises(TypeError, match="wraps a class or function"):
        nnx.Remat(3)


_TRANSFORMS = {"Vmap": "vmap", "Scan": "scan", "Remat": "remat", "Grad": "grad", "Jit": "jit"}


def _lifted_parameters():
    for kind, transform in _TRANSFORMS.items():
        names = list(inspect.signature(getattr(nnx, transform)).parameters)[1:]
        yield from ((kind, name) for name in names)


@pytest.mark.parametrize(("kind", "parameter"), list(_lifted_parameters()))
def test_each_parameter_reaches_the_transform(kind, parameter, monkeypatch):
    given = {}

    def record(function, **options):
        given.update(options)
        return function

    # The classes say of themselves that they are none of the plain functions.
    name = {"Vmap": "vmapped", "Scan": "scanned"}.get(kind, _TRANSFORMS[kind])
    monkeypatch.setattr(importlib.import_module("treadle.transforms._lifted"), name, record)
    # A value that no transform has as its default.
    value = {"state_axes": {nnx.Param: 3}, "transform_metadata": {"name": "x"}}.get(parameter, 7)
    lifted = getattr(nnx, kind)
    make = lifted(nnx.Linear, **{parameter: value})
    given.clear()
    lifted._transform(lambda module: None, make.options.arguments)
    assert given[parameter] == value


@pytest.mark.parametrize(
    ("kind", "parameter", "size"), [(nnx.Vmap, "axis_size", 3), (nnx.Scan, "length", 3)]
)
def test_each_parameter_of_a_stack_shapes_how_it_is_made(kind, parameter, size):
    def stack(**options):
        made = kind(Layer, **{parameter: size}, **options)(3, rngs=nnx.Rngs(0))
        return getattr(made, "vmap_module" if kind is nnx.Vmap else "scan_module")

    plain = stack().block.kernel
    assert plain.shape == (size, 3, 3)
    assert not np.allclose(plain.value[0], plain.value[1])
    assert stack(state_axes={nnx.Param: 1}).block.kernel.shape == (3, size, 3)
    shared = stack(split_rngs=False).block.kernel.value
    np.testing.assert_array_equal(shared[0], shared[1])
    assert stack(state_axes={}, split_rngs=False).block.kernel.shape == (3, 3)
    with pytest.raises(ValueError, match="kernel is broadcast, but comes back"):
        stack(state_axes={})


@pytest.mark.parametrize("order", [(1, True), (True, 1)])
def test_equal_options_of_other_types_do_not_share_a_transform(order):
    class Step(nnx.Module):
        def __init__(self, rngs):
            self.scale = nnx.Param(jnp.ones(()))

        def __call__(self, x):
            return jnp.sin(x) * self.scale, None

    def program(unroll):
        stack = nnx.Scan(Step, length=3, unroll=unroll)(nnx.Rngs(0))
        return str(jax.make_jaxpr(lambda x: stack(x)[0])(1.0))

    stacks = [program(unroll) for unroll in order]
    assert ["unroll=1\n" in stack for stack in stacks] == [unroll is not True for unroll in order]


def test_options_are_equal_if_they_mean_the_same():
    by_filter = {nnx.Param: 0, nnx.Variable: None}
    reverse = dict(reversed(by_filter.items()))
    make = nnx.Vmap(nnx.Linear, axis_size=2, in_axes=(0, {"x": 1}), state_axes=by_filter)
    again = nnx.Vmap(nnx.Linear, axis_size=2, in_axes=(0, {"x": 1}), state_axes={**by_filter})
    assert (make, hash(make)) == (again, hash(again))
    assert make != nnx.Vmap(nnx.Linear, axis_size=2, in_axes=(0, {"x": 1}), state_axes=reverse)
    one, true = ({"nested": (value,)} for value in (1, True))
    assert nnx.Vmap(Layer, transform_metadata=one) != nnx.Vmap(Layer, transform_metadata=true)
    assert nnx.Scan(Layer, length=3) != nnx.Scan(Layer, length=3, unroll=True)
    assert nnx.Jit(Layer, inline=True, keep_unused=False) == nnx.Jit(
        Layer, keep_unused=False, inline=True
    )


def test_scan_takes_the_carry_where_in_axes_has_it():
    class Adder(nnx.Module):
        def __init__(self):
            self.w = nnx.Param(jnp.ones(2))

        def __call__(self, x, carry):
            return carry + x * self.w.value.sum(), carry

    axes = nnx.StateAxes({...: None})
    total, seen = nnx.Scan(Adder, length=3, in_axes=(axes, 0, nnx.Carry))()(
        jnp.arange(3.0), jnp.zeros(())
    )
    assert float(total) == 6
    assert seen.tolist() == [0, 0, 2]
    with pytest.raises(ValueError, match="carry_argnum"):
        nnx.Scan(Adder, length=3, in_axes=(axes, 0, nnx.Carry), carry_argnum=1)()(jnp.ones(3), 0.0)
