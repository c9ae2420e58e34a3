"""Other libraries' objects as graph nodes: who describes their types, and how.

The engine asks `adapt` once for each type it meets and does not know. Types of the libraries in
`_ADAPTERS`, and subclasses of such types, are described by a module of treadle's that is imported then;
nobody else pays for it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias
from weakref import WeakKeyDictionary

from treadle._objects.marks import Mark

__all__ = ["Description", "MappingLayout", "NodeLayout", "Refused", "VariableLayout", "adapt"]

# Root package of a library -> the module that describes its types, with the functions `describe` and `adapt_filter`.
_ADAPTERS = {"flax": "treadle.integrations.flax"}


@dataclass(frozen=True, eq=False)
class VariableLayout:
    """Where instances of a Variable type keep what the engine reads and writes.

    Attributes:
        value: slot of the raw value.
        metadata: slot of the metadata, a dict of the Variable's own.
        trace: slot of the object that remembers the trace the Variable was made in.
        owner_path: attributes that lead from that object to the weak reference to the trace.
        make_trace: makes such an object for the current trace.
        counterpart: treadle's Variable type of the same meaning.
        refuse: from metadata, the reason why such a Variable cannot be walked, or None.
        refused_values: types of values that cannot be leaves, and
        refused_value_reason: why.
        sharding: metadata entry with the names of the axes.
        add_axis, remove_axis: ``(variable, index, transform_metadata)`` keeps the names of its axes.
    """

    kind: ClassVar[str] = "variable"
    value: str
    metadata: str
    trace: str
    owner_path: tuple[str, ...]
    make_trace: Callable[[], Any]
    counterpart: type[Any]
    refuse: Callable[[Mapping[str, Any]], str | None]
    refused_values: tuple[type[Any], ...]
    refused_value_reason: str
    sharding: str
    add_axis: Callable[[Any, int, Mapping[str, Any]], None]
    remove_axis: Callable[[Any, int, Mapping[str, Any]], None]


@dataclass(frozen=True, eq=False)
class NodeLayout:
    """How instances of a node type, whose attributes are its ``__dict__``, keep their books.

    Attributes:
        state: attribute that is no child, with the memory of the trace.
        owner_path: attributes that lead from its value to the weak reference to the trace.
        make_trace: makes such a value for the current trace.
        marks: attribute that is no child, which says what attributes are data: numbers there are
            leaves. A frozenset of names, or an object with
        marks_field: an attribute that is a dict of bools.
        make_marks: makes the object from the dict.
        int_keys: names made of digits show as indices in paths.
        children: ``(key, child)`` for each child, sorted.
        set_key, pop_key: add or replace, and remove, a child.
    """

    kind: ClassVar[str] = "node"
    state: str
    owner_path: tuple[str, ...]
    make_trace: Callable[[], Any]
    marks: str
    marks_field: str | None
    make_marks: Callable[[Any], Any] | None
    int_keys: bool
    children: Callable[[Any], Iterable[tuple[Any, Any]]]
    set_key: Callable[[Any, Any, Any], None]
    pop_key: Callable[[Any, Any], Any]


@dataclass(frozen=True, eq=False)
class MappingLayout:
    """A class around a plain dict, walked by value.

    Attributes:
        items: slot or attribute that is the dict.
        make: makes an instance from a dict, where setting the attribute is not enough.
    """

    kind: ClassVar[str] = "mapping"
    items: str
    make: Callable[[dict[Any, Any]], Any] | None = None


@dataclass(frozen=True, eq=False)
class Refused:
    """Instances cannot be part of a graph, for a reason that an error can give after their path."""

    kind: ClassVar[str] = "refused"
    reason: str


Description: TypeAlias = VariableLayout | NodeLayout | MappingLayout | Refused

# Assigned to an attribute, it would be the value.
_MARK = (
    "is marked by treadle.data or treadle.static, which mark a whole attribute of a node: assign what they "
    "give to the attribute itself, outside of containers"
)

_described: WeakKeyDictionary[type[Any], Description] = WeakKeyDictionary()


def adapt(kind: type[Any]) -> Description | None:
    """What an adapter says about a type; None for types of no library that has one."""
    if kind is Mark:
        return Refused(_MARK)
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
