"""jit over graph nodes: the C++ dispatcher around `jax.jit`."""

from __future__ import annotations

import functools
import inspect
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import (
    Any,
    Concatenate,
    NamedTuple,
    ParamSpec,
    Protocol,
    TypeVar,
    cast,
    overload,
)

import jax
from jax._src import util as jax_util
from jax._src.array import ArrayImpl

from treadle import _core
from treadle._core import VariableState
from treadle._graph.state import State
from treadle._sharding import partitions as spmd
from treadle.errors import format_path
from treadle.transforms._decorator import jit_transform
from treadle.transforms._lift import (
    Call,
    Function,
    argument_label,
    function_name,
    is_jax_value,
    naming,
    spread_prefix,
    trace,
    tree_flatten,
)
from treadle.transforms.axes import StateSharding
from treadle.transforms.retraces import (
    Retrace,
    TraceLog,
    leaf_type,
    structure_difference,
    type_difference,
)
from treadle.transforms.stages import Lowered, Traced, arguments_of

__all__ = ["JitWrapped", "cached_partial", "jit"]

P = ParamSpec("P")
Rest = ParamSpec("Rest")
R = TypeVar("R")
T = TypeVar("T")
T1 = TypeVar("T1")
T2 = TypeVar("T2")
T3 = TypeVar("T3")
R_co = TypeVar("R_co", covariant=True)

# Structures remembered per function. Beyond it the one not used for longest is forgotten.
_CAPACITY = 256

_UNSPECIFIED: Any = inspect.signature(jax.jit).parameters["in_shardings"].default
_JIT_PARAMETERS = frozenset(inspect.signature(jax.jit).parameters)

Index = int | Sequence[int] | None
Names = str | Iterable[str] | None


class _Compilable(Protocol[R_co]):
    """What a jitted function has beside being called."""

    # `jax.ShapeDtypeStruct` may stand for arrays, so these take more than a call does.
    def lower(self, *args: Any, **kwargs: Any) -> Lowered[R_co]:
        """Trace and lower for these arguments, without running; the result can be compiled."""
        ...

    def trace(self, *args: Any, **kwargs: Any) -> Traced[R_co]:
        """Trace for these arguments, without lowering."""
        ...

    def eval_shape(self, *args: Any, **kwargs: Any) -> R_co:
        """The result with `jax.ShapeDtypeStruct` in the place of arrays; changes nothing."""
        ...

    @property
    def retraces(self) -> tuple[Retrace, ...]:
        """Traces after the first, with the first difference that caused each; the last 1000."""
        ...

    @property
    def num_traces(self) -> int:
        """How often the function was traced."""
        ...

    def clear_cache(self) -> None:
        """Forget all compiled programs of this function."""
        ...


class _JitMethod(_Compilable[R_co], Protocol[P, R_co]):
    """A jitted method of an instance. What is beside the call is the function's: it takes `self`."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Call the compiled function on the instance."""
        ...


class JitWrapped(_Compilable[R_co], Protocol[P, R_co]):
    """What `jit` returns: a function, or a method if it stands in a class."""

    @property
    def __wrapped__(self) -> Callable[P, R_co]:
        """The user's function."""
        ...

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Call the compiled function."""
        ...

    @overload
    def __get__(self, instance: None, owner: Any, /) -> JitWrapped[P, R_co]: ...
    @overload
    def __get__(
        self: JitWrapped[Concatenate[T, Rest], R], instance: T, owner: Any, /
    ) -> _JitMethod[Rest, R]: ...


def _as_tuple(value: Any) -> tuple[Any, ...]:
    if value is None:
        return ()
    if isinstance(value, (int, str)):
        return (value,)
    return tuple(value)


_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


class _Parameters:
    """The parameters of a function, as far as they can be known."""

    def __init__(self, function: Function) -> None:
        self.function = function_name(function)
        try:
            parameters = [*inspect.signature(function).parameters.values()]
        except (TypeError, ValueError):  # builtins without a signature: any argument may be right
            parameters, unknown = [], True
        else:
            unknown = False
        kinds = {p.kind for p in parameters}
        self.positional = [p for p in parameters if p.kind in _POSITIONAL]
        self.names = [p.name for p in parameters if p.kind in _BY_NAME]
        self.any_position = unknown or inspect.Parameter.VAR_POSITIONAL in kinds
        self.any_name = unknown or inspect.Parameter.VAR_KEYWORD in kinds

    def positions(self, nums: Iterable[Any], what: str) -> list[int]:
        """`nums` counted from the start.

        Raises:
            TypeError: one is no int.
            ValueError: there is no such argument.
        """
        count = len(self.positional)
        for num in nums:
            if not isinstance(num, int) or isinstance(num, bool):
                raise TypeError(f"jit: {what} must be ints, got {num!r}.")
            if num < 0 and self.any_position:
                raise ValueError(
                    f"jit: {what}={num} counts from the end, but {self.function} may be called with "
                    f"any number of positional arguments. Count from the start."
                )
            if not self.any_position and not -count <= num < count:
                raise ValueError(
                    f"jit: {what}={num} is out of range, {self.function} has {count} positional "
                    f"parameter{'' if count == 1 else 's'}. Correct the number."
                )
        return [num % count if num < 0 else num for num in nums]

    def keywords(self, names: Iterable[Any], what: str) -> list[str]:
        """`names`, checked.

        Raises:
            TypeError: one is no string.
            ValueError: no argument has that name, or none can be passed by it.
        """
        positional_only = {p.name for p in self.positional} - {*self.names}
        for name in names:
            if not isinstance(name, str):
                raise TypeError(f"jit: {what} must be strings, got {name!r}.")
            if name in positional_only:
                raise ValueError(
                    f"jit: {what}={name!r} is a positional-only parameter of {self.function}. Give "
                    f"its position."
                )
            if not self.any_name and name not in self.names:
                raise ValueError(
                    f"jit: {what}={name!r} is no parameter of {self.function}; those that can be "
                    f"named are {', '.join(self.names) or 'none'}. Correct the name."
                )
        return [*names]


def _resolve(
    function: Function, what: str, nums: Index, names: Names
) -> tuple[frozenset[int], frozenset[str]]:
    """Positions and names of the arguments that `nums` and `names` mean.

    If only one of the two is given the other follows from the signature, as in `jax.jit`.
    """
    if nums is None and names is None:
        return frozenset(), frozenset()
    parameters = _Parameters(function)
    positions = parameters.positions(_as_tuple(nums), f"{what}_argnums")
    keywords = parameters.keywords(_as_tuple(names), f"{what}_argnames")
    if names is None:
        given = {p.name for i, p in enumerate(parameters.positional) if i in positions}
        keywords = [name for name in parameters.names if name in given]
    elif nums is None:
        positions = [i for i, p in enumerate(parameters.positional) if p.name in keywords]
    return frozenset(positions), frozenset(keywords)


class _Options:
    """The parameters of one `jit`, checked and brought into one form."""

    def __init__(self, function: Function, settings: dict[str, Any]) -> None:
        self.static = _resolve(
            function, "static", settings["static_argnums"], settings["static_argnames"]
        )
        self.donated = _resolve(
            function, "donate", settings["donate_argnums"], settings["donate_argnames"]
        )
        both = (self.static[0] & self.donated[0], self.static[1] & self.donated[1])
        if any(both):
            raise ValueError(
                f"jit: arguments {sorted(map(str, both[0] | both[1]))} are both static and "
                f"donated; a static argument has no buffer to donate."
            )
        self.donate_state = bool(settings["donate_state"])
        self.constrain_state = settings["constrain_state"]
        self.in_shardings = settings["in_shardings"]
        self.out_shardings = settings["out_shardings"]
        self.passed: dict[str, Any] = {
            "keep_unused": settings["keep_unused"],
            "inline": settings["inline"],
        }
        for name in ("device", "backend", "abstracted_axes"):
            value = settings[name]
            if value is None:
                continue
            if name not in _JIT_PARAMETERS:
                raise ValueError(
                    f"jit: the installed jax {jax.__version__} has no `{name}` any more; "
                    f"{_REPLACEMENTS[name]}"
                )
            self.passed[name] = value


_REPLACEMENTS = {
    "device": "use in_shardings=jax.sharding.SingleDeviceSharding(device).",
    "backend": "use jax.default_device, or in_shardings with a device of that backend.",
    "abstracted_axes": "call the function with concrete shapes; each is compiled once.",
}


def _copy(array: Any) -> Any:
    return array.copy() if isinstance(array, jax.Array) else array


def _is_deleted(leaf: Any) -> bool:
    return isinstance(leaf, ArrayImpl) and leaf.is_deleted()


class _Compiled(NamedTuple):
    """What the dispatcher needs for calls of one structure."""

    function: Any
    donated: tuple[int, ...]
    # The first trace's, filled when it has run: what output leaves without effects stand for.
    effects: list[_core.Effects]

    def read(self, returned: Any) -> tuple[_core.Effects, tuple[Any, ...]]:
        """Effects and output leaves of what the function returned."""
        if isinstance(returned, _core.Outputs):
            return returned.effects, returned.leaves
        return self.effects[0], returned if isinstance(returned, tuple) else (returned,)


class _Compiler:
    """The Python side of a dispatcher: traces structures it has not seen, and explains errors."""

    # What users of the dispatcher find here, for its `dir`.
    attributes = ("clear_cache", "eval_shape", "lower", "num_traces", "retraces", "trace")

    def __init__(self, function: Function, options: _Options) -> None:
        self.function = function
        self.options = options
        self.log = TraceLog(function)
        self.compiled: OrderedDict[_core.GraphDef, _Compiled] = OrderedDict()
        self.dispatcher: Callable[[], Any] = lambda: None

    # -- called by the dispatcher ------------------------------------------------------------------

    copy = staticmethod(_copy)

    def plan(self, graphdef: _core.GraphDef, leaves: Sequence[Any]) -> _Compiled:
        """What calls of a structure need."""
        known = self.compiled.get(graphdef)
        if known is None:
            known = self.compiled[graphdef] = self._make(graphdef, leaves)
            while len(self.compiled) > _CAPACITY:
                self.compiled.popitem(last=False)
        else:
            self.compiled.move_to_end(graphdef)
        return known

    def on_error(
        self, graphdef: _core.GraphDef | None, leaves: Sequence[Any], error: Exception
    ) -> Exception | None:
        """A better error than the one a call ended with, or None."""
        if graphdef is None:
            return self._relabelled(error)
        if isinstance(error, TypeError):
            for path, leaf in zip(graphdef.paths(), leaves, strict=True):
                if not is_jax_value(leaf):
                    return self._caused(
                        error,
                        TypeError(
                            f"{argument_label(self.function, path)} is a {type(leaf).__name__!r}, which "
                            f"is not a valid JAX type. Pass an array, a scalar, a graph node or a "
                            f"container of those, or name the argument in static_argnums or "
                            f"static_argnames."
                        ),
                    )
        if isinstance(error, RuntimeError):
            for path, leaf in zip(graphdef.paths(), leaves, strict=True):
                if _is_deleted(leaf):
                    return self._caused(
                        error,
                        RuntimeError(
                            f"{argument_label(self.function, path)} holds an array that has been "
                            f"deleted, as happens to a buffer donated to an earlier call. Keep using "
                            f"what that call returned or wrote back, or copy the array before "
                            f"donating it."
                        ),
                    )
            twice = self._donated_twice(graphdef, leaves) if "donate" in str(error) else None
            if twice is not None:
                places = [
                    argument_label(self.function, graphdef.paths()[leaf]) for leaf in set(twice)
                ]
                return self._caused(
                    error,
                    RuntimeError(
                        f"{' and '.join(sorted(places))} hold{'s' if len(places) == 1 else ''} the "
                        f"same array more than once, in a container, so it cannot be donated. Give "
                        f"each place an array of its own (array.copy()), or do not donate it."
                    ),
                )
        return None

    def _donated_twice(
        self, graphdef: _core.GraphDef, leaves: Sequence[Any]
    ) -> tuple[int, int] | None:
        """Two leaves (or one) of which one is donated and that hold the same array.

        The dispatcher copies an array that is a leaf twice, but does not look into pytrees.
        """
        donated = self._donated(graphdef)
        arrays = [
            (leaf, array)
            for leaf, value in enumerate(leaves)
            for array in jax.tree_util.tree_leaves(value)
            if isinstance(array, jax.Array)
        ]
        met: dict[int, int] = {}
        for leaf, array in arrays:
            if id(array) in met and {leaf, met[id(array)]}.intersection(donated):
                return met[id(array)], leaf
            met[id(array)] = leaf
        return None

    # -- the rest of the wrapped function's interface ----------------------------------------------

    @property
    def retraces(self) -> tuple[Retrace, ...]:
        return tuple(self.log.retraces)

    @property
    def num_traces(self) -> int:
        return self.log.count

    def lower(self, *args: Any, **kwargs: Any) -> Lowered[Any]:
        return self.trace(*args, **kwargs).lower()

    def trace(self, *args: Any, **kwargs: Any) -> Traced[Any]:
        graphdef, leaves, compiled = self._collect(args, kwargs)
        arguments = arguments_of(graphdef, leaves, self.options.static, args, kwargs)
        return Traced(compiled.function.trace(*leaves), self, compiled, arguments)

    def eval_shape(self, *args: Any, **kwargs: Any) -> Any:
        graphdef, leaves, compiled = self._collect(args, kwargs)
        effects, out = compiled.read(compiled.function.eval_shape(*leaves))
        # What did not change is no output: it comes from the arguments, and shall be a shape as well.
        shapes = jax.eval_shape(lambda *values: values, *leaves)
        _, refs = _core.unflatten(graphdef, shapes)
        return _core.apply_effects(effects, refs, shapes, out)

    def clear_cache(self) -> None:
        self.compiled.clear()
        dispatcher = self.dispatcher()
        if dispatcher is not None:
            dispatcher._clear_plans()

    # -- tracing ---------------------------------------------------------------------------------

    def _collect(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[_core.GraphDef, list[Any], _Compiled]:
        """Structure and leaves of a call, and the compiled function for them."""
        with naming(functools.partial(argument_label, self.function)):
            flat = _core.flatten_call(args, kwargs, *self.options.static)
        leaves = flat.leaves
        return flat.graphdef, leaves, self.plan(flat.graphdef, leaves)

    def _relabelled(self, error: Exception) -> Exception | None:
        """A walk's error with the argument's name in the place of its position."""
        path, reason = getattr(error, "path", None), getattr(error, "reason", None)
        if path is None or reason is None:
            return None
        better = type(error)(f"{argument_label(self.function, tuple(path))} {reason}")
        return self._caused(error, better)

    @staticmethod
    def _caused(error: Exception, better: Exception) -> Exception:
        better.__cause__ = error.__cause__
        better.__suppress_context__ = True
        better.__context__ = error
        return better.with_traceback(error.__traceback__)

    def _make(self, graphdef: _core.GraphDef, leaves: Sequence[Any]) -> _Compiled:
        options = self.options
        donated = self._donated(graphdef)
        shardings = self._leaf_shardings(graphdef, leaves)
        keep = [True] * graphdef.num_leaves
        for leaf in donated:
            keep[leaf] = False
        known = [*self.compiled]
        previous: tuple[str, ...] | None = None
        first: list[_core.Effects] = []

        def traced(*values: Any) -> Any:
            nonlocal known, previous
            now = tuple(map(leaf_type, values))
            if previous is not None:
                difference = type_difference(self.function, graphdef, previous, now)
            else:
                difference = structure_difference(self.function, known, graphdef)
            self.log.record(self.dispatcher(), difference)
            # Only a first trace is compared with other structures.
            previous, known = now, []
            effects, out = self._run(graphdef, values, keep, shardings)
            if not first:
                first.append(effects)
            if not effects.same_as(first[0]):
                return _core.Outputs(effects, out)
            # Traces with the same effects need no node of ours, and one leaf no tuple: less for JAX to build.
            return out[0] if len(out) == 1 and isinstance(out[0], jax.Array) else out

        traced.__name__ = traced.__qualname__ = function_name(self.function)
        passed = dict(options.passed)
        if options.in_shardings is not _UNSPECIFIED:
            passed["in_shardings"] = shardings
        with warnings.catch_warnings():
            # jax deprecates `device` and `backend`; whoever passes them to treadle has no use for
            # a warning about a line of treadle's.
            warnings.simplefilter("ignore", DeprecationWarning)
            compiled = jax.jit(traced, donate_argnums=donated or None, **passed)
        return _Compiled(compiled, donated, first)

    def _donated(self, graphdef: _core.GraphDef) -> tuple[int, ...]:
        options = self.options
        donated: set[int] = set()
        if options.donate_state:
            for is_ref, index in graphdef.root_items():
                if is_ref:
                    donated.update(graphdef.reachable(index))
        positions, names = options.donated
        if positions or names:
            for leaf, path in enumerate(graphdef.paths()):
                if path[0] in positions or path[0] in names:
                    donated.add(leaf)
        return tuple(sorted(donated))

    def _leaf_shardings(
        self, graphdef: _core.GraphDef, leaves: Sequence[Any]
    ) -> tuple[Any, ...] | None:
        """What `in_shardings` says about each leaf; None where it says nothing."""
        prefix = self.options.in_shardings
        if prefix is _UNSPECIFIED or prefix is None:
            return None
        positions, _ = self.options.static
        (args, kwargs), _ = _core.unflatten(graphdef, leaves)
        if kwargs:
            raise ValueError(
                f"jit: in_shardings of {function_name(self.function)} says nothing about the "
                f"keyword argument{'' if len(kwargs) == 1 else 's'} {', '.join(sorted(kwargs))}. "
                f"Pass all arguments by position, or place them with jax.device_put."
            )
        call = Call.collect("jit", self.function, args, {}, positions)
        args = tuple(a for i, a in enumerate(args) if i not in positions)
        if isinstance(prefix, list):
            prefix = tuple(prefix)
        entries = spread_prefix(
            prefix, args, "jit: in_shardings (for the arguments that are not static)", _is_sharding
        )
        spread: list[Any] = [None] * graphdef.num_leaves
        for entry, (is_ref, index) in zip(entries, graphdef.root_items(), strict=True):
            for leaf in graphdef.reachable(index) if is_ref else (index,):
                sharding = self._sharding_of(call, leaf, entry)
                if spread[leaf] is not None and sharding is not None and spread[leaf] != sharding:
                    raise ValueError(
                        f"jit: in_shardings gives {call.label(leaf)}, which is shared between "
                        f"arguments, two shardings: {spread[leaf]} and {sharding}. Give both "
                        f"arguments the same."
                    )
                spread[leaf] = sharding if spread[leaf] is None else spread[leaf]
        return tuple(spread)

    @staticmethod
    def _sharding_of(call: Call, leaf: int, entry: Any) -> Any:
        if not isinstance(entry, StateSharding):
            return entry
        group = call.partition(entry.filters)[leaf]
        return None if group < 0 else entry.shardings[group]

    def _run(
        self,
        graphdef: _core.GraphDef,
        values: Sequence[Any],
        keep: Sequence[bool],
        shardings: tuple[Any, ...] | None,
    ) -> tuple[_core.Effects, tuple[Any, ...]]:
        """One trace: the user's function over tracers, and what it did."""
        options = self.options
        if options.constrain_state:
            values = self._constrain(graphdef, values)

        def leave(refs: list[Any], arguments: Any, result: Any) -> Any:
            if options.constrain_state:
                self._constrain_changed(graphdef, refs, values, result)
            if shardings is not None:
                self._keep_shardings(refs, graphdef, values, shardings)
            if options.out_shardings is not _UNSPECIFIED:
                return self._shard_result(result)
            return result

        effects, out = trace(self.function, graphdef, values, leave=leave, keep=cast("bool", keep))
        return effects, tuple(out)

    @staticmethod
    def _walk_state(graphdef: _core.GraphDef, refs: Sequence[Any]) -> _core.Flat:
        """The node among the arguments, or all of them by position."""
        roots = dict.fromkeys(index for is_ref, index in graphdef.root_items() if is_ref)
        nodes = [refs[index] for index in roots]
        return _core.flatten(nodes[0] if len(nodes) == 1 else nodes)

    def _constrained(self, flat: _core.Flat) -> dict[int, Any]:
        """Leaf values with their sharding constraints, by leaf of `flat`."""
        constrain = self.options.constrain_state
        state = State._from_leaves(flat.graphdef, None, flat.leaves)
        change = constrain if callable(constrain) else _constrain_by_metadata
        wanted = cast("State", change(state))
        index = flat.graphdef.path_index()
        return {
            index[path]: getattr(entry, "value", entry)
            for path, entry in wanted.flat_state().items()
        }

    def _constrain(self, graphdef: _core.GraphDef, values: Sequence[Any]) -> list[Any]:
        flat = self._walk_state(graphdef, _core.unflatten(graphdef, values)[1])
        if not flat.leaves:
            return list(values)
        place = {id(value): leaf for leaf, value in enumerate(values)}
        out = list(values)
        for leaf, constrained in self._constrained(flat).items():
            out[place[id(flat.leaves[leaf])]] = constrained
        return out

    def _constrain_changed(
        self, graphdef: _core.GraphDef, refs: Sequence[Any], values: Sequence[Any], result: Any
    ) -> None:
        """Constrain what changed in the arguments, and each node of the result that is new."""
        done = [*values]
        known = {id(value) for value in done}
        results = [leaf for leaf in tree_flatten(result)[0] if _core.is_node(leaf)]
        for flat in (self._walk_state(graphdef, refs), *map(_core.flatten, results)):
            changed = [leaf for leaf, value in enumerate(flat.leaves) if id(value) not in known]
            if not changed:
                continue
            constrained = self._constrained(flat)
            changed = [leaf for leaf in changed if leaf in constrained]
            _core.set_leaves(flat, changed, [constrained[leaf] for leaf in changed])
            # Held, so that no other value gets the address of one of them.
            done += [*flat.leaves, *constrained.values()]
            known = {id(value) for value in done}

    @staticmethod
    def _keep_shardings(
        refs: list[Any], graphdef: _core.GraphDef, values: Sequence[Any], shardings: tuple[Any, ...]
    ) -> None:
        """State that changed leaves with the sharding it came with."""
        for leaf, ref in enumerate(graphdef.leaf_refs()):
            if ref < 0 or shardings[leaf] is None:
                continue
            variable = refs[ref]
            value = _core.raw_value(variable)
            if value is not values[leaf]:
                _core.set_raw_value(variable, _placed(value, shardings[leaf]))

    def _shard_result(self, result: Any) -> Any:
        entries = spread_prefix(
            self.options.out_shardings, result, "jit: out_shardings", _is_sharding
        )
        leaves, treedef = tree_flatten(result)
        for i, (leaf, entry) in enumerate(zip(leaves, entries, strict=True)):
            if entry is None:
                continue
            if not _core.is_node(leaf):
                leaves[i] = self._place_result(result, i, leaf, entry)
                continue
            call = Call.collect("jit", self.function, (leaf,), {})
            chosen = [(j, self._sharding_of(call, j, entry)) for j in range(len(call.leaves))]
            chosen = [(j, sharding) for j, sharding in chosen if sharding is not None]
            _core.set_leaves(
                call.flat,
                [j for j, _ in chosen],
                [
                    self._place_result(
                        result, i, call.leaves[j], sharding, call.graphdef.paths()[j][1:]
                    )
                    for j, sharding in chosen
                ],
            )
        return jax.tree_util.tree_unflatten(treedef, leaves)

    @staticmethod
    def _place_result(
        result: Any, output: int, value: Any, sharding: Any, path: tuple[Any, ...] = ()
    ) -> Any:
        """A leaf where out_shardings wants it: below the node `output` of the result if it has a path."""
        try:
            return _placed(value, sharding)
        except ValueError as error:
            found = jax.tree_util.tree_flatten_with_path(result, is_leaf=_core.is_node)[0]
            where = format_path(path, "result" + jax.tree_util.keystr(found[output][0]))
            raise ValueError(f"jit: out_shardings cannot place {where}: {error}") from error


def _placed(value: Any, sharding: Any) -> Any:
    """`value` with a sharding, in the memory that the sharding names.

    Raises:
        ValueError: the shape does not fit.
    """
    if not isinstance(sharding, jax.sharding.Sharding):
        return jax.lax.with_sharding_constraint(value, sharding)
    usual = next(iter(sharding.device_set)).default_memory().kind
    # A constraint leaves the memory out, and passes over axes that cannot be divided as it says.
    placed = jax.lax.with_sharding_constraint(value, sharding.with_memory_kind(usual))
    sharding.shard_shape(placed.shape)
    return placed if sharding.memory_kind in (None, usual) else jax.device_put(placed, sharding)


def _constrain_by_metadata(state: State) -> State:
    def is_leaf(leaf: Any) -> bool:
        return leaf is None or isinstance(leaf, jax.sharding.PartitionSpec)

    def constrain(entry: Any, specs: Any) -> Any:
        mesh = entry.get_metadata().get("mesh") if isinstance(entry, VariableState) else None
        return jax.tree.map(
            lambda spec, value: spmd.with_sharding_constraint(value, spec, mesh),
            specs,
            entry,
            is_leaf=is_leaf,
        )

    return jax.tree.map(
        constrain,
        state,
        spmd.get_partition_spec(state),
        is_leaf=lambda leaf: isinstance(leaf, VariableState),
    )


def _is_sharding(entry: Any) -> bool:
    kinds = (StateSharding, jax.sharding.Sharding, jax.sharding.PartitionSpec)
    return entry is None or isinstance(entry, kinds)


class _PlanCaches:
    """All dispatchers alive, so that `jax.clear_caches` clears their plans too."""

    def __init__(self) -> None:
        self._compilers: weakref.WeakSet[_Compiler] = weakref.WeakSet()

    def add(self, compiler: _Compiler) -> None:
        self._compilers.add(compiler)

    def cache_clear(self) -> None:
        for compiler in list(self._compilers):
            compiler.clear_cache()


_plan_caches = _PlanCaches()
# Not public in jax; without it plans are merely not cleared, and compile again when next used.
if hasattr(jax_util, "register_cache"):
    jax_util.register_cache(_plan_caches, "treadle plans")  # type: ignore[arg-type]


@jit_transform
def jit(
    fun: Callable[P, R],
    *,
    in_shardings: Any = _UNSPECIFIED,
    out_shardings: Any = _UNSPECIFIED,
    static_argnums: Index = None,
    static_argnames: Names = None,
    donate_argnums: Index = None,
    donate_argnames: Names = None,
    keep_unused: bool = False,
    device: Any = None,
    backend: str | None = None,
    inline: bool = False,
    abstracted_axes: Any = None,
    donate_state: bool = False,
    constrain_state: bool | Callable[[State], State] = False,
) -> JitWrapped[P, R]:
    """Compile a function whose arguments and results may be or contain graph nodes.

    Over `jax.jit`. What `fun` changes in its arguments reaches the caller's own objects; nodes in
    the result that were arguments are those very objects. The function is traced again only if the
    structure (including static attributes), a static argument, or the shape, dtype, weak type or
    sharding of an array is new; never because other objects of the same structure are passed.

    Args:
        fun: function to compile; a method, and ``__init__``, too.
        in_shardings: sharding, `jax.sharding.PartitionSpec`, `StateSharding` or None for each
            positional argument that is not static, or a pytree prefix of them. A node's entry holds
            for all its leaves, which keep it on the way out. Calls cannot have keyword arguments
            then.
        out_shardings: the same for the result.
        static_argnums: positions of arguments that are compile-time constants, which must be
            hashable.
        static_argnames: names of such arguments. If only one of the two is given, the other follows
            from the signature.
        donate_argnums: positions of arguments whose buffers the call may reuse. For a node these
            are all leaves it reaches; it holds new arrays afterwards, also where nothing changed.
        donate_argnames: names of such arguments.
        keep_unused: keep arguments in the compiled program that `fun` does not use.
        device: the device to run on, as in `jax.jit`.
        backend: the backend to run on, as in `jax.jit`.
        inline: inline the function into enclosing programs.
        abstracted_axes: as in the jax versions that have it; an error elsewhere.
        donate_state: donate the leaves of all graph nodes among the arguments.
        constrain_state: constrain the sharding of state, on the way in and out: True by the
            Variables' ``sharding`` metadata, or a function from a State to a constrained State.

    Returns:
        A callable with the signature of `fun`, and ``lower``, ``trace``, ``eval_shape``,
        ``retraces``, ``num_traces`` and ``clear_cache``. ``lower(...).compile()`` gives a program
        that is called with such arguments and is never traced again.

    Raises:
        ValueError: parameters that contradict each other, that name arguments which the function
            does not have, or that the installed jax lacks; from the call, if `in_shardings` does
            not fit its arguments.
        GraphError: from the call, for a static value that cannot be hashed.
        TypeError: from the call, for an argument that JAX cannot take.

    >>> import jax.numpy as jnp
    >>> import treadle as nnx
    >>> class Counter(nnx.Module):
    ...     def __init__(self):
    ...         self.count = nnx.Variable(jnp.array(0))
    >>> @nnx.jit
    ... def advance(counter, by):
    ...     counter.count.value += by
    ...     return counter.count.value * 10
    >>> counter = Counter()
    >>> int(advance(counter, 2)), int(counter.count.value)
    (20, 2)
    """
    settings = {name: value for name, value in locals().items() if name != "fun"}
    options = _Options(fun, settings)
    compiler = _Compiler(fun, options)
    dispatcher = _core.Dispatcher(compiler, *options.static, _CAPACITY)
    compiler.dispatcher = weakref.ref(dispatcher)
    functools.update_wrapper(cast("Any", dispatcher), fun)
    _plan_caches.add(compiler)
    return cast("JitWrapped[P, R]", dispatcher)


@overload
def cached_partial(f: Callable[P, R], /) -> Callable[P, R]: ...
@overload
def cached_partial(f: Callable[Concatenate[T, Rest], R], a: T, /) -> Callable[Rest, R]: ...
@overload
def cached_partial(
    f: Callable[Concatenate[T, T1, Rest], R], a: T, b: T1, /
) -> Callable[Rest, R]: ...
@overload
def cached_partial(
    f: Callable[Concatenate[T, T1, T2, Rest], R], a: T, b: T1, c: T2, /
) -> Callable[Rest, R]: ...
@overload
def cached_partial(
    f: Callable[Concatenate[T, T1, T2, T3, Rest], R], a: T, b: T1, c: T2, d: T3, /
) -> Callable[Rest, R]: ...
@overload
def cached_partial(
    f: Callable[..., R], a: Any, b: Any, c: Any, d: Any, e: Any, /, *rest: Any
) -> Callable[..., R]: ...
def cached_partial(f: Callable[..., Any], *cached_args: Any) -> Callable[..., Any]:
    """Bind the first arguments of a jitted function, such as model and optimizer.

    Elsewhere in the NNX family this is how per-call costs of a graph are avoided. Here the jitted
    function recognizes the objects by itself, so binding is all that is left to do, and nothing is
    promised in return: the bound objects may change in any way between calls.

    Args:
        f: a function, jitted or not.
        *cached_args: its first positional arguments.

    Returns:
        A function of the remaining arguments.

    Raises:
        TypeError: `f` is not callable.

    >>> import jax.numpy as jnp
    >>> import treadle as nnx
    >>> counter = nnx.Dict(count=nnx.Variable(jnp.array(0)))
    >>> @nnx.jit
    ... def advance(counter, by):
    ...     counter.count.value += by
    >>> step = nnx.cached_partial(advance, counter)
    >>> step(2), step(3), int(counter.count.value)
    (None, None, 5)
    """
    if not callable(f):
        raise TypeError(f"cached_partial expects a function as its first argument, got {f!r}.")
    return functools.partial(f, *cached_args)


jax.tree_util.register_pytree_node(_core.Outputs, _core._flatten_outputs, _core._unflatten_outputs)
