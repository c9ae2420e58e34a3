"""What JAX itself says about a jitted function names the user's leaves and the user's line."""

from __future__ import annotations

import functools
import inspect
import operator
import re

import jax
import jax.numpy as jnp
import pytest

import treadle as nnx


def model():
    return nnx.Dict(w=nnx.Param(jnp.ones(2)), parts=[nnx.Dict(b=nnx.Param(jnp.zeros(3)))])


def line_of(function):
    """The place of a function as JAX writes it."""
    code = function.__code__
    return re.escape(f"{function.__name__} at {code.co_filename}:{code.co_firstlineno}")


def arguments_of(jitted, *args, **kwargs):
    return jitted.trace(*args, **kwargs).jaxpr.jaxpr.debug_info.arg_names


# -- the user's line -------------------------------------------------------------------------------


def branch(net, x):
    return x if net.w.value.sum() > 0 else -x


class Branch:
    def __call__(self, net, x):
        return branch(net, x)

    def method(self, net, x):
        return branch(net, x)


@functools.wraps(branch)
def wrapped(*args):
    return branch(*args)


@pytest.mark.parametrize(
    ("function", "source"),
    [
        (branch, branch),
        (functools.partial(branch), branch),
        (wrapped, branch),
        (nnx.jit(branch), branch),
        (Branch(), Branch.__call__),
        (Branch().method, Branch.method),
        (functools.partial(Branch().method), Branch.method),
    ],
    ids=["function", "partial", "wrapped", "jitted", "callable", "method", "partial of a method"],
)
def test_a_tracer_in_a_condition_is_told_with_the_functions_own_line(function, source):
    with pytest.raises(jax.errors.TracerBoolConversionError) as error:
        nnx.jit(function)(model(), 1.0)
    assert re.search(rf"while tracing the function {line_of(source)} for jit", str(error.value))
    assert re.search(r"the values? of the argument.* net\.w\b", str(error.value))


def test_a_leaked_tracer_is_told_with_the_functions_line_and_its_own():
    leaked = []

    def leak(net, x):
        leaked.append(net.w.value + x)
        return x

    nnx.jit(leak)(model(), 1.0)
    with pytest.raises(jax.errors.UnexpectedTracerError) as error:
        leaked[0] + 1
    message = str(error.value)
    assert re.search(rf"when the value leaked was {line_of(leak)} traced for jit", message)
    made = leak.__code__.co_firstlineno + 1
    assert f"was created on line {__file__}:{made}:" in message
    assert "treadle/transforms" not in message


@pytest.mark.parametrize("function", [jnp.sin, operator.neg, functools.partial(operator.add, 1.0)])
def test_a_function_without_code_of_its_own_is_jitted_all_the_same(function):
    x = jnp.ones(())
    assert nnx.jit(function)(x) == function(x)


def test_a_function_that_wraps_itself_is_named_by_what_jax_can_know():
    double = functools.partial(lambda x: bool(x))
    double.__wrapped__ = double
    with pytest.raises(jax.errors.TracerBoolConversionError, match="the value of the argument"):
        nnx.jit(double)(1.0)


# -- the names of arguments ------------------------------------------------------------------------


def test_leaves_are_named_in_jaxprs_and_in_lowered_programs():
    def step(net, x, *rest, scale, **more):
        net.w.value = net.w.value * x
        return rest[0]["k"] + net.parts[0].b.value.sum() + scale + more["other"]

    args = (model(), jnp.ones(2), {"k": jnp.ones(())})
    jitted = nnx.jit(step)
    names = ("net.parts[0].b", "net.w", "x", "rest[0].k", "other", "scale")
    assert arguments_of(jitted, *args, scale=1.0, other=2.0) == names
    text = jitted.lower(*args, scale=1.0, other=2.0).as_text(debug_info=True)
    for name in names:
        assert f'loc("{name}")' in text
    assert "values[" not in text


def test_arrays_in_a_leaf_that_is_a_pytree_are_named_each():
    net = nnx.Dict(seen=nnx.Intermediate((jnp.ones(1), jnp.ones(2))))
    assert arguments_of(nnx.jit(lambda net: net.seen.value[1]), net) == (
        "net.seen[0]",
        "net.seen[1]",
    )


def test_static_arguments_leave_no_gap_in_the_names():
    jitted = nnx.jit(lambda a, b, c: a + c if b else a, static_argnums=1)
    assert arguments_of(jitted, 1.0, True, 2.0) == ("a", "c")


def test_donated_leaves_are_named_by_path():
    text = nnx.jit(lambda net: net, donate_argnums=0).lower(model()).as_text(debug_info=True)
    assert 'loc("net.w")' in text


def test_a_graph_too_deep_for_names_costs_no_more_than_its_leaves():
    def chain(depth):
        net = nnx.Dict(w=nnx.Param(jnp.zeros(())))
        for _ in range(depth):
            net = nnx.Dict(w=nnx.Param(jnp.zeros(())), below=net)
        return net

    total = nnx.jit(lambda net: net.w.value)
    assert arguments_of(total, chain(3))[0] == "net.below.below.below.w"
    names = arguments_of(total, chain(400))
    assert len(names) == 401
    assert sum(map(len, names)) < 401 * 20


def test_leaves_whose_names_are_alike_are_numbered_and_nothing_is_lost():
    class Alike:
        def __repr__(self):
            return "alike"

        def __lt__(self, other):
            return id(self) < id(other)

    class Pair:
        def __init__(self, left, right):
            self.parts = left, right

    first, second = jax.tree_util.DictKey(Alike()), jax.tree_util.DictKey(Alike())
    jax.tree_util.register_pytree_with_keys(
        Pair,
        lambda pair: (((first, pair.parts[0]), (second, pair.parts[1])), None),
        lambda _, parts: Pair(*parts),
    )
    step = nnx.jit(lambda pair: pair.parts[0] - pair.parts[1])
    assert float(step(Pair(jnp.ones(()), jnp.zeros(())))) == 1.0
    names = arguments_of(step, Pair(1.0, 2.0))
    assert len({*names}) == 2


def test_the_signature_that_users_see_is_the_functions_own():
    def step(net, x, *, scale=1.0):
        return x

    assert inspect.signature(nnx.jit(step)) == inspect.signature(step)
    assert nnx.jit(step).__wrapped__ is step


# -- errors that name arguments --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda f: f(model(), 10**30), "x"),
        (lambda f: f(model(), {"k": [1.0, 10**30]}), "x.k[1]"),
        (lambda f: f(nnx.Dict(w=nnx.Param(10**30)), 1.0), "net.w"),
        (lambda f: f(model(), 1.0, n=10**30), "n"),
    ],
    ids=["argument", "container", "Variable", "keyword"],
)
def test_a_number_too_large_is_told_by_its_path(call, name):
    with pytest.raises(OverflowError, match=rf"argument path is {re.escape(name)}\."):
        call(nnx.jit(lambda net, x, n=0: n))


@pytest.mark.parametrize("value", ["abc", object()], ids=["text", "object"])
def test_a_result_that_is_no_array_is_told_by_path_and_line(value):
    def give(net):
        return net.w.value, {"a": [value]}

    kind = type(value).__name__
    told = rf"^the result\[1\]\.a\[0\] of {line_of(give)} is a '{kind}', which is not a valid JAX"
    with pytest.raises(TypeError, match=told):
        nnx.jit(give)(model())


@pytest.mark.parametrize("new", [False, True], ids=["changed", "new"])
def test_state_that_is_no_array_any_more_is_told_by_path_and_leaves_the_caller_as_it_was(new):
    def spoil(net):
        if new:
            net.extra = nnx.Param(object())
        else:
            net.w.value = object()

    net = model()
    name = r"net\.extra" if new else r"net\.w"
    with pytest.raises(TypeError, match=rf"^{name} of {line_of(spoil)} is a 'object'"):
        nnx.jit(spoil)(net)
    assert "extra" not in net
    assert net.w.value.tolist() == [1, 1]
