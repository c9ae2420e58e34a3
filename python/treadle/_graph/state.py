"""States: what a graph's leaves are, as a mapping, apart from the objects that hold them.

A State starts as what the walk produced, a GraphDef and a flat list of values, and becomes nested
dicts of `VariableState` only when somebody looks. `merge` and `update` take the flat form as it is.
"""

from __future__ import annotations

import operator
from collections.abc import (
    Callable,
    Hashable,
    Iterable,
    Iterator,
    Mapping,
    MutableMapping,
    Sequence,
)
from typing import Any, TypeAlias, cast, overload

import jax

from treadle import _bootstrap as _bootstrap
from treadle._core import GraphDef, nest
from treadle._graph.filters import Filter, compile_filters, group_leaves, to_predicate
from treadle._objects import pretty as _pretty
from treadle._objects.equality import same
from treadle._objects.keys import sorted_keys
from treadle._objects.variable_state import VariableState
from treadle.errors import FilterError, StateError, format_path, format_paths

__all__ = ["FlatState", "State"]

Path: TypeAlias = tuple[Hashable, ...]
FlatState: TypeAlias = dict[Path, Any]
Levels: TypeAlias = dict[Any, Any]


def gather(values: Sequence[Any], indices: Sequence[int]) -> list[Any]:
    """The values at `indices`, without Python work for each."""
    if len(indices) < 2:
        return [values[i] for i in indices]
    return list(operator.itemgetter(*indices)(values))


def _copied_levels(source: Any) -> Levels:
    """Nested mappings as new nested dicts; entries are shared."""
    copied: Levels = {}
    pending: list[tuple[Levels, Any]] = [(copied, source)]
    while pending:
        target, mapping = pending.pop()
        mapping = mapping._levels() if isinstance(mapping, State) else mapping
        for key, entry in mapping.items():
            if isinstance(entry, Mapping):
                target[key] = {}
                pending.append((target[key], entry))
            else:
                target[key] = entry
    return copied


def _insert(levels: Levels, path: Path, entry: Any) -> None:
    """Put `entry` at `path`, making levels on the way."""
    if not path:
        levels[()] = entry
        return
    for depth, key in enumerate(path[:-1]):
        levels = levels.setdefault(key, {})
        if not isinstance(levels, dict):
            raise StateError(
                f"{format_path(path, 'state')} cannot be stored: there already is an entry at "
                f"{format_path(path[: depth + 1], 'state')}. Remove one of the two."
            )
    if isinstance(levels.get(path[-1]), dict):
        raise StateError(
            f"{format_path(path, 'state')} cannot be stored: there already are entries below it. "
            "Remove either."
        )
    levels[path[-1]] = entry


def iter_levels(levels: Levels) -> Iterator[tuple[Path, Any]]:
    """Each entry with its path, in canonical order."""
    above: list[Any] = []
    open_levels = [(levels, iter(sorted_keys(levels)))]
    while open_levels:
        level, keys = open_levels[-1]
        for key in keys:
            entry = level[key]
            if isinstance(entry, dict):
                above.append(key)
                open_levels.append((entry, iter(sorted_keys(entry))))
                break
            # The state of a lone Variable has its entry at the empty path.
            yield (*above, key) if key != () else (), entry
        else:
            open_levels.pop()
            if above:
                above.pop()


class State(MutableMapping[Any, Any]):
    """The leaves of a graph as a nested mapping, a JAX pytree.

    Entries are `VariableState` for Variables and arrays for arrays that lie bare in nodes. Levels
    can be reached by item or by attribute, and are views: what is written through them is written
    to the State they come from. A State is flattened by JAX like nested dicts, down to the values.

    Args:
        mapping: nested mappings or (key, entry) pairs. Levels are copied, entries are not.

    >>> import treadle as nnx
    >>> state = nnx.State({"dense": {"bias": nnx.VariableState(nnx.Param, 0.0)}})
    >>> state.dense.bias.value, state["dense"]["bias"].type
    (0.0, <class 'treadle.Param'>)
    >>> state.dense["bias"] = state.dense.bias.replace(1.0)
    >>> state
    State({
      'dense': {
        'bias': VariableState(
          type=Param,
          value=1.0
        )
      }
    })
    """

    __slots__ = ("__weakref__", "_graphdef", "_indices", "_tree", "_values")

    _graphdef: GraphDef | None
    # Ascending leaf ids of `_values`; None means all leaves.
    _indices: tuple[int, ...] | None
    _values: Sequence[Any]
    _tree: Levels | None

    def __init__(self, mapping: Mapping[Any, Any] | Iterable[tuple[Any, Any]] = (), /) -> None:
        if not isinstance(mapping, Mapping):
            mapping = dict(mapping)
        self._set_slots(None, None, (), _copied_levels(mapping))

    def _set_slots(
        self,
        graphdef: GraphDef | None,
        indices: tuple[int, ...] | None,
        values: Sequence[Any],
        tree: Levels | None,
    ) -> None:
        put = object.__setattr__
        put(self, "_graphdef", graphdef)
        put(self, "_indices", indices)
        put(self, "_values", values)
        put(self, "_tree", tree)

    @classmethod
    def _from_leaves(
        cls, graphdef: GraphDef, indices: tuple[int, ...] | None, values: Sequence[Any]
    ) -> State:
        """State of some leaves of a walked graph: ascending ids (None: all) and their values."""
        state = cls.__new__(cls)
        state._set_slots(graphdef, indices, values, None)
        return state

    @classmethod
    def _view(cls, tree: Levels) -> State:
        """State over existing levels, sharing them."""
        state = cls.__new__(cls)
        state._set_slots(None, None, (), tree)
        return state

    def _flat(self) -> tuple[GraphDef, tuple[int, ...] | None, Sequence[Any]] | None:
        """GraphDef, leaf ids and values, as long as nobody has looked inside."""
        if self._graphdef is None:
            return None
        return self._graphdef, self._indices, self._values

    def _levels(self) -> Levels:
        """The nested dicts. From here on they are the truth: callers may change what they hold."""
        tree = self._tree
        if tree is None:
            tree = _tree_of(cast("GraphDef", self._graphdef), self._indices, self._values)
            self._set_slots(None, None, (), tree)
        return tree

    # -- mapping -------------------------------------------------------------------------------

    def __getitem__(self, key: Any) -> Any:
        entry = self._levels()[key]
        return State._view(entry) if isinstance(entry, dict) else entry

    def __setitem__(self, key: Any, entry: Any) -> None:
        if isinstance(entry, (dict, State)):
            entry = _copied_levels(entry)
        self._levels()[key] = entry

    def __delitem__(self, key: Any) -> None:
        del self._levels()[key]

    def __contains__(self, key: object) -> bool:
        return key in self._levels()

    def __iter__(self) -> Iterator[Any]:
        return iter(sorted_keys(self._levels()))

    def __len__(self) -> int:
        return len(self._levels())

    def __getattr__(self, name: str) -> Any:
        # Copying and pickling ask for protocol names before the slots are filled.
        if name.startswith("__"):
            raise AttributeError(name)
        try:
            return self[name]
        except KeyError:
            known = ", ".join(map(repr, self)) or "none"
            raise AttributeError(f"No entry {name!r} in State; entries: {known}") from None

    def __setattr__(self, name: str, entry: Any) -> None:
        self[name] = entry

    def __delattr__(self, name: str) -> None:
        try:
            del self[name]
        except KeyError:
            raise AttributeError(f"No entry {name!r} in State") from None

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *(key for key in self if isinstance(key, str))]

    def __eq__(self, other: object) -> bool:
        """Whether both have the same paths, types, metadata and values (arrays by content)."""
        if not isinstance(other, State):
            return NotImplemented
        return same(self._levels(), other._levels())

    __hash__ = None  # type: ignore[assignment]

    def __or__(self, other: State) -> State:
        return self.merge(other) if isinstance(other, State) else NotImplemented

    def __copy__(self) -> State:
        return State(self)

    def copy(self) -> State:
        """A State with its own levels and the same entries.

        >>> import treadle as nnx
        >>> a = nnx.State({"x": nnx.VariableState(nnx.Param, 1.0)})
        >>> b = a.copy()
        >>> del b["x"]
        >>> len(a), len(b)
        (1, 0)
        """
        return State(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> State:
        import copy

        return State._view(copy.deepcopy(self._levels(), memo))

    def __reduce__(self) -> Any:
        return State, (self._levels(),)

    def __repr__(self) -> str:
        return f"State({_pretty_levels(self._levels())})"

    # -- by path -------------------------------------------------------------------------------

    def flat_state(self) -> FlatState:
        """All entries by path, in canonical order.

        >>> import treadle as nnx
        >>> state = nnx.State({"dense": {"bias": nnx.VariableState(nnx.Param, 0.0)}})
        >>> list(state.flat_state())
        [('dense', 'bias')]
        """
        return dict(iter_levels(self._levels()))

    @staticmethod
    def from_flat_state(flat: Mapping[Path, Any] | Iterable[tuple[Path, Any]], /) -> State:
        """A State from entries by path.

        Raises:
            StateError: one path leads through the entry at another.

        >>> import treadle as nnx
        >>> nnx.State.from_flat_state({("a", 0): nnx.VariableState(nnx.Param, 1.0)})["a"][0].value
        1.0
        """
        levels: Levels = {}
        for path, entry in flat.items() if isinstance(flat, Mapping) else flat:
            _insert(levels, tuple(path), entry)
        return State._view(levels)

    @overload
    def filter(self, first: Filter, /) -> State: ...
    @overload
    def filter(self, a: Filter, b: Filter, /) -> tuple[State, State]: ...
    @overload
    def filter(self, a: Filter, b: Filter, c: Filter, /) -> tuple[State, State, State]: ...
    @overload
    def filter(
        self, a: Filter, b: Filter, c: Filter, d: Filter, /, *filters: Filter
    ) -> tuple[State, ...]: ...
    def filter(self, first: Filter, /, *filters: Filter) -> Any:
        """The entries that each filter selects, first match wins; the rest is left out.

        Returns:
            A State for one filter, a tuple of States for several.

        Raises:
            FilterError: `...` is not last, or something is not a filter.

        >>> import treadle as nnx
        >>> state = nnx.state(nnx.BatchNorm(2, rngs=nnx.Rngs(0)))
        >>> list(state.filter(nnx.BatchStat))
        ['mean', 'var']
        """
        groups = self._grouped((first, *filters), exhaustive=False)
        return groups[0] if not filters else groups

    @overload
    def split(self, first: Filter, /) -> State: ...
    @overload
    def split(self, a: Filter, b: Filter, /) -> tuple[State, State]: ...
    @overload
    def split(self, a: Filter, b: Filter, c: Filter, /) -> tuple[State, State, State]: ...
    @overload
    def split(
        self, a: Filter, b: Filter, c: Filter, d: Filter, /, *filters: Filter
    ) -> tuple[State, ...]: ...
    def split(self, first: Filter, /, *filters: Filter) -> Any:
        """As `filter`, but every entry must be selected by some filter.

        Raises:
            FilterError: `...` is not last, something is not a filter, or entries remain.

        >>> import treadle as nnx
        >>> state = nnx.state(nnx.BatchNorm(2, rngs=nnx.Rngs(0)))
        >>> params, rest = state.split(nnx.Param, ...)
        >>> list(params), list(rest)
        (['bias', 'scale'], ['mean', 'var'])
        """
        groups = self._grouped((first, *filters), exhaustive=True)
        return groups[0] if not filters else groups

    def _grouped(self, filters: tuple[Filter, ...], *, exhaustive: bool) -> tuple[State, ...]:
        flat = self._flat()
        if flat is not None and flat[1] is None:
            graphdef, _, values = flat
            ids = group_leaves(graphdef, values, filters, exhaustive=exhaustive, root="state")
            return tuple(
                State._from_leaves(graphdef, group, gather(values, group)) for group in ids[:-1]
            )
        compile_filters(filters)
        predicates = [to_predicate(f) for f in filters]
        groups: list[Levels] = [{} for _ in filters]
        missed: list[Path] = []
        for path, entry in iter_levels(self._levels()):
            for levels, predicate in zip(groups, predicates, strict=True):
                if predicate(path, entry):
                    _insert(levels, path, entry)
                    break
            else:
                missed.append(path)
        if exhaustive and missed:
            raise FilterError(
                f"Non-exhaustive filters: none of {list(filters)} selects "
                f"{format_paths(missed, 'state')}. Add a filter for them, or `...` as the last one "
                "to select all that is left."
            )
        return tuple(map(State._view, groups))

    def merge(self, *states: State) -> State:
        """One State with the entries of all; where several have an entry, the last one counts.

        ``State.merge(a, b)`` and ``a | b`` mean the same as ``a.merge(b)``.

        Raises:
            StateError: one State has an entry where another has a level.

        >>> import treadle as nnx
        >>> a = nnx.State({"x": nnx.VariableState(nnx.Param, 1.0)})
        >>> b = nnx.State({"y": nnx.VariableState(nnx.Param, 2.0)})
        >>> list(nnx.State.merge(a, b))
        ['x', 'y']
        """
        everything = (self, *states)
        shared = leaves_of(everything)
        if shared is not None:
            graphdef, by_id = shared
            ids = tuple(sorted(by_id))
            return State._from_leaves(graphdef, ids, gather_ids(by_id, ids))
        merged: Levels = {}
        for state in everything:
            for path, entry in iter_levels(state._levels()):
                _insert(merged, path, entry)
        return State._view(merged)

    # -- plain dicts ---------------------------------------------------------------------------

    def to_pure_dict(self) -> dict[Any, Any]:
        """Nested plain dicts of the values alone, as checkpoints store them.

        >>> import treadle as nnx
        >>> nnx.State({"dense": {"bias": nnx.VariableState(nnx.Param, 0.0)}}).to_pure_dict()
        {'dense': {'bias': 0.0}}
        """
        pure: Levels = {}
        for path, entry in iter_levels(self._levels()):
            _insert(pure, path, entry.value if isinstance(entry, VariableState) else entry)
        return pure

    def replace_by_pure_dict(
        self,
        pure_dict: Mapping[Any, Any],
        replace_fn: Callable[[Any, Any], Any] | None = None,
    ) -> None:
        """Put in the values of nested plain dicts such as `to_pure_dict` gives.

        Keys that were indices may have become strings, as JSON makes them. Nothing changes if
        anything is wrong.

        Args:
            pure_dict: values by nested keys; entries it does not mention keep their value.
            replace_fn: makes the new entry from the old entry and the value, if the value alone is
                not to be taken.

        Raises:
            StateError: `pure_dict` has a value where this State has no entry.

        >>> import treadle as nnx
        >>> state = nnx.State({"dense": {"bias": nnx.VariableState(nnx.Param, 0.0)}})
        >>> state.replace_by_pure_dict({"dense": {"bias": 1.0}})
        >>> state.dense.bias.value
        1.0
        """
        entries = self.flat_state()
        by_text = {tuple(map(str, path)): path for path in entries}
        surplus: list[Path] = []
        replaced: FlatState = {}
        for written, new in iter_levels(_copied_levels(pure_dict)):
            path = written if written in entries else by_text.get(tuple(map(str, written)))
            if path is None:
                surplus.append(written)
                continue
            old = entries[path]
            if replace_fn is not None:
                replaced[path] = replace_fn(old, new)
            else:
                is_variable = isinstance(old, VariableState)
                replaced[path] = old._replace_value(new) if is_variable else new
        if surplus:
            raise StateError(
                f"The dict has values that the State has no entry for: "
                f"{format_paths(surplus, 'state')}. Remove them, or add the entries first."
            )
        for path, entry in replaced.items():
            _insert(self._levels(), path, entry)


def _tree_of(graphdef: GraphDef, indices: tuple[int, ...] | None, values: Sequence[Any]) -> Levels:
    paths, types, metadata = graphdef.paths(), graphdef.leaf_types(), graphdef.leaf_metadata()
    if indices is None:
        indices = tuple(range(len(paths)))
    entries: list[Any] = []
    for i, value in zip(indices, values, strict=True):
        kind = types[i]
        entries.append(value if kind is None else VariableState(kind, value, **(metadata[i] or {})))
    if indices and not paths[indices[0]]:
        return {(): entries[0]}
    return nest([paths[i] for i in indices], entries)


def _pretty_levels(levels: Levels) -> str:
    fields = []
    for key in sorted_keys(levels):
        entry = levels[key]
        text = _pretty_levels(entry) if isinstance(entry, dict) else _pretty.value(entry)
        fields.append((repr(key), text))
    return _pretty.block("{", fields, "}", ": ")


def gather_ids(by_id: Mapping[int, Any], ids: Iterable[int]) -> list[Any]:
    """The values of leaves in the order of `ids`, without Python work for each."""
    return list(map(by_id.__getitem__, ids))


def leaves_of(states: Sequence[State]) -> tuple[GraphDef, dict[int, Any]] | None:
    """GraphDef and values by leaf id, if all states are untouched and of one structure."""
    first = states[0]._flat()
    if first is None:
        return None
    graphdef = first[0]
    by_id: dict[int, Any] = {}
    for state in states:
        flat = state._flat()
        if flat is None or not (flat[0] is graphdef or flat[0] == graphdef):
            return None
        _, indices, values = flat
        by_id.update(zip(range(len(values)) if indices is None else indices, values, strict=True))
    return graphdef, by_id


def _flatten(state: State) -> tuple[list[Any], tuple[Any, ...]]:
    levels = state._levels()
    keys = tuple(sorted_keys(levels))
    return gather_ids(levels, keys), keys


def _flatten_with_keys(state: State) -> tuple[list[Any], tuple[Any, ...]]:
    children, keys = _flatten(state)
    return list(zip(map(jax.tree_util.DictKey, keys), children, strict=True)), keys


def _unflatten(keys: tuple[Any, ...], children: Iterable[Any]) -> State:
    return State._view(dict(zip(keys, children, strict=True)))


jax.tree_util.register_pytree_with_keys(State, _flatten_with_keys, _unflatten, _flatten)
