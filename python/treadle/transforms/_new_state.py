"""Which axis each leaf has that comes out of a mapped function, new state included."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from treadle import _core
from treadle._graph.filters import to_predicate
from treadle._modules.rngs import RngState
from treadle.transforms._arguments import Path
from treadle.transforms._inside import Inside, Output
from treadle.transforms._random_keys import is_kind_of
from treadle.transforms._spelling import MapOptions, StateEntry, is_axis
from treadle.transforms._trees import flatten_with_paths, spread_prefix, tree_leaves, walk

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


class NewState:
    """Axis of each leaf that comes out of a function, which has run.

    Args:
        options: the transform's parameters.
        entries: what holds for each item of each argument.
        inside: the rebuilt call.
        result: what the function returned.
        parts: the parts of the result that are mapped, in pytree order.
    """

    def __init__(
        self,
        options: MapOptions,
        entries: Mapping[int | str, Sequence[Any]],
        inside: Inside,
        result: Any,
        parts: Sequence[Part],
    ) -> None:
        self._options, self._entries = options, entries
        self._inside, self._result = inside, result
        self._nodes: list[tuple[Any, StateEntry]] = []
        self._rules: dict[StateEntry, list[tuple[Callable[..., bool], Any]]] = {}
        self.value_axes: list[Any] = []
        """Axis of each array of the result that is outside nodes."""
        where = inside.outline.where
        for part in parts:
            axes = spread_prefix(part.axes, part.value, f"{where}: out_axes", is_axis)
            found = flatten_with_paths(part.value)
            for (path, leaf), axis in zip(found, axes, strict=True):
                if _core.is_node(leaf):
                    self._nodes.append((leaf, options.state_entry(axis)))
                    continue
                try:
                    self.value_axes.append(options.result_axis(axis, (*part.path, *path)))
                except ValueError as error:
                    raise ValueError(f"{where}: {error}") from None

    def axes(self, rows: Sequence[Output]) -> dict[int, Any]:
        """Axis (None, or Carry) of each new leaf among the outputs, by output number."""
        if not any(row.kind == "new" for row in rows):
            return {}
        types = self._inside.effects.output_types()
        metadata = self._inside.effects.output_metadata()
        in_arguments = self._new_in_arguments()
        axes: dict[int, Any] = {}
        for i, row in enumerate(rows):
            if row.kind == "new":
                entry = self.entry(row.path, in_result=in_arguments <= 0)
                in_arguments -= 1
                axes[i] = self.axis(entry, row.path, types[i], metadata[i], row.value)
        return axes

    def _new_in_arguments(self) -> int:
        """How many of the new leaves hang on arguments; these are numbered before the others."""
        if self._options.new_state is not None:
            return 0
        inside = self._inside
        graphdef = inside.outline.graphdef
        effects, _ = _core.trace_effects(inside.refs, graphdef, inside.leaves, None, True)
        return sum(kind == "new" for kind, _, _ in effects.outputs())

    def entry(self, path: Path, *, in_result: bool) -> StateEntry:
        """What is said about the node that new state at `path` belongs to."""
        if self._options.new_state is not None:
            return self._options.new_state
        if in_result:
            return _nearest(self._result, self._nodes, path)
        which = path[0]
        assert isinstance(which, (int, str))
        inside = self._inside
        value = inside.args[which] if isinstance(which, int) else inside.kwargs[which]
        nodes = [
            (item, entry)
            for item, entry in zip(tree_leaves(value), self._entries[which], strict=True)
            if isinstance(entry, StateEntry)
        ]
        first = nodes[0][1]
        if all(entry == first for _, entry in nodes):
            return first
        return _nearest(value, nodes, path[1:])

    def axis(
        self, entry: StateEntry, path: Path, kind: type[Any] | None, metadata: Any, value: Any
    ) -> Any:
        """Axis (None, or Carry) of a new leaf that belongs to a node with `entry`."""
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


def _nearest(tree: Any, nodes: Sequence[tuple[Any, StateEntry]], path: Path) -> StateEntry:
    """The entry of that of several nodes in a pytree which is on the way to `path`."""
    walked = walk(tree)
    paths = walked.graphdef.ref_paths()
    for node, entry in nodes:
        at = paths[walked.ref_id(node)][1:]
        if path[: len(at)] == at:
            return entry
    return _NOTHING_SAID
