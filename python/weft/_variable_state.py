"""What `VariableState` can do beyond holding: methods in Python, and its place in JAX pytrees.

The type itself is in C++ because States of thousands of entries are made of it; nothing here runs
in `split` or `merge`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from weft import _bootstrap as _bootstrap
from weft._core import VariableState
from weft.variables import Variable, _rebuild

_MISSING: Any = object()


def same(a: Any, b: Any) -> bool:
    """Whether two values are equal, arrays by shape, dtype and content."""
    if a is b:
        return True
    if isinstance(a, (jax.Array, np.ndarray)) and isinstance(b, (jax.Array, np.ndarray)):
        if a.shape != b.shape or a.dtype != b.dtype:
            return False
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        return bool((np.asarray(a) == np.asarray(b)).all())
    if isinstance(a, (tuple, list)) and type(a) is type(b):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return type(a) is type(b) and bool(a == b)


class _Aux:
    """Type and metadata of a `VariableState`, as JAX compares them between trees."""

    __slots__ = ("metadata", "type")

    def __init__(self, type: type[Any], metadata: Mapping[str, Any]) -> None:
        self.type = type
        self.metadata = metadata

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Aux) or self.type is not other.type:
            return False
        return self.metadata is other.metadata or same(self.metadata, other.metadata)

    def __hash__(self) -> int:
        # Metadata values may be unhashable; names tell most structures apart.
        return hash((self.type, *sorted(self.metadata)))

    def __repr__(self) -> str:
        return f"({self.type.__name__}, {dict(self.metadata)!r})"


_KEYS = (jax.tree_util.GetAttrKey("value"),)


def _flatten(state: VariableState) -> tuple[tuple[Any, ...], _Aux]:
    return (state.value,), _Aux(state.type, state._metadata)


def _flatten_with_keys(state: VariableState) -> tuple[tuple[Any, ...], _Aux]:
    return ((_KEYS[0], state.value),), _Aux(state.type, state._metadata)


def _unflatten(aux: _Aux, children: Any) -> VariableState:
    (value,) = children
    return VariableState(aux.type, value, **aux.metadata)


jax.tree_util.register_pytree_with_keys(VariableState, _flatten_with_keys, _unflatten, _flatten)


def _replace(self: VariableState, value: Any = _MISSING, **metadata: Any) -> VariableState:
    """A new VariableState with another value or other metadata entries.

    >>> import weft as nnx
    >>> nnx.VariableState(nnx.Param, 1.0).replace(2.0).value
    2.0
    """
    if value is _MISSING:
        value = self.value
    return VariableState(self.type, value, **{**self._metadata, **metadata})


def _to_variable(self: VariableState) -> Variable[Any]:
    """A new Variable of this type, with this value and metadata; no hook runs.

    >>> import weft as nnx
    >>> nnx.VariableState(nnx.Param, 1.0).to_variable()
    Param(
      value=1.0
    )
    """
    return _rebuild(self.type, self.value, dict(self._metadata))


def _get_metadata(self: VariableState) -> dict[str, Any]:
    """All metadata as a new dict.

    >>> import weft as nnx
    >>> nnx.VariableState(nnx.Param, 1.0, tag="scale").get_metadata()
    {'tag': 'scale'}
    """
    return dict(self._metadata)


def _equal(self: VariableState, other: object) -> Any:
    if not isinstance(other, VariableState):
        return NotImplemented
    return (
        self.type is other.type
        and same(dict(self._metadata), dict(other._metadata))
        and same(self.value, other.value)
    )


if not TYPE_CHECKING:
    VariableState.replace = _replace
    VariableState.to_variable = _to_variable
    VariableState.get_metadata = _get_metadata
    VariableState.copy = lambda self: _replace(self)
    VariableState.__eq__ = _equal
    # Mutable and compared by content.
    VariableState.__hash__ = None
    VariableState.__doc__ = """Type, value and metadata of a Variable, detached from it.

    Metadata can be read as attributes. Two are equal if type, metadata and value (arrays by
    content) are. A JAX pytree with the value as its one child.

    Args:
        type: the Variable type.
        value: the raw value.
        **metadata: as for `Variable`.

    >>> import weft as nnx
    >>> entry = nnx.VariableState(nnx.Param, 1.0, tag="scale")
    >>> entry.type.__name__, entry.value, entry.tag
    ('Param', 1.0, 'scale')
    """
