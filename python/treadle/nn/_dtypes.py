"""The dtype a layer computes in."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from treadle._public import publish

__all__ = ["promote_dtype"]


def computation_dtype(
    *values: Any, dtype: DTypeLike | None = None, inexact: bool = True
) -> jnp.dtype:
    """The dtype in which arithmetic on `values` happens.

    Args:
        *values: arrays, scalars or None (ignored), of any shape.
        dtype: if given, the answer, whatever the values are.
        inexact: integers and booleans are promoted to the default float, and an explicit `dtype`
            must be floating or complex.

    Returns:
        `dtype`, or the common dtype of the values under JAX's promotion rules.

    Raises:
        ValueError: `inexact` is asked for and `dtype` is not floating or complex.

    >>> import jax.numpy as jnp
    >>> from treadle.nn._dtypes import computation_dtype
    >>> computation_dtype(jnp.ones(2, jnp.int32), None).name
    'float32'
    >>> computation_dtype(jnp.ones(2), dtype=jnp.bfloat16).name
    'bfloat16'
    """
    if dtype is None:
        found = jnp.result_type(*[jnp.asarray(v) for v in values if v is not None])
        if inexact and not jnp.issubdtype(found, jnp.inexact):
            found = jnp.promote_types(jnp.float32, found)
        return jnp.dtype(found)
    if inexact and not jnp.issubdtype(dtype, jnp.inexact):
        raise ValueError(
            f"dtype={jnp.dtype(dtype).name} cannot hold the results of this layer; "
            "choose a floating or complex dtype"
        )
    return jnp.dtype(dtype)


def promote_dtype(
    args: Sequence[Any], /, *, dtype: DTypeLike | None = None, inexact: bool = True
) -> tuple[Any, ...]:
    """Cast `args` to the dtype they are computed in.

    Args:
        args: arrays, scalars or None, of any shape; None stays None.
        dtype: the wanted dtype; None takes the common dtype of the arguments.
        inexact: see `computation_dtype`.

    Returns:
        A tuple as long as `args`.

    Raises:
        ValueError: see `computation_dtype`.

    >>> import jax.numpy as jnp
    >>> from treadle.nn._dtypes import promote_dtype
    >>> x, bias = promote_dtype((jnp.ones(2, jnp.float16), None), dtype=jnp.float32)
    >>> x.dtype.name, bias
    ('float32', None)
    """
    target = computation_dtype(*args, dtype=dtype, inexact=inexact)
    return tuple(None if a is None else _cast(a, target) for a in args)


def _cast(value: Any, dtype: jnp.dtype) -> jax.Array:
    # A cast that changes nothing would still be traced as one more operation.
    if isinstance(value, jax.Array) and value.dtype == dtype:
        return value
    return jnp.asarray(value, dtype)


publish(__all__, globals())
