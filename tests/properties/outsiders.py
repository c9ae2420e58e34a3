"""A library that is not treadle, small enough to build random graphs of.

Its Variables keep values, metadata and the trace they were made in in slots, its nodes keep their
attributes in a plain ``__dict__`` beside the library's own books, and its mappings are walked by value.
An adapter describes them to treadle as it would those of any other library.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Hashable, Iterable, Mapping
from typing import Any

import jax

import treadle as nnx
from tests.reference.kinds import teach, teach_mapping, teach_variable
from tests.reference.model import NodeKind, VariableKind
from treadle._bootstrap import _trace_source
from treadle._objects import adapters as _adapters
from treadle._objects.descriptions import Description, MappingLayout, NodeLayout, VariableLayout


class Memory:
    """Remembers the trace it was made in."""

    __slots__ = ("trace",)

    def __init__(self) -> None:
        self.trace = weakref.ref(getattr(*_trace_source()))


# --- Variables -----------------------------------------------------------------------------------


class Tank:
    """The library's Variable. Its metadata change in place."""

    __slots__ = ("__weakref__", "_held", "_memory", "_notes")

    def __init__(self, value: Any, **notes: Any) -> None:
        _tank_slots["_held"].__set__(self, value)
        _tank_slots["_notes"].__set__(self, notes)
        _tank_slots["_memory"].__set__(self, Memory())

    @property
    def value(self) -> Any:
        return self._held

    @value.setter
    def value(self, value: Any) -> None:
        _tank_slots["_held"].__set__(self, value)

    def __getattr__(self, name: str) -> Any:
        if name in self._notes:
            return self._notes[name]
        raise AttributeError(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("value", "_held", "_notes", "_memory"):
            object.__setattr__(self, name, value)
        else:
            self._notes[name] = value


_tank_slots = vars(Tank)


class Vat(Tank):
    """A second Variable type, below the first."""

    __slots__ = ()


def _refill(tank: Tank, value: Any, notes: Mapping[str, Any]) -> None:
    tank.value = value
    tank._notes = dict(notes)


for _kind in (Tank, Vat):
    teach_variable(
        _kind,
        VariableKind(
            lambda tank: tank._notes,
            lambda tank: tank.value,
            lambda cls, value, notes: cls(value, **notes),
            _refill,
        ),
    )

# --- nodes ---------------------------------------------------------------------------------------

BOOKS = ("_memory", "_marks")


class Flags:
    """Which attributes are data: a dict of bools that nobody changes."""

    __slots__ = ("flags",)

    def __init__(self, flags: Mapping[str, bool]) -> None:
        self.flags = dict(flags)


class Shed:
    """A node whose data attributes are marked by a frozenset of their names."""

    def __init__(self, marked: Iterable[str] | None = None) -> None:
        self._memory = Memory()
        if marked is not None:
            self.mark(marked)

    def mark(self, names: Iterable[str]) -> None:
        """Make these the data attributes."""
        self._marks = frozenset(names)


class Rack(Shed):
    """A node whose data attributes are marked by an object, and whose numbered attributes are indices."""

    def mark(self, names: Iterable[str]) -> None:
        self._marks = Flags(dict.fromkeys(sorted(names), True))  # type: ignore[assignment]


def _children(node: Shed) -> list[tuple[str, Any]]:
    return [(key, child) for key, child in vars(node).items() if key not in BOOKS]


def _marks(node: Shed) -> Hashable:
    marks: Any = vars(node).get("_marks")
    return frozenset(marks.flags.items()) if isinstance(marks, Flags) else marks


def _create(cls: type[Shed], marks: Any) -> Shed:
    node = cls()
    _assign_marks(node, marks)
    return node


def _assign_marks(node: Shed, marks: Any) -> None:
    vars(node).pop("_marks", None)
    if marks is not None:
        node._marks = Flags(dict(marks)) if isinstance(node, Rack) else marks


def _assign(node: Shed, children: list[tuple[Hashable, Any]]) -> None:
    for key, _ in _children(node):
        del vars(node)[key]
    vars(node).update(children)


def _is_data(node: Shed, key: Hashable) -> bool:
    marks: Any = vars(node).get("_marks", frozenset())
    return key in (marks.flags if isinstance(marks, Flags) else marks)


def _shown(key: Hashable) -> Hashable:
    return int(key) if isinstance(key, str) and key.isdigit() else key


teach(Shed, NodeKind(_children, _marks, _create, _assign, _is_data, _assign_marks))
teach(Rack, NodeKind(_children, _marks, _create, _assign, _is_data, _assign_marks, _shown))

# --- mappings ------------------------------------------------------------------------------------


class Ledger:
    """A mapping whose dict is an attribute."""

    def __init__(self, entries: dict[str, Any]) -> None:
        self.entries = entries


class Folio:
    """A mapping whose dict is in a slot."""

    __slots__ = ("entries",)

    def __init__(self, entries: dict[str, Any]) -> None:
        self.entries = entries


def _flatten(mapping: Ledger | Folio) -> tuple[list[tuple[Any, Any]], tuple[str, ...]]:
    keys = tuple(sorted(mapping.entries))
    return [(jax.tree_util.DictKey(key), mapping.entries[key]) for key in keys], keys


def _unflatten(
    cls: type[Ledger | Folio], keys: tuple[str, ...], children: Iterable[Any]
) -> Ledger | Folio:
    return cls(dict(zip(keys, children, strict=True)))


for _mapping in (Ledger, Folio):
    teach_mapping(_mapping, lambda mapping: mapping.entries)
    jax.tree_util.register_pytree_with_keys(
        _mapping, _flatten, functools.partial(_unflatten, _mapping)
    )

# --- the adapter ---------------------------------------------------------------------------------


def describe(kind: type[Any]) -> Description | None:
    """What treadle is told of the library's types."""
    if issubclass(kind, Tank):
        return VariableLayout(
            value="_held",
            metadata="_notes",
            trace="_memory",
            owner_path=("trace",),
            make_trace=Memory,
            counterpart=nnx.BatchStat if issubclass(kind, Vat) else nnx.Param,
            refuse=lambda notes: notes.get("refused"),
            refused_values=(Memory,),
            refused_value_reason="holds a memory, which is no array",
            sharding="axes",
            add_axis=lambda tank, index, metadata: None,
            remove_axis=lambda tank, index, metadata: None,
        )
    if issubclass(kind, Shed):
        return NodeLayout(
            state="_memory",
            owner_path=("trace",),
            make_trace=Memory,
            marks="_marks",
            marks_field="flags" if issubclass(kind, Rack) else None,
            make_marks=Flags if issubclass(kind, Rack) else None,
            int_keys=issubclass(kind, Rack),
            children=lambda node: sorted(_children(node)),
            set_key=setattr,
            pop_key=lambda node, key: vars(node).pop(key),
        )
    if issubclass(kind, Ledger):
        return MappingLayout(items="entries")
    if issubclass(kind, Folio):
        return MappingLayout(items="entries", make=Folio)
    return None


def adapt_filter(filter: Any) -> Any:
    """The library has no filters of its own."""
    return filter


_adapters._ADAPTERS[__name__.partition(".")[0]] = __name__
