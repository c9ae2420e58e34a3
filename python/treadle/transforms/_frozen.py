"""Defaults of transforms' parameters that can be told from what a user gives."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Concatenate, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


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


class ByDefault(int):
    """A parameter's default, equal to the plain int, that shows that nobody gave the parameter."""

    __slots__ = ()


AXIS_0 = ByDefault(0)
DEFAULT_STATE_AXES: Mapping[Any, int | None] = FrozenDict({...: 0})
NO_METADATA: Mapping[str, Any] = FrozenDict({})


def given(parameters: Mapping[str, Any]) -> frozenset[str]:
    """Names of the parameters that are given, even if they equal their defaults."""
    return frozenset(
        name
        for name, value in parameters.items()
        if not isinstance(value, ByDefault) and value is not DEFAULT_STATE_AXES
    )


def knowing_given(
    define: Callable[Concatenate[frozenset[str], Any, P], R],
) -> Callable[Concatenate[Any, P], R]:
    """Tell `define`, as its first argument, which keyword arguments a caller gave.

    A default such as True or ``...`` is the same object when it is given.
    """
    signature = inspect.signature(define)
    _, *seen = signature.parameters.values()

    @functools.wraps(define)
    def knowing(*args: Any, **kwargs: Any) -> R:
        return define(given(kwargs), *args, **kwargs)

    knowing.__signature__ = signature.replace(parameters=seen)  # type: ignore[attr-defined]
    return knowing
