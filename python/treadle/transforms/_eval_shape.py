"""eval_shape over graph nodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax

from treadle import _core
from treadle._public import publish
from treadle.transforms._call import Call
from treadle.transforms._driver import Body, Rule, apply, read_tail

__all__ = ["eval_shape"]

R = TypeVar("R")


class _EvalShape(Rule):
    name = "eval_shape"

    def run(self, call: Call, inputs: None, body: Body[None]) -> Any:
        # What does not change is no output: it comes from the arguments, and shall be a shape too.
        (_, tail), shapes = jax.eval_shape(
            lambda leaves: (body(leaves), leaves), tuple(call.leaves)
        )
        return None, (tail, shapes)

    def finish(self, call: Call, body: Body[None], tail: Any) -> Any:
        tail, shapes = tail
        effects, out = read_tail(tail)
        _, refs = _core.unflatten(call.graphdef, shapes)
        return _core.apply_effects(effects, refs, shapes, out)


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
    return apply(_EvalShape(), f, args, kwargs)


publish(__all__, globals())
