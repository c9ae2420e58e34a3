"""New graphs from what a function makes of each leaf."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from treadle._graph.splitting import merge, split
from treadle._graph.state import Path
from treadle._public import publish

__all__ = ["map"]

N = TypeVar("N")


def map(f: Callable[[Path, Any], Any], node: N, /) -> N:
    """A copy of a graph with ``f(path, entry)`` in the place of each leaf.

    Args:
        f: gets the path and the leaf as `state` has it, a `VariableState` for a Variable; gives one
            of the two or the plain value.
        node: the graph, which stays as it is.

    >>> import treadle as nnx
    >>> model = nnx.Dict(w=nnx.Param(2.0), b=nnx.Param(3.0))
    >>> doubled = nnx.map(lambda path, entry: entry.replace(entry.value * 2), model)
    >>> doubled.w.value, doubled.b.value, model.w.value
    (4.0, 6.0, 2.0)
    """
    graphdef, state = split(node)
    return merge(graphdef, state.map(f))


publish(__all__, globals())
