"""checkify over graph nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jax.experimental import checkify as jax_checkify

from treadle._public import publish
from treadle.transforms._arguments import Function
from treadle.transforms._call import Call
from treadle.transforms._decorator import P, R, check_transform
from treadle.transforms._driver import Body, Rule, as_arrays, lift

if TYPE_CHECKING:
    from collections.abc import Callable

    from treadle.transforms._decorator import Checked

__all__ = ["checkify"]


class _Checkify(Rule):
    name = "checkify"
    reuses = True

    def __init__(self, errors: frozenset[Any]) -> None:
        self.errors = errors

    def body(self, call: Call, inputs: None) -> Function:
        return jax_checkify.checkify(Body(call.outline()), self.errors)

    def run(self, call: Call, inputs: None, body: Function) -> Any:
        error, (_, tail) = body(tuple(call.leaves))
        return error, as_arrays(tail)

    def result(self, call: Call, inputs: None, besides: Any, result: Any) -> Any:
        return besides, result


@check_transform
def checkify(
    f: Callable[P, R],
    errors: frozenset[Any] = jax_checkify.user_checks,
) -> Callable[P, Checked[R]]:
    """A function that returns what its checks found beside its result.

    Over `jax.experimental.checkify.checkify`. What `f` changes in its arguments reaches the
    caller's objects, whether or not a check failed: look at the error first.

    Args:
        f: function whose arguments may be or contain graph nodes.
        errors: which checks to make, such as ``checkify.user_checks`` (the calls of
            ``checkify.check`` in `f`), ``nan_checks``, ``index_checks``, or a union of these.

    Returns:
        A function that returns ``(error, result)``; ``error.throw()`` raises if a check failed.

    >>> import jax.numpy as jnp
    >>> from jax.experimental import checkify
    >>> import treadle as nnx
    >>> def scaled(m, x):
    ...     checkify.check(m["w"].value > 0, "w must be positive")
    ...     return m["w"] * x
    >>> m = nnx.Dict(w=nnx.Param(jnp.array(-1.0)))
    >>> error, result = nnx.checkify(scaled)(m, 2.0)
    >>> error.get() is not None, float(result)
    (True, -2.0)
    """
    return lift(f, _Checkify(errors))


publish(__all__, globals())
