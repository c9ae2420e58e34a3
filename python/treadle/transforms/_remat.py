"""remat over graph nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax

from treadle._public import publish
from treadle.transforms._arguments import Function, normalize_argnums, numbers
from treadle.transforms._call import Call
from treadle.transforms._decorator import P, R, transform
from treadle.transforms._driver import Body, Rule, as_arrays, lift
from treadle.transforms._places import by_place, places

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

__all__ = ["remat"]


class _Remat(Rule):
    name = "remat"
    reuses = True

    def __init__(self, static_argnums: Any, **options: Any) -> None:
        self.static_argnums = numbers(static_argnums)
        self.options = options

    def arrange(
        self, function: Function, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
        """Keywords and defaults take the places that `static_argnums` names."""
        count = max(self.static_argnums, default=-1) + 1
        parameters = places(function) if count > len(args) else None
        return (
            (args, kwargs)
            if parameters is None
            else by_place(parameters, count, args, dict(kwargs))
        )

    def static(self, function: Function, count: int) -> Iterable[int]:
        return normalize_argnums(self.name, "static_argnums", self.static_argnums, function, count)

    def body(self, call: Call, inputs: None) -> Function:
        return jax.checkpoint(Body(call.outline()), **self.options)

    def run(self, call: Call, inputs: None, body: Function) -> Any:
        _, tail = body(tuple(call.leaves))
        return None, as_arrays(tail)


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
            compared instead of traced, however they are given; they must be hashable.
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
    return lift(f, _Remat(static_argnums, prevent_cse=prevent_cse, policy=policy))


publish(__all__, globals())
