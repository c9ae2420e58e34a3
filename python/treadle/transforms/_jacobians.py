"""jacrev and jacfwd over graph nodes."""

from __future__ import annotations

from typing import Any

import jax

from treadle._graph.filters import Filter
from treadle._public import publish
from treadle.transforms._arguments import Function
from treadle.transforms._aside import Aside
from treadle.transforms._call import Call
from treadle.transforms._decorator import opaque_transform
from treadle.transforms._differentiated import Differentiated, DifferentiatedBody
from treadle.transforms._driver import lift
from treadle.transforms._selection import PARAMETERS, Argnums, Selection

__all__ = ["jacfwd", "jacrev"]


class _Jacobian(Differentiated):
    def __init__(self, of_jax: Function, *args: Any, **options: Any) -> None:
        super().__init__(of_jax.__name__, *args, **options)
        self.of_jax = of_jax

    def run(self, call: Call, inputs: Selection, body: DifferentiatedBody) -> Any:
        def flat(values: tuple[Any, ...]) -> Any:
            out, tail = body(values)
            arrays, structure = jax.tree_util.tree_flatten(out)
            return arrays, (Aside(structure), tail)

        options = {name: given for name, given in self.options.items() if given}
        rows, (aside, tail) = self.of_jax(flat, has_aux=True, **options)(inputs.values())
        gathered = [self.gathered(inputs, row) for row in rows]
        return jax.tree_util.tree_unflatten(aside.value, gathered), tail

    def result(self, call: Call, inputs: Selection, besides: Any, result: Any) -> Any:
        return (besides, result) if self.has_aux else besides


@opaque_transform
def jacrev(
    f: Function,
    argnums: Argnums = 0,
    has_aux: bool = False,
    holomorphic: bool = False,
    allow_int: bool = False,
    *,
    wrt: Filter = PARAMETERS,
) -> Function:
    """A function that computes the Jacobian of `f`, row by row: for few outputs and many inputs.

    As `grad`, for a function that returns any pytree of arrays: the result is that pytree, with the
    derivative of each of its arrays in the array's place.

    Args:
        f: function to differentiate; its result holds arrays only.
        argnums: position or positions of the arguments to differentiate, as in `grad`.
        has_aux: `f` returns ``(out, aux)``.
        holomorphic: `f` is holomorphic; inputs and output are complex.
        allow_int: allow integer inputs; their derivatives have dtype ``float0``.
        wrt: filter that selects the differentiated leaves of nodes; Params unless given. Without it
            an argument that is itself a Variable is differentiated whatever its type.

    Returns:
        A function with the arguments of `f` that returns the Jacobian, or ``(jacobian, aux)``.

    Raises:
        TypeError: the result of `f` holds nodes, or a selected leaf has no derivative.
        ValueError: `argnums` is out of range.

    >>> import jax.numpy as jnp
    >>> import treadle as nnx
    >>> model = nnx.Dict(w=nnx.Param(jnp.array([2.0, 3.0])))
    >>> nnx.jacrev(lambda m: m["w"] ** 2)(model)["w"].value.tolist()
    [[4.0, 0.0], [0.0, 6.0]]
    """
    options = {"has_aux": has_aux, "holomorphic": holomorphic, "allow_int": allow_int}
    return lift(f, _Jacobian(jax.jacrev, wrt, argnums, **options))


@opaque_transform
def jacfwd(
    f: Function,
    argnums: Argnums = 0,
    has_aux: bool = False,
    holomorphic: bool = False,
    *,
    wrt: Filter = PARAMETERS,
) -> Function:
    """As `jacrev`, column by column: for few inputs and many outputs.

    ``jacfwd(jacrev(f))`` gives second derivatives.

    Returns:
        A function with the arguments of `f` that returns the Jacobian, or ``(jacobian, aux)``.

    Raises:
        TypeError, ValueError: as `jacrev`.

    >>> import jax.numpy as jnp
    >>> import treadle as nnx
    >>> model = nnx.Dict(w=nnx.Param(jnp.array(3.0)))
    >>> float(nnx.jacfwd(lambda m, x: m["w"] * x)(model, 2.0)["w"].value)
    2.0
    """
    return lift(f, _Jacobian(jax.jacfwd, wrt, argnums, has_aux=has_aux, holomorphic=holomorphic))


publish(__all__, globals())
