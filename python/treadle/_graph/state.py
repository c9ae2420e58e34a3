"""States: what a graph's leaves are, as a mapping, apart from the objects that hold them.

A State starts as what the walk produced, a GraphDef and a flat list of values, and becomes nested
dicts of `VariableState` only when somebody looks. `merge` and `update` take the flat form as it is.
"""

from __future__ import annotations

import copy
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
from typing import Any, NamedTuple, TypeAlias, cast, overload

import jax

from treadle import _bootstrap as _bootstrap
from treadle._core import GraphDef, nest
from treadle._graph.filters import (
    Filter,
    compile_filters,
    group_leaves,
    needs_path,
    predicate_of,
)
from treadle._objects import pretty as _pretty
from treadle._objects.equality import same
from treadle._objects.keys import sorted_keys
from treadle._objects.variable_state import VariableState
from treadle.errors import FilterError, StateError, format_path, format_paths, known_names

__all__ = ["State"]

Path: TypeAlias = tuple[Hashable, ...]
Levels: TypeAlias = dict[Any, Any]

_MISSING: Any = object()


def gather(values: Sequence[Any], indices: Sequence[int]) -> list[Any]:
    """The values at `indices`, without Python work for each."""
    if len(indices) < 2:
        return [values[i] for i in indices]
    return list(operator.itemgetter(*indices)(values))


def _copied_levels(source: Any, entry_of: Callable[[Any], Any] = lambda entry: entry) -> Levels:
    """Nested mappings as new nested dicts; entries are shared, or what `entry_of` makes of them."""
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
                target[key] = entry_of(entry)
    return copied


def _as_state(mapping: Mapping[Any, Any]) -> State:
    return mapping if isinstance(mapping, State) else State(mapping)


def _levels_of(mapping: Mapping[Any, Any]) -> Levels:
    return _as_state(mapping)._levels()


def _insert(levels: Levels, path: Path, entry: Any) -> None:
    """Put `entry` at `path`, making levels on the way."""
    if not path:
        levels[()] = entry
        return
    for depth, key in enumerate(path[:-1]):
        levels = levels.setdefault(key, {})
        if not isinstance(levels, dict):
            raise StateError(_entry_above(path, path[: depth + 1]))
    if isinstance(levels.get(path[-1]), dict):
        raise StateError(_entries_below(path))
    levels[path[-1]] = entry


class _Place(NamedTuple):
    """An entry, and where it is: `above` is one list for all entries, to be copied where needed."""

    above: Sequence[Any]
    kept: int
    """How many of the first keys are those of the entry before."""
    key: Any
    entry: Any

    @property
    def path(self) -> Path:
        # The state of a lone Variable has its entry at the empty path.
        return (*self.above, self.key) if self.key != () else ()


def _places(levels: Levels) -> Iterator[_Place]:
    """Each entry, in canonical order, in time and space linear in the number of levels."""
    above: list[Any] = []
    kept = 0
    open_levels = [(levels, iter(sorted_keys(levels)))]
    while open_levels:
        level, keys = open_levels[-1]
        for key in keys:
            entry = level[key]
            if isinstance(entry, dict):
                above.append(key)
                open_levels.append((entry, iter(sorted_keys(entry))))
                break
            yield _Place(above, kept, key, entry)
            kept = len(above)
        else:
            open_levels.pop()
            if above:
                above.pop()
                kept = min(kept, len(above))


def iter_levels(levels: Levels) -> Iterator[tuple[Path, Any]]:
    """Each entry with its path, in canonical order."""
    for place in _places(levels):
        yield place.path, place.entry


class _Growing:
    """Levels made of places of one walk, in its order."""

    def __init__(self) -> None:
        self.levels: Levels = {}
        self._open = [self.levels]

    def leave(self, place: _Place) -> None:
        """Close the levels that the walk has left; to be called for each place, added or not."""
        del self._open[place.kept + 1 :]

    def add(self, place: _Place, entry: Any) -> None:
        for key in place.above[len(self._open) - 1 :]:
            level = self._open[-1][key] = {}
            self._open.append(level)
        self._open[-1][place.key] = entry


def _merge_levels(into: Levels, levels: Levels) -> None:
    """Put the entries of `levels` into other levels, over those that are there."""
    pending: list[tuple[Any, Levels, Levels]] = [(None, into, levels)]
    while pending:
        link, target, source = pending.pop()
        for key, entry in source.items():
            old = target.get(key, _MISSING)
            if not isinstance(entry, dict):
                if isinstance(old, dict):
                    raise StateError(_entries_below(_unlinked(link, key)))
                target[key] = entry
            elif entry:
                if old is _MISSING:
                    old = target[key] = {}
                elif not isinstance(old, dict):
                    path = _unlinked(link, key)
                    below = next(iter_levels(entry), ((), None))[0]
                    raise StateError(_entry_above((*path, *below), path))
                pending.append(((link, key), old, entry))


def _unlinked(link: Any, key: Any) -> Path:
    keys = [key]
    while link is not None:
        link, key = link
        keys.append(key)
    return tuple(reversed(keys))


def _entry_above(path: Path, above: Path) -> str:
    return (
        f"{format_path(path, 'state')} cannot be stored: there already is an entry at "
        f"{format_path(above, 'state')}. Remove one of the two."
    )


def _entries_below(path: Path) -> str:
    return (
        f"{format_path(path, 'state')} cannot be stored: there already are entries below it. "
        "Remove either."
    )


class _KeysByText:
    """Finds the keys of levels by what JSON and the like made of them."""

    def __init__(self) -> None:
        self._known: dict[int, dict[str, Any]] = {}

    def find(self, level: Levels, key: Any) -> Any:
        if key in level:
            return key
        by_text = self._known.get(id(level))
        if by_text is None:
            by_text = self._known[id(level)] = {str(known): known for known in level}
        return by_text.get(str(key), _MISSING)


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
        levels = self._levels()
        try:
            entry = levels[key]
        except KeyError:
            raise StateError(self._no_entry(key)) from None
        return State._view(entry) if isinstance(entry, dict) else entry

    def __setitem__(self, key: Any, entry: Any) -> None:
        if isinstance(entry, (dict, State)):
            entry = _copied_levels(entry)
        self._levels()[key] = entry

    def __delitem__(self, key: Any) -> None:
        levels = self._levels()
        if key not in levels:
            raise StateError(self._no_entry(key))
        del levels[key]

    def get(self, key: Any, default: Any = None) -> Any:
        """The entry or level at `key`, or `default` if there is none.

        >>> import treadle as nnx
        >>> nnx.State({"x": nnx.VariableState(nnx.Param, 1.0)}).get("y", "none")
        'none'
        """
        return self[key] if key in self._levels() else default

    def _no_entry(self, key: Any) -> str:
        return f"No entry {key!r} in State; {known_names(key, self)}"

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
        except StateError as error:
            raise AttributeError(str(error)) from None

    def __setattr__(self, name: str, entry: Any) -> None:
        self[name] = entry

    def __delattr__(self, name: str) -> None:
        try:
            del self[name]
        except StateError as error:
            raise AttributeError(str(error)) from None

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *(key for key in self if isinstance(key, str))]

    def __eq__(self, other: object) -> bool:
        """Whether both have the same paths, types, metadata and values (arrays by content)."""
        if not isinstance(other, Mapping):
            return NotImplemented
        return same(self._levels(), _levels_of(other))

    __hash__ = None  # type: ignore[assignment]

    def __or__(self, other: Mapping[Any, Any]) -> State:
        return self.merge(_as_state(other)) if isinstance(other, Mapping) else NotImplemented

    def __ror__(self, other: Mapping[Any, Any]) -> State:
        return _as_state(other).merge(self) if isinstance(other, Mapping) else NotImplemented

    def __ior__(self, other: Mapping[Any, Any]) -> State:
        if not isinstance(other, Mapping):
            return NotImplemented
        merged = self.merge(_as_state(other))._levels()
        levels = self._levels()
        levels.clear()
        levels.update(merged)
        return self

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
        copied = _copied_levels(self._levels(), lambda entry: copy.deepcopy(entry, memo))
        return State._view(copied)

    def __reduce__(self) -> Any:
        return State, (self._levels(),)

    def __repr__(self) -> str:
        return f"State({_pretty_levels(self._levels())})"

    # -- by path -------------------------------------------------------------------------------

    def flat_state(self) -> dict[Path, Any]:
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

    from_flat_path = from_flat_state

    @property
    def raw_mapping(self) -> Levels:
        """The nested dicts that this State is a view of: what is written there is written here.

        >>> import treadle as nnx
        >>> nnx.State({"a": {"b": 1.0}}).raw_mapping
        {'a': {'b': 1.0}}
        """
        return self._levels()

    def map(self, f: Callable[[Path, Any], Any], /) -> State:
        """A State with ``f(path, entry)`` in the place of each entry.

        >>> import treadle as nnx
        >>> nnx.State({"a": {"b": 1.0}}).map(lambda path, entry: (path, entry + 1))["a"]["b"]
        (('a', 'b'), 2.0)
        """
        mapped = _Growing()
        for place in _places(self._levels()):
            mapped.leave(place)
            mapped.add(place, f(place.path, place.entry))
        return State._view(mapped.levels)

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
        specs = compile_filters(filters)
        predicates = list(map(predicate_of, specs))
        looks_at_path = any(map(needs_path, specs))
        groups = [_Growing() for _ in filters]
        selected: list[bool] = []
        for place in _places(self._levels()):
            for group in groups:
                group.leave(place)
            path = place.path if looks_at_path else ()
            chosen = (g for g, p in zip(groups, predicates, strict=True) if p(path, place.entry))
            group = next(chosen, None)
            selected.append(group is not None)
            if group is not None:
                group.add(place, place.entry)
        if exhaustive and not all(selected):
            flat_paths = (path for path, _ in iter_levels(self._levels()))
            missed = (path for path, found in zip(flat_paths, selected, strict=True) if not found)
            raise FilterError(
                f"Non-exhaustive filters: none of {list(filters)} selects "
                f"{format_paths(missed, 'state')}. Add a filter for them, or `...` as the last one "
                "to select all that is left."
            )
        return tuple(State._view(group.levels) for group in groups)

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
            _merge_levels(merged, state._levels())
        return State._view(merged)

    # -- plain dicts ---------------------------------------------------------------------------

    def to_pure_dict(self) -> dict[Any, Any]:
        """Nested plain dicts of the values alone, as checkpoints store them.

        >>> import treadle as nnx
        >>> nnx.State({"dense": {"bias": nnx.VariableState(nnx.Param, 0.0)}}).to_pure_dict()
        {'dense': {'bias': 0.0}}
        """
        pure = _Growing()
        for place in _places(self._levels()):
            entry = place.entry
            pure.leave(place)
            pure.add(place, entry.value if isinstance(entry, VariableState) else entry)
        return pure.levels

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
        by_text = _KeysByText()
        surplus: list[Path] = []
        replaced: list[tuple[Levels, Any, Any]] = []
        open_levels: list[Any] = [self._levels()]
        for place in _places(_copied_levels(pure_dict)):
            del open_levels[place.kept + 1 :]
            for key in place.above[len(open_levels) - 1 :]:
                above = open_levels[-1]
                found = above.get(by_text.find(above, key)) if isinstance(above, dict) else None
                open_levels.append(found)
            level, new = open_levels[-1], place.entry
            key = by_text.find(level, place.key) if isinstance(level, dict) else _MISSING
            if key is _MISSING or isinstance(level[key], dict):
                surplus.append(place.path)
                continue
            old = level[key]
            if replace_fn is not None:
                new = replace_fn(old, new)
            elif isinstance(old, VariableState):
                new = old._replace_value(new)
            replaced.append((level, key, new))
        if surplus:
            raise StateError(
                f"The dict has values that the State has no entry for: "
                f"{format_paths(surplus, 'state')}. Remove them, or add the entries first."
            )
        for level, key, entry in replaced:
            level[key] = entry


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


def _pretty_levels(levels: Levels, depth: int = 0) -> str:
    if depth == _pretty.MAX_DEPTH:
        return "{...}"
    fields = []
    for key in sorted_keys(levels):
        entry = levels[key]
        is_level = isinstance(entry, dict)
        text = _pretty_levels(entry, depth + 1) if is_level else _pretty.value(entry)
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
