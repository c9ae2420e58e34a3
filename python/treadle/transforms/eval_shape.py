"""eval_shape over graph nodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax

from treadle import _core
from treadle.errors import format_path
from treadle.transforms._lift import Call, naming

__all__ = ["eval_shape"]

R = TypeVar("R")


def eval_shape(f: Callable[..., R], *args: Any, **kwargs: Any) -> R:
    """What ``f(*args, **kwargs)`` returns, with `jax.ShapeDtypeStruct` in the place of arrays.

    Nothing is computed and nothing is allocated: the way to see a large model's structure and
    shapes. The arguments stay as they are; nodes in the result are new ones.

    Args:
        f: function whose arguments and result may be or contain graph nodes.
        *args: its positional arguments; `jax.ShapeDtypeStruct` may stand for arrays.
        **kwargs: its keyword arguments.

    Returns:
        The result of `f`; every array, also as the value of a Variable, is a
        `jax.ShapeDtypeStruct`.

    >>> import treadle as nnx
    >>> model = nnx.eval_shape(lambda: nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
    >>> model.kernel.value
    ShapeDtypeStruct(shape=(2, 3), dtype=float32)
    """
    call = Call.collect("eval_shape", f, args, kwargs)
    structure: Any = None

    def flat(leaves: tuple[Any, ...]) -> tuple[Any, ...]:
        nonlocal structure
        (inner_args, inner_kwargs), _ = _core.unflatten(call.graphdef, leaves)
        result = f(*inner_args, **inner_kwargs)
        with naming(lambda path: format_path(path[1:], "the result")):
            walked = _core.flatten_call((result,), {}, frozenset(), frozenset())
        structure = walked.graphdef
        return tuple(walked.leaves)

    shapes = call.run(jax.eval_shape, flat, tuple(call.leaves))
    ((result,), _), _ = _core.unflatten(structure, shapes)
    return result
