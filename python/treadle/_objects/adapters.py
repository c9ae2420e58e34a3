"""Other libraries' objects as graph nodes: who describes their types, and how.

The engine asks `adapt` once for each type it meets and does not know. Types of the libraries in
`_ADAPTERS`, and subclasses of such types, are described by a module of treadle's that is imported then;
nobody else pays for it.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

from treadle._objects.descriptions import Description, Refused
from treadle._objects.marks import Mark

__all__ = ["adapt", "adapt_filter", "description_of"]

# Root package of a library -> the module that describes its types, with the functions `describe` and `adapt_filter`.
_ADAPTERS = {"flax": "treadle.integrations.flax"}

# Assigned to an attribute, it would be the value.
_MARK = (
    "is marked by treadle.data or treadle.static, which mark a whole attribute of a node: assign what they "
    "give to the attribute itself, outside of containers"
)

_described: WeakKeyDictionary[type[Any], Description] = WeakKeyDictionary()


def adapt(kind: type[Any]) -> Description | None:
    """What an adapter says about a type; None for types of no library that has one."""
    if kind is Mark:
        return Refused(reason=_MARK)
    for adapter in _adapters_of(kind):
        description = adapter.describe(kind)
        if description is not None:
            _described[kind] = description
            return description
    return None


def _adapters_of(kind: type[Any]) -> Iterator[Any]:
    """The adapters of all libraries that a type descends from: a user's class may not be of the first."""
    roots = (str(base.__module__).partition(".")[0] for base in kind.__mro__)
    for root in dict.fromkeys(roots):
        if root in _ADAPTERS:
            yield importlib.import_module(_ADAPTERS[root])


def description_of(kind: type[Any]) -> Description | None:
    """The description that the engine got for a type it has met."""
    return _described.get(kind)


def adapt_filter(filter: Any) -> Any:
    """A filter object of another library as treadle's of the same meaning, other callables unchanged."""
    for adapter in _adapters_of(type(filter)):
        filter = adapter.adapt_filter(filter)
    return filter
