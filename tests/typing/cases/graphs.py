"""Functions of whole graphs: the structure remembers what it is the structure of."""

from typing import reveal_type

import jax

import treadle as nnx


class Model(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.scale = nnx.Param(rngs.params())


def rebuilt(graphdef: nnx.GraphDef[Model], state: nnx.State) -> Model:
    return nnx.merge(graphdef, state)


def bare(graphdef: nnx.GraphDef, state: nnx.State) -> None:
    reveal_type(nnx.merge(graphdef, state))  # Any


def use(model: Model) -> None:
    graphdef, state = nnx.split(model)
    reveal_type(graphdef)  # GraphDef[Model]
    reveal_type(state)  # State
    reveal_type(nnx.split(model, nnx.Param))  # tuple[GraphDef[Model], State]
    reveal_type(nnx.split(model, nnx.Param, ...))  # tuple[GraphDef[Model], State, State]
    reveal_type(nnx.split(model, "a", "b", ...))  # tuple[GraphDef[Model], State, State, State]
    reveal_type(nnx.split(model, "a", "b", "c", "d", ...))  # tuple[GraphDef[Model], *tuple[State, ...]]
    reveal_type(nnx.split((model, model.scale)))  # tuple[GraphDef[tuple[Model, Param[Array]]], State]
    reveal_type(nnx.merge(graphdef, state))  # Model
    reveal_type(nnx.merge(*nnx.split(model)))  # Model
    reveal_type(nnx.merge(*nnx.split(model, nnx.Param, ...)).scale)  # Param[Array]
    reveal_type(nnx.clone(model))  # Model
    reveal_type(nnx.graphdef(model))  # GraphDef[Model]
    reveal_type(nnx.flatten(model))  # tuple[GraphDef[Model], State, RefMap]
    reveal_type(nnx.unflatten(graphdef, state))  # tuple[Model, RefMap]

    reveal_type(nnx.state(model))  # State
    reveal_type(nnx.state(model, nnx.Param))  # State
    reveal_type(nnx.state(model, nnx.Param, ...))  # tuple[State, State]
    reveal_type(nnx.state(model, "a", "b", "c", ...))  # tuple[State, ...]
    reveal_type(nnx.pop(model, nnx.Intermediate))  # State
    reveal_type(nnx.pop(model, nnx.Intermediate, nnx.Cache))  # tuple[State, State]
    reveal_type(state.filter(nnx.Param))  # State
    reveal_type(state.split(nnx.Param, ...))  # tuple[State, State]
    reveal_type(nnx.update(model, state))  # None

    with nnx.UpdateContext() as context:
        reveal_type(context.split(model))  # tuple[GraphDef[Model], State]
        reveal_type(context.merge(*context.split(model, nnx.Param, ...)))  # Model

    nnx.split()  # error: reportCallIssue // call-overload
    nnx.split(model, 1.0)  # error: reportArgumentType, reportCallIssue // call-overload
    nnx.merge(state, graphdef)  # error: reportArgumentType // arg-type
    nnx.pop(model)  # error: reportCallIssue // call-overload
    rebuilt(nnx.graphdef(model.scale), state)  # error: reportArgumentType // arg-type


def filters(x: jax.Array) -> None:
    reveal_type(nnx.All(nnx.Param, nnx.Not("frozen")))  # All
    reveal_type(nnx.to_predicate(nnx.PathContains("bias"))((), x))  # bool
