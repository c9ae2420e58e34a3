"""grad and value_and_grad over graph nodes."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import jax

from treadle._graph.filters import Filter
from treadle._public import publish
from treadle.transforms._arguments import Function
from treadle.transforms._call import Call
from treadle.transforms._decorator import grad_transform, value_and_grad_transform
from treadle.transforms._differentiated import (
    Differentiated,
    DifferentiatedBody,
    check_reduce_axes,
    refuse_init,
    split_loss,
)
from treadle.transforms._driver import lift
from treadle.transforms._selection import PARAMETERS, Argnums, Selection

__all__ = ["grad", "value_and_grad"]


class _ValueAndGrad(Differentiated):
    split = staticmethod(split_loss)

    def run(self, call: Call, inputs: Selection, body: DifferentiatedBody) -> Any:
        differentiated = jax.value_and_grad(body, has_aux=True, **self.options)
        (loss, tail), gradients = differentiated(inputs.values())
        return (loss, self.gathered(inputs, gradients)), tail

    def result(self, call: Call, inputs: Selection, besides: Any, result: Any) -> Any:
        loss, gradients = besides
        return ((loss, result) if self.has_aux else loss), gradients


class _Grad(_ValueAndGrad):
    def result(self, call: Call, inputs: Selection, besides: Any, result: Any) -> Any:
        _, gradients = besides
        return (gradients, result) if self.has_aux else gradients


@grad_transform
def grad(
    f: Function,
    argnums: Argnums = 0,
    has_aux: bool = False,
    holomorphic: bool = False,
    allow_int: bool = False,
    reduce_axes: Sequence[Hashable] | None = (),
    *,
    wrt: Filter = PARAMETERS,
) -> Function:
    """A function that computes the gradient of `f`, whose arguments may be or contain graph nodes.

    The gradient of a node is a `State` with just the leaves that `wrt` selects, as `VariableState`
    of the Variable's type and metadata. A Variable that is reachable in several ways is
    differentiated once and its gradient is the sum over its uses. Other arguments have the
    gradients that `jax.grad` gives them. Whatever `f` changes in its arguments (batch statistics,
    RNG counts, the differentiated Variables too) reaches the caller's objects.

    Args:
        f: function to differentiate; returns a scalar (shape ``()``), floating-point unless
            `holomorphic`.
        argnums: position or positions of the arguments to differentiate. Several positions give a
            tuple of gradients. An entry ``DiffState(position, filter)`` selects the argument's
            leaves by its own filter instead of `wrt`.
        has_aux: `f` returns ``(loss, aux)``; then the result is ``(gradients, aux)``.
        holomorphic: `f` is holomorphic; inputs and output are complex.
        allow_int: allow integer inputs; their gradients have dtype ``float0``.
        reduce_axes: must be empty or None: JAX no longer sums gradients over named axes by itself.
        wrt: filter that selects the differentiated leaves of nodes; Params unless given. Without it
            an argument that is itself a Variable is differentiated whatever its type.

    Returns:
        A function with the arguments of `f` that returns the gradients.

    Raises:
        TypeError: the loss is not a scalar, or a selected leaf has no gradient; `f` is an ``__init__``.
        ValueError: `argnums` is out of range, or `reduce_axes` is not empty.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> import treadle as nnx
    >>> m = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    >>> x = jnp.ones((1, 2))
    >>> y = jnp.ones((1, 3))
    >>> loss_fn = lambda m, x, y: jnp.mean((m(x) - y) ** 2)
    >>> grad_fn = nnx.grad(loss_fn, wrt=nnx.Param)
    >>> grads = grad_fn(m, x, y)
    >>> jax.tree_util.tree_map(jnp.shape, grads)
    State({
      'bias': VariableState(
        type=Param,
        value=(3,)
      ),
      'kernel': VariableState(
        type=Param,
        value=(2, 3)
      )
    })
    """
    refuse_init("grad", f)
    check_reduce_axes("grad", reduce_axes)
    rule = _Grad(
        "grad",
        wrt,
        argnums,
        has_aux=has_aux,
        holomorphic=holomorphic,
        allow_int=allow_int,
    )
    return lift(f, rule)


@value_and_grad_transform
def value_and_grad(
    f: Function,
    argnums: Argnums = 0,
    has_aux: bool = False,
    holomorphic: bool = False,
    allow_int: bool = False,
    reduce_axes: Sequence[Hashable] | None = (),
    *,
    wrt: Filter = PARAMETERS,
) -> Function:
    """As `grad`, and the value of `f` with it.

    Returns:
        A function that returns ``(loss, gradients)``, or ``((loss, aux), gradients)`` with
        `has_aux`.

    Raises:
        TypeError, ValueError: as `grad`.

    >>> import jax.numpy as jnp
    >>> import treadle as nnx
    >>> model = nnx.Dict(w=nnx.Param(jnp.array(3.0)))
    >>> loss, grads = nnx.value_and_grad(lambda m: m["w"] ** 2)(model)
    >>> float(loss), float(grads["w"].value)
    (9.0, 6.0)
    """
    refuse_init("value_and_grad", f)
    check_reduce_axes("value_and_grad", reduce_axes)
    rule = _ValueAndGrad(
        "value_and_grad",
        wrt,
        argnums,
        has_aux=has_aux,
        holomorphic=holomorphic,
        allow_int=allow_int,
    )
    return lift(f, rule)


publish(__all__, globals())
