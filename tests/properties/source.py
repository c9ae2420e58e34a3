"""Decisions read from bytes.

Graphs and programs are drawn from a `Source`, so that Hypothesis (which draws and shrinks bytes)
and the coverage-guided fuzzer (which mutates them) build the same things from the same input.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Sequence

T = TypeVar("T")


class Source:
    """Reads choices from bytes; a source that has run dry always takes the first choice."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def byte(self) -> int:
        """The next byte, 0 at the end."""
        if self._at >= len(self._data):
            return 0
        self._at += 1
        return self._data[self._at - 1]

    @property
    def dry(self) -> bool:
        """Whether all bytes are used up."""
        return self._at >= len(self._data)

    def below(self, n: int) -> int:
        """A number from 0 to n - 1."""
        return self.byte() % n

    def pick(self, options: Sequence[T]) -> T:
        """One of the options."""
        return options[self.below(len(options))]

    def weighted(self, table: Sequence[tuple[int, T]]) -> T:
        """One of the options of a table of weights and options (weights add up to 256 at most)."""
        at = self.byte() % sum(weight for weight, _ in table)
        for weight, option in table:
            if at < weight:
                return option
            at -= weight
        raise AssertionError("unreachable")
