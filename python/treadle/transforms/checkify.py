"""checkify over graph nodes."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from jax.experimental import checkify as jax_checkify

from treadle.transforms._decorator import P, R, check_transform
from treadle.transforms._lift import Aside, Bodies, Call, Function, as_arrays, trace

if TYPE_CHECKING:
    from collections.abc import Callable

    from treadle import _core
    from treadle.transforms._decorator import Checked

__all__ = ["checkify"]


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
    bodies: Bodies[Function] = Bodies()

    def make(graphdef: _core.GraphDef) -> Function:
        def body(leaves: tuple[Any, ...]) -> Any:
            effects, out = trace(f, graphdef, leaves)
            return Aside(effects), tuple(out)

        return jax_checkify.checkify(body, errors)

    @functools.wraps(f)
    def checkify_wrapper(*args: Any, **kwargs: Any) -> Any:
        call = Call.collect("checkify", f, args, kwargs)
        body = bodies.get(call.graphdef, lambda: make(call.graphdef))
        error, (aside, out) = body(tuple(call.leaves))
        return error, call.finish(aside.value, as_arrays(out))

    return checkify_wrapper
