"""Splitting the random streams of nodes before they are mapped with plain axes."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, overload

import jax
import jax.numpy as jnp

from treadle import _core
from treadle._graph.filters import Filter, to_predicate
from treadle._modules.rngs import RngCount, RngKey, RngStream
from treadle._objects.adapters import NodeLayout, description_of
from treadle.transforms._random_keys import is_kind_of
from treadle.transforms._trees import walk

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from treadle.transforms._arguments import Function

__all__ = ["SplitBackups", "split_rngs"]

P = ParamSpec("P")
R = TypeVar("R")

_MISSING: Any = object()


class SplitBackups:
    """What split streams were before; a context manager that puts it back. See `split_rngs`."""

    def __init__(self) -> None:
        self._streams: list[tuple[Any, Any, Any, Any]] = []

    def _split(self, stream: Any, splits: int | tuple[int, ...], squeeze: bool) -> None:
        before = _core.raw_value(stream.key), _core.raw_value(stream.count)
        drawn = jax.random.split(stream(), splits)
        count = _core.raw_value(stream.count)
        self._streams.append((stream, *before, count))
        if squeeze:
            drawn = drawn[0]
        _core.set_raw_value(stream.key, drawn)
        _core.set_raw_value(stream.count, jnp.zeros(drawn.shape, count.dtype))

    def restore(self) -> None:
        """Put back the keys; the counts become those after the key to split was drawn.

        >>> import treadle as nnx
        >>> rngs = nnx.Rngs(0)
        >>> backups = nnx.split_rngs(rngs, splits=3)
        >>> backups.restore()
        >>> rngs.default.key.shape, int(rngs.default.count.value)
        ((), 1)
        """
        for stream, key, _, count in self._streams:
            _core.set_raw_value(stream.key, key)
            _core.set_raw_value(stream.count, count)
        self._streams = []

    def undo(self) -> None:
        """Put back keys and counts as they were before the split.

        >>> import treadle as nnx
        >>> rngs = nnx.Rngs(0)
        >>> backups = nnx.split_rngs(rngs, splits=3)
        >>> backups.undo()
        >>> int(rngs.default.count.value)
        0
        """
        for stream, key, count, _ in self._streams:
            _core.set_raw_value(stream.key, key)
            _core.set_raw_value(stream.count, count)
        self._streams = []

    def __enter__(self) -> SplitBackups:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.restore() if kind is None else self.undo()


def _is_stream(node: Any) -> bool:
    """Whether a node is a random stream, of treadle's or another library's."""
    if isinstance(node, RngStream):
        return True
    if not isinstance(description_of(type(node)), NodeLayout):
        return False
    parts = vars(node)
    return all(
        name in parts and is_kind_of(type(parts[name]), kind)
        for name, kind in (("key", RngKey), ("count", RngCount))
    )


def _split_all(
    tree: Any, splits: int | tuple[int, ...], only: Filter, squeeze: bool
) -> SplitBackups:
    matches = to_predicate(only)
    walked = walk(tree)
    backups = SplitBackups()
    try:
        for path, node in zip(walked.graphdef.ref_paths(), walked.refs, strict=True):
            if not _is_stream(node):
                continue
            inside = path[1:]
            if matches((*inside, "key"), node.key) and matches((*inside, "count"), node.count):
                backups._split(node, splits, squeeze)
    except BaseException:
        backups.undo()
        raise
    return backups


@overload
def split_rngs(
    *, splits: int | tuple[int, ...], only: Filter = ..., squeeze: bool = False
) -> Callable[[Callable[P, R]], Callable[P, R]]: ...
@overload
def split_rngs(
    node: Any, /, *, splits: int | tuple[int, ...], only: Filter = ..., squeeze: bool = False
) -> SplitBackups: ...
def split_rngs(
    node: Any = _MISSING,
    /,
    *,
    splits: int | tuple[int, ...],
    only: Filter = ...,
    squeeze: bool = False,
) -> Any:
    """Give random streams an array of keys, so that they can be mapped with plain ``in_axes=0``.

    Each stream draws one key and holds ``jax.random.split(key, splits)`` until it is restored, with
    counts of that shape that start at 0.

    Args:
        node: node, or pytree of nodes, whose streams to split. Left out, the result is a decorator
            that splits the streams in a function's arguments for the time of the call.
        splits: number of keys, or shape of the array of keys.
        only: filter that selects the streams (by key and count) to split.
        squeeze: with ``splits=1``: a single key without an axis.

    Returns:
        `SplitBackups`: call its ``restore()``, or use it in a ``with`` statement.

    Raises:
        ValueError: `squeeze` with other `splits` than 1.

    >>> import jax
    >>> import treadle as nnx
    >>> rngs = nnx.Rngs(0)
    >>> with nnx.split_rngs(rngs, splits=3):
    ...     print(rngs.default.key.shape)
    (3,)
    >>> rngs.default.key.shape
    ()
    >>> @nnx.split_rngs(splits=4)
    ... @nnx.vmap
    ... def make(rngs):
    ...     return nnx.Linear(2, 3, rngs=rngs)
    >>> make(nnx.Rngs(0)).kernel.shape
    (4, 2, 3)
    """
    if squeeze and splits != 1:
        raise ValueError(f"split_rngs: squeeze=True needs splits=1, got splits={splits!r}.")
    if node is not _MISSING:
        return _split_all(node, splits, only, squeeze)

    def decorate(f: Function) -> Function:
        @functools.wraps(f)
        def split_rngs_wrapper(*args: Any, **kwargs: Any) -> Any:
            with _split_all((args, kwargs), splits, only, squeeze):
                return f(*args, **kwargs)

        return split_rngs_wrapper

    return decorate
