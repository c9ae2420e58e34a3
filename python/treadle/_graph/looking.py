"""Everything in a graph, one by one."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Any

from treadle import _core
from treadle._objects.node_types import iter_children

Path = tuple[Hashable, ...]


def iter_graph(node: Any, /) -> Iterator[tuple[Path, Any]]:
    """Everything in a graph with its path: nodes, Variables, arrays and statics.

    Each node and Variable comes once, with the first path that leads to it, after what is below it.
    Tuples, lists, dicts and other pytrees are entered if there is something of the graph inside,
    and count as one static value otherwise.

    >>> import treadle as nnx
    >>> shared = nnx.Param(1.0)
    >>> for path, value in nnx.iter_graph(nnx.Dict(a=shared, b=[shared, nnx.Dict(rate=0.1)])):
    ...     print(path, type(value).__name__)
    ('a',) Param
    ('b', 1, 'rate') float
    ('b', 1) Dict
    ('b',) list
    () Dict
    """
    seen: dict[int, Any] = {}
    pending: list[tuple[Path, Any, bool]] = [((), node, False)]
    while pending:
        path, value, entered = pending.pop()
        if entered:
            yield path, value
            continue
        if _core.is_node(value):
            if id(value) in seen:
                continue
            seen[id(value)] = value
        children = list(iter_children(value))
        pending.append((path, value, True))
        pending.extend(((*path, key), child, False) for key, child in reversed(children))
