"""Defaults of transforms' parameters that can be told from what a user gives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


class FrozenDict(Mapping[Any, Any]):
    """An immutable, hashable mapping, equal to any mapping with the same entries."""

    __slots__ = ("_entries",)

    def __init__(self, entries: Mapping[Any, Any]) -> None:
        self._entries = dict(entries)

    def __getitem__(self, key: Any) -> Any:
        return self._entries[key]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mapping) and self._entries == dict(other)

    def __hash__(self) -> int:
        return hash(tuple(self._entries.items()))

    def __repr__(self) -> str:
        return f"FrozenDict({self._entries!r})"

    def __reduce__(self) -> Any:
        return FrozenDict, (self._entries,)


class ByDefault(int):
    """A parameter's default, equal to the plain int, that shows that nobody gave the parameter."""

    __slots__ = ()


DEFAULT_STATE_AXES: Mapping[Any, int | None] = FrozenDict({...: 0})
NO_METADATA: Mapping[str, Any] = FrozenDict({})
