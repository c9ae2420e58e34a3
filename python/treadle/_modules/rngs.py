"""Random number streams: a key and a count of the keys drawn from it.

The key of a call is ``jax.random.fold_in(key, count)``, after which the count goes up by one. So a
stream gives the same keys however its model is jitted, split or restored.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from treadle._graph.filters import Filter, to_predicate
from treadle._modules.draws import RandomSource
from treadle._objects.variables import A, Variable
from treadle._public import publish
from treadle.errors import TraceContextError

__all__ = ["RngCount", "RngKey", "RngState", "RngStream", "RngValue", "Rngs"]

Shape: TypeAlias = "int | tuple[int, ...]"
RngValue: TypeAlias = "int | jax.Array | np.ndarray[Any, Any] | Variable[Any]"


class RngState(Variable[A]):
    """State of a random stream: its key or its count.

    >>> import treadle as nnx
    >>> issubclass(nnx.RngKey, nnx.RngState)
    True
    """

    __slots__ = ()


class RngKey(RngState[A]):
    """Key of a random stream, a typed JAX key of any shape; its tag is the stream's name.

    >>> import treadle as nnx
    >>> nnx.Rngs(params=0).params.key.tag
    'params'
    """

    __slots__ = ()


class RngCount(RngState[A]):
    """How many keys were drawn from a random stream, ``uint32[]``; its tag is the stream's name.

    >>> import treadle as nnx
    >>> nnx.Rngs(0).default.count.value.dtype
    dtype('uint32')
    """

    __slots__ = ()


def as_key(value: Any) -> jax.Array:
    """A typed JAX key from a seed, a typed key or a legacy ``uint32`` key.

    Raises:
        TypeError: `value` is none of these.
    """
    if isinstance(value, Variable):
        value = value.value
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        return value
    if isinstance(value, (jax.Array, np.ndarray, np.generic)):
        if value.ndim > 0 and value.dtype == np.uint32:
            return jax.random.wrap_key_data(jnp.asarray(value))
        if value.ndim == 0 and jnp.issubdtype(value.dtype, jnp.integer):
            return jax.random.key(value)  # type: ignore[arg-type]
    elif isinstance(value, int) and not isinstance(value, bool):
        return jax.random.key(value)
    raise TypeError(
        f"{value!r} is neither a seed nor a key. Give an int, jax.random.key(...) or "
        "jax.random.PRNGKey(...)."
    )


class RngStream(RandomSource):
    """One stream of random keys; calling it gives the next key.

    It draws numbers by the names of `jax.random` too: `stream.normal((2, 3))`.

    Args:
        tag: name of the stream, stored as ``tag`` metadata of its Variables.
        key: seed, typed key, or legacy ``uint32`` key; an array of keys makes as many streams in
            one, to be mapped over.
        count: how many keys have been drawn already, of each key the same or an array.

    Raises:
        TraceContextError: when called at a trace level other than the one it was made at.

    >>> import jax
    >>> import treadle as nnx
    >>> stream = nnx.RngStream("noise", 0)
    >>> bool(stream() == jax.random.fold_in(jax.random.key(0), 0)), int(stream.count.value)
    (True, 1)
    """

    key: RngKey[jax.Array]
    count: RngCount[jax.Array]

    def __init__(self, tag: str, key: RngValue, count: Any = 0) -> None:
        keys, counts = as_key(key), jnp.asarray(count, jnp.uint32)
        if counts.ndim == 0 and keys.ndim:
            # One for each key, so that both are mapped alike.
            counts = jnp.broadcast_to(counts, keys.shape)
        self.key = RngKey(keys, tag=tag)
        self.count = RngCount(counts, tag=tag)

    def __call__(self) -> jax.Array:
        """The next key, a typed key of shape ``()``; of a stream of keys, the next of each.

        >>> import treadle as nnx
        >>> nnx.RngStream("noise", 0)().shape
        ()
        """
        try:
            self._check_mutable()
            self.count._check_mutable()
        except TraceContextError:
            raise TraceContextError(
                f"Cannot call {type(self).__name__} from a different trace level: it was made outside of "
                "the function that is being transformed, or inside of one that has ended. Pass it to "
                "that function as an argument, or draw the key before."
            ) from None
        key = _folded(self.key.value, self.count.value)
        self.count.value = self.count.value + 1
        return key

    def fork(self, *, split: int | tuple[int, ...] | None = None) -> RngStream:
        """A new stream whose key is the next key of this one.

        Args:
            split: shape of keys to split the new stream's key into, if any.

        Returns:
            A stream of the same name, with key of shape ``()`` or `split` and count 0 of that
            shape.

        Raises:
            ValueError: `split` of a stream that is an array of keys already.

        >>> import treadle as nnx
        >>> nnx.RngStream("noise", 0).fork(split=3).key.shape
        (3,)
        """
        tag = self.key.get_metadata("tag")
        if split is not None and self.key.value.ndim:
            raise ValueError(
                f"the stream {tag!r} is an array of keys of shape {self.key.value.shape} already; "
                "fork it without `split`, or split inside of vmap"
            )
        key = self()
        return type(self)(tag, key if split is None else jax.random.split(key, split))

    def split(self, k: int | tuple[int, ...], /) -> RngStream:
        """A new stream of keys: the next key of this one, split.

        Args:
            k: how many keys, or the shape of the array of keys.

        Returns:
            A stream of the same name, with key and count of shape `k`; the count is 0.

        Raises:
            ValueError: this stream is an array of keys already.

        >>> import treadle as nnx
        >>> nnx.RngStream("noise", 0).split((2, 3)).key.shape
        (2, 3)
        """
        return self.fork(split=k)

    def broadcast(self, k: int | tuple[int, ...], /) -> RngStream:
        """A new stream that holds the next key of this one many times.

        Args:
            k: how many times, or the shape to put before the key's.

        >>> import treadle as nnx
        >>> same = nnx.RngStream("noise", 0).broadcast(3).key.value
        >>> same.shape, bool((same == same[0]).all())
        ((3,), True)
        """
        shape = (k,) if isinstance(k, int) else tuple(k)
        key = self()
        copies = jnp.broadcast_to(key, shape + key.shape)
        return type(self)(self.key.get_metadata("tag"), copies)


def _folded(key: jax.Array, count: jax.Array) -> jax.Array:
    """`jax.random.fold_in` for one key, or for each of an array of keys."""
    fold = jax.random.fold_in
    for axis in reversed(range(key.ndim)):
        # A count that was made for all keys together stays one.
        fold = jax.vmap(fold, in_axes=(0, 0 if axis < count.ndim else None))
    return fold(key, count)


class Rngs(RandomSource):
    """Named random streams; names that do not exist draw from the stream ``default``.

    The functions of `jax.random` draw numbers from ``default``: ``rngs.normal((2, 3))``, or from
    another stream: ``rngs.noise.normal((2, 3))``. A missing stream of the name of such a function is
    found as ``rngs["normal"]``.

    Args:
        default: seed or key of the stream ``default``, or a mapping of stream names to seeds or
            keys. An array of keys makes as many streams in one, to be mapped over.
        **streams: seed or key of each further stream.

    Raises:
        TypeError: a value is neither a seed nor a key.

    >>> import treadle as nnx
    >>> rngs = nnx.Rngs(0, dropout=1)
    >>> key = rngs.dropout()
    >>> key = rngs.params()  # no such stream: the next key of `default`
    >>> key = rngs()
    >>> int(rngs.dropout.count.value), int(rngs.default.count.value)
    (1, 2)
    """

    def __init__(
        self,
        default: RngValue | Mapping[str, RngValue] | None = None,
        /,
        **streams: RngValue,
    ) -> None:
        if isinstance(default, Mapping):
            streams = {**default, **streams}
        elif default is not None:
            streams = {"default": default, **streams}
        for name, key in streams.items():
            stream = key if isinstance(key, RngStream) else RngStream(name, key)
            setattr(self, name, stream)

    def _missing(self, name: object) -> str:
        known = ", ".join(map(repr, self)) or "none"
        return f"No RNG named {name!r} in Rngs, and no 'default'; streams: {known}"

    def __getattr__(self, name: str) -> RngStream:
        return self[name]

    def __getitem__(self, name: str) -> RngStream:
        streams = vars(self)
        if name in streams:
            return streams[name]
        if not name.startswith("__") and "default" in streams:
            return streams["default"]
        raise AttributeError(self._missing(name))

    def __contains__(self, name: Hashable) -> bool:
        return name in vars(self)

    def __iter__(self) -> Iterator[str]:
        return iter(vars(self))

    def __len__(self) -> int:
        return len(vars(self))

    def __call__(self) -> jax.Array:
        """The next key of the stream ``default``.

        Raises:
            AttributeError: there is no stream ``default``.

        >>> import treadle as nnx
        >>> nnx.Rngs(0)().shape
        ()
        """
        return self.default()

    def items(self) -> Iterator[tuple[str, RngStream]]:
        """Names and streams, in the order they were given.

        >>> import treadle as nnx
        >>> [name for name, _ in nnx.Rngs(0, dropout=1).items()]
        ['default', 'dropout']
        """
        yield from vars(self).items()

    def fork(self, *, split: Shape | Mapping[Filter, Shape | None] | None = None) -> Rngs:
        """New streams of the same names, each starting from the next key of its stream here.

        Args:
            split: shape of keys to split each new key into, or such shapes by filter, the first that
                selects a stream counting; a text selects the stream of that name. Streams that get
                None or are not selected have one key.

        >>> import treadle as nnx
        >>> forked = nnx.Rngs(0, dropout=1).fork(split={"dropout": 4})
        >>> forked.default.key.shape, forked.dropout.key.shape
        ((), (4,))
        """
        return self._made(split, lambda stream, shape: stream.fork(split=shape))

    def split(self, k: Shape | Mapping[Filter, Shape | None], /) -> Rngs:
        """Streams of keys, to be mapped over: the next key of each stream here, split.

        Args:
            k: how many keys, or the shape of the arrays of keys; or such shapes by filter, the
                first that selects a stream counting. Streams that get None or are not selected are
                shared: the result holds the same stream.

        >>> import treadle as nnx
        >>> rngs = nnx.Rngs(params=0, dropout=1).split({"params": 5, ...: None})
        >>> rngs.params.key.shape, rngs.dropout.key.shape
        ((5,), ())
        """
        return self._made(k, _unless_none(RngStream.split))

    def broadcast(self, k: Shape | Mapping[Filter, Shape | None] | None, /) -> Rngs:
        """Streams that hold the next key of each stream here many times.

        Args:
            k: as in `split`.

        >>> import treadle as nnx
        >>> nnx.Rngs(0).broadcast(5).default.key.shape
        (5,)
        """
        return self._made(k, _unless_none(RngStream.broadcast))

    def _made(
        self,
        shapes: Shape | Mapping[Filter, Shape | None] | None,
        of: Callable[[RngStream, Shape | None], RngStream],
    ) -> Rngs:
        """What `of` makes of each stream and the shape that it gets."""
        shape_of = _by_filter(shapes)
        made = Rngs()
        for name, stream in self.items():
            setattr(made, name, of(stream, shape_of(stream)))
        return made


def _unless_none(
    change: Callable[[RngStream, Shape], RngStream],
) -> Callable[[RngStream, Shape | None], RngStream]:
    """`change`, for streams that get a shape."""
    return lambda stream, shape: stream if shape is None else change(stream, shape)


def _by_filter(
    shapes: Shape | Mapping[Filter, Shape | None] | None,
) -> Callable[[RngStream], Shape | None]:
    """Which of `shapes` a stream gets."""
    if not isinstance(shapes, Mapping):
        return lambda stream: shapes
    choices = [(to_predicate(selected), shape) for selected, shape in shapes.items()]

    def chosen(stream: RngStream) -> Shape | None:
        return next((shape for matches, shape in choices if matches((), stream.key)), None)

    return chosen


publish(__all__, globals())
