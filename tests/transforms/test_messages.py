"""What goes wrong with an argument is said with the name that the function's author gave it."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P

import treadle as nnx

MESH = AbstractMesh((4,), ("d",), axis_types=(AxisType.Auto,))


def one_device():
    return jax.sharding.Mesh(jax.devices()[:1], ("d",))


def custom(f):
    lifted = nnx.custom_vjp(f)
    lifted.defvjp(lambda *args: (f(*args), None), lambda *args: (None, None))
    return lifted


# Each makes a function of (x, net) out of one.
TRANSFORMS = {
    "jit": nnx.jit,
    "grad": nnx.grad,
    "value_and_grad": nnx.value_and_grad,
    "vmap": lambda f: nnx.vmap(f, in_axes=None, axis_size=2, state_axes={}),
    "pmap": lambda f: nnx.pmap(f, in_axes=None, axis_size=1, state_axes={}),
    "scan": lambda f: nnx.scan(f, in_axes=None, length=2, state_axes={}, scan_output=False),
    "remat": nnx.remat,
    "checkify": nnx.checkify,
    "custom_vjp": custom,
    "shard_map": lambda f: nnx.shard_map(f, mesh=one_device(), in_specs=P(), out_specs=P()),
    "vjp": lambda f: lambda x, net: nnx.vjp(f, x, net),
    "jvp": lambda f: lambda x, net: nnx.jvp(f, (x, net), (None, None)),
    "eval_shape": lambda f: lambda x, net: nnx.eval_shape(f, x, net),
    "cond": lambda f: lambda x, net: nnx.cond(True, f, f, x, net),
    "switch": lambda f: lambda x, net: nnx.switch(0, [f, f], x, net),
}

# Those that hand each leaf to JAX as it is. The others look at it before, or let JAX have it later.
PLAIN = ["jit", "pmap", "remat", "shard_map", "eval_shape", "cond", "switch"]


def keep(x, net):
    return x


@pytest.mark.parametrize("name", TRANSFORMS)
def test_an_unhashable_static_is_named_by_the_parameter(name):
    net = nnx.Dict(w=nnx.Param(jnp.ones(2)))
    net["s"] = bytearray(b"x")
    with pytest.raises(nnx.StaticError, match=r"^net\.s holds a static value of type 'bytearray'"):
        TRANSFORMS[name](keep)(1.0, net)


@pytest.mark.parametrize("name", ["jit", "grad", "vmap", "remat", "cond"])
def test_an_unhashable_static_made_inside_is_named_too(name):
    def store(x, net):
        net["s"] = bytearray(b"x")
        return x

    net = nnx.Dict(w=nnx.Param(jnp.ones(2)))
    with pytest.raises(nnx.StaticError, match=r"^net\.s holds a static value"):
        TRANSFORMS[name](store)(1.0, net)
    assert "s" not in vars(net)


@pytest.mark.parametrize("name", ["jit", "remat", "eval_shape", "cond"])
def test_an_unhashable_static_in_the_result_is_named_too(name):
    def make(x, net):
        return x, nnx.Dict(s=bytearray(b"x"))

    with pytest.raises(nnx.StaticError, match=r"^the result\[1\]\.s holds a static value"):
        TRANSFORMS[name](make)(1.0, nnx.Dict())


@pytest.mark.parametrize("loop", ["while_loop", "fori_loop"])
def test_loops_name_the_parameter_of_the_body(loop):
    net = nnx.Dict(w=nnx.Param("text"))

    def run():
        if loop == "while_loop":
            return nnx.while_loop(lambda c: False, lambda net: net, net)
        return nnx.fori_loop(0, 1, lambda i, net: net, net)

    with pytest.raises(TypeError, match=r"^net\.w is a 'str', which is not a valid JAX type"):
        run()
    net["s"] = bytearray(b"x")
    with pytest.raises(nnx.StaticError, match=r"^net\.s holds a static value"):
        run()


@pytest.mark.parametrize("value", ["text", object(), (jnp.ones(1), "text")], ids=type)
@pytest.mark.parametrize("name", PLAIN)
def test_a_variable_that_holds_no_array_is_named(name, value):
    net = nnx.Dict(w=nnx.Param(value))
    message = rf"^net\.w is a '{type(value).__name__}', which is not a valid JAX type"
    with pytest.raises(TypeError, match=message):
        TRANSFORMS[name](keep)(1.0, net)


@pytest.mark.parametrize("name", ["cond", "switch", "while_loop", "fori_loop"])
def test_a_variable_that_holds_no_array_is_named_inside_a_trace(name):
    other = nnx.Dict(w=nnx.Param("text"))

    def body(net):
        return net

    calls = {
        "cond": lambda x: nnx.cond(x > 0, body, body, other),
        "switch": lambda x: nnx.switch(x, [body, body], other),
        "while_loop": lambda x: nnx.while_loop(lambda net: x > 0, body, other),
        "fori_loop": lambda x: nnx.fori_loop(0, x, lambda i, net: net, other),
    }
    with pytest.raises(TypeError, match=r"^net\.w is a 'str'.*Give the Variable an array"):
        nnx.jit(calls[name])(1)


@pytest.mark.parametrize("name", ["remat", "shard_map", "eval_shape", "cond"])
def test_an_argument_that_is_no_array_is_named(name):
    with pytest.raises(TypeError, match=r"^x is a 'str', which is not a valid JAX type"):
        TRANSFORMS[name](keep)("text", nnx.Dict())


def test_a_functions_own_type_error_is_left_alone():
    def broken(x, net):
        raise TypeError("mine")

    for name in PLAIN:
        with pytest.raises(TypeError, match=r"^mine"):
            TRANSFORMS[name](broken)(1.0, nnx.Dict(w=nnx.Param(jnp.ones(1))))


# -- shard_map -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "spec", "message"),
    [
        (jnp.ones(7), P("d"), r"m\.w, float32\[7\] under .* has 7 along axis 0, .* of 4 devices"),
        (jnp.ones(()), P("d"), r"m\.w, float32\[\] under .* has 0 axes where .* describes 1"),
        (jnp.ones(8), P("e"), r"m\.w, .* split over 'e', but the axes to split over are 'd'"),
        ((jnp.ones(8), jnp.ones(7)), P("d"), r"m\.w\[1\], float32\[7\] under .* has 7"),
    ],
)
def test_specs_that_do_not_fit_name_the_variable(value, spec, message):
    m = nnx.Dict(w=nnx.Param(value))
    half = nnx.shard_map(lambda m: None, mesh=MESH, in_specs=spec, out_specs=P())
    with pytest.raises(ValueError, match=message) as caught:
        nnx.eval_shape(half, m)
    assert "shard_map" in str(caught.value.__cause__)
    assert "_ShardBody" not in str(caught.value)


def test_statistics_that_differ_between_devices_are_named_with_the_remedy():
    norm = nnx.BatchNorm(3, rngs=nnx.Rngs(0))
    apply = nnx.shard_map(
        lambda norm, x: norm(x), mesh=MESH, in_specs=(P(), P("d")), out_specs=P("d")
    )
    before = norm.mean.value
    message = (
        r"axis 'd', .*: norm\.mean under P\w*\(\); norm\.var under P\w*\(\)\. .*pmean\(value, 'd'\)"
    )
    with pytest.raises(ValueError, match=message) as caught:
        nnx.eval_shape(apply, norm, jnp.ones((8, 3)))
    assert "out_specs" in str(caught.value.__cause__)
    assert norm.mean.value is before


def test_a_result_that_differs_between_devices_is_named_eagerly_too():
    apply = nnx.shard_map(lambda x: {"y": x}, mesh=one_device(), in_specs=P("d"), out_specs=P())
    for run in (apply, nnx.jit(apply)):
        with pytest.raises(ValueError, match=r"the result\.y under P\w*\(\)"):
            run(jnp.ones(4))


def test_a_value_error_of_the_functions_own_is_left_alone():
    def broken(x):
        raise ValueError("mine")

    apply = nnx.shard_map(broken, mesh=MESH, in_specs=P("d"), out_specs=P())
    with pytest.raises(ValueError, match=r"^mine"):
        nnx.eval_shape(apply, jnp.ones(8))
    with pytest.raises(ValueError, match="context mesh"):
        nnx.shard_map(lambda x: x, in_specs=P("d"), out_specs=P("d"))(jnp.ones(8))


# -- branches --------------------------------------------------------------------------------------


def pair():
    return nnx.Dict(a=nnx.Param(jnp.ones(2)), b=nnx.Param(jnp.zeros(2)))


def swap(m):
    m["a"], m["b"] = m["b"], m["a"]


def alias(m):
    m["b"] = m["a"]


def nothing(m):
    return None


def point(name):
    def store(m):
        m["c"] = m[name]

    return store


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        (lambda m: m["a"], lambda m: m["b"], r"leave the result with .* objects: m\.a and m\.b\."),
        (
            lambda m: (1.0, [m["b"]]),
            lambda m: (1.0, [m["a"]]),
            r"leave the result\[1\]\[0\] with different objects: m\.b and m\.a\.",
        ),
        (swap, nothing, r"leave what was m\.a at different places: m\.b and m\.a\."),
        (nothing, swap, r"leave what was m\.a at different places: m\.a and m\.b\."),
        (alias, nothing, r"leave m\.b with different objects: m\.a and m\.b\."),
        (point("a"), point("b"), r"leave m\.c with different objects: m\.a and m\.b\."),
    ],
)
@pytest.mark.parametrize("jitted", [False, True])
def test_branches_over_different_objects_name_them(one, other, message, jitted):
    m = pair()
    a, b = m["a"], m["b"]

    def run(m):
        return nnx.cond(jnp.array(False), one, other, m)

    with pytest.raises(TypeError, match=message):
        (nnx.jit(run) if jitted else run)(m)
    assert m["a"] is a
    assert m["b"] is b


@pytest.mark.parametrize("jitted", [False, True])
@pytest.mark.parametrize(
    ("one", "other", "shown"),
    [
        (1, 2.5, ("int32[]", "float32[]")),
        (1, jnp.float32(2), ("int32[]", "float32[]")),
        (True, 1, ("bool[]", "int32[]")),
        (1.0, jnp.ones(2), ("float32[]", "float32[2]")),
    ],
)
def test_branches_of_different_types_are_treadle_s_error_in_both_orders(one, other, shown, jitted):
    for first, second, types in ((one, other, shown), (other, one, shown[::-1])):

        def run(p, first=first, second=second):
            return nnx.cond(p, lambda: first, lambda: second)

        message = (
            f"give the result different types: {types[0]} and {types[1]}. Convert one of them."
        )
        with pytest.raises(TypeError, match=re.escape(message)):
            (nnx.jit(run) if jitted else run)(True)


@pytest.mark.parametrize("number", [2.5, jnp.float32(2.5)])
def test_numbers_that_jax_takes_for_one_type_are_no_difference(number):
    for one, other in ((1.0, number), (number, 1.0)):
        assert float(nnx.cond(True, lambda one=one: one, lambda other=other: other)) == one
