"""Other keys for the random streams of nodes: split before they are mapped, forked, or seeded anew."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeAlias, TypeVar, overload

import jax
import jax.numpy as jnp

from treadle import _core
from treadle._graph.filters import Filter, to_predicate
from treadle._graph.looking import Path, iter_graph
from treadle._modules.rngs import RngCount, RngKey, Rngs, RngStream, RngValue, Shape
from treadle._objects.adapters import description_of
from treadle._objects.descriptions import NodeLayout
from treadle._public import publish
from treadle.errors import format_path
from treadle.transforms._companions import apart, bring, bringing
from treadle.transforms._random_keys import is_kind_of
from treadle.transforms._trees import walk

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["SplitBackups", "fork_rngs", "reseed", "restore_rngs", "split_rngs"]

P = ParamSpec("P")
R = TypeVar("R")

_MISSING: Any = object()


class SplitBackups:
    """What split streams were before; a context manager that puts it back. See `split_rngs`."""

    def __init__(self) -> None:
        self._streams: list[tuple[Any, Any, Any, Any]] = []

    def _split(self, stream: Any, splits: Shape | None, squeeze: bool = False) -> None:
        before = _core.raw_value(stream.key), _core.raw_value(stream.count)
        drawn = stream()
        if splits is not None:
            drawn = jax.random.split(drawn, splits)
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
    tree: Any, choices: Sequence[tuple[Filter, Shape | None]], squeeze: bool = False
) -> SplitBackups:
    """Split the streams of a tree, each as the first filter says that selects it."""
    rules = [(to_predicate(selected), splits) for selected, splits in choices]
    walked = walk(tree)
    backups = SplitBackups()
    try:
        for path, node in zip(walked.graphdef.ref_paths(), walked.refs, strict=True):
            if not _is_stream(node):
                continue
            inside = path[1:]
            for matches, splits in rules:
                if matches((*inside, "key"), node.key) and matches((*inside, "count"), node.count):
                    backups._split(node, splits, squeeze)
                    break
    except BaseException:
        backups.undo()
        raise
    return backups


def _for_a_call(f: Callable[P, R], split: Callable[[Any], SplitBackups]) -> Callable[P, R]:
    """`f`, with the streams of its arguments split for the time of the call."""

    def with_split_streams(*args: Any, **kwargs: Any) -> R:
        function, companions = bring(f)
        given, passed = apart(kwargs)
        with split((args, given)):
            return function(*args, **given, **{**companions, **passed})

    return bringing(with_split_streams, f)


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

    def split(tree: Any) -> SplitBackups:
        return _split_all(tree, [(only, splits)], squeeze)

    if node is not _MISSING:
        return split(node)
    return lambda f: _for_a_call(f, split)


@overload
def fork_rngs(
    *, split: Shape | Mapping[Filter, Shape | None] | None = None
) -> Callable[[Callable[P, R]], Callable[P, R]]: ...
@overload
def fork_rngs(
    node: Any, /, *, split: Shape | Mapping[Filter, Shape | None] | None = None
) -> SplitBackups: ...
def fork_rngs(
    node: Any = _MISSING,
    /,
    *,
    split: Shape | Mapping[Filter, Shape | None] | None = None,
) -> Any:
    """Let random streams go on from a key of their own, until they are restored.

    What is drawn meanwhile does not change what is drawn afterwards. Each selected stream draws one
    key, starts again from it with count 0, and, with `split`, holds it split.

    Args:
        node: node, or pytree of nodes, whose streams to fork. Left out, the result is a decorator
            that forks the streams in a function's arguments for the time of the call.
        split: number of keys, or shape of the array of keys; or such shapes by filter, where None is
            a single key, the first that selects a stream counts, and others stay as they are.

    Returns:
        `SplitBackups`: call its ``restore()``, or use it in a ``with`` statement.

    >>> import treadle as nnx
    >>> rngs = nnx.Rngs(0)
    >>> with nnx.fork_rngs(rngs):
    ...     drawn = [rngs() for _ in range(5)]
    >>> int(rngs.default.count.value)
    1
    """
    choices = list(split.items()) if isinstance(split, Mapping) else [(..., split)]

    def fork(tree: Any) -> SplitBackups:
        return _split_all(tree, choices)

    if node is not _MISSING:
        return fork(node)
    return lambda f: _for_a_call(f, fork)


def restore_rngs(backups: SplitBackups, /) -> None:
    """Put back what `split_rngs` or `fork_rngs` changed: ``backups.restore()``.

    >>> import treadle as nnx
    >>> rngs = nnx.Rngs(0)
    >>> backups = nnx.split_rngs(rngs, splits=3)
    >>> nnx.restore_rngs(backups)
    >>> rngs.default.key.shape
    ()
    """
    backups.restore()


Policy: TypeAlias = (
    Literal["scalars_only", "match_shape"] | Callable[[Path, jax.Array, tuple[int, ...]], jax.Array]
)


def reseed(node: Any, /, *, policy: Policy = "scalars_only", **stream_keys: RngValue) -> None:
    """Start random streams of a graph again from other keys, with count 0.

    The streams of a name get keys drawn one after the other from the seed for that name, in the
    order of `iter_graph`.

    Args:
        node: node, or pytree of nodes, whose streams to change.
        policy: what happens to streams of arrays of keys. ``"scalars_only"``: an error.
            ``"match_shape"``: the new key is split to the array's shape. A function of path, new
            key and the array's shape gives the key that is set.
        **stream_keys: seed or key by stream name; other streams stay as they are.

    Raises:
        ValueError: a stream is an array of keys; `policy` is something else; no stream has the name.

    Nothing is changed where anything is wrong.

    >>> import treadle as nnx
    >>> model = nnx.Dict(rngs=nnx.Rngs(noise=0))
    >>> nnx.reseed(model, noise=1)
    >>> first = model.rngs.noise()
    >>> nnx.reseed(model, noise=1)
    >>> bool(model.rngs.noise() == first)
    True
    """
    if policy not in ("scalars_only", "match_shape") and not callable(policy):
        raise ValueError(
            f"reseed: policy is 'scalars_only', 'match_shape' or a function of path, key and shape, "
            f"got {policy!r}."
        )
    sources = Rngs(**stream_keys)
    unused = set(stream_keys)
    found: list[tuple[Any, jax.Array]] = []
    for path, stream in iter_graph(node):
        if not _is_stream(stream):
            continue
        name = stream.key.get_metadata("tag")
        if name in stream_keys:
            unused.discard(name)
            key = getattr(sources, name)()
            shape = _core.raw_value(stream.key).shape
            found.append((stream, _reseeded(policy, path, key, shape)))
    if unused:
        raise ValueError(f"reseed: no stream is named {', '.join(map(repr, sorted(unused)))}.")
    for stream, key in found:
        _core.set_raw_value(stream.key, key)
        count = _core.raw_value(stream.count)
        _core.set_raw_value(stream.count, jnp.zeros(key.shape, count.dtype))


def _reseeded(policy: Policy, path: Path, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    if not isinstance(policy, str):
        return policy(path, key, shape)
    if not shape:
        return key
    if policy == "match_shape":
        return jax.random.split(key, shape)
    raise ValueError(
        f"reseed: {format_path(path, 'node')} is a stream of keys of shape {shape}. Give "
        "policy='match_shape' to split the new key, or a function that makes the keys."
    )


publish(__all__, globals())
