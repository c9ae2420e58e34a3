"""Small helpers with which layers read their constructor arguments."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
from jax.typing import DTypeLike

from treadle._modules.rngs import Rngs, RngStream
from treadle._objects.variables import Param

Initializer = Callable[..., Any]
"""`(key, shape, dtype) -> array`, as in `jax.nn.initializers`."""

PromoteDtype = Callable[..., tuple[Any, ...]]
"""`((a, b, ...), *, dtype) -> (a, b, ...)`, as `treadle.nn._dtypes.promote_dtype`."""

RngSource = Rngs | RngStream
"""Where a layer draws its random keys."""


def as_tuple(value: int | Iterable[int]) -> tuple[int, ...]:
    """`3 -> (3,)`, `[1, 2] -> (1, 2)`: statics are stored as tuples, never as lists."""
    if isinstance(value, Iterable):
        return tuple(int(v) for v in value)
    return (int(value),)


def per_dimension(
    name: str, value: int | Sequence[int] | None, ndim: int, *, default: int = 1
) -> tuple[int, ...]:
    """One number for every spatial dimension.

    Raises:
        ValueError: a sequence whose length is not `ndim`.
    """
    if value is None:
        return (default,) * ndim
    if isinstance(value, Iterable):
        found = as_tuple(value)
        if len(found) != ndim:
            raise ValueError(
                f"{name}={found} has {len(found)} entries, but the layer works on {ndim} "
                f"spatial dimension(s); give {ndim} numbers, or one for all of them"
            )
        return found
    return (int(value),) * ndim


def normalize_axes(axes: int | Iterable[int], ndim: int) -> tuple[int, ...]:
    """Axes counted from the front, sorted.

    Raises:
        ValueError: an axis outside `-ndim .. ndim - 1`, or one given twice.
    """
    given = as_tuple(axes)
    found = tuple(sorted(a + ndim if a < 0 else a for a in given))
    if any(not 0 <= a < ndim for a in found) or len(set(found)) != len(found):
        raise ValueError(f"axes {given} do not name distinct axes of an array of rank {ndim}")
    return found


def first_given(owner: Any, name: str, *values: Any) -> Any:
    """The first value that is not None.

    Raises:
        ValueError: all of them are None.
    """
    for value in values:
        if value is not None:
            return value
    raise ValueError(
        f"{type(owner).__name__} does not know its `{name}`: pass `{name}=` to the call, set it "
        "on the module, or use `model.train()` / `model.eval()`"
    )


def make_param(
    init: Initializer,
    key: jax.Array,
    shape: Sequence[int],
    dtype: DTypeLike,
    metadata: dict[str, Any] | Any,
) -> Param[jax.Array]:
    """A `Param` initialized by `init(key, shape, dtype)`, with `metadata` attached."""
    return Param(init(key, tuple(shape), dtype), **metadata)


def draw_key(owner: Any, source: Any, stream: str) -> jax.Array:
    """A fresh key from `source`: an `Rngs` (its stream `stream`), an `RngStream`, or a key itself.

    Raises:
        ValueError: `source` is None.
    """
    if source is None:
        raise ValueError(
            f"{type(owner).__name__} needs random numbers: pass `rngs=` to the call or to the "
            "constructor, or make it deterministic with `model.eval()`"
        )
    if isinstance(source, Rngs):
        return getattr(source, stream)()
    if isinstance(source, RngStream):
        return source()
    return source
