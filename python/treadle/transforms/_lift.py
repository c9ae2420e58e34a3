"""The lifting mechanism: how a JAX transform comes to work on graph nodes.

Every transform does the same four things with the pieces here:

1. `Call.collect` walks the arguments: one structure, a flat list of leaves, each object once.
2. The transform says what happens to each leaf (differentiate, map, carry, broadcast ...).
3. The JAX transform runs on flat leaves. Inside, `trace` rebuilds fresh objects over the tracers,
   runs the user's function and walks again, which tells what changed.
4. `Call.finish` scatters the new leaves into the caller's own objects and rebuilds the result.

The caller's objects are touched by step 4 only, so whatever raises before it changes nothing.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

import jax
import jax.numpy as jnp
import numpy as np

from treadle import _core
from treadle._graph.filters import Filter, compile_filters
from treadle._graph.state import State
from treadle.errors import GraphError, format_path

T = TypeVar("T")

Path = tuple[Hashable, ...]
Function = Callable[..., Any]


# -- names for messages ----------------------------------------------------------------------------


def function_name(function: Function) -> str:
    """Name of a function for messages."""
    if isinstance(function, functools.partial):
        return function_name(function.func)
    return getattr(function, "__name__", None) or type(function).__name__


# Weak, since a function may be all that keeps a model alive.
_parameters_of: WeakKeyDictionary[Function, tuple[tuple[str, ...], str | None]] = (
    WeakKeyDictionary()
)


def _parameters(function: Function) -> tuple[tuple[str, ...], str | None]:
    """Names of the positional parameters, and of the one that takes the rest."""
    try:
        known = _parameters_of.get(function)
    except TypeError:  # unhashable, or cannot be referred to weakly
        return _read_parameters(function)
    if known is None:
        known = _parameters_of[function] = _read_parameters(function)
    return known


def _read_parameters(function: Function) -> tuple[tuple[str, ...], str | None]:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return (), None
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = tuple(p.name for p in parameters if p.kind in positional)
    rest = [p.name for p in parameters if p.kind is inspect.Parameter.VAR_POSITIONAL]
    return names, rest[0] if rest else None


def parameter_name(function: Function, position: int) -> str:
    """What the author of `function` calls its positional argument number `position`."""
    names, rest = _parameters(function)
    if position < len(names):
        return names[position]
    if rest is not None:
        return f"{rest}[{position - len(names)}]"
    return f"args[{position}]"


def argument_label(function: Function, path: Path) -> str:
    """Write a path of a walked call as the function's author would: ``model.kernel``, ``x[0]``.

    The path starts with the position of a positional argument, or with a keyword.
    """
    if not path:
        return "the arguments"
    which, *inner = path
    root = parameter_name(function, which) if isinstance(which, int) else str(which)
    return format_path(inner, root)


@contextmanager
def naming(label: Callable[[Path], str]) -> Iterator[None]:
    """Let `label` write the path in what a walk raises, which knows arguments by position only."""
    try:
        yield
    except GraphError as error:
        if error.path is None or error.reason is None:
            raise
        better = type(error)(f"{label(error.path)} {error.reason}")
        raise better.with_traceback(error.__traceback__) from error.__cause__


def normalize_argnums(
    name: str, parameter: str, argnums: Iterable[int], function: Function, count: int
) -> tuple[int, ...]:
    """Non-negative positions, checked against the `count` positional arguments of a call."""
    normal = []
    for argnum in argnums:
        if not -count <= argnum < count:
            raise ValueError(
                f"{name} of {function_name(function)}: {parameter}={argnum} is out of range, the "
                f"call has {count} positional argument{'' if count == 1 else 's'}. Pass that "
                f"argument by position, or correct {parameter}."
            )
        normal.append(argnum % count)
    return tuple(normal)


# -- pytrees whose leaves may be nodes -------------------------------------------------------------


def is_none(value: Any) -> bool:
    """True for None: an axis that says "not mapped" rather than an empty pytree."""
    return value is None


def tree_leaves(tree: Any) -> list[Any]:
    """Leaves of a pytree; graph nodes and Variables count as leaves."""
    return jax.tree_util.tree_leaves(tree, is_leaf=_core.is_node)


def tree_flatten(tree: Any) -> tuple[list[Any], Any]:
    """Leaves and structure of a pytree; graph nodes and Variables count as leaves."""
    return jax.tree_util.tree_flatten(tree, is_leaf=_core.is_node)


def spread_prefix(
    prefix: Any, tree: Any, what: str, is_leaf: Callable[[Any], bool] = is_none
) -> list[Any]:
    """One entry of `prefix` for each leaf of `tree`, which `prefix` is a pytree prefix of.

    Raises:
        ValueError: `prefix` does not fit; the message starts with `what`.
    """
    spread: list[Any] = []

    def add(entry: Any, subtree: Any) -> None:
        spread.extend([entry] * len(tree_leaves(subtree)))

    try:
        jax.tree_util.tree_map(add, prefix, tree, is_leaf=is_leaf)
    except ValueError as error:
        raise ValueError(
            f"{what} must be one entry, or a pytree prefix of what it describes. "
            f"Got {prefix!r} for {structure_text(tree)}."
        ) from error
    return spread


def plain_path(path: Iterable[Any]) -> Path:
    """A key path of `jax.tree_util` as a tuple of the keys themselves."""
    return tuple(
        getattr(key, "key", getattr(key, "idx", getattr(key, "name", key))) for key in path
    )


class _Short:
    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


def _short(value: Any) -> _Short:
    if _core.is_node(value):
        return _Short(type(value).__name__)
    return _Short(type_of(value))


def structure_text(tree: Any) -> str:
    """A pytree as text, with the types of its leaves in their place: ``(float32[2], int32[])``."""
    return repr(jax.tree_util.tree_map(_short, tree, is_leaf=_core.is_node))


def type_of(value: Any) -> str:
    """Shape and dtype of an array (``float32[2,3]``), the type's name of anything else."""
    dtype = getattr(value, "dtype", None)
    if dtype is None:
        return type(value).__name__
    return f"{dtype}[{','.join(map(str, np.shape(value)))}]"


def is_jax_value(value: Any) -> bool:
    """Whether JAX takes a leaf's value: an array, a scalar, or a pytree of those."""
    try:
        jax.tree_util.tree_map(jax.api_util.shaped_abstractify, value)
    except (TypeError, ValueError):
        return False
    return True


def part_label(label: str, value: Any, number: int) -> str:
    """What to call part number `number` (of `jax.tree_util.tree_leaves`) of a leaf's value.

    A Variable may hold a pytree, such as the tuple that `sow` makes, so that one leaf of a call is
    several arrays: ``model.seen[0]``. A value that is one array keeps the leaf's `label`.
    """
    paths, _ = jax.tree_util.tree_flatten_with_path(value)
    return label + jax.tree_util.keystr(paths[number][0])


class _Indistinct:
    """Holds a value of which JAX need not know whether it is equal to another."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Indistinct)

    def __hash__(self) -> int:
        return hash(_Indistinct)


@jax.tree_util.register_pytree_node_class
class Aside:
    """A leafless pytree that carries a value out of a traced function.

    JAX keeps it with the traced program, so when the program is reused the value comes along.
    """

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def tree_flatten(self) -> tuple[tuple[()], Any]:
        """No leaves; the value is structure."""
        return (), _Indistinct(self.value)

    @classmethod
    def tree_unflatten(cls, held: Any, leaves: Iterable[Any]) -> Aside:
        """Rebuild from the structure."""
        return cls(held.value)


# -- one call --------------------------------------------------------------------------------------


class Call:
    """The walked arguments of one call of a lifted function."""

    __slots__ = (
        "_relative",
        "args",
        "flat",
        "function",
        "graphdef",
        "kwargs",
        "leaves",
        "name",
        "static",
    )

    def __init__(
        self,
        name: str,
        function: Function,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        flat: _core.Flat,
        static: frozenset[int],
    ) -> None:
        self.name = name
        self.function = function
        self.args = args
        self.kwargs = kwargs
        self.flat = flat
        self.static = static
        self.graphdef = flat.graphdef
        self.leaves = flat.leaves
        self._relative: dict[int, dict[int, Path]] = {}

    @classmethod
    def collect(
        cls,
        name: str,
        function: Function,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        static_argnums: frozenset[int] = frozenset(),
    ) -> Call:
        """Walk `args` and `kwargs`: each node and Variable once, at any depth.

        Args:
            name: the transform, for messages.
            function: the user's function.
            args: its positional arguments.
            kwargs: its keyword arguments.
            static_argnums: positions of arguments that are compared instead of traced.
        """
        with naming(functools.partial(argument_label, function)):
            flat = _core.flatten_call(args, kwargs, static_argnums, frozenset())
        return cls(name, function, args, kwargs, flat, static_argnums)

    def outline(self, leaves: Sequence[Any]) -> Call:
        """The same call without its arguments, with `leaves` in place of its values.

        For functions that JAX keeps with a compiled program: they must not keep tracers, nor the
        caller's objects.
        """
        outline = copy.copy(self)
        outline.args, outline.kwargs, outline.leaves = (), {}, list(leaves)
        del outline.flat
        return outline

    def label(self, leaf: int) -> str:
        """Where a leaf is, as the user would write it."""
        return argument_label(self.function, self.graphdef.paths()[leaf])

    def run(self, mapped: Function, *args: Any) -> Any:
        """Call what JAX made for this call; its error about a leaf that is no array says where.

        Raises:
            TypeError: a leaf of the call is nothing that JAX can take.
        """
        try:
            return mapped(*args)
        except TypeError as error:
            better = self.explained()
            if better is None:
                raise
            raise better from error

    def explained(self) -> TypeError | None:
        """What is wrong with the first leaf that JAX cannot take; None if it takes all."""
        for leaf, value in enumerate(self.leaves):
            if is_jax_value(value):
                continue
            if self.graphdef.leaf_types()[leaf] is None:
                remedy = (
                    "Pass an array, a scalar, a graph node or a container of those, and bind other "
                    "arguments beforehand, for example with functools.partial."
                )
            else:
                remedy = (
                    "Give the Variable an array or a scalar, and keep other values in attributes "
                    "of the node itself."
                )
            return TypeError(
                f"{self.label(leaf)} is a {type(value).__name__!r}, which is not a valid JAX type. "
                f"{remedy}"
            )
        return None

    def finish(self, effects: _core.Effects, out_leaves: Sequence[Any]) -> Any:
        """Scatter the new leaves into the caller's objects; return the function's result."""
        return _core.apply_effects(effects, self.flat.refs, self.leaves, out_leaves)

    def partition(self, filters: Sequence[Filter]) -> tuple[int, ...]:
        """Index of the first filter that selects each leaf, -1 where none does."""
        return self.graphdef.partition(compile_filters(filters), self.leaves)

    def argument_items(self) -> list[tuple[int | str, tuple[tuple[bool, int], ...]]]:
        """For each argument its position or keyword, and its items.

        An item is (True, reference id) for a node or Variable and (False, leaf id) for a value.
        """
        items = self.graphdef.root_items()
        found: list[tuple[int | str, tuple[tuple[bool, int], ...]]] = []
        start = 0
        arguments = [*enumerate(self.args), *sorted(self.kwargs.items())]
        for which, argument in arguments:
            stop = start if which in self.static else start + len(tree_leaves(argument))
            found.append((which, items[start:stop]))
            start = stop
        return found

    def relative_paths(self, ref: int) -> dict[int, Path]:
        """Path from the object `ref` to each leaf that it reaches."""
        known = self._relative.get(ref)
        if known is None:
            known = self._relative[ref] = _relative_paths(self.graphdef, ref)
        return known

    def state(self, ref: int, values: Mapping[int, Any]) -> State | _core.VariableState:
        """State, as seen from the object `ref`, of the leaves in `values` that it reaches.

        For an object that is itself a Variable it is the one `VariableState`.
        """
        paths: list[Path] = []
        entries: list[Any] = []
        types, metadata = self.graphdef.leaf_types(), self.graphdef.leaf_metadata()
        for leaf, path in self.relative_paths(ref).items():
            if leaf not in values:
                continue
            kind = types[leaf]
            paths.append(path)
            entries.append(
                values[leaf]
                if kind is None
                else _core.VariableState(kind, values[leaf], **(metadata[leaf] or {}))
            )
        if paths == [()]:
            return entries[0]
        return State._view(_core.nest(paths, entries))


def _relative_paths(graphdef: _core.GraphDef, ref: int) -> dict[int, Path]:
    prefix = graphdef.ref_paths()[ref]
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


# -- inside the transform --------------------------------------------------------------------------

Hook = Callable[[list[Any]], None]
Leave = Callable[[list[Any], Any, Any], Any]


def trace(
    function: Function,
    graphdef: _core.GraphDef,
    leaves: Sequence[Any],
    *,
    enter: Hook | None = None,
    leave: Leave | None = None,
    keep: bool | Sequence[bool] = True,
) -> tuple[_core.Effects, list[Any]]:
    """Rebuild the arguments over `leaves`, run `function`, and tell what it did.

    Args:
        function: the user's function.
        graphdef: structure of its call.
        leaves: values of the call's leaves, as they are inside.
        enter: called with the rebuilt objects before the function runs.
        leave: called with the rebuilt objects, (args, kwargs) and the function's result; returns
            what to take as the result.
        keep: leave out the leaves that did not change; or for each leaf whether to do so.

    Returns:
        The effects, and the leaves that they number.
    """
    arguments, refs = _core.unflatten(graphdef, leaves)
    if enter is not None:
        enter(refs)
    args, kwargs = arguments
    result = function(*args, **kwargs)
    if leave is not None:
        result = leave(refs, arguments, result)

    def label(path: Path) -> str:
        if path[:1] == ("result",) and "result" not in kwargs:
            return format_path(path[1:], "the result")
        return argument_label(function, path)

    with naming(label):
        return _core.trace_effects(refs, graphdef, leaves, result, keep)


def as_arrays(leaves: Iterable[Any]) -> list[Any]:
    """Outputs that jax evaluated outside of a trace, as arrays with the dtypes that `jax.jit` gives them.

    There, `jax.checkpoint` and `checkify` return a value that does not depend on the arguments as
    the number or the constant that their program holds, not as an array. An output may be a pytree,
    as the value of a Variable may.
    """
    return [
        leaf if isinstance(leaf, jax.Array) else jax.tree_util.tree_map(_as_array, leaf)
        for leaf in leaves
    ]


def _as_array(value: Any) -> Any:
    return value if isinstance(value, jax.Array) else jnp.asarray(value)


class Bodies(Generic[T]):
    """Functions that one lifted function has handed to JAX, by what they were made from.

    JAX reuses the trace of a loop body or checkpointed function when it gets the same function
    object again. The body must therefore depend on its key only, and never on one call's leaves.
    """

    __slots__ = ("_known", "_limit")

    def __init__(self, limit: int = 64) -> None:
        self._known: OrderedDict[Hashable, T] = OrderedDict()
        self._limit = limit

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """The body for `key`, made when it is not known yet."""
        try:
            body = self._known[key]
        except KeyError:
            body = self._known[key] = make()
            while len(self._known) > self._limit:
                self._known.popitem(last=False)
        return body
