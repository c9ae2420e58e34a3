"""The small words that say what a transform does to which part of an argument.

`StateAxes`, `Carry`, `DiffState` and `StateSharding` stand inside `in_axes`, `out_axes`, `argnums`
and `in_shardings`, where the state of a node needs more than one entry.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from treadle._graph.filters import Filter, to_filter_spec
from treadle._public import publish

__all__ = ["Carry", "DiffState", "StateAxes", "StateSharding"]


@final
class Carry:
    """Marks the carry of a `scan` in its `in_axes` and `out_axes`; used as the class itself.

    As an axis in a `StateAxes` it means: these leaves go from iteration to iteration.

    >>> import jax.numpy as jnp
    >>> import treadle as nnx
    >>> add = nnx.scan(lambda c, x: (c + x, c), in_axes=(nnx.Carry, 0), out_axes=(nnx.Carry, 0))
    >>> total, before = add(jnp.array(0), jnp.arange(4))
    >>> int(total), before.tolist()
    (6, [0, 0, 1, 3])
    """


class ByFilter(Mapping[Filter, Any]):
    """An ordered mapping from filters to what holds for the leaves that they select first.

    Equal and hashable by its entries.
    """

    __slots__ = ("_entries",)
    _entries: tuple[tuple[Filter, Any], ...]

    def __init__(self, entries: Mapping[Filter, Any] | Iterable[tuple[Filter, Any]], /) -> None:
        pairs = entries.items() if isinstance(entries, Mapping) else entries
        checked = []
        for filter_, value in pairs:
            to_filter_spec(filter_)
            checked.append((_hashable(filter_), self._check(value)))
        self._entries = tuple(checked)

    def _check(self, value: Any) -> Any:
        return value

    @property
    def filters(self) -> tuple[Filter, ...]:
        """The filters, in the order they are tried."""
        return tuple(filter_ for filter_, _ in self._entries)

    @property
    def entries(self) -> tuple[Any, ...]:
        """What holds for the leaves of each filter."""
        return tuple(value for _, value in self._entries)

    def __getitem__(self, key: Filter) -> Any:
        wanted = _hashable(key)
        for filter_, value in self._entries:
            if filter_ == wanted:
                return value
        raise KeyError(key)

    def __iter__(self) -> Iterator[Filter]:
        return iter(self.filters)

    def __len__(self) -> int:
        return len(self._entries)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self._entries == other._entries  # type: ignore[attr-defined]

    def __hash__(self) -> int:
        return hash((type(self).__name__, self._entries))

    def __repr__(self) -> str:
        inside = ", ".join(f"{_shown(f)}: {_shown(v)}" for f, v in self._entries)
        return f"{type(self).__name__}({{{inside}}})"

    def __reduce__(self) -> Any:
        return type(self), (self._entries,)


def _hashable(filter_: Any) -> Any:
    return tuple(map(_hashable, filter_)) if isinstance(filter_, list) else filter_


def _shown(value: Any) -> str:
    if value is ...:
        return "..."
    return value.__name__ if isinstance(value, type) else repr(value)


@final
class StateAxes(ByFilter):
    """Says for a node's state, by filters, over which axis it is mapped.

    Stands in `in_axes` and `out_axes` of `vmap`, `scan` and `pmap` where a node is, and says
    everything about that node's leaves, RNG state included: a stream with one key is split under an
    axis, and the same in all slices under None. The first filter that selects a leaf decides; every
    leaf must be selected by one.

    Args:
        filter_axes: mapping (or pairs) from filter to an axis: an int, None for not mapped, or in
            `scan` `Carry` for carried.

    >>> import jax.numpy as jnp
    >>> import treadle as nnx
    >>> m = nnx.Dict(w=nnx.Param(jnp.ones((3, 2))), calls=nnx.BatchStat(jnp.array(0)))
    >>> axes = nnx.StateAxes({nnx.Param: 0, ...: None})
    >>> nnx.vmap(lambda m, x: m["w"].sum() * x, in_axes=(axes, 0))(m, jnp.arange(3.0)).tolist()
    [0.0, 2.0, 4.0]
    """

    __slots__ = ()

    def __init__(self, filter_axes: Mapping[Filter, Any] | Iterable[tuple[Filter, Any]], /) -> None:
        super().__init__(filter_axes)

    def _check(self, value: Any) -> Any:
        if value is None or value is Carry:
            return value
        if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
            return operator.index(value)
        raise TypeError(f"StateAxes: an axis is an int, None or Carry, got {value!r}.")

    @property
    def axes(self) -> tuple[Any, ...]:
        """The axis of each filter."""
        return self.entries


@final
class StateSharding(ByFilter):
    """Says for a node's state, by filters, how it is sharded.

    Stands in `in_shardings` and `out_shardings` of `jit` and in the specs of `shard_map` where a
    node is. The first filter that selects a leaf decides.

    Args:
        filter_sharding: mapping (or pairs) from filter to a sharding or `PartitionSpec`, or None.

    >>> from jax.sharding import PartitionSpec
    >>> import treadle as nnx
    >>> nnx.StateSharding({nnx.Param: PartitionSpec("model"), ...: None}).filters
    (<class 'treadle.Param'>, Ellipsis)
    """

    __slots__ = ()

    @property
    def shardings(self) -> tuple[Any, ...]:
        """The sharding of each filter."""
        return self.entries


@dataclass(frozen=True)
class DiffState:
    """Names an argument to differentiate together with the leaves of it that count.

    Args:
        argnum: position of the argument.
        filter: selects the differentiated leaves of nodes in it.

    >>> import jax.numpy as jnp
    >>> import treadle as nnx
    >>> m = nnx.Dict(a=nnx.Param(jnp.array(2.0)), b=nnx.BatchStat(jnp.array(3.0)))
    >>> stats = nnx.DiffState(0, nnx.BatchStat)
    >>> sorted(nnx.grad(lambda m: m["a"] * m["b"], argnums=stats)(m))
    ['b']
    """

    argnum: int
    filter: Filter


publish(__all__, globals())
