"""Tells the C++ core where JAX keeps what the core needs. Import before using `_core`."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax._src import core as jax_core
from jax._src.array import ArrayImpl
from jax.core import Tracer

from treadle import _core
from treadle._objects import pretty as _pretty
from treadle._objects.adapters import adapt
from treadle._objects.equality import same
from treadle._objects.marks import Mark, forget_marks, unmarked
from treadle._objects.pytrees import register_pytree
from treadle.errors import TraceContextError, engine_error

_ARRAYS = (jax.Array, np.ndarray, jax.ShapeDtypeStruct)
# numpy scalars of these kinds are text, records or dates, which JAX cannot hold.
_NOT_ARRAYS = (np.flexible, np.object_, np.datetime64, np.timedelta64)


def is_array(obj: Any) -> bool:
    """True for what JAX treats as an array; asked once a type, as only `type(obj)` matters."""
    if isinstance(obj, _ARRAYS):
        return True
    return isinstance(obj, np.generic) and not isinstance(obj, _NOT_ARRAYS)


def _trace_source() -> tuple[Any, str]:
    """Where the current trace is found: an object and the name of its attribute."""
    strong_ref = getattr(jax_core, "trace_state_strong_ref", None)
    if strong_ref is not None:
        return strong_ref, "value"
    return jax_core.trace_ctx, "trace"


_core.configure(
    trace_source=_trace_source(),
    trace_error=TraceContextError,
    graph_error=engine_error,
    pytree_registry=jax.tree_util.default_registry,
    tree_flatten=jax.tree_util.tree_flatten,
    is_array=is_array,
    adapt=adapt,
    tracer=Tracer,
    concrete_array=ArrayImpl,
    variable_state_repr=_pretty.variable_state,
    same=same,
    value_key=jax.tree_util.GetAttrKey("value"),
    register_pytree=register_pytree,
    mark_type=Mark,
    unmarked=unmarked,
    forget_marks=forget_marks,
)
