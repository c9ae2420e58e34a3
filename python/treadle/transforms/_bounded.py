"""A table of bounded size: what was not used for longest is forgotten."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from typing import Any, Generic, TypeVar, cast

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

_ABSENT: Any = object()


class Bounded(Generic[K, V]):
    """Values by key, made when they are first asked for; at most `limit` of them.

    Making a value, and comparing keys, may run any code, that which uses the table included. Such a
    call, or one in another thread, may make a value for the same key: the first to be entered stays.

    Args:
        limit: how many values are remembered, at least one.

    >>> from treadle.transforms._bounded import Bounded
    >>> lengths = Bounded(2)
    >>> [lengths.get(word, lambda: len(word)) for word in ("a", "bb", "a", "ccc")]
    [1, 2, 1, 3]
    >>> [*lengths]
    ['a', 'ccc']
    """

    __slots__ = ("_entries", "_limit")

    def __init__(self, limit: int) -> None:
        self._entries: OrderedDict[K, V] = OrderedDict()
        self._limit = limit

    def get(self, key: K, make: Callable[[], V]) -> V:
        """The value for `key`, made when it is not known."""
        value = self._entries.get(key, _ABSENT)
        if value is _ABSENT:
            value = self._entries.setdefault(key, make())
            while len(self._entries) > self._limit:
                self._entries.popitem(last=False)
            return value
        with contextlib.suppress(KeyError):  # forgotten while comparing the keys ran other code
            self._entries.move_to_end(key)
        return cast("V", value)

    def find(self, key: K) -> V | None:
        """The value for `key` if it is known; counts as no use of it."""
        return self._entries.get(key)

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[K]:
        """The keys, those not used for longest first."""
        return iter(self._entries)

    def clear(self) -> None:
        """Forget all."""
        self._entries.clear()
