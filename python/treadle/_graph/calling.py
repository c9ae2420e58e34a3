"""Call methods of objects that are held in split form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from treadle._core import GraphDef
from treadle._graph.splitting import merge, split
from treadle._graph.state import State
from treadle._public import publish

__all__ = ["call"]


class _Call:
    """Records attribute and item accesses; calling it makes the call they lead to."""

    __slots__ = ("_access", "_split")

    def __init__(
        self, split: tuple[Any, ...], access: Callable[[Any], Any] = lambda node: node
    ) -> None:
        self._split = split
        self._access = access

    def __getattr__(self, name: str) -> _Call:
        access = self._access
        return _Call(self._split, lambda node: getattr(access(node), name))

    def __getitem__(self, key: Any) -> _Call:
        access = self._access
        return _Call(self._split, lambda node: access(node)[key])

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[Any, tuple[GraphDef, State]]:
        node = merge(*self._split)
        out = self._access(node)(*args, **kwargs)
        graphdef, state = split(node)
        return out, (graphdef, state)


def call(graphdef_and_state: tuple[Any, ...], /) -> Any:
    """Call a method of objects that are held in split form, without changing that form.

    Args:
        graphdef_and_state: what `split` returned.

    Returns:
        An object on which a method (or attribute's or item's method) can be called; the call
        returns ``(result, (graphdef, state))`` with the split form after the call.

    >>> import treadle as nnx
    >>> before = nnx.split(nnx.Rngs(0))
    >>> key, after = nnx.call(before).default()
    >>> int(before[1].default.count.value), int(after[1].default.count.value)
    (0, 1)
    """
    return _Call(tuple(graphdef_and_state))


publish(__all__, globals())
