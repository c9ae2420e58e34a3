"""Which axis each leaf has that comes out of a mapped function, new state included."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from treadle import _core
from treadle._graph.filters import to_predicate
from treadle._modules.rngs import RngState
from treadle.errors import format_path
from treadle.transforms._arguments import Path, argument_label
from treadle.transforms._axes import Carry
from treadle.transforms._inside import Inside, Output
from treadle.transforms._random_keys import is_kind_of
from treadle.transforms._roles import Plan, Role, describe, rank
from treadle.transforms._spelling import MapOptions, StateEntry, is_axis
from treadle.transforms._trees import flatten_with_paths, spread_prefix

_NOTHING_SAID = StateEntry(((..., None),))


class Part(NamedTuple):
    """A part of a function's result that has its own entry in out_axes.

    Args:
        path: from the result to the part.
        value: the part.
        axes: the out_axes entry; a pytree prefix of `value`.
    """

    path: Path
    value: Any
    axes: Any


class _Returned(NamedTuple):
    """A node or Variable in the result, outside the carry."""

    node: Any
    entry: StateEntry
    label: str
    speaks: bool
    """Whether the entry says where its state is, rather than where new state in it goes."""


class _Said(NamedTuple):
    """What is said about a leaf, and by what."""

    axis: Any
    by: str


class NewState:
    """Axis of each leaf that comes out of a function, which has run.

    Args:
        options: the transform's parameters.
        plan: what is mapped.
        inside: the rebuilt call.
        result: what the function returned.
        parts: the parts of the result that are mapped, in pytree order.
    """

    def __init__(
        self,
        options: MapOptions,
        plan: Plan,
        inside: Inside,
        result: Any,
        parts: Sequence[Part],
    ) -> None:
        self._options, self._plan = options, plan
        self._inside, self._result = inside, result
        self._returned: list[_Returned] = []
        self._rules: dict[StateEntry, list[tuple[Callable[..., bool], Any]]] = {}
        self.value_axes: list[Any] = []
        """Axis of each array of the result that is outside nodes."""
        where = inside.outline.where
        for part in parts:
            axes = spread_prefix(part.axes, part.value, f"{where}: out_axes", is_axis)
            found = flatten_with_paths(part.value)
            for (path, leaf), axis in zip(found, axes, strict=True):
                whole = (*part.path, *path)
                if _core.is_node(leaf):
                    label = format_path(whole, "the result")
                    entry, speaks = options.state_entry(axis), options.speaks_of(axis)
                    self._returned.append(_Returned(leaf, entry, label, speaks))
                    continue
                try:
                    self.value_axes.append(options.result_axis(axis, whole))
                except ValueError as error:
                    raise ValueError(f"{where}: {error}") from None

    def axes(self, rows: Sequence[Output]) -> dict[int, Any]:
        """Axis (None, or Carry) of each new leaf among the outputs, by output number.

        Raises:
            ValueError: a leaf is reached under two axes.
        """
        new = [i for i, row in enumerate(rows) if row.kind == "new"]
        one = self._one_entry
        if one is None and (
            new
            or self._inside.effects.changes_structure
            or any(returned.speaks for returned in self._returned)
        ):
            return self._found(new, rows)
        if not new:
            return {}
        types = self._inside.effects.output_types()
        metadata = self._inside.effects.output_metadata()
        entry = one or _NOTHING_SAID
        return {
            i: self._axis(entry, rows[i].path, types[i], metadata[i], rows[i].value) for i in new
        }

    def of_new_variables(self) -> Iterator[tuple[Any, Any]]:
        """Each Variable that the function made, with its axis."""
        walked = self._walked
        known = {id(ref) for ref in self._inside.refs}
        owners = walked.graphdef.leaf_refs()
        for leaf, axis in self._placed.items():
            variable = walked.refs[owners[leaf]] if owners[leaf] >= 0 else None
            if variable is not None and id(variable) not in known:
                yield variable, axis

    @functools.cached_property
    def _one_entry(self) -> StateEntry | None:
        """What holds for all new state, if nothing depends on where that is."""
        if self._options.new_state is not None:
            return self._options.new_state
        entries = {entry for _, entry, _ in self._plan.nodes}
        entries.update(returned.entry for returned in self._returned)
        return entries.pop() if len(entries) == 1 else None

    # -- by a walk over all that the function leaves -----------------------------------------------

    @functools.cached_property
    def _walked(self) -> _core.Flat:
        """The arguments and the result, as the function left them."""
        return _core.flatten((self._inside.args, self._inside.kwargs, self._result))

    @functools.cached_property
    def _placed(self) -> dict[int, Any]:
        """Axis of each new leaf of the walk, by its number there."""
        inside, walked = self._inside, self._walked
        graphdef = inside.outline.graphdef
        before = _places(graphdef, inside.refs)
        old = {place: leaf for leaf, place in enumerate(before) if place is not None}
        after = _places(walked.graphdef, walked.refs)
        said: dict[int, _Said | None] = {}
        new: set[int] = set()
        for leaf, place in enumerate(after):
            if place in old:
                said[leaf] = self._of_old(old[place])
            elif place is not None:
                new.add(leaf)
        if self._options.new_state is not None:
            return {leaf: self._axis_in_walk(leaf, self._options.new_state) for leaf in new}
        for ref, entry, label in self._plan.nodes:
            self._say(said, inside.refs[ref], entry, label)
        for returned in self._returned:
            if returned.speaks:
                self._say(said, returned.node, returned.entry, returned.label)
        for returned in self._returned:
            if not returned.speaks:
                self._say(said, returned.node, returned.entry, returned.label, only=new)
        found = ((leaf, said.get(leaf)) for leaf in new)
        return {leaf: None if known is None else known.axis for leaf, known in found}

    def _of_old(self, leaf: int) -> _Said | None:
        """What is said about a leaf of the call; None where it has no axis to contradict."""
        role = self._plan.roles[leaf]
        kind = self._inside.outline.graphdef.leaf_types()[leaf]
        if role in (Role.SPLIT, Role.COUNT) or is_kind_of(kind, RngState):
            return None
        if isinstance(role, Role):
            role = Carry if role is Role.CARRY else None
        path = self._inside.outline.graphdef.paths()[leaf]
        return _Said(role, argument_label(self._inside.outline.function, path[:1]))

    def _say(
        self,
        said: dict[int, _Said | None],
        node: Any,
        entry: StateEntry,
        label: str,
        only: set[int] | None = None,
    ) -> None:
        """Note what an entry says about the leaves of a node.

        Args:
            said: what is said so far; None for what nothing can contradict.
            node: a node or Variable.
            entry: its entry.
            label: what is called so that has the entry.
            only: leaves to which this comes last: it contradicts nothing. Default: all, first.
        """
        ref = self._walked.ref_id(node)
        if ref < 0:
            return
        for leaf in self._walked.graphdef.reachable(ref):
            if only is not None:
                if leaf in only and leaf not in said:
                    said[leaf] = _Said(self._axis_in_walk(leaf, entry), label)
                continue
            axis = self._axis_in_walk(leaf, entry)
            known = said.setdefault(leaf, _Said(axis, label))
            if known is not None and _differ(known.axis, axis, self._walked.leaves[leaf]):
                where = self._inside.outline.where
                raise ValueError(
                    f"{where}: {self._label(leaf)} is reached under two different axes: "
                    f"{_in_words(known.axis)} through {known.by}, {_in_words(axis)} through "
                    f"{label}. Give both the same axis, or leave out out_axes for what the "
                    "arguments say already."
                )

    def _axis_in_walk(self, leaf: int, entry: StateEntry) -> Any:
        graphdef = self._walked.graphdef
        owner = graphdef.leaf_refs()[leaf]
        metadata = _core.metadata(self._walked.refs[owner]) if owner >= 0 else None
        _, *path = graphdef.paths()[leaf]
        kind, value = graphdef.leaf_types()[leaf], self._walked.leaves[leaf]
        return self._axis(entry, tuple(path), kind, metadata, value)

    def _label(self, leaf: int) -> str:
        which, *path = self._walked.graphdef.paths()[leaf]
        if which == 2:
            return format_path(path, "the result")
        return argument_label(self._inside.outline.function, tuple(path))

    def _found(self, new: Sequence[int], rows: Sequence[Output]) -> dict[int, Any]:
        """Axes of the new leaves among the outputs, which the walk met in the same order."""
        paths = self._walked.graphdef.paths()
        waiting: dict[Path, list[int]] = {}
        for leaf in sorted(self._placed):
            waiting.setdefault(paths[leaf][1:], []).append(leaf)
        return {i: self._placed[waiting[rows[i].path].pop(0)] for i in new}

    def _axis(
        self, entry: StateEntry, path: Path, kind: type[Any] | None, metadata: Any, value: Any
    ) -> Any:
        """Axis (None, or Carry) of a leaf that belongs to a node with `entry`."""
        variable = value if kind is None else _core.VariableState(kind, value, **(metadata or {}))
        rules = self._rules.get(entry)
        if rules is None:
            rules = [(to_predicate(filter_), axis) for filter_, axis in entry.rules]
            self._rules[entry] = rules
        chosen = next((axis for matches, axis in rules if matches(path, variable)), entry.otherwise)
        if is_kind_of(kind, RngState) and isinstance(chosen, int):
            # Keys have no axes of their own, so theirs comes first whatever axis arrays get.
            return 0
        return chosen


def _places(graphdef: _core.GraphDef, refs: Sequence[Any]) -> list[tuple[int, Path] | None]:
    """For each leaf the object that holds it and the path from there; None for one outside objects."""
    owners, paths = graphdef.leaf_refs(), graphdef.paths()
    places: list[tuple[int, Path] | None] = []
    by_path: Mapping[Path, int] | None = None
    for owner, path in zip(owners, paths, strict=True):
        if owner >= 0:
            places.append((id(refs[owner]), ()))
            continue
        if by_path is None:
            by_path = {at: ref for ref, at in enumerate(graphdef.ref_paths())}
        holder = next((n for n in range(len(path) - 1, 0, -1) if path[:n] in by_path), None)
        places.append(None if holder is None else (id(refs[by_path[path[:holder]]]), path[holder:]))
    return places


def _in_words(axis: Any) -> str:
    return describe(Role.BROADCAST if axis is None else Role.CARRY if axis is Carry else axis)


def _differ(known: Any, axis: Any, value: Any) -> bool:
    """Whether two axes are not the same for `value`, which is a slice over them."""
    if known == axis or {known, axis} == {None, Carry}:
        # What is the same in all iterations is carried when it changes.
        return False
    if isinstance(known, int) and isinstance(axis, int):
        ranks = [rank(part) + 1 for part in jax.tree_util.tree_leaves(value)]
        return any((known - axis) % ndim or not -ndim <= axis < ndim for ndim in ranks)
    return not _same_spec(known, axis)


def _same_spec(a: Any, b: Any) -> bool:
    """Whether two specs say the same: axes left out at the end are not split."""
    if not isinstance(a, jax.sharding.PartitionSpec) or type(a) is not type(b):
        return False
    return _trimmed(a) == _trimmed(b)


def _trimmed(spec: jax.sharding.PartitionSpec) -> list[Any]:
    entries = [
        entry[0] if isinstance(entry, tuple) and len(entry) == 1 else entry for entry in spec
    ]
    while entries and entries[-1] in (None, ()):
        entries.pop()
    return entries
