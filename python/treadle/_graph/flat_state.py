"""States as flat sequences of paths and entries, and the functions that take States by their entries."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar, cast, overload

import jax

from treadle._graph.filters import Filter
from treadle._graph.state import Path, State
from treadle._public import publish

__all__ = [
    "FlatState",
    "filter_state",
    "from_flat_state",
    "map_state",
    "merge_state",
    "split_state",
    "to_flat_state",
]

E = TypeVar("E")
S = TypeVar("S", bound=State)


class FlatState(Sequence[tuple[Path, E]], Generic[E]):
    """The entries of a State with their paths, in canonical order; a JAX pytree of the entries.

    Args:
        items: (path, entry) pairs, or entries by path.

    >>> import treadle as nnx
    >>> flat = nnx.FlatState({("dense", "bias"): 0.0})
    >>> flat.paths, flat.leaves, list(flat)
    ((('dense', 'bias'),), (0.0,), [(('dense', 'bias'), 0.0)])
    """

    __slots__ = ("leaves", "paths")

    paths: tuple[Path, ...]
    """Where the entries are."""
    leaves: tuple[E, ...]
    """The entries."""

    def __init__(self, items: Mapping[Path, E] | Iterable[tuple[Path, E]] = (), /) -> None:
        pairs = tuple(items.items() if isinstance(items, Mapping) else items)
        self.paths = tuple(tuple(path) for path, _ in pairs)
        self.leaves = tuple(entry for _, entry in pairs)

    @classmethod
    def _of(cls, paths: tuple[Path, ...], leaves: Iterable[E]) -> FlatState[E]:
        flat = cls.__new__(cls)
        flat.paths, flat.leaves = paths, tuple(leaves)
        return flat

    @overload
    def __getitem__(self, index: int) -> tuple[Path, E]: ...
    @overload
    def __getitem__(self, index: slice) -> FlatState[E]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return FlatState._of(self.paths[index], self.leaves[index])
        return self.paths[index], self.leaves[index]

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[tuple[Path, E]]:
        return iter(zip(self.paths, self.leaves, strict=True))

    def __repr__(self) -> str:
        return f"FlatState({list(self)!r})"

    def to_nested_state(self) -> State:
        """The State of these entries.

        Raises:
            StateError: one path leads through the entry at another.

        >>> import treadle as nnx
        >>> nnx.FlatState({("a", 0): 1.0}).to_nested_state()["a"][0]
        1.0
        """
        return State.from_flat_state(self)


def _flatten(flat: FlatState[Any]) -> tuple[tuple[Any, ...], tuple[Path, ...]]:
    return flat.leaves, flat.paths


def _flatten_with_keys(flat: FlatState[Any]) -> tuple[list[Any], tuple[Path, ...]]:
    keys = map(jax.tree_util.DictKey, flat.paths)
    return list(zip(keys, flat.leaves, strict=True)), flat.paths


jax.tree_util.register_pytree_with_keys(FlatState, _flatten_with_keys, FlatState._of, _flatten)


def to_flat_state(state: State) -> FlatState[Any]:
    """All entries of a State with their paths, in canonical order.

    >>> import treadle as nnx
    >>> state = nnx.state(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
    >>> [(path, entry.value.shape) for path, entry in nnx.to_flat_state(state)]
    [(('bias',), (3,)), (('kernel',), (2, 3))]
    """
    return FlatState(state.flat_state())


def from_flat_state(
    flat: Mapping[Path, Any] | Iterable[tuple[Path, Any]],
    *,
    cls: type[S] = State,  # type: ignore[assignment]
) -> S:
    """The State whose entries are at these paths; the inverse of `to_flat_state`.

    Args:
        flat: entries by path, or (path, entry) pairs.
        cls: `State` or a subclass.

    Raises:
        StateError: one path leads through the entry at another.

    >>> import treadle as nnx
    >>> nnx.from_flat_state({("dense", "bias"): 1.0}).dense.bias
    1.0
    """
    state = State.from_flat_state(flat)
    return cast("S", state if cls is State else cls(state))


def map_state(f: Callable[[Path, Any], Any], state: State) -> State:
    """A State with ``f(path, entry)`` in the place of each entry.

    >>> import treadle as nnx
    >>> state = nnx.State({"a": 1.0, "b": {"c": 2.0}})
    >>> nnx.map_state(lambda path, entry: entry * len(path), state).to_pure_dict()
    {'a': 1.0, 'b': {'c': 4.0}}
    """
    return state.map(f)


@overload
def filter_state(state: State, first: Filter, /) -> State: ...
@overload
def filter_state(state: State, a: Filter, b: Filter, /, *filters: Filter) -> tuple[State, ...]: ...
def filter_state(state: State, first: Filter, /, *filters: Filter) -> Any:
    """As `State.filter`: the entries that each filter selects, first match wins.

    Raises:
        FilterError: `...` is not last, or something is not a filter.

    >>> import treadle as nnx
    >>> state = nnx.state(nnx.BatchNorm(2, rngs=nnx.Rngs(0)))
    >>> list(nnx.filter_state(state, nnx.Param))
    ['bias', 'scale']
    """
    return state.filter(first, *filters)


@overload
def split_state(state: State, first: Filter, /) -> State: ...
@overload
def split_state(state: State, a: Filter, b: Filter, /, *filters: Filter) -> tuple[State, ...]: ...
def split_state(state: State, first: Filter, /, *filters: Filter) -> Any:
    """As `State.split`: every entry goes to the first filter that selects it.

    Raises:
        FilterError: `...` is not last, something is not a filter, or entries remain.

    >>> import treadle as nnx
    >>> state = nnx.state(nnx.BatchNorm(2, rngs=nnx.Rngs(0)))
    >>> params, rest = nnx.split_state(state, nnx.Param, ...)
    >>> list(params), list(rest)
    (['bias', 'scale'], ['mean', 'var'])
    """
    return state.split(first, *filters)


def merge_state(
    state: Mapping[Any, Any],
    /,
    *states: Mapping[Any, Any],
    cls: type[S] = State,  # type: ignore[assignment]
) -> S:
    """One State with the entries of all; where several have an entry, the last one counts.

    Args:
        state: a State, or nested mappings.
        *states: more of them.
        cls: `State` or a subclass.

    Raises:
        StateError: one has an entry where another has a level.

    >>> import treadle as nnx
    >>> model = nnx.BatchNorm(2, rngs=nnx.Rngs(0))
    >>> params, stats = nnx.state(model, nnx.Param, nnx.BatchStat)
    >>> list(nnx.merge_state(params, stats))
    ['bias', 'mean', 'scale', 'var']
    """
    first, *others = (each if isinstance(each, State) else State(each) for each in (state, *states))
    merged = first.merge(*others) if others else first
    return cast("S", merged if isinstance(merged, cls) else cls(merged))


publish(__all__, globals())
