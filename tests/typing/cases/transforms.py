"""The other transforms keep the signature too; lifted classes, loops and branches."""

from typing import Any, reveal_type

import jax
from jax.sharding import PartitionSpec

import treadle as nnx


class Model(nnx.Module):
    def __init__(self, size: int, *, rngs: nnx.Rngs) -> None:
        self.linear = nnx.Linear(size, size, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.linear(x)

    @nnx.vmap
    def mapped(self, x: jax.Array) -> jax.Array:
        return self(x)

    @nnx.remat(static_argnums=2)
    def again(self, x: jax.Array, training: bool) -> jax.Array:
        return self(x)

    @nnx.checkify
    def checked(self, x: jax.Array) -> jax.Array:
        return self(x)

    @nnx.custom_vjp
    def ruled(self, x: jax.Array) -> jax.Array:
        return self(x)


def step(carry: jax.Array, model: Model) -> tuple[jax.Array, int]:
    return model(carry), 1


def apply(model: Model, x: jax.Array) -> jax.Array:
    return model(x)


@nnx.split_rngs(splits=2)
@nnx.vmap(in_axes=(0, None), axis_size=2)
def make(rngs: nnx.Rngs, size: int) -> Model:
    return Model(size, rngs=rngs)


def use(model: Model, x: jax.Array, mesh: Any, spec: PartitionSpec, shape: jax.ShapeDtypeStruct) -> None:
    reveal_type(nnx.vmap(apply, in_axes=(None, 0)))  # (model: Model, x: Array) -> Array
    reveal_type(nnx.vmap(apply)(model, x))  # Array
    reveal_type(nnx.vmap(model))  # (x: Array) -> Array
    reveal_type(nnx.vmap(nnx.jit(apply)))  # (model: Model, x: Array) -> Array
    reveal_type(make)  # (rngs: Rngs, size: int) -> Model
    reveal_type(nnx.scan(step, length=3))  # (carry: Array, model: Model) -> tuple[Array, int]
    reveal_type(nnx.remat(apply))  # (model: Model, x: Array) -> Array
    reveal_type(nnx.pmap(apply, axis_name="i"))  # (model: Model, x: Array) -> Array
    reveal_type(nnx.shard_map(apply, mesh=mesh, in_specs=spec, out_specs=spec))  # (model: Model, x: Array) -> Array
    reveal_type(nnx.shard_map(in_specs=spec, out_specs=spec)(apply)(model, x))  # Array
    reveal_type(nnx.checkify(apply))  # (model: Model, x: Array) -> tuple[Error, Array]
    reveal_type(nnx.custom_vjp(apply))  # CustomVjp[(model: Model, x: Array), Array]
    reveal_type(nnx.custom_vjp(wrt=nnx.Param)(apply)(model, x))  # Array

    reveal_type(model.mapped)  # (x: Array) -> Array
    reveal_type(model.again(x, True))  # Array
    reveal_type(model.checked(x))  # tuple[Error, Array]
    reveal_type(model.ruled)  # (x: Array) -> Array
    model.mapped(model)  # error: reportArgumentType // arg-type
    model.ruled("x")  # error: reportArgumentType // arg-type

    nnx.vmap(apply, in_axis=0)  # error: reportCallIssue // call-overload
    nnx.vmap(apply, axis_size="2")  # error: reportArgumentType // call-overload
    nnx.scan(unrol=2)  # error: reportCallIssue // call-overload
    nnx.remat(apply, prevent_cse="no")  # error: reportArgumentType // call-overload
    nnx.pmap(apply, axes=1)  # error: reportCallIssue // call-overload
    nnx.shard_map(apply, in_specs=spec)  # error: reportCallIssue // call-overload
    nnx.checkify(apply, error=1)  # error: reportCallIssue // call-overload
    nnx.custom_vjp(apply, wrt=1.0)  # error: reportArgumentType // call-overload
    nnx.vmap(apply)(model)  # error: reportCallIssue // call-arg
    make(model, 3)  # error: reportArgumentType // arg-type
    nnx.split_rngs(split=3)  # error: reportCallIssue // call-overload

    reveal_type(nnx.split_rngs(model, splits=2))  # SplitBackups
    reveal_type(nnx.eval_shape(lambda: Model(2, rngs=nnx.Rngs(0))))  # Model
    reveal_type(nnx.eval_shape(apply, model, shape))  # Array


def control(model: Model, x: jax.Array, n: jax.Array) -> None:
    def grow(model: Model, x: jax.Array) -> jax.Array:
        return x + 1

    reveal_type(nnx.cond(n > 0, apply, grow, model, x))  # Array
    reveal_type(nnx.switch(n, [apply, grow], model, x))  # Array
    reveal_type(nnx.fori_loop(0, n, lambda i, x: x + 1, x))  # Array
    reveal_type(nnx.while_loop(lambda pair: True, lambda pair: pair, (model, x)))  # tuple[Model, Array]
    nnx.cond(n > 0, apply, grow, model)  # error: reportArgumentType // arg-type, arg-type
    nnx.switch(n, apply, model, x)  # error: reportArgumentType // arg-type
    nnx.while_loop(lambda x: True, apply, x)  # error: reportArgumentType // arg-type


def lifted(x: jax.Array) -> None:
    # mypy looks at no `__call__` of a metaclass.
    make = nnx.Scan(Model, length=5)
    reveal_type(make)  # LiftedConstructor[(size: int, *, rngs: Rngs), Scan] // Scan
    reveal_type(make(3, rngs=nnx.Rngs(0)))  # Scan // Any
    reveal_type(nnx.Vmap(Model, axis_size=5)(3, rngs=nnx.Rngs(0)))  # Vmap // Any
    reveal_type(nnx.Remat(Model)(3, rngs=nnx.Rngs(0)))  # Remat // Any
    reveal_type(nnx.Jit(Model)(3, rngs=nnx.Rngs(0)))  # Jit // Any
    reveal_type(nnx.Grad(Model)(3, rngs=nnx.Rngs(0)))  # Grad // Any
    make("3", rngs=nnx.Rngs(0))  # error: reportArgumentType // -
    make(3)  # error: reportCallIssue // -
    nnx.Vmap(3)  # error: reportArgumentType // arg-type
