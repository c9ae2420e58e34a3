"""grad and value_and_grad give what they give; vjp and jvp."""

from typing import Any, reveal_type

import jax

import treadle as nnx


class Model(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.scale = nnx.Param(rngs.params())

    @nnx.value_and_grad
    def loss(self, x: jax.Array) -> jax.Array:
        return (self.scale * x).sum()

    @nnx.grad(has_aux=True)
    def loss_and_aux(self, x: jax.Array) -> tuple[jax.Array, str]:
        return x, ""


def loss(model: Model, x: jax.Array, *, rate: float = 0.1) -> jax.Array:
    return (model.scale * x).sum() * rate


def with_aux(model: Model, x: jax.Array) -> tuple[jax.Array, str]:
    return x, ""


def of_array(x: jax.Array) -> jax.Array:
    return x


def of_dict(x: dict[str, jax.Array], n: int) -> jax.Array:
    return x["a"]


def of_containers(a: nnx.List[nnx.Param[jax.Array]], b: nnx.Dict[jax.Array]) -> jax.Array:
    return b["b"]


def of_number(x: float) -> jax.Array:
    raise NotImplementedError


def of_anything(x: Any) -> jax.Array:
    raise NotImplementedError


@nnx.value_and_grad(has_aux=True, wrt=nnx.Param)
def decorated(model: Model, x: jax.Array) -> tuple[jax.Array, dict[str, int]]:
    return x, {}


def use(model: Model, x: jax.Array, flag: bool) -> None:
    reveal_type(nnx.grad(loss)(model, x))  # State
    reveal_type(nnx.grad(loss)(model, x, rate=0.5))  # State
    reveal_type(nnx.grad(of_array)(x))  # Array
    reveal_type(nnx.grad(of_dict)({"a": x}, 1))  # dict[str, Array]
    reveal_type(nnx.grad(of_number)(1.0))  # Any
    reveal_type(nnx.grad(of_anything)(x))  # Any // Array
    reveal_type(nnx.grad(of_containers)(nnx.List([model.scale]), nnx.Dict(b=x)))  # State
    reveal_type(nnx.grad(loss, argnums=1)(model, x))  # Array
    reveal_type(nnx.grad(of_containers, 1)(nnx.List([model.scale]), nnx.Dict(b=x)))  # State
    reveal_type(nnx.grad(loss, argnums=(0, 1))(model, x))  # tuple[State, Array]
    reveal_type(nnx.grad(with_aux, has_aux=True)(model, x))  # tuple[State, str]
    reveal_type(nnx.grad(with_aux, argnums=(0, 1), has_aux=True)(model, x))  # tuple[tuple[State, Array], str]
    reveal_type(nnx.grad(loss, argnums=nnx.DiffState(0, nnx.Param))(model, x))  # Any
    reveal_type(nnx.grad(loss, has_aux=flag)(model, x))  # Any

    reveal_type(nnx.value_and_grad(loss)(model, x))  # tuple[Array, State]
    reveal_type(nnx.value_and_grad(of_array)(x))  # tuple[Array, Array]
    reveal_type(nnx.value_and_grad(with_aux, has_aux=True)(model, x))  # tuple[tuple[Array, str], State]
    reveal_type(nnx.value_and_grad(loss, argnums=(0, 1))(model, x))  # tuple[Array, tuple[State, Array]]
    reveal_type(decorated(model, x))  # tuple[tuple[Array, dict[str, int]], State]
    reveal_type(nnx.vmap(nnx.grad(of_array))(x))  # Array
    # mypy takes the first overload of a callable, that for arrays.
    gradient = nnx.jit(nnx.grad(loss))
    reveal_type(gradient(model, x))  # State // error: type-var

    reveal_type(model.loss)  # (x: Array) -> tuple[Array, State]
    reveal_type(model.loss(x))  # tuple[Array, State]
    reveal_type(model.loss_and_aux(x))  # tuple[State, str]

    nnx.grad(loss, bogus=1)  # error: reportCallIssue // call-overload
    nnx.grad(loss, wrt=3.0)  # error: reportArgumentType, reportCallIssue // call-overload
    nnx.value_and_grad(has_ax=True)  # error: reportCallIssue // call-overload
    # mypy does not bind the first argument to the function's.
    nnx.grad(loss)(x, x)  # error: reportArgumentType, reportCallIssue // -
    nnx.grad(loss)(model)  # error: reportCallIssue // call-overload
    nnx.value_and_grad(loss)(model, x, rat=0.5)  # error: reportCallIssue // call-overload

    out, pull_back = nnx.vjp(of_array, x)
    reveal_type(out)  # Array
    reveal_type(pull_back(x))  # tuple[Any, ...]
    reveal_type(nnx.vjp(with_aux, model, x, has_aux=True)[2])  # str
    reveal_type(nnx.jvp(of_array, (x,), (x,)))  # tuple[Array, Array]
    reveal_type(nnx.jacrev(of_array))  # (x: Array) -> Any
    reveal_type(nnx.jacfwd(argnums=1)(loss))  # (model: Model, x: Array, *, rate: float =) -> Any
    nnx.jacrev(loss, argnum=1)  # error: reportCallIssue // call-overload
    reveal_type(nnx.jvp(with_aux, (model, x), ({}, x), has_aux=True))  # tuple[Array, Array, str]
