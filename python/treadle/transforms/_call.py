"""One call of a lifted function: its walked arguments."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from treadle import _core
from treadle._graph.filters import Filter, compile_filters
from treadle._graph.state import State
from treadle.transforms._arguments import Function, Path, argument_label, function_name, naming
from treadle.transforms._trees import tree_leaves

Items = tuple[tuple[bool, int], ...]

_NONE: Mapping[Path, Any] = {}


class Outline:
    """What calls of one structure have in common: no values and none of the caller's objects.

    This is what a function may know that JAX keeps with a compiled program.
    """

    __slots__ = ("_relative", "function", "graphdef", "name")

    def __init__(self, name: str, function: Function, graphdef: _core.GraphDef) -> None:
        self.name = name
        self.function = function
        self.graphdef = graphdef
        self._relative: dict[int, dict[int, Path]] = {}

    def of(self, function: Function) -> Outline:
        """Outline of a call of another function with these arguments."""
        return Outline(self.name, function, self.graphdef)

    @property
    def where(self) -> str:
        """The transform and the function, for messages."""
        return f"{self.name} of {function_name(self.function)}"

    def label(self, leaf: int) -> str:
        """Where a leaf is, as the user would write it."""
        return argument_label(self.function, self.graphdef.paths()[leaf])

    def relative_paths(self, ref: int) -> dict[int, Path]:
        """Path from the object `ref` to each leaf that it reaches."""
        known = self._relative.get(ref)
        if known is None:
            known = self._relative[ref] = _relative_paths(self.graphdef, ref)
        return known

    def state(
        self, ref: int, values: Mapping[int, Any], more: Mapping[Path, Any] = _NONE
    ) -> State | _core.VariableState:
        """State, as seen from the object `ref`, of the leaves in `values` that it reaches.

        For an object that is itself a Variable it is the one `VariableState`.

        Args:
            ref: the object.
            values: values by leaf.
            more: entries that are no leaves of the call, by their path from the object.
        """
        paths: list[Path] = [*more]
        entries: list[Any] = [*more.values()]
        types, metadata = self.graphdef.leaf_types(), self.graphdef.leaf_metadata()
        for leaf, path in self.relative_paths(ref).items():
            if leaf not in values:
                continue
            kind = types[leaf]
            paths.append(path)
            entries.append(state_entry(kind, values[leaf], metadata[leaf]))
        return state_of(paths, entries)


def state_entry(kind: type[Any] | None, value: Any, metadata: Mapping[str, Any] | None) -> Any:
    """What a State holds for a leaf: a `VariableState`, or the value itself where `kind` is None."""
    return value if kind is None else _core.VariableState(kind, value, **(metadata or {}))


def state_of(paths: Sequence[Path], entries: Sequence[Any]) -> Any:
    """A State of entries by their paths; the entry itself if its path is empty."""
    return entries[0] if list(paths) == [()] else State._view(_core.nest(paths, entries))


class Call(Outline):
    """The walked arguments of one call of a lifted function."""

    __slots__ = ("args", "flat", "kwargs", "leaves", "static")

    def __init__(
        self,
        name: str,
        function: Function,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        static: frozenset[int] = frozenset(),
    ) -> None:
        """Walk `args` and `kwargs`: each node and Variable once, at any depth.

        Args:
            name: the transform, for messages.
            function: the user's function.
            args: its positional arguments.
            kwargs: its keyword arguments.
            static: positions of arguments that are compared instead of traced.
        """
        with naming(functools.partial(argument_label, function)):
            self.flat = _core.flatten_call(args, kwargs, static, frozenset())
        super().__init__(name, function, self.flat.graphdef)
        self.args = args
        self.kwargs = kwargs
        self.static = static
        self.leaves = self.flat.leaves

    def outline(self) -> Outline:
        """The call without its values."""
        return Outline(self.name, self.function, self.graphdef)

    def finish(self, effects: _core.Effects, out_leaves: Sequence[Any]) -> Any:
        """Scatter the new leaves into the caller's objects; return the function's result."""
        return _core.apply_effects(effects, self.flat.refs, self.leaves, out_leaves)

    def partition(self, filters: Sequence[Filter]) -> tuple[int, ...]:
        """Index of the first filter that selects each leaf, -1 where none does."""
        return self.graphdef.partition(compile_filters(filters), self.leaves)

    def argument_items(self) -> list[tuple[int | str, Any, Items]]:
        """For each argument its position or keyword, its value and its items.

        An item is (True, reference id) for a node or Variable and (False, leaf id) for a value.
        """
        items = self.graphdef.root_items()
        found: list[tuple[int | str, Any, Items]] = []
        start = 0
        for which, argument in [*enumerate(self.args), *sorted(self.kwargs.items())]:
            stop = start if which in self.static else start + len(tree_leaves(argument))
            found.append((which, argument, items[start:stop]))
            start = stop
        return found


def _relative_paths(graphdef: _core.GraphDef, ref: int) -> dict[int, Path]:
    prefix = graphdef.ref_path(ref)
    paths = graphdef.paths()
    reached = graphdef.reachable(ref)
    depth = len(prefix)
    if all(paths[leaf][:depth] == prefix for leaf in reached):
        return {leaf: paths[leaf][depth:] for leaf in reached}
    # Part of the object was met earlier by another way. Walk a copy whose leaves are leaf numbers.
    numbers = [np.asarray(leaf) for leaf in range(graphdef.num_leaves)]
    _, refs = _core.unflatten(graphdef, numbers)
    walked = _core.flatten(refs[ref])
    return {
        int(number): path
        for number, path in zip(walked.leaves, walked.graphdef.paths(), strict=True)
    }
