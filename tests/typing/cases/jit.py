"""jit: the signature stays, as a function, as a method, of a callable module; options are checked."""

from typing import reveal_type

import jax

import treadle as nnx


class Model(nnx.Module):
    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, x: jax.Array, times: int = 1) -> jax.Array:
        return x * times

    @nnx.jit
    def step(self, x: jax.Array, times: int = 1) -> jax.Array:
        return self(x, times)

    @nnx.jit(static_argnames="times")
    def static(self, x: jax.Array, *, times: int) -> tuple[jax.Array, int]:
        return self(x, times), times


class Traced(nnx.Module):
    @nnx.jit  # error: - // misc
    def __init__(self, size: int) -> None:
        self.size = size


@nnx.jit
def forward(model: Model, x: jax.Array, *, scale: float = 1.0) -> jax.Array:
    return model(x) * scale


@nnx.jit(donate_state=True)
def train(model: Model, x: jax.Array) -> None:
    model.size = x.size


def use(model: Model, x: jax.Array, shape: jax.ShapeDtypeStruct) -> None:
    reveal_type(forward)  # JitWrapped[(model: Model, x: Array, *, scale: float =), Array]
    reveal_type(forward(model, x))  # Array
    reveal_type(train)  # JitWrapped[(model: Model, x: Array), None]
    forward(model)  # error: reportCallIssue // call-arg
    forward(model, x, sale=2.0)  # error: reportCallIssue // call-arg
    forward(model, "x")  # error: reportArgumentType // arg-type
    forward(x, x)  # error: reportArgumentType // arg-type

    reveal_type(model.step)  # _JitMethod[(x: Array, times: int =), Array]
    reveal_type(model.step(x, times=2))  # Array
    reveal_type(model.static(x, times=2))  # tuple[Array, int]
    reveal_type(Model.step(model, x))  # Array
    model.step(x, "2")  # error: reportArgumentType // arg-type
    model.static(x, 2)  # error: reportCallIssue // call-arg

    reveal_type(nnx.jit(model))  # JitWrapped[(x: Array, times: int =), Array]
    reveal_type(nnx.jit(model)(x))  # Array
    reveal_type(nnx.jit(Model)(3))  # Model
    reveal_type(nnx.jit(nnx.Linear)(2, 3, rngs=nnx.Rngs(0)))  # Linear
    reveal_type(Traced(3))  # Traced // Any

    reveal_type(forward.num_traces)  # int
    reveal_type(forward.retraces)  # tuple[Retrace, ...]
    reveal_type(forward.lower(model, x))  # Lowered[Array]
    reveal_type(forward.lower(model, x).compile()(model, x))  # Array
    reveal_type(forward.trace(model, x))  # Traced[Array]
    reveal_type(forward.eval_shape(model, shape))  # Array
    forward.clear_cache()
    reveal_type(forward.__wrapped__(model, x))  # Array
    reveal_type(model.step.num_traces)  # int
    forward.num_trace  # error: reportAttributeAccessIssue, reportUnknownMemberType // attr-defined

    nnx.jit(forward, bogus=1)  # error: reportCallIssue // call-overload
    nnx.jit(bogus=1)  # error: reportCallIssue // call-overload
    nnx.jit(donate_state=3)  # error: reportArgumentType // call-overload
    nnx.jit(forward, static_argnums="x")  # error: reportArgumentType // arg-type
    nnx.jit(3)  # error: reportArgumentType // call-overload

    bound = nnx.cached_partial(forward, model)
    reveal_type(bound)  # (x: Array, *, scale: float =) -> Array
    reveal_type(bound(x))  # Array
    reveal_type(nnx.cached_partial(forward, model, x)())  # Array
    nnx.cached_partial(forward, x)  # error: reportArgumentType // misc
    bound("x")  # error: reportArgumentType // arg-type

    reveal_type(nnx.max_traces(1)(forward))  # JitWrapped[(model: Model, x: Array, *, scale: float =), Array]
    reveal_type(nnx.profile(forward, model, x))  # Profile
