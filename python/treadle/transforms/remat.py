"""remat over graph nodes."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import jax

from treadle.transforms._decorator import P, R, transform
from treadle.transforms._lift import (
    Aside,
    Bodies,
    Call,
    Function,
    as_arrays,
    normalize_argnums,
    trace,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from treadle import _core

__all__ = ["remat"]


@transform
def remat(
    f: Callable[P, R],
    *,
    prevent_cse: bool = True,
    static_argnums: int | Sequence[int] = (),
    policy: Callable[..., bool] | None = None,
) -> Callable[P, R]:
    """A function like `f` whose intermediate values are computed again when it is differentiated.

    Over `jax.checkpoint`. What `f` changes in its arguments reaches the caller's objects.

    Args:
        f: function whose arguments may be or contain graph nodes; a method, and ``__init__``, too.
        prevent_cse: keep the compiler from merging the second computation with the first. Not
            needed inside `scan`.
        static_argnums: positions, as `f` counts them (``self`` included), of arguments that are
            compared instead of traced; they must be hashable.
        policy: one of `jax.checkpoint_policies`: which intermediate values to save after all.

    Returns:
        A function with the arguments of `f`.

    Raises:
        ValueError: `static_argnums` is out of range.

    >>> import jax.numpy as jnp
    >>> import treadle as nnx
    >>> model = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    >>> forward = nnx.remat(lambda m, x: jnp.sin(m(x)).sum())
    >>> grads = nnx.grad(forward)(model, jnp.ones((1, 2)))
    >>> grads["kernel"].value.shape
    (2, 2)
    """
    numbers = (static_argnums,) if isinstance(static_argnums, int) else tuple(static_argnums)
    bodies: Bodies[Function] = Bodies()

    def make(graphdef: _core.GraphDef) -> Function:
        def body(leaves: tuple[Any, ...]) -> Any:
            effects, out = trace(f, graphdef, leaves)
            return Aside(effects), tuple(out)

        return jax.checkpoint(body, prevent_cse=prevent_cse, policy=policy)

    @functools.wraps(f)
    def remat_wrapper(*args: Any, **kwargs: Any) -> Any:
        static = normalize_argnums("remat", "static_argnums", numbers, f, len(args))
        call = Call.collect("remat", f, args, kwargs, frozenset(static))
        body = bodies.get(call.graphdef, lambda: make(call.graphdef))
        aside, out = call.run(body, tuple(call.leaves))
        return call.finish(aside.value, as_arrays(out))

    return remat_wrapper
