"""How the entries of States find the leaves of a structure, by number or by path."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, TypeAlias

from treadle import _bootstrap as _bootstrap
from treadle import _core
from treadle._core import GraphDef, VariableState
from treadle._graph.state import State, gather_ids, iter_levels, leaves_of
from treadle._objects.equality import same
from treadle._objects.variable_state import state_of_variable
from treadle.errors import GraphError, LeafTypeError, StateError, format_path, format_paths

Path: TypeAlias = tuple[Hashable, ...]
Metadata: TypeAlias = dict[str, Any]


def build(graphdef: GraphDef, states: Sequence[Any]) -> tuple[Any, list[Any], Sequence[Any]]:
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
    by_id = shared_leaves(graphdef, states)
    new_metadata: dict[int, Metadata] = {}
    if by_id is None:
        by_id, new_metadata = leaves_by_path(graphdef, states, ())
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


def shared_leaves(graphdef: GraphDef, states: Sequence[Any]) -> dict[int, Any] | None:
    """Values by leaf id, if all are States split from this very structure and not looked into."""
    if not all(isinstance(state, State) for state in states):
        return None
    shared = leaves_of(states)
    if shared is None or not (shared[0] is graphdef or shared[0] == graphdef):
        return None
    return shared[1]


def leaves_by_path(
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
