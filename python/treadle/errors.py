"""Exceptions, and how a place in an object graph is written in their messages.

Every error is a `GraphError`, and also the builtin that users of such an operation would catch
(`ValueError`, `TypeError` or `KeyError`).
"""

from __future__ import annotations

from difflib import get_close_matches
from itertools import islice
from keyword import iskeyword
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable

__all__ = [
    "CapturedNodeWarning",
    "DonationWarning",
    "FilterError",
    "GraphError",
    "LeafTypeError",
    "NodeTypeError",
    "StateError",
    "StaticError",
    "TraceContextError",
    "format_path",
]

T = TypeVar("T")


class GraphError(ValueError):
    """Base of all errors that treadle raises about object graphs.

    >>> import treadle as nnx
    >>> issubclass(nnx.TraceContextError, nnx.GraphError)
    True
    """

    # Kept apart so that a transform can name the argument of its function instead of `model`.
    path: tuple[Hashable, ...] | None = None
    reason: str | None = None


class TraceContextError(GraphError):
    """An object was changed at a trace level other than the one it was made at.

    >>> import jax
    >>> import treadle as nnx
    >>> d = nnx.Dict(a=1)
    >>> @jax.jit
    ... def f():
    ...     d["b"] = 2
    >>> try:
    ...     f()
    ... except nnx.TraceContextError as error:
    ...     print(str(error)[:47])
    Cannot mutate 'Dict' from different trace level
    """


class CapturedNodeWarning(UserWarning):
    """A compiled function reads a node that is no argument, and goes on with the values it has now.

    >>> import warnings
    >>> import treadle as nnx
    >>> model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    >>> with warnings.catch_warnings(record=True) as seen:
    ...     warnings.simplefilter("always")
    ...     out = nnx.jit(lambda x: model.kernel.value * x)(2.0)
    >>> issubclass(seen[0].category, nnx.CapturedNodeWarning)
    True
    """


class DonationWarning(UserWarning):
    """Arrays that were to be donated are copied, since somebody else holds them as well.

    >>> import warnings
    >>> import treadle as nnx
    >>> model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    >>> before = nnx.clone(model)
    >>> with warnings.catch_warnings(record=True) as seen:
    ...     warnings.simplefilter("always")
    ...     nnx.jit(lambda model: None, donate_state=True)(model)
    >>> issubclass(seen[0].category, nnx.DonationWarning)
    True
    """


class StaticError(GraphError, TypeError):
    """A static attribute cannot be hashed, so structures that hold it cannot be compared.

    >>> import treadle as nnx
    >>> try:
    ...     nnx.graphdef(nnx.Dict(raw=bytearray(2)))
    ... except nnx.StaticError as error:
    ...     print(str(error)[:56])
    model.raw holds a static value of type 'bytearray' that
    """


class LeafTypeError(GraphError, TypeError):
    """A value of the wrong kind was given for a Variable or an array of a graph."""


class NodeTypeError(GraphError, TypeError):
    """A node type was registered wrongly, or one of its functions broke its promise."""


class FilterError(GraphError):
    """Filters are out of order, select nothing that exists, or leave a remainder."""


class StateError(GraphError, KeyError):
    """Entries are missing from a State, or it holds some that the graph has no place for."""

    # KeyError shows the repr of its argument, which makes a sentence unreadable.
    __str__ = Exception.__str__


def format_path(path: Iterable[Hashable], root: str = "model") -> str:
    """Write a path as the Python expression that reaches it from `root`.

    Args:
        path: attribute names, indices and mapping keys, from the root down.
        root: what to call the root.

    Returns:
        The expression, such as ``model.blocks[3].norm.scale``.

    >>> from treadle.errors import format_path
    >>> format_path(("blocks", 3, "norm", "scale"))
    'model.blocks[3].norm.scale'
    >>> format_path(("table", "per cent"), root="grads")
    "grads.table['per cent']"
    """
    parts = [root]
    for key in path:
        if isinstance(key, str) and key.isidentifier() and not iskeyword(key):
            parts.append(f".{key}")
        else:
            parts.append(f"[{key!r}]")
    return "".join(parts)


def listed(items: Iterable[T], limit: int, text: Callable[[T], str]) -> str:
    """The texts of the first `limit` items separated by commas, and how many more there are."""
    remaining = iter(items)
    shown = ", ".join(map(text, islice(remaining, limit)))
    more = sum(1 for _ in remaining)
    return f"{shown} and {more} more" if more > 0 else shown


def format_paths(paths: Iterable[Iterable[Hashable]], root: str = "model", limit: int = 5) -> str:
    """Write the first `limit` paths separated by commas, and say how many more there are."""
    return listed(paths, limit, lambda path: format_path(path, root))


def known_names(wanted: object, names: Iterable[Hashable], limit: int = 10) -> str:
    """What there is where `wanted` is not, names like it first."""
    known = list(names)
    by_text = {str(name): name for name in known}
    alike = [by_text[text] for text in get_close_matches(str(wanted), by_text, n=3)]
    ordered = [*alike, *(name for name in known if name not in alike)]
    start = f"did you mean {alike[0]!r}? " if alike else ""
    return f"{start}entries: {listed(ordered, limit, repr) or 'none'}"


def located(error: TraceContextError, path: Iterable[Hashable]) -> TraceContextError:
    """The same error, with the path of the object that it is about."""
    path = tuple(path)
    found = TraceContextError(f"{format_path(path)}: {error}")
    found.path, found.reason = path, str(error)
    return found


def engine_error(reason: str, path: Iterable[Hashable], is_static: bool = False) -> GraphError:
    """The exception for what the C++ engine found wrong: `reason` is said of what is at `path`."""
    path = tuple(path)
    kind = StaticError if is_static else GraphError
    error = kind(f"{format_path(path)} {reason}")
    error.path, error.reason = path, reason
    return error
