"""Better errors for calls of a jitted function that failed: one door, `explain`.

Each explanation looks at the structure and the leaves of the call that failed, and gives a better
error, or None where it has nothing to say.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, TypeVar

import jax
import numpy as np

from treadle import _core
from treadle.transforms._arguments import Function, argument_label, function_name, output_label
from treadle.transforms._call import Outline
from treadle.transforms._jit.jax_internals import source_of
from treadle.transforms._messages import explain_call_error, is_jax_value

E = TypeVar("E", bound=Exception)

_REMEDY = "name others in static_argnums or static_argnames"


def explain(
    function: Function,
    graphdef: _core.GraphDef | None,
    leaves: Sequence[Any],
    donated: Collection[int],
    shardings: Sequence[Any] | None,
    error: Exception,
) -> Exception | None:
    """A better error than the one that a call ended with, or None.

    Args:
        function: the user's function.
        graphdef: structure of the call; None if the walk of its arguments failed.
        leaves: its leaves.
        donated: those of them that are donated.
        shardings: what in_shardings says about each; None if it says nothing.
        error: what it ended with.
    """
    better: Exception | None = None
    if graphdef is None:
        better = by_name(function, error)
    else:
        call = Outline("jit", function, graphdef)
        better = explain_call_error(error, call.label, graphdef, leaves, remedy=_REMEDY)
        if better is not None:
            pass
        elif isinstance(error, RuntimeError) and "donate" in str(error):
            better = donated_twice(function, graphdef, leaves, donated)
        elif isinstance(error, ValueError) and shardings is not None:
            better = indivisible(function, graphdef, leaves, shardings)
    return None if better is None else in_place_of(error, better)


def in_place_of(error: Exception, better: E) -> E:
    """`better`, raised where `error` was and shown without it."""
    better.__cause__ = error.__cause__
    better.__suppress_context__ = True
    better.__context__ = error
    return better.with_traceback(error.__traceback__)


def by_name(function: Function, error: Exception) -> Exception | None:
    """A walk's error with the argument's name in the place of its position."""
    path, reason = getattr(error, "path", None), getattr(error, "reason", None)
    if path is None or reason is None:
        return None
    return type(error)(f"{argument_label(function, tuple(path))} {reason}")


def no_jax_output(
    function: Function, effects: _core.Effects, out: Sequence[Any]
) -> TypeError | None:
    """What is wrong with the first output, of a function that has run, that JAX cannot take."""
    for number, value in enumerate(out):
        if isinstance(value, jax.Array) or is_jax_value(value):
            continue
        row = effects.outputs()[number]
        if effects.output_types()[number] is None:
            remedy = "Return an array, a scalar, a graph node or a container of those."
        else:
            remedy = (
                "Give the Variable an array or a scalar, and keep other values in attributes of the "
                "node itself."
            )
        code = getattr(source_of(function), "__code__", None)
        place = f" at {code.co_filename}:{code.co_firstlineno}" if code else ""
        return TypeError(
            f"{output_label(function, *row)} of {function_name(function)}{place} is a "
            f"{type(value).__name__!r}, which is not a valid JAX type. {remedy}"
        )
    return None


def indivisible(
    function: Function, graphdef: _core.GraphDef, leaves: Sequence[Any], shardings: Sequence[Any]
) -> ValueError | None:
    """Which leaf has a shape that its entry of in_shardings does not divide."""
    for leaf, (value, sharding) in enumerate(zip(leaves, shardings, strict=True)):
        if not isinstance(sharding, jax.sharding.Sharding):
            continue
        for array in jax.tree_util.tree_leaves(value):
            try:
                sharding.shard_shape(np.shape(array))
            except ValueError as error:
                where = argument_label(function, graphdef.paths()[leaf])
                return ValueError(f"jit: in_shardings cannot place {where}: {error}")
    return None


def donated_twice(
    function: Function,
    graphdef: _core.GraphDef,
    leaves: Sequence[Any],
    donated: Collection[int],
) -> RuntimeError | None:
    """Which leaves (or one) hold the same array, of which one is donated.

    The dispatcher copies an array that is a leaf twice, but does not look into pytrees.
    """
    first_with: dict[int, int] = {}
    for leaf, value in enumerate(leaves):
        for array in jax.tree_util.tree_leaves(value):
            if not isinstance(array, jax.Array):
                continue
            places = {leaf, first_with.get(id(array), leaf)}
            if id(array) in first_with and not places.isdisjoint(donated):
                names = sorted(argument_label(function, graphdef.paths()[i]) for i in places)
                return RuntimeError(
                    f"{' and '.join(names)} hold{'s' if len(names) == 1 else ''} the same array "
                    f"more than once, in a container, so it cannot be donated. Give each place an "
                    f"array of its own (array.copy()), or do not donate it."
                )
            first_with[id(array)] = leaf
    return None
