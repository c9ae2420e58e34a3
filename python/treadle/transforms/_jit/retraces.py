"""Why a jitted function was traced again: a record, a running commentary, and a limit."""

from __future__ import annotations

import contextlib
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from treadle import _core
from treadle._public import publish
from treadle.transforms._arguments import argument_label, function_name
from treadle.transforms._messages import type_of

__all__ = ["Retrace", "TooManyTracesError", "explain_retraces", "max_traces"]

F = TypeVar("F", bound=Callable[..., Any])

_LIMIT_ATTRIBUTE = "__treadle_max_traces__"
_KEPT_RETRACES = 1000


class TooManyTracesError(RuntimeError):
    """A function limited by `max_traces` was about to be traced once more."""


@dataclass(frozen=True)
class Retrace:
    """One trace of a function after its first, and the first thing that was different.

    Attributes:
        function: name of the traced function.
        path: what differed, as the function's author would write it (``model.dropout.rate``).
        before: what stood there in the nearest structure already known.
        after: what stands there now.
    """

    function: str
    path: str
    before: Any
    after: Any

    def __str__(self) -> str:
        change = f"{shown(self.before)} -> {shown(self.after)}"
        return f"{self.function} traced again: {self.path}: {change}"


def shown(value: Any) -> str:
    """A value that differs, for a sentence."""
    if isinstance(value, type):
        return value.__name__
    return value if isinstance(value, str) and not value.isidentifier() else repr(value)


class _Commentary:
    """Where retraces are announced: nested switches and contexts, each with its own sink."""

    def __init__(self) -> None:
        self.sinks: list[Callable[[Retrace], None]] = []

    def announce(self, retrace: Retrace) -> None:
        for sink in self.sinks:
            sink(retrace)


_commentary = _Commentary()


def _print_to_stderr(retrace: Retrace) -> None:
    print(retrace, file=sys.stderr)


def explain_retraces(
    enable: bool | None = None, *, sink: Callable[[Retrace], None] | None = None
) -> contextlib.AbstractContextManager[list[Retrace]]:
    """Tell, at each retrace of any jitted function, the first thing that was different.

    Without arguments a context manager that collects (and prints) what happens inside it. With
    ``True`` or ``False`` a switch for the whole program. The record of one function is always at
    hand as ``step.retraces``.

    Args:
        enable: True and False switch printing to stderr on and off for good; None does neither.
        sink: called with each `Retrace` instead of printing it to stderr.

    Returns:
        A context manager that gives the list of retraces inside it.

    >>> import jax.numpy as jnp
    >>> import treadle as nnx
    >>> @nnx.jit
    ... def double(x):
    ...     return 2 * x
    >>> with nnx.explain_retraces(sink=lambda retrace: None) as retraces:
    ...     _ = double(jnp.ones((2, 4))), double(jnp.ones((3, 4)))
    >>> print(retraces[0])
    double traced again: x: float32[2,4] -> float32[3,4]
    """
    out = sink or _print_to_stderr
    if enable is not None:
        _commentary.sinks[:] = [s for s in _commentary.sinks if s is not _print_to_stderr]
        if enable:
            _commentary.sinks.append(out)
        return contextlib.nullcontext([])
    return _collect(out)


@contextlib.contextmanager
def _collect(sink: Callable[[Retrace], None]) -> Iterator[list[Retrace]]:
    collected: list[Retrace] = []

    def record(retrace: Retrace) -> None:
        collected.append(retrace)
        sink(retrace)

    _commentary.sinks.append(record)
    try:
        yield collected
    finally:
        _commentary.sinks.remove(record)


def max_traces(limit: int) -> Callable[[F], F]:
    """Decorator: raise when a function is traced more than `limit` times, and say why.

    Goes on a jitted function or, below ``@jit``, on the function itself.

    Args:
        limit: how many traces are allowed, at least 1.

    Returns:
        A decorator that returns the function itself.

    Raises:
        ValueError: `limit` is less than 1.
        TooManyTracesError: from the decorated function, before it is traced once too often.

    >>> import jax.numpy as jnp
    >>> import treadle as nnx
    >>> @nnx.max_traces(1)
    ... @nnx.jit
    ... def double(x):
    ...     return 2 * x
    >>> _ = double(jnp.ones(2))
    >>> try:
    ...     double(jnp.ones(3))
    ... except nnx.TooManyTracesError as error:
    ...     print(error)
    double would be traced 2 times, max_traces allows 1. x: float32[2] -> float32[3]
    """
    if limit < 1:
        raise ValueError(f"max_traces needs a limit of at least 1, got {limit}.")

    def decorate(function: F) -> F:
        setattr(function, _LIMIT_ATTRIBUTE, limit)
        return function

    return decorate


class TraceLog:
    """The traces of one function: what is known to explain the next one, and its limit."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        # Bounded: a function traced for ever must not fill the memory with reasons.
        self.retraces: deque[Retrace] = deque(maxlen=_KEPT_RETRACES)
        self.count = 0

    def limit(self, jitted: Any) -> int | None:
        """The number of traces allowed, None for any."""
        for holder in (jitted, self.function):
            limit = getattr(holder, "__dict__", {}).get(_LIMIT_ATTRIBUTE)
            if limit is not None:
                return limit
        return None

    def record(self, jitted: Any, difference: tuple[str, Any, Any] | None) -> None:
        """Count a trace that is about to begin.

        Args:
            jitted: the jitted function, which may carry a limit.
            difference: path and two values that explain it; None for a first trace.
        """
        limit = self.limit(jitted)
        name = function_name(self.function)
        retrace = None
        if difference is not None:
            retrace = Retrace(name, *difference)
        if limit is not None and self.count >= limit:
            why = "" if retrace is None else " " + str(retrace).split("traced again: ", 1)[1]
            raise TooManyTracesError(
                f"{name} would be traced {self.count + 1} times, max_traces allows {limit}.{why}"
            )
        self.count += 1
        if retrace is not None:
            self.retraces.append(retrace)
            _commentary.announce(retrace)


def structure_difference(
    function: Callable[..., Any], known: Sequence[_core.GraphDef], new: _core.GraphDef
) -> tuple[str, Any, Any] | None:
    """Path and two values of the first difference between `new` and the nearest of `known`.

    The nearest has as many leaves and objects, if there is such a one; the latest of those counts.
    """
    if not known:
        return None
    size = (new.num_leaves, new.num_refs)
    same_size = [old for old in known if (old.num_leaves, old.num_refs) == size]
    nearest = (same_size or known)[-1]
    difference = nearest.difference(new)
    if difference is None and hash(nearest) != hash(new):
        # Only hashes cover what a function reads, and what a static was before it changed in place.
        return ("a static", "what it held or read then", "something else now")
    if difference is None:
        return ("the arguments", "a trace that was cleared", "the same structure")
    path, before, after = difference
    return argument_label(function, path), before, after


def type_difference(
    function: Callable[..., Any],
    graphdef: _core.GraphDef,
    before: Sequence[str],
    after: Sequence[str],
) -> tuple[str, Any, Any]:
    """The first leaf whose shape, dtype or weak type is another than at the last trace."""
    for path, old, new in zip(graphdef.paths(), before, after, strict=True):
        if old != new:
            return argument_label(function, path), old, new
    return ("the arguments", "sharding, layout or a jax setting", "another")


def leaf_type(value: Any) -> str:
    """What decides about retracing in a leaf: dtype, shape, weak type, and the mesh it lies on."""
    aval = getattr(value, "aval", None)
    text = type_of(value)
    if getattr(aval, "weak_type", False):
        text = f"weak {text}"
    sharding = getattr(aval, "sharding", None)
    if sharding is None or sharding.mesh.empty:
        return text
    return f"{text} by {sharding.spec} on mesh {dict(sharding.mesh.shape)}"


publish(__all__, globals())
