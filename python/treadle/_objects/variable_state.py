"""What `VariableState` can do beyond holding: methods in Python, and its place in JAX pytrees.

The type itself is in C++ because States of thousands of entries are made of it; nothing here runs
in `split` or `merge`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax

from treadle import _bootstrap as _bootstrap
from treadle import _core
from treadle._core import VariableState
from treadle._objects.equality import same
from treadle._objects.variables import (
    ABSENT,
    VALUE_OPERATORS,
    Variable,
    merged_metadata,
    raw_of,
    with_item,
)

_MISSING: Any = ABSENT


jax.tree_util.register_pytree_with_keys(
    VariableState,
    _core._flatten_variable_state_with_keys,
    _core._unflatten_variable_state,
    _core._flatten_variable_state,
)


def state_of_variable(variable: Any) -> VariableState:
    """The `VariableState` of a Variable of any library, detached from it."""
    return VariableState(type(variable), _core.raw_value(variable), **_core.metadata(variable))


def _replace(self: VariableState, value: Any = _MISSING, **metadata: Any) -> VariableState:
    """A new VariableState with another value or other metadata entries.

    >>> import treadle as nnx
    >>> nnx.VariableState(nnx.Param, 1.0).replace(2.0).value
    2.0
    """
    if value is _MISSING:
        value = self.value
    return VariableState(self.type, value, **{**self._metadata, **metadata})


def _to_variable(self: VariableState) -> Variable[Any]:
    """A new Variable of this type, with this value and metadata; no hook runs.

    >>> import treadle as nnx
    >>> nnx.VariableState(nnx.Param, 1.0).to_variable()
    Param(
      value=1.0
    )
    """
    return _core.new_variable(self.type, self.value, dict(self._metadata))


def _get_metadata(self: VariableState, name: Any = _MISSING, default: Any = _MISSING) -> Any:
    """All metadata as a new dict, or the entry `name`, as of a Variable.

    >>> import treadle as nnx
    >>> nnx.VariableState(nnx.Param, 1.0, tag="scale").get_metadata()
    {'tag': 'scale'}
    """
    if name is _MISSING:
        return dict(self._metadata)
    return self._metadata[name] if default is _MISSING else self._metadata.get(name, default)


def _set_metadata(
    self: VariableState, metadata: Any = None, entry: Any = ABSENT, /, **entries: Any
) -> None:
    """Set metadata entries, as of a Variable.

    >>> import treadle as nnx
    >>> entry = nnx.VariableState(nnx.Param, 1.0, tag="scale")
    >>> entry.set_metadata(trainable=False)
    >>> entry.get_metadata()
    {'tag': 'scale', 'trainable': False}
    """
    self._metadata = merged_metadata(self._metadata, metadata, entry, entries)


def _get_value(self: VariableState, *, index: Any = _MISSING) -> Any:
    """The value, or what it has at `index`; no hook runs."""
    return self.value if index is _MISSING else self.value[raw_of(index)]


def _set_value(self: VariableState, value: Any, *, index: Any = _MISSING) -> None:
    """Set the value, or only what it has at `index`; no hook runs."""
    value = raw_of(value)
    self.value = value if index is _MISSING else with_item(self.value, index, value)


def _set_item(self: VariableState, key: Any, item: Any) -> None:
    self.value = with_item(self.value, key, item)


def _equal(self: VariableState, other: object) -> Any:
    if type(other) is not VariableState:
        return self.value == raw_of(other)
    return (
        self.type is other.type
        and same(dict(self._metadata), dict(other._metadata))
        and same(self.value, other.value)
    )


def _not_equal(self: VariableState, other: object) -> Any:
    if type(other) is not VariableState:
        return self.value != raw_of(other)
    return not _equal(self, other)


if not TYPE_CHECKING:
    VariableState.replace = _replace
    VariableState.to_variable = _to_variable
    VariableState.get_metadata = _get_metadata
    VariableState.copy = _replace
    VariableState.has_metadata = lambda self, name: name in self._metadata
    VariableState.get_value = VariableState.get_raw_value = _get_value
    VariableState.set_value = VariableState.set_raw_value = _set_value
    VariableState.__eq__ = _equal
    VariableState.__ne__ = _not_equal
    # Mutable and compared by content.
    VariableState.__hash__ = None
    VariableState.set_metadata = _set_metadata
    VariableState.__setitem__ = _set_item
    # What acts on the value alone does so here, too. What has to do with identity, traces or hooks does not.
    VariableState.__array_priority__ = property(lambda self: Variable.__array_priority__)
    for _name in VALUE_OPERATORS:
        setattr(VariableState, _name, vars(Variable)[_name])
    VariableState.__doc__ = """Type, value and metadata of a Variable, detached from it.

    It passes for a Variable of its type: `isinstance` says so, it has the shape and the dtype of its
    value, can be indexed, calculated with and given to functions of `jax.numpy`. Metadata can be
    read as attributes. Two are equal if type, metadata and value (arrays by content) are; compared
    with anything else, the value is. A JAX pytree with the value as its one child.

    Args:
        type: the Variable type.
        value: the raw value.
        **metadata: as for `Variable`.

    >>> import treadle as nnx
    >>> entry = nnx.VariableState(nnx.Param, 1.0, tag="scale")
    >>> entry.type.__name__, entry.value, entry.tag
    ('Param', 1.0, 'scale')
    >>> isinstance(entry, nnx.Param), isinstance(entry, nnx.BatchStat), entry + 1
    (True, False, 2.0)
    """
