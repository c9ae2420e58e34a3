"""The parameters of a function, and which of them a transform's options mean."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

Index = int | Sequence[int] | None
Names = str | Iterable[str] | None

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


class Selected(NamedTuple):
    """Arguments of a call: those at some positions, and those with some keywords."""

    positions: frozenset[int] = frozenset()
    names: frozenset[str] = frozenset()


class Parameters:
    """The parameters of a function, as far as they can be known.

    Args:
        function: the function.
        label: what to call it in messages.
    """

    def __init__(self, function: Callable[..., Any], label: str) -> None:
        self.label = label
        try:
            parameters = [*inspect.signature(function).parameters.values()]
        except (TypeError, ValueError):  # builtins without a signature: any argument may be right
            parameters, unknown = [], True
        else:
            unknown = False
        kinds = {p.kind for p in parameters}
        self.positional = [p.name for p in parameters if p.kind in _POSITIONAL]
        self.names = [p.name for p in parameters if p.kind in _BY_NAME]
        self.any_position = unknown or inspect.Parameter.VAR_POSITIONAL in kinds
        self.any_name = unknown or inspect.Parameter.VAR_KEYWORD in kinds

    def select(self, transform: str, what: str, nums: Index, names: Names) -> Selected:
        """The arguments that ``{what}_argnums`` and ``{what}_argnames`` of a transform mean.

        If only one of the two is given the other follows from the signature, as in `jax.jit`.
        """
        positions = self.positions(_as_tuple(nums), f"{transform}: {what}_argnums")
        keywords = self.keywords(_as_tuple(names), f"{transform}: {what}_argnames")
        if names is None:
            given = {name for i, name in enumerate(self.positional) if i in positions}
            keywords = [name for name in self.names if name in given]
        elif nums is None:
            positions = [i for i, name in enumerate(self.positional) if name in keywords]
        return Selected(frozenset(positions), frozenset(keywords))

    def positions(self, nums: Iterable[Any], what: str) -> list[int]:
        """`nums` counted from the start.

        Raises:
            TypeError: one is no int; the message starts with `what`.
            ValueError: there is no such argument.
        """
        count, nums = len(self.positional), [*nums]
        for num in nums:
            if isinstance(num, bool) or not hasattr(num, "__index__"):
                raise TypeError(f"{what} must be ints, got {num!r}.")
            if num < 0 and self.any_position:
                raise ValueError(
                    f"{what}={num} counts from the end, but {self.label} may be called with "
                    f"any number of positional arguments. Count from the start."
                )
            if not self.any_position and not -count <= num < count:
                raise ValueError(
                    f"{what}={num} is out of range, {self.label} has {count} positional "
                    f"parameter{'' if count == 1 else 's'}. Correct the number."
                )
        indices = map(operator.index, nums)
        return [index % count if index < 0 else index for index in indices]

    def keywords(self, names: Iterable[Any], what: str) -> list[str]:
        """`names`, checked.

        Raises:
            TypeError: one is no string; the message starts with `what`.
            ValueError: no argument has that name, or none can be passed by it.
        """
        positional_only = {*self.positional} - {*self.names}
        for name in names:
            if not isinstance(name, str):
                raise TypeError(f"{what} must be strings, got {name!r}.")
            if name in positional_only:
                raise ValueError(
                    f"{what}={name!r} is a positional-only parameter of {self.label}. Give "
                    f"its position."
                )
            if not self.any_name and name not in self.names:
                raise ValueError(
                    f"{what}={name!r} is no parameter of {self.label}; those that can be "
                    f"named are {', '.join(self.names) or 'none'}. Correct the name."
                )
        return [*names]


def _as_tuple(value: Any) -> tuple[Any, ...]:
    if value is None:
        return ()
    if isinstance(value, str):
        return (value,)
    try:
        operator.index(value)
    except TypeError:
        return tuple(value)
    return (value,)
