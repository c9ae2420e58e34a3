"""The same mistake is worded once: alike in every transform, with the path of what is wrong."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

import treadle as nnx


def mesh():
    return jax.sharding.Mesh(jax.devices()[:1], ("d",))


def custom(f):
    lifted = nnx.custom_vjp(f)
    lifted.defvjp(lambda *args: (f(*args), None), lambda *args: (None, None))
    return lifted


def apply_to_both(choose):
    """A transform that takes its function last, or twice, as one of (model, x)."""
    return lambda f: lambda model, x: choose(f, model, x)


def scanned(f):
    axes = {"in_axes": (nnx.StateAxes({...: None}), nnx.Carry), "out_axes": nnx.Carry}
    return nnx.scan(f, length=1, scan_output=False, **axes)


# Each makes a function of (model, x) out of one.
TRANSFORMS = {
    "jit": nnx.jit,
    "vmap": lambda f: nnx.vmap(f, in_axes=None, axis_size=2, state_axes={}),
    "pmap": lambda f: nnx.pmap(f, in_axes=None, axis_size=1, state_axes={}),
    "scan": scanned,
    "shard_map": lambda f: nnx.shard_map(f, mesh=mesh(), in_specs=P(), out_specs=P()),
    "remat": nnx.remat,
    "checkify": nnx.checkify,
    "grad": lambda f: nnx.grad(f, (0, 1)),
    "value_and_grad": lambda f: nnx.value_and_grad(f, (0, 1)),
    "jacrev": lambda f: nnx.jacrev(f, (0, 1)),
    "jacfwd": lambda f: nnx.jacfwd(f, (0, 1)),
    "vjp": apply_to_both(nnx.vjp),
    "jvp": apply_to_both(lambda f, *args: nnx.jvp(f, args, (None, None))),
    "custom_vjp": custom,
    "eval_shape": apply_to_both(nnx.eval_shape),
    "cond": apply_to_both(lambda f, *args: nnx.cond(True, f, f, *args)),
    "switch": apply_to_both(lambda f, *args: nnx.switch(0, [f, f], *args)),
}


def forward(model, x):
    return model["blocks"][1]["w"].value * x


def loop(name, model, x):
    """A loop over one value, whose path in the parameter `carry` starts differently."""

    def body(carry):
        model, x = carry
        model["blocks"][1]["w"].value += x
        return carry

    if name == "while_loop":
        return nnx.while_loop(lambda carry: False, body, (model, x))
    return nnx.fori_loop(0, 1, lambda i, carry: body(carry), (model, x))


def make(value):
    good = nnx.Dict(w=nnx.Param(jnp.array(1.0)))
    return nnx.Dict(blocks=nnx.List([good, nnx.Dict(w=nnx.Param(value))]))


def deleted():
    array = jnp.array(1.0)
    array.delete()
    return array


ALL = [*TRANSFORMS, "while_loop", "fori_loop"]
# custom_vjp differentiates what has derivatives, and leaves other state as it is.
OF_STATE = [name for name in ALL if name != "custom_vjp"]
# eval_shape looks at shapes only, which a deleted array still has.
OF_ARRAYS = [name for name in ALL if name != "eval_shape"]


def error_of(name, model, x):
    run = TRANSFORMS[name](forward) if name in TRANSFORMS else functools.partial(loop, name)
    with pytest.raises((TypeError, ValueError, RuntimeError)) as caught:
        run(model, x)
    return type(caught.value), str(caught.value)


def path(name, inner):
    if name in TRANSFORMS:
        return inner
    return inner.replace("model", "carry[0]").replace("x", "carry[1]")


# Under None it is a constant of the mapped function, which then says what it cannot do with it.
@pytest.mark.parametrize("name", [name for name in ALL if name != "pmap"])
def test_a_text_as_an_argument(name):
    kind, message = error_of(name, make(jnp.array(1.0)), "text")
    expected = f"{path(name, 'x')} is a 'str', which is not a valid JAX type. Pass an array, a "
    assert (kind, message[: len(expected)]) == (TypeError, expected)


@pytest.mark.parametrize("value", ["text", (jnp.ones(1), "text")], ids=["text", "pytree"])
@pytest.mark.parametrize("name", OF_STATE)
def test_a_text_in_a_variable(name, value):
    kind, message = error_of(name, make(value), 1.0)
    where = path(name, "model.blocks[1].w")
    part = f": {where}[1] is a 'str'" if isinstance(value, tuple) else ""
    assert (kind, message) == (
        TypeError,
        f"{where} is a {type(value).__name__!r}, which is not a valid JAX type{part}. Give the "
        "Variable an array or a scalar, and keep other values in attributes of the node itself.",
    )


@pytest.mark.parametrize("where", ["model.blocks[1].w", "x"])
@pytest.mark.parametrize("name", OF_ARRAYS)
def test_a_deleted_array(name, where):
    good = jnp.array(1.0)
    values = (good, deleted()) if where == "x" else (deleted(), good)
    kind, message = error_of(name, make(values[0]), values[1])
    assert (kind, message) == (
        RuntimeError,
        f"{path(name, where)} holds an array that has been deleted, as happens to a buffer donated "
        "to an earlier call. Keep using what that call returned or wrote back, or copy the array "
        "before donating it.",
    )


@pytest.mark.parametrize("name", ["vmap", "pmap", "scan"])
def test_mapped_sizes_that_disagree(name):
    def f(x, model):
        return x, None

    lifted = getattr(nnx, name)(f, **({"carry_argnum": 0} if name == "scan" else {}))
    model, x = make(jnp.ones(3)), jnp.ones(2)
    model["blocks"][0]["w"].value = jnp.ones(2)
    with pytest.raises(ValueError, match="sizes of mapped axes disagree") as caught:
        lifted(x, model)
    assert str(caught.value).startswith(
        f"{name} of f: sizes of mapped axes disagree: "
        + ("x" if name != "scan" else "model.blocks[0].w")
        + " has 2 along axis 0; model.blocks[1].w has 3 along axis 0. All mapped axes must have "
        "one size. "
    )


NUMBERED = {
    "grad": (lambda f: nnx.grad(f, 5), "argnums"),
    "jacrev": (lambda f: nnx.jacrev(f, 5), "argnums"),
    "remat": (lambda f: nnx.remat(f, static_argnums=5), "static_argnums"),
    "pmap": (lambda f: nnx.pmap(f, static_broadcasted_argnums=5), "static_broadcasted_argnums"),
}


@pytest.mark.parametrize("name", NUMBERED)
def test_a_position_that_no_argument_has(name):
    lift, parameter = NUMBERED[name]
    with pytest.raises(ValueError, match="out of range") as caught:
        lift(forward)(make(jnp.array(1.0)), 1.0)
    assert str(caught.value) == (
        f"{name} of forward: {parameter}=5 is out of range, the call has 2 positional arguments. "
        f"Pass that argument by position, or correct {parameter}."
    )
