"""Functions of whole graphs: split objects, put them together, look inside, change them.

The walk and the rebuild are C++ (`_core`). Here States find their leaves, and mistakes get their
messages: each function checks everything before it changes anything.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias, TypeVar

import jax

from treadle import _bootstrap as _bootstrap
from treadle import _core
from treadle._core import GraphDef, VariableState
from treadle._equality import same
from treadle._variable_state import state_of_variable
from treadle.errors import GraphError, LeafTypeError, StateError, format_path, format_paths
from treadle.filters import Filter, compile_filters, group_leaves, to_predicate
from treadle.node_types import iter_children, node_functions
from treadle.state import State, gather, gather_ids, iter_levels, leaves_of
from treadle.variables import Variable

__all__ = [
    "GraphDef",
    "RefMap",
    "call",
    "clone",
    "flatten",
    "graphdef",
    "is_graph_node",
    "iter_graph",
    "merge",
    "pop",
    "split",
    "state",
    "unflatten",
    "update",
]

N = TypeVar("N")
Path: TypeAlias = tuple[Hashable, ...]
Metadata: TypeAlias = dict[str, Any]

GraphDef.__doc__ = """The structure of objects without their leaves: immutable, hashable, picklable.

Types, attribute names, static values, Variable types and metadata, and which references are shared
are part of it; array values, shapes and dtypes are not. Equal structures share compiled functions.
A JAX pytree without leaves, so it can be passed through JAX transforms.

>>> import treadle as nnx
>>> nnx.graphdef(nnx.Dict(a=1)) == nnx.graphdef(nnx.Dict(a=1)) != nnx.graphdef(nnx.Dict(a=2))
True
"""

# A GraphDef is all structure: passed through a JAX transform it is static data.
jax.tree_util.register_pytree_node(GraphDef, lambda graph: ((), graph), lambda graph, _: graph)


def is_graph_node(obj: Any, /) -> bool:
    """Whether `obj` is a node: an `Object`, or of a type given to `register_graph_node_type`.

    Variables, arrays and plain containers are not nodes.

    >>> import treadle as nnx
    >>> nnx.is_graph_node(nnx.Module()), nnx.is_graph_node(nnx.Param(1.0)), nnx.is_graph_node([])
    (True, False, False)
    """
    return _core.is_node(obj) and not _core.is_variable(obj)


def _walk(node: Any) -> _core.Flat:
    if node is None or (not _core.is_node(node) and jax.tree_util.all_leaves([node])):
        raise GraphError(
            f"Expected a module, a Variable, or a pytree that holds some, got {node!r} "
            f"of type {type(node).__name__}."
        )
    return _core.flatten(node)


def _states(flat: _core.Flat, filters: Sequence[Filter]) -> tuple[State, ...]:
    if not filters:
        return (State._from_leaves(flat.graphdef, None, flat.leaves),)
    leaves = flat.leaves
    groups = group_leaves(flat.graphdef, leaves, filters)
    return tuple(
        State._from_leaves(flat.graphdef, group, gather(leaves, group)) for group in groups[:-1]
    )


# -- structure and leaves ----------------------------------------------------------------------


def split(node: Any, /, *filters: Filter) -> tuple[Any, ...]:
    """Split objects into their structure and their leaves.

    Args:
        node: a module, a Variable, or any pytree that holds some.
        *filters: one State is made for each, of the leaves it selects, first match wins. Together
            they must select all leaves; ``...`` as the last one selects what is left.

    Returns:
        ``(graphdef, state)`` without filters, else ``(graphdef, state_0, state_1, ...)``.

    Raises:
        FilterError: filters are out of order, or leaves remain that none selects.
        GraphError: something in the graph cannot be walked, such as an unhashable static attribute.

    >>> import treadle as nnx
    >>> model = nnx.BatchNorm(3, rngs=nnx.Rngs(0))
    >>> graphdef, params, stats = nnx.split(model, nnx.Param, nnx.BatchStat)
    >>> list(params), list(stats)
    (['bias', 'scale'], ['mean', 'var'])
    """
    flat = _walk(node)
    return (flat.graphdef, *_states(flat, filters))


def merge(graphdef: GraphDef, state: Any, /, *states: Any) -> Any:
    """Build new objects from a structure and its leaves: the inverse of `split`.

    Args:
        graphdef: the structure.
        state: a State, or nested mapping of values as `State.to_pure_dict` gives.
        *states: more of them; together they must have exactly the leaves of `graphdef`.

    Returns:
        New objects of the structure `graphdef`; what was shared is shared again.

    Raises:
        StateError: leaves are missing, or there are entries that `graphdef` has no place for.
        LeafTypeError: an entry is of another Variable type than `graphdef` says.

    >>> import treadle as nnx
    >>> model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    >>> copy = nnx.merge(*nnx.split(model))
    >>> copy is model, copy.kernel.value is model.kernel.value
    (False, True)
    """
    return _build(graphdef, (state, *states))[0]


def _build(graphdef: GraphDef, states: Sequence[Any]) -> tuple[Any, list[Any], Sequence[Any]]:
    """New objects: the root, all objects by reference id, and the leaves they were made of."""
    leaves, new_metadata = _complete_leaves(graphdef, states)
    root, refs = _core.unflatten(graphdef, leaves)
    if new_metadata:
        owners = graphdef.leaf_refs()
        for i, metadata in new_metadata.items():
            _core.set_metadata(refs[owners[i]], metadata)
    return root, refs, leaves


def _complete_leaves(
    graphdef: GraphDef, states: Sequence[Any]
) -> tuple[Sequence[Any], dict[int, Metadata]]:
    """The leaves in order, and metadata that differ from those of the structure, by leaf id."""
    if not isinstance(graphdef, GraphDef):
        raise GraphError(
            f"The first argument must be a GraphDef, got {type(graphdef).__name__}. "
            "Call merge(graphdef, state, ...) with what split returned, in that order."
        )
    whole = _whole_leaves(graphdef, states)
    if whole is not None:
        return whole, {}
    by_id = _shared_leaves(graphdef, states)
    new_metadata: dict[int, Metadata] = {}
    if by_id is None:
        by_id, new_metadata = _leaves_by_path(graphdef, states, ())
    if len(by_id) < graphdef.num_leaves:
        paths = graphdef.paths()
        missing = [path for i, path in enumerate(paths) if i not in by_id]
        raise StateError(
            f"The State lacks entries for {format_paths(missing)}. "
            "Pass all States that split returned, or `update` an existing object instead."
        )
    return gather_ids(by_id, range(graphdef.num_leaves)), new_metadata


def _whole_leaves(graphdef: GraphDef, states: Sequence[Any]) -> Sequence[Any] | None:
    """All values in order, if there is one State with all leaves, not looked into."""
    flat = states[0]._flat() if len(states) == 1 and isinstance(states[0], State) else None
    if flat is None or flat[1] is not None or not (flat[0] is graphdef or flat[0] == graphdef):
        return None
    return flat[2]


def _shared_leaves(graphdef: GraphDef, states: Sequence[Any]) -> dict[int, Any] | None:
    """Values by leaf id, if all are States split from this very structure and not looked into."""
    if not all(isinstance(state, State) for state in states):
        return None
    shared = leaves_of(states)
    if shared is None or not (shared[0] is graphdef or shared[0] == graphdef):
        return None
    return shared[1]


def _leaves_by_path(
    graphdef: GraphDef, states: Sequence[Any], current: Sequence[Any]
) -> tuple[dict[int, Any], dict[int, Metadata]]:
    """Values by leaf id, and metadata where it differs from the structure's.

    `current` are the present leaves if objects are to be updated, else empty.
    """
    index = graphdef.path_index()
    types, known_metadata = graphdef.leaf_types(), graphdef.leaf_metadata()
    by_id: dict[int, Any] = {}
    metadata: dict[int, Metadata] = {}
    surplus: list[Path] = []
    for state in states:
        if not isinstance(state, Mapping):
            raise StateError(
                f"Expected a State or a nested dict of values, got {type(state).__name__}."
            )
        levels = state._levels() if isinstance(state, State) else State(state)._levels()
        for path, entry in iter_levels(levels):
            i = index.get(path)
            if i is None:
                surplus.append(path)
                continue
            kind = types[i]
            if _core.is_variable(entry):
                entry = state_of_variable(entry)
            if isinstance(entry, VariableState):
                if entry.type is kind:
                    new, known = entry._metadata, known_metadata[i]
                    if (new or known) and not same(dict(new), dict(known or {})):
                        metadata[i] = dict(new)
                elif kind is None or _core.counterpart(entry.type) is not _core.counterpart(kind):
                    raise _wrong_type(path, entry, kind)
                # Between libraries the value moves; what metadata means differs.
                entry = entry.value
            same_kind = bool(current) and type(entry) is type(current[i])
            if not same_kind and (kind is None or (current and _bootstrap.is_array(current[i]))):
                _check_array(path, entry)
            by_id[i] = entry
    if surplus:
        raise StateError(
            f"The State has entries that the graph has no place for: {format_paths(surplus)}. "
            "Remove them, for instance with state.filter(...), or add the attributes first."
        )
    return by_id, metadata


def _wrong_type(path: Path, entry: VariableState, kind: type[Any] | None) -> LeafTypeError:
    place = "a bare array" if kind is None else f"a {kind.__name__}"
    return LeafTypeError(
        f"{format_path(path)} is {place}, but the State has a {entry.type.__name__} there. "
        "Make the entry of the right type, or pass the value alone."
    )


def _check_array(path: Path, value: Any) -> None:
    if not _bootstrap.is_array(value) and not isinstance(value, (bool, int, float, complex)):
        raise LeafTypeError(
            f"{format_path(path)} holds an array, but the State has {value!r} of type "
            f"{type(value).__name__} there. Give an array or a number."
        )


def update(node: Any, state: Any, /, *states: Any) -> None:
    """Put leaves into existing objects. All of it happens, or nothing.

    Args:
        node: what to change: a module, a Variable, or a pytree that holds some.
        state: a State, or a nested mapping of values. Leaves without an entry stay as they are.
        *states: more of them; later ones win.

    Raises:
        StateError: there are entries that the graph has no place for.
        LeafTypeError: an entry is of another Variable type, or not an array where there is one.
        TraceContextError: a Variable belongs to another trace level.

    >>> import jax, jax.numpy as jnp
    >>> import treadle as nnx
    >>> model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    >>> nnx.update(model, jax.tree.map(jnp.zeros_like, nnx.state(model)))
    >>> float(model.kernel.value.sum())
    0.0
    """
    flat = _walk(node)
    everything = (state, *states)
    by_id = _shared_leaves(flat.graphdef, everything)
    new_metadata: dict[int, Metadata] = {}
    if by_id is None:
        by_id, new_metadata = _leaves_by_path(flat.graphdef, everything, flat.leaves)
    owners = flat.graphdef.leaf_refs() if new_metadata else ()
    for i in new_metadata:
        _core.check_mutable(flat.refs[owners[i]])
    _core.set_leaves(flat, list(by_id), list(by_id.values()))
    for i, metadata in new_metadata.items():
        _core.set_metadata(flat.refs[owners[i]], metadata)


def state(node: Any, /, *filters: Filter) -> Any:
    """The leaves of objects, without their structure.

    Args:
        node: a module, a Variable, or a pytree that holds some.
        *filters: as for `split`, but leaves that none selects are left out.

    Returns:
        A State without filters or for one filter, a tuple of States for several.

    Raises:
        FilterError: filters are out of order.

    >>> import treadle as nnx
    >>> model = nnx.BatchNorm(3, rngs=nnx.Rngs(0))
    >>> list(nnx.state(model, nnx.Param))
    ['bias', 'scale']
    """
    flat = _walk(node)
    states = _states(flat, (*filters, ...) if filters and ... not in filters else filters)
    if not filters:
        return states[0]
    states = states[: len(filters)]
    return states[0] if len(states) == 1 else states


def graphdef(node: Any, /) -> GraphDef:
    """The structure of objects, without their leaves.

    Two objects have equal structures exactly if a transform may use one compiled function for both
    (as far as shapes and dtypes agree).

    >>> import treadle as nnx
    >>> a, b = nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.Linear(2, 3, rngs=nnx.Rngs(1))
    >>> nnx.graphdef(a) == nnx.graphdef(b)
    True
    """
    return _walk(node).graphdef


def clone(node: N, /) -> N:
    """New objects of the same structure with the same leaves; arrays are not copied.

    >>> import treadle as nnx
    >>> model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    >>> copy = nnx.clone(model)
    >>> copy.bias.value += 1
    >>> float(model.bias.value.sum())
    0.0
    """
    flat = _walk(node)
    return _core.unflatten(flat.graphdef, flat.leaves)[0]


# -- looking and removing ----------------------------------------------------------------------


def iter_graph(node: Any, /) -> Iterator[tuple[Path, Any]]:
    """Everything in a graph with its path: nodes, Variables, arrays and statics.

    Each node and Variable comes once, with the first path that leads to it, after what is below it.
    Tuples, lists, dicts and other pytrees are entered if there is something of the graph inside,
    and count as one static value otherwise.

    >>> import treadle as nnx
    >>> shared = nnx.Param(1.0)
    >>> for path, value in nnx.iter_graph(nnx.Dict(a=shared, b=[shared, nnx.Dict(rate=0.1)])):
    ...     print(path, type(value).__name__)
    ('a',) Param
    ('b', 1, 'rate') float
    ('b', 1) Dict
    ('b',) list
    () Dict
    """
    seen: dict[int, Any] = {}
    pending: list[tuple[Path, Any, bool]] = [((), node, False)]
    while pending:
        path, value, entered = pending.pop()
        if entered:
            yield path, value
            continue
        if _core.is_node(value):
            if id(value) in seen:
                continue
            seen[id(value)] = value
        children = list(iter_children(value))
        pending.append((path, value, True))
        pending.extend(((*path, key), child, False) for key, child in reversed(children))


class _Removal(NamedTuple):
    holder: Any
    key: Hashable
    variable: Variable[Any]


def pop(node: Any, filter: Filter, /, *filters: Filter) -> Any:
    """Remove Variables from objects, and return them as State.

    A shared Variable is removed from every node that holds it, and returned once. All of it
    happens, or nothing.

    Args:
        node: a module, or a pytree that holds some.
        filter: which Variables to remove.
        *filters: more filters, each with a State of its own, first match wins.

    Returns:
        A State for one filter, a tuple of States for several.

    Raises:
        FilterError: filters are out of order.
        GraphError: a Variable lies in a plain tuple, list or other pytree, or is itself the root,
            so that it cannot be removed.
        TraceContextError: a node belongs to another trace level.

    >>> import treadle as nnx
    >>> model = nnx.Dict(weight=nnx.Param(1.0), seen=nnx.Intermediate(2.0))
    >>> nnx.pop(model, nnx.Intermediate).seen.value, list(model)
    (2.0, ['weight'])
    """
    all_filters = (filter, *filters)
    compile_filters(all_filters)
    predicates = [to_predicate(f) for f in all_filters]
    flats: list[dict[Path, Any]] = [{} for _ in predicates]
    chosen: dict[int, bool] = {}
    removals: list[_Removal] = []
    for path, holder, key, variable in _variable_places(node):
        if id(variable) not in chosen:
            group = next((g for g, p in enumerate(predicates) if p(path, variable)), None)
            chosen[id(variable)] = group is not None
            if group is not None:
                flats[group][path] = state_of_variable(variable)
        if not chosen[id(variable)]:
            continue
        if holder is None:
            raise GraphError(
                f"Cannot pop {format_path(path)}: it is not an attribute or item of a node. "
                "Keep such Variables in attributes, or in treadle.Dict and treadle.List."
            )
        removals.append(_Removal(holder, key, variable))
    _remove(removals)
    states = tuple(map(State.from_flat_state, flats))
    return states[0] if not filters else states


def _variable_places(root: Any) -> Iterator[tuple[Path, Any, Hashable, Variable[Any]]]:
    """Every place that holds a Variable: path, the node it is an attribute of (or None), key."""
    seen: set[int] = set()
    pending: list[tuple[Path, Any, Hashable, Any]] = [((), None, None, root)]
    while pending:
        path, holder, key, value = pending.pop()
        if _core.is_variable(value):
            yield path, holder, key, value
            continue
        is_node = _core.is_node(value)
        if is_node:
            if id(value) in seen:
                continue
            seen.add(id(value))
        children = list(iter_children(value))
        next_holder = value if is_node else None
        pending.extend(((*path, k), next_holder, k, child) for k, child in reversed(children))


def _remove(removals: list[_Removal]) -> None:
    for removal in removals:
        _core.check_mutable(removal.holder)
    done: list[_Removal] = []
    try:
        # Backwards, so that list indices stay right.
        for removal in reversed(removals):
            node_functions(removal.holder).pop_key(removal.holder, removal.key)
            done.append(removal)
    except BaseException:
        for holder, key, variable in reversed(done):
            node_functions(holder).set_key(holder, key, variable)
        raise


# -- calling -----------------------------------------------------------------------------------


class _Call:
    """Records attribute and item accesses; calling it makes the call they lead to."""

    __slots__ = ("_access", "_split")

    def __init__(
        self, split: tuple[Any, ...], access: Callable[[Any], Any] = lambda node: node
    ) -> None:
        self._split = split
        self._access = access

    def __getattr__(self, name: str) -> _Call:
        access = self._access
        return _Call(self._split, lambda node: getattr(access(node), name))

    def __getitem__(self, key: Any) -> _Call:
        access = self._access
        return _Call(self._split, lambda node: access(node)[key])

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[Any, tuple[GraphDef, State]]:
        node = merge(*self._split)
        out = self._access(node)(*args, **kwargs)
        graphdef, state = split(node)
        return out, (graphdef, state)


def call(graphdef_and_state: tuple[Any, ...], /) -> Any:
    """Call a method of objects that are held in split form, without changing that form.

    Args:
        graphdef_and_state: what `split` returned.

    Returns:
        An object on which a method (or attribute's or item's method) can be called; the call
        returns ``(result, (graphdef, state))`` with the split form after the call.

    >>> import treadle as nnx
    >>> before = nnx.split(nnx.Rngs(0))
    >>> key, after = nnx.call(before).default()
    >>> int(before[1].default.count.value), int(after[1].default.count.value)
    (0, 1)
    """
    return _Call(tuple(graphdef_and_state))


# -- reference maps ----------------------------------------------------------------------------


class RefMap:
    """The nodes and Variables of a graph by reference id, and their ids.

    Ids count from 0 in the order of the walk. Objects of equal structure (`graphdef`) have the same
    ids in the same roles.

    >>> import treadle as nnx
    >>> weight = nnx.Param(1.0)
    >>> graphdef, state, refs = nnx.flatten(nnx.Dict(a=weight, b=weight))
    >>> len(refs), refs[refs.id_of(weight)] is weight
    (2, True)
    """

    __slots__ = ("_ids", "_objects")

    def __init__(self, objects: Iterable[Any]) -> None:
        self._objects = list(objects)
        self._ids: dict[int, int] | None = None

    def __getitem__(self, ref: int) -> Any:
        return self._objects[ref]

    def __len__(self) -> int:
        return len(self._objects)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._objects)

    def __contains__(self, obj: object) -> bool:
        return self._lookup().get(id(obj)) is not None

    def id_of(self, obj: Any) -> int:
        """Reference id of an object.

        Raises:
            KeyError: the object is not part of the graph.

        >>> import treadle as nnx
        >>> model = nnx.Module()
        >>> nnx.flatten(model)[2].id_of(model)
        0
        """
        found = self._lookup().get(id(obj))
        if found is None:
            raise KeyError(f"This {type(obj).__name__} is not part of the graph")
        return found

    def _lookup(self) -> dict[int, int]:
        if self._ids is None:
            self._ids = {id(obj): ref for ref, obj in enumerate(self._objects)}
        return self._ids


def flatten(node: Any, /) -> tuple[GraphDef, State, RefMap]:
    """As `split` without filters, and also say which object has which reference id.

    >>> import treadle as nnx
    >>> model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    >>> graphdef, state, refs = nnx.flatten(model)
    >>> [type(obj).__name__ for obj in refs]
    ['Linear', 'Param', 'Param']
    """
    flat = _walk(node)
    return flat.graphdef, State._from_leaves(flat.graphdef, None, flat.leaves), RefMap(flat.refs)


def unflatten(graphdef: GraphDef, state: Any, /, *states: Any) -> tuple[Any, RefMap]:
    """As `merge`, and also say which new object has which reference id.

    Raises:
        StateError, LeafTypeError: as for `merge`.

    >>> import treadle as nnx
    >>> model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    >>> graphdef, state, refs = nnx.flatten(model)
    >>> copy, copy_refs = nnx.unflatten(graphdef, state)
    >>> copy_refs[refs.id_of(model.kernel)] is copy.kernel
    True
    """
    root, refs, _ = _build(graphdef, (state, *states))
    return root, RefMap(refs)
