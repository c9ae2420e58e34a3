"""The function that `jax.jit` compiles for one structure: takes leaves, runs the user's function."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from treadle import _core
from treadle._graph.filters import compile_filters
from treadle._sharding.rules import rules_in_force
from treadle.transforms._arguments import Function, function_name
from treadle.transforms._call import Outline
from treadle.transforms._inside import Inside
from treadle.transforms._jit.constraints import Constraints
from treadle.transforms._jit.explanations import no_jax_output
from treadle.transforms._jit.jax_internals import UNSPECIFIED, describe
from treadle.transforms._jit.options import Options
from treadle.transforms._jit.retraces import leaf_type, structure_difference, type_difference
from treadle.transforms._jit.shardings import (
    is_placed_like,
    keep_shardings,
    leaf_shardings,
    place_value,
    shard_result,
)


class Plan(NamedTuple):
    """What the dispatcher needs for calls of one structure."""

    function: Any
    donated: tuple[int, ...]
    # The first trace's, filled when it has run: what output leaves without effects stand for.
    effects: list[_core.Effects]
    # What in_shardings says about each leaf, for messages.
    shardings: tuple[Any, ...] | None = None
    # Leaves that a call leaves placed even if it only reads them, and what places the leaves of a call.
    placed: tuple[int, ...] = ()
    place: Callable[[Sequence[Any]], list[Any]] | None = None

    def read(self, returned: Any) -> tuple[_core.Effects, tuple[Any, ...]]:
        """Effects and output leaves of what the function returned."""
        if isinstance(returned, _core.Outputs):
            return returned.effects, returned.leaves
        return self.effects[0], returned if isinstance(returned, tuple) else (returned,)


class Program:
    """A function at one structure of its arguments.

    Args:
        function: the user's function.
        options: what `jit` was told.
        graphdef: the structure.
        leaves: the leaves of a call of that structure.
        known: structures for which there are programs already.
        log: told of each trace that is about to begin, with what is different; may refuse it.

    Raises:
        ValueError: `in_shardings` does not fit the arguments.
    """

    def __init__(
        self,
        function: Function,
        options: Options,
        graphdef: _core.GraphDef,
        leaves: Sequence[Any],
        known: Sequence[_core.GraphDef],
        log: Callable[[tuple[str, Any, Any] | None], None],
    ) -> None:
        self._function = function
        self._options = options
        self._graphdef = graphdef
        self._log = log
        self._known = known
        self._types: tuple[str, ...] | None = None
        self._rules = rules_in_force()
        self._effects: list[_core.Effects] = []
        self._donated = donated_leaves(options, graphdef, leaves)
        # A donated leaf comes out also where it did not change, as its buffer is gone.
        keep = [True] * graphdef.num_leaves
        for leaf in self._donated:
            keep[leaf] = False
        self._keep = keep
        self._constraints = (
            Constraints(options.constrain_state) if options.constrain_state else None
        )
        self._shardings: tuple[Any, ...] | None = None
        if options.in_shardings is not UNSPECIFIED and options.in_shardings is not None:
            self._shardings = leaf_shardings(
                function, options.in_shardings, options.static.positions, graphdef, leaves
            )

    def plan(self) -> Plan:
        """The plan for calls of this structure, not traced yet."""

        def traced(*values: Any) -> Any:
            return self._trace(values)

        traced.__name__ = traced.__qualname__ = function_name(self._function)
        describe(traced, self._function, self._graphdef)
        passed = dict(self._options.passed)
        if self._options.in_shardings is not UNSPECIFIED:
            passed["in_shardings"] = self._shardings
        with warnings.catch_warnings():
            # jax deprecates `device` and `backend`; whoever passes them to treadle has no use for
            # a warning about a line of treadle's.
            warnings.simplefilter("ignore", DeprecationWarning)
            compiled = jax.jit(traced, donate_argnums=self._donated or None, **passed)
        placed = self._placed_leaves()
        place = self._place if placed else None
        return Plan(compiled, self._donated, self._effects, self._shardings, placed, place)

    def _placed_leaves(self) -> tuple[int, ...]:
        """The leaves of Variables for which there may be a place."""
        owners, shardings = self._graphdef.leaf_refs(), self._shardings
        return tuple(
            leaf
            for leaf, owner in enumerate(owners)
            if owner >= 0
            and (self._constraints is not None or (shardings and shardings[leaf] is not None))
        )

    def _place(self, leaves: Sequence[Any]) -> list[Any]:
        """The leaves of a call, where the program wants them; those that are there are the same objects."""
        placed = list(leaves)
        if self._constraints is not None:
            placed = self._constraints.enter(self._graphdef, placed)
        if self._shardings is not None:
            for leaf in self._placed_leaves():
                if self._shardings[leaf] is not None:
                    placed[leaf] = place_value(placed[leaf], self._shardings[leaf])
        return [
            before if is_placed_like(before, after) else after
            for before, after in zip(leaves, placed, strict=True)
        ]

    def _trace(self, values: tuple[Any, ...]) -> Any:
        """What JAX traces: from leaves to leaves."""
        types, rules = tuple(map(leaf_type, values)), rules_in_force()
        if self._types is not None and types == self._types and rules != self._rules:
            difference = ("logical_axis_rules", self._rules, rules)
        elif self._types is not None:
            difference = type_difference(self._function, self._graphdef, self._types, types)
        else:
            difference = structure_difference(self._function, self._known, self._graphdef)
        self._log(difference)
        # Only a first trace is compared with other structures.
        self._types, self._rules, self._known = types, rules, ()
        effects, out = self._run(values)
        if not self._effects:
            self._effects.append(effects)
        if not effects.same_as(self._effects[0]):
            return _core.Outputs(effects, out)
        # Traces with the same effects need no node of ours, and one leaf no tuple: less for JAX to build.
        return out[0] if len(out) == 1 and isinstance(out[0], jax.Array) else out

    def _run(self, values: Sequence[Any]) -> tuple[_core.Effects, tuple[Any, ...]]:
        """The user's function over tracers, and what it did."""
        graphdef = self._graphdef
        if self._constraints is not None:
            values = self._constraints.enter(graphdef, values)
        inside = Inside(Outline("jit", self._function, graphdef), values)
        result = inside.run()
        if self._constraints is not None:
            self._constraints.leave(graphdef, inside.refs, values, result)
        if self._shardings is not None:
            keep_shardings(graphdef, inside.refs, values, self._shardings)
        if self._options.out_shardings is not UNSPECIFIED:
            result = shard_result(self._function, self._options.out_shardings, result)
        inside.leave(result, self._keep)
        effects, out = inside.effects, inside.values
        error = no_jax_output(self._function, effects, out)
        if error is not None:
            raise error
        return effects, tuple(out)


def donated_leaves(
    options: Options, graphdef: _core.GraphDef, leaves: Sequence[Any]
) -> tuple[int, ...]:
    """The leaves of a call whose buffers it may reuse, ascending."""
    donated: set[int] = set()
    for is_ref, index in graphdef.root_items():
        if is_ref and options.donate_state is not None:
            donated.update(graphdef.reachable(index))
    if donated:
        selected = graphdef.partition(compile_filters((options.donate_state,)), leaves)
        donated = {leaf for leaf in donated if selected[leaf] == 0}
    positions, names = options.donated
    if positions or names:
        for leaf, path in enumerate(graphdef.paths()):
            if path[0] in positions or path[0] in names:
                donated.add(leaf)
    return tuple(sorted(donated))


jax.tree_util.register_pytree_node(_core.Outputs, _core._flatten_outputs, _core._unflatten_outputs)
