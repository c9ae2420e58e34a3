"""The Python side of a dispatcher: plans for new structures, errors, and the rest of the interface."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax

from treadle import _core
from treadle.errors import listed
from treadle.transforms._arguments import Function, argument_label, function_name, naming
from treadle.transforms._bounded import Bounded
from treadle.transforms._captured import Reported
from treadle.transforms._companions import Companions
from treadle.transforms._copies import SHOWN, copied, warn_of_copies
from treadle.transforms._jit.copying import Recipe
from treadle.transforms._jit.explanations import explain
from treadle.transforms._jit.options import Options
from treadle.transforms._jit.program import Plan, Program, donated_leaves
from treadle.transforms._jit.retraces import Retrace, TraceLog
from treadle.transforms._jit.stages import Lowered, Traced, arguments_of


class Compiler:
    """Traces structures that the dispatcher has not seen, and explains errors.

    Args:
        function: the function to compile, apart from what it brings along.
        companions: the nodes that it brings along.
        options: what `jit` was told.
        capacity: how many structures are remembered.
        recipe: how to make another such jitted function.
    """

    # What users of the dispatcher find here, for its `dir`.
    attributes = ("clear_cache", "eval_shape", "lower", "num_traces", "retraces", "trace")

    def __init__(
        self,
        function: Function,
        companions: Companions,
        options: Options,
        capacity: int,
        recipe: Recipe,
    ) -> None:
        self.function = function
        self.companions = companions
        self.options = options
        self.recipe = recipe
        self.log = TraceLog(function)
        self._reported = Reported()
        self._said_copies = False
        self.compiled: Bounded[_core.GraphDef, Plan] = Bounded(capacity)
        # A weak reference to it, since it holds this.
        self.dispatcher: Callable[[], Any] = lambda: None

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        # Of the dispatcher, which asks here for what it lacks; nobody copies a compiler.
        return self.recipe.deepcopied(self.dispatcher(), memo)

    # -- called by the dispatcher ------------------------------------------------------------------

    copy = staticmethod(copied)

    def on_copies(
        self, graphdef: _core.GraphDef, leaves: Sequence[int], values: Sequence[Any]
    ) -> None:
        """Say once that leaves are copied instead of donated, since somebody else holds them."""
        if self._said_copies:
            return
        self._said_copies = True
        paths = graphdef.paths()
        names = listed(leaves, SHOWN, lambda leaf: argument_label(self.function, paths[leaf]))
        warn_of_copies(f"jit of {function_name(self.function)}", names, values)

    def plan(self, graphdef: _core.GraphDef, leaves: Sequence[Any]) -> Plan:
        """What calls of a structure need."""
        return self.compiled.get(graphdef, lambda: self._make(graphdef, leaves))

    def on_error(
        self, graphdef: _core.GraphDef | None, leaves: Sequence[Any], error: Exception
    ) -> Exception | None:
        """A better error than the one a call ended with, or None."""
        donated, shardings = (), None
        # A structure without a plan was refused when its program was made.
        if graphdef is not None and (plan := self.compiled.find(graphdef)) is not None:
            donated, shardings = plan.donated, plan.shardings
        return explain(self.function, graphdef, leaves, donated, shardings, error)

    # -- the rest of the wrapped function's interface ----------------------------------------------

    @property
    def retraces(self) -> tuple[Retrace, ...]:
        """Traces after the first, with what caused each."""
        return tuple(self.log.retraces)

    @property
    def num_traces(self) -> int:
        """How often the function was traced."""
        return self.log.count

    def lower(self, *args: Any, **kwargs: Any) -> Lowered[Any]:
        """Trace and lower for these arguments."""
        return self.trace(*args, **kwargs).lower()

    def trace(self, *args: Any, **kwargs: Any) -> Traced[Any]:
        """Trace for these arguments."""
        kwargs = {**self.companions, **kwargs}
        graphdef, leaves, plan = self._collect(args, kwargs)
        arguments = arguments_of(graphdef, leaves, self.options.static, args, kwargs)
        return Traced(plan.function.trace(*leaves), self, plan, arguments)

    def eval_shape(self, *args: Any, **kwargs: Any) -> Any:
        """The result for these arguments, in shapes."""
        graphdef, leaves, plan = self._collect(args, {**self.companions, **kwargs})
        effects, out = plan.read(plan.function.eval_shape(*leaves))
        # What did not change is no output: it comes from the arguments, and shall be a shape as well.
        shapes = jax.eval_shape(lambda *values: values, *leaves)
        _, refs = _core.unflatten(graphdef, shapes)
        return _core.apply_effects(effects, refs, shapes, out)

    def clear_cache(self) -> None:
        """Forget all compiled programs."""
        self.compiled.clear()
        dispatcher = self.dispatcher()
        if dispatcher is not None:
            dispatcher._clear_plans()

    def donated(self, graphdef: _core.GraphDef, leaves: Sequence[Any]) -> tuple[int, ...]:
        """The leaves of a call that it uses up."""
        return donated_leaves(self.options, graphdef, leaves)

    def _collect(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[_core.GraphDef, list[Any], Plan]:
        """Structure and leaves of a call, and the plan for them."""
        with naming(functools.partial(argument_label, self.function)):
            flat = _core.flatten_call(args, kwargs, *self.options.static)
        leaves = flat.leaves
        return flat.graphdef, leaves, self.plan(flat.graphdef, leaves)

    def _make(self, graphdef: _core.GraphDef, leaves: Sequence[Any]) -> Plan:
        def log(difference: tuple[str, Any, Any] | None) -> None:
            self.log.record(self.dispatcher(), difference)

        self._reported("jit", self.function)
        return Program(self.function, self.options, graphdef, leaves, [*self.compiled], log).plan()
