"""What jit reads of JAX beyond what JAX documents, in one place.

Each works on jax 0.8 to 0.12. Where a later one changes, what is here falls back on less: plans that
`jax.clear_caches` leaves alone, or leaves that JAX's messages number instead of naming.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, cast

import jax
from jax._src import source_info_util
from jax._src import util as jax_util

from treadle import _core
from treadle.errors import format_path
from treadle.transforms._arguments import argument_label

_SIGNATURE = inspect.signature(jax.jit)

# The parameters that the installed jax has, and the default of those that may be anything else.
JIT_PARAMETERS = frozenset(_SIGNATURE.parameters)
UNSPECIFIED: Any = _SIGNATURE.parameters["in_shardings"].default

# More keys per path than this, on average, and leaves keep their numbers: in a deep graph the paths
# would be far larger than all the rest.
_KEYS_PER_PATH = 32


# -- caches ----------------------------------------------------------------------------------------


class Clearable(Protocol):
    """Holds programs that `jax.clear_caches` is to forget."""

    def clear_cache(self) -> None:
        """Forget them."""


class _PlanCaches:
    """All that is alive and holds plans; JAX knows it as a cache."""

    def __init__(self) -> None:
        self._holders: weakref.WeakSet[Clearable] = weakref.WeakSet()
        self.add = self._holders.add

    def cache_clear(self) -> None:
        for holder in list(self._holders):
            holder.clear_cache()


plan_caches = _PlanCaches()
# Without it plans are merely not cleared, and compile again when next used.
if hasattr(jax_util, "register_cache"):
    jax_util.register_cache(plan_caches, "treadle plans")  # type: ignore[arg-type]


# -- what JAX says of a traced function ------------------------------------------------------------

# The line that a tracer or an operation came from is the user's, not that of a transform.
with contextlib.suppress(AttributeError, TypeError):
    source_info_util.register_exclusion(str(Path(__file__).parent.parent) + "/")


def describe(
    traced: Callable[..., Any], function: Callable[..., Any], graphdef: _core.GraphDef
) -> None:
    """Let JAX call the function `traced`, which takes the leaves of a call, what the user calls it.

    That is its name and line, and the names of its arguments: JAX reads the first two through
    ``__wrapped__``, and binds ``__signature__`` where it wants the names, once for each trace.
    """
    traced._leaves_of = function, graphdef  # type: ignore[attr-defined]
    traced.__signature__ = _LeafNames(traced)  # type: ignore[attr-defined]
    source = source_of(function)
    if source is not None:
        traced.__wrapped__ = source  # type: ignore[attr-defined]


def source_of(function: Any) -> Callable[..., Any] | None:
    """The function with code of its own that `function` ends in, None if there is none."""
    with contextlib.suppress(ValueError):  # it wraps itself
        function = inspect.unwrap(function)
        while isinstance(function, functools.partial):
            function = inspect.unwrap(function.func)
        for candidate in (function, type(function).__call__):
            if hasattr(candidate, "__code__"):
                return candidate
    return None


class _LeafNames(inspect.Signature):
    """``(*values)``, but binds each value to the name of its leaf.

    JAX keeps it where no garbage collector looks, for as long as the traced function lives: it owns
    neither that nor what it leads to.
    """

    __slots__ = ("_names", "_traced")

    def __init__(self, traced: Callable[..., Any]) -> None:
        super().__init__([inspect.Parameter("values", inspect.Parameter.VAR_POSITIONAL)])
        self._traced = weakref.ref(traced)
        self._names: tuple[str, ...] | None = None

    def bind(self, *args: Any, **kwargs: Any) -> inspect.BoundArguments:
        """The arguments by name, for which JAX calls this.

        Raises:
            TypeError: they cannot be named, and JAX numbers them.
        """
        if self._names is None:
            self._names = self._read()
        arguments = dict(zip(self._names, args, strict=False))
        if kwargs or len(arguments) != len(args):
            raise TypeError("leaves without names of their own")
        return inspect.BoundArguments(self, cast("Any", arguments))

    def _read(self) -> tuple[str, ...]:
        traced = self._traced()
        if traced is None:
            return ()
        function, graphdef = cast("Any", traced)._leaves_of
        if graphdef.paths_length() > _KEYS_PER_PATH * max(graphdef.num_leaves, 64):
            return ()
        root = functools.cache(lambda which: argument_label(function, (which,)))
        return tuple(format_path(path[1:], root(path[0])) for path in graphdef.paths())
