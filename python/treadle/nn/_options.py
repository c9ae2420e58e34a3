"""Small helpers with which layers read their constructor arguments."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from treadle import _core
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
    owner: Any,
    init: Initializer,
    rngs: Any,
    shape: Sequence[int],
    dtype: DTypeLike,
    metadata: Mapping[str, Any],
) -> Param[jax.Array]:
    """A `Param` initialized by `init(key, shape, dtype)`, with `metadata` attached.

    The key is the next one of the stream `params` of `rngs`.

    Raises:
        TypeError: `rngs` is a key or a seed.
    """
    key = draw_key(owner, checked_source(owner, rngs), "params")
    return Param(init(key, tuple(shape), dtype), **metadata)


def held(attribute: Any) -> Any:
    """The value of a Variable that a layer holds, or the array that was put in its place."""
    return attribute.value if _core.is_variable(attribute) else attribute


def check_bias(owner: Any, bias: Any, shape: Sequence[int], kernel: Any) -> None:
    """Refuse a bias that would be spread over the outputs, or spread them.

    Both happen where only one of kernel and bias was sharded or replaced.

    Raises:
        ValueError: the bias does not have `shape`.
    """
    if bias is not None and tuple(bias.shape) != tuple(shape):
        raise ValueError(
            f"{type(owner).__name__} has a kernel of shape {tuple(kernel.shape)}, to which belongs "
            f"a bias of shape {tuple(shape)}, but its bias has shape {tuple(bias.shape)}; shard or "
            "replace both alike"
        )


def _is_seed(value: Any) -> bool:
    if isinstance(value, (jax.Array, np.ndarray, np.generic)):
        return value.ndim == 0 and jnp.issubdtype(value.dtype, jnp.integer)
    return isinstance(value, int)


def checked_source(owner: Any, rngs: Any) -> Any:
    """`rngs`, unless it is what could only give the same key over and over.

    Raises:
        TypeError: `rngs` is a key or a seed.
    """
    if _is_seed(rngs) or isinstance(rngs, (jax.Array, np.ndarray, np.generic)):
        what = "seed" if _is_seed(rngs) else "key"
        raise TypeError(
            f"rngs of {type(owner).__name__} is a single {what}, but the layer draws a new key "
            f"each time it needs one; pass rngs=Rngs({what})"
        )
    return rngs


def draw_key(owner: Any, source: Any, stream: str) -> jax.Array:
    """A fresh key from `source`: an `Rngs` (its stream `stream`), an `RngStream`, or a key itself.

    Raises:
        ValueError: `source` is None.
        TypeError: `source` is a seed.
    """
    if source is None:
        raise ValueError(
            f"{type(owner).__name__} needs random numbers: pass `rngs=` to the call or to the "
            "constructor, or make it deterministic with `model.eval()`"
        )
    if _is_seed(source):
        return checked_source(owner, source)
    if isinstance(source, (jax.Array, np.ndarray)):
        return jnp.asarray(source)
    if isinstance(source, RngStream):
        return source()
    # By item, as attributes of streams' names may be functions that draw numbers.
    return source[stream]()
