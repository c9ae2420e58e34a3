"""Everything in a graph, one by one."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import Any, NamedTuple

from treadle import _core
from treadle._graph.filters import Filter, to_predicate
from treadle._objects.node_types import is_walked_callable, iter_children
from treadle._public import publish

__all__ = ["find_duplicates", "iter_graph"]

Path = tuple[Hashable, ...]


class Visit(NamedTuple):
    """A value, and the keys that lead to it: one list for all visits, to be copied where needed.

    In a chain of n modules the paths of all of them take n² space, and few callers look at one.
    """

    keys: Sequence[Hashable]
    value: Any


def visits(root: Any) -> Iterator[Visit]:
    """All that `iter_graph` gives, in its order, in time and space linear in the graph's size."""
    seen: dict[int, Any] = {}
    keys: list[Hashable] = []
    entered: list[tuple[Any, Iterator[tuple[Hashable, Any]], bool]] = []
    elsewhere = _Elsewhere(root)

    def enter(value: Any, in_callable: bool) -> bool:
        if _core.is_node(value):
            if id(value) in seen or (in_callable and value in elsewhere):
                return False
            seen[id(value)] = value
        else:
            in_callable = in_callable or is_walked_callable(value)
        # A list, since the caller may change the graph between visits.
        entered.append((value, iter(list(iter_children(value))), in_callable))
        return True

    enter(root, False)
    while entered:
        value, children, in_callable = entered[-1]
        for key, child in children:
            if enter(child, in_callable):
                keys.append(key)
                break
        else:
            entered.pop()
            yield Visit(keys, value)
            if keys:
                keys.pop()


class _Elsewhere:
    """The nodes and Variables of a graph that a way leads to which passes no callable."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self._found: dict[int, Any] | None = None

    def __contains__(self, node: Any) -> bool:
        if self._found is None:
            # Held, so that the addresses stay theirs.
            self._found = {}
            pending = [self._root]
            while pending:
                value = pending.pop()
                if _core.is_node(value):
                    if id(value) in self._found:
                        continue
                    self._found[id(value)] = value
                elif is_walked_callable(value):
                    continue
                pending += [child for _, child in iter_children(value)]
        return id(node) in self._found


def iter_graph(node: Any, /) -> Iterator[tuple[Path, Any]]:
    """Everything in a graph with its path: nodes, Variables, arrays and statics.

    Each node and Variable comes once, with the first path that leads to it, after what is below it.
    Tuples, lists, dicts and other pytrees are entered if there is something of the graph inside,
    and count as one static value otherwise; so are bound methods, partials and transformed functions,
    for what is found nowhere else. A path is made when its turn comes and not kept.

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
    for keys, value in visits(node):
        yield tuple(keys), value


def find_duplicates(node: Any, /, *, only: Filter = ...) -> list[list[Path]]:
    """The paths of nodes and Variables that several paths lead to.

    Args:
        node: where to look.
        only: filter that selects what counts.

    Returns:
        For each such object all its paths, in the order in which they are met. What is below a node
        that was met before is not gone through again.

    >>> import treadle as nnx
    >>> tied = nnx.Param(1.0)
    >>> nnx.find_duplicates(nnx.Dict(a=tied, b=nnx.Dict(c=tied, d=nnx.Param(2.0))))
    [[('a',), ('b', 'c')]]
    """
    matches = to_predicate(only)
    paths: dict[int, list[Path]] = {}
    seen: dict[int, Any] = {}
    pending: list[tuple[Path, Any]] = [((), node)]
    while pending:
        path, value = pending.pop()
        if _core.is_node(value):
            if matches(path, value):
                paths.setdefault(id(value), []).append(path)
            if id(value) in seen:
                continue
            seen[id(value)] = value
        children = [((*path, key), child) for key, child in iter_children(value)]
        pending.extend(reversed(children))
    return [found for found in paths.values() if len(found) > 1]


publish(__all__, globals())
