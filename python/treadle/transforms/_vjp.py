"""vjp and jvp over graph nodes."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, Literal, TypeVar, TypeVarTuple, overload

import jax

from treadle._graph.filters import Filter
from treadle._public import publish
from treadle.transforms._arguments import Function, function_name
from treadle.transforms._call import Call
from treadle.transforms._differentiated import (
    Differentiated,
    DifferentiatedBody,
    check_reduce_axes,
)
from treadle.transforms._driver import apply
from treadle.transforms._selection import PARAMETERS, Selection
from treadle.transforms._tangents import scatter

__all__ = ["jvp", "vjp"]

R = TypeVar("R")
Aux = TypeVar("Aux")
Ts = TypeVarTuple("Ts")


class _Vjp(Differentiated):
    def run(self, call: Call, inputs: Selection, body: DifferentiatedBody) -> Any:
        out, flat_pull_back, tail = jax.vjp(body, inputs.values(), has_aux=True)

        def pull_back(cotangent: Any) -> tuple[Any, ...]:
            (gradients,) = flat_pull_back(cotangent)
            return self.gathered(inputs, gradients)

        return (out, pull_back), tail

    def result(self, call: Call, inputs: Selection, besides: Any, result: Any) -> Any:
        return (*besides, result) if self.has_aux else besides


class _Jvp(_Vjp):
    def __init__(self, wrt: Filter, has_aux: bool, tangents: tuple[Any, ...]) -> None:
        super().__init__("jvp", wrt, has_aux=has_aux, allow_int=True)
        self.tangents = tangents

    def run(self, call: Call, inputs: Selection, body: DifferentiatedBody) -> Any:
        values = inputs.values()
        tangents = scatter(inputs, self.tangents, values, "tangents", add_up=False)
        out, out_tangent, tail = jax.jvp(body, (values,), (tangents,), has_aux=True)
        return (out, out_tangent), tail


@overload
def vjp(
    f: Callable[[*Ts], R],
    *primals: *Ts,
    has_aux: Literal[False] = False,
    reduce_axes: Sequence[Hashable] = (),
    wrt: Filter = PARAMETERS,
) -> tuple[R, Callable[[R], tuple[Any, ...]]]: ...
@overload
def vjp(
    f: Callable[[*Ts], tuple[R, Aux]],
    *primals: *Ts,
    has_aux: Literal[True],
    reduce_axes: Sequence[Hashable] = (),
    wrt: Filter = PARAMETERS,
) -> tuple[R, Callable[[R], tuple[Any, ...]], Aux]: ...
def vjp(
    f: Function,
    *primals: Any,
    has_aux: bool = False,
    reduce_axes: Sequence[Hashable] = (),
    wrt: Filter = PARAMETERS,
) -> Any:
    """Run `f` and return its result with the function that pulls cotangents back through it.

    Args:
        f: function of `primals`, which may be or contain graph nodes. Its changes to them reach the
            caller's objects; its result holds arrays only.
        *primals: the arguments.
        has_aux: `f` returns ``(out, aux)``.
        reduce_axes: must be empty, as for `grad`.
        wrt: filter that selects the differentiated leaves of nodes; Params unless given. Without it
            an argument that is itself a Variable is differentiated whatever its type.

    Returns:
        ``(out, pull_back)``, or ``(out, pull_back, aux)`` with `has_aux`. ``pull_back(cotangent)``
        returns a tuple with one entry per primal: a State for a node.

    Raises:
        TypeError: the result of `f` holds nodes, or a selected leaf has no gradient.

    >>> import jax.numpy as jnp
    >>> import treadle as nnx
    >>> model = nnx.Dict(w=nnx.Param(jnp.array(3.0)))
    >>> out, pull_back = nnx.vjp(lambda m, x: m["w"] * x, model, jnp.array(2.0))
    >>> of_model, of_x = pull_back(jnp.array(1.0))
    >>> float(out), float(of_model["w"].value), float(of_x)
    (6.0, 2.0, 3.0)
    """
    check_reduce_axes("vjp", reduce_axes)
    return apply(_Vjp("vjp", wrt, has_aux=has_aux, allow_int=True), f, primals, {})


@overload
def jvp(
    f: Callable[[*Ts], R],
    primals: tuple[*Ts],
    tangents: Sequence[Any],
    *,
    has_aux: Literal[False] = False,
    wrt: Filter = PARAMETERS,
) -> tuple[R, R]: ...
@overload
def jvp(
    f: Callable[[*Ts], tuple[R, Aux]],
    primals: tuple[*Ts],
    tangents: Sequence[Any],
    *,
    has_aux: Literal[True],
    wrt: Filter = PARAMETERS,
) -> tuple[R, R, Aux]: ...
@overload
def jvp(
    f: Callable[..., Any],
    primals: Sequence[Any],
    tangents: Sequence[Any],
    *,
    has_aux: bool = False,
    wrt: Filter = PARAMETERS,
) -> tuple[Any, ...]: ...
def jvp(
    f: Function,
    primals: Sequence[Any],
    tangents: Sequence[Any],
    *,
    has_aux: bool = False,
    wrt: Filter = PARAMETERS,
) -> Any:
    """Run `f` and push tangents forward through it.

    Args:
        f: function of `primals`, which may be or contain graph nodes. Its changes to them reach the
            caller's objects; its result holds arrays only.
        primals: the arguments.
        tangents: one per primal, of its structure, shapes and dtypes; for a node a State (or nested
            dict) with tangents of leaves that `wrt` selects. Leaves without an entry, and None,
            count as zero. A Variable that several primals hold has one tangent: it is given in one
            place, or as the same object in each.
        has_aux: `f` returns ``(out, aux)``.
        wrt: filter that selects the leaves of nodes that may have tangents.

    Returns:
        ``(out, out_tangent)``, or ``(out, out_tangent, aux)`` with `has_aux`.

    Raises:
        ValueError: `tangents` does not fit `primals`, or has two entries for one Variable.
        TypeError: a tangent is of another dtype than its primal, or the result of `f` holds nodes.

    >>> import jax.numpy as jnp
    >>> import treadle as nnx
    >>> model = nnx.Dict(w=nnx.Param(jnp.array(3.0)))
    >>> out, tangent = nnx.jvp(
    ...     lambda m, x: m["w"] * x,
    ...     (model, jnp.array(2.0)),
    ...     ({"w": jnp.array(1.0)}, jnp.array(0.0)),
    ... )
    >>> float(out), float(tangent)
    (6.0, 2.0)
    """
    primals, tangents = tuple(primals), tuple(tangents)
    if len(primals) != len(tangents):
        raise ValueError(
            f"jvp of {function_name(f)}: needs one tangent per primal, got {len(primals)} primals "
            f"and {len(tangents)} tangents."
        )
    return apply(_Jvp(wrt, has_aux, tangents), f, primals, {})


publish(__all__, globals())
