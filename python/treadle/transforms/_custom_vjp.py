"""custom_vjp over graph nodes."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Concatenate, Generic, NamedTuple, ParamSpec, TypeVar, overload

import jax
import jax.numpy as jnp
import numpy as np
from jax._src import core as jax_core

from treadle import _core
from treadle._graph.filters import All, Filter
from treadle._public import publish
from treadle.errors import GraphError, format_path
from treadle.transforms._arguments import Function, Path, function_name, normalize_argnums
from treadle.transforms._aside import Aside
from treadle.transforms._axes import DiffState
from treadle.transforms._call import Call, Outline, state_entry, state_of
from treadle.transforms._captured import captured_nodes
from treadle.transforms._companions import Brought, apart, bring, bring_together, named_after
from treadle.transforms._decorator import custom_rule_transform
from treadle.transforms._driver import Rule, apply
from treadle.transforms._inside import Inside
from treadle.transforms._messages import returned
from treadle.transforms._selection import Selection
from treadle.transforms._tangents import scatter, zero_tangent
from treadle.transforms._trees import flatten_with_paths, tree_flatten, walk

__all__ = ["CustomVjp", "custom_vjp"]

P = ParamSpec("P")
Rest = ParamSpec("Rest")
R = TypeVar("R")
T = TypeVar("T")


def _is_array(value: Any) -> bool:
    return hasattr(value, "dtype") or isinstance(value, (bool, int, float, complex))


def _is_jax_value(value: Any) -> bool:
    """Whether a leaf's value is an array, or a pytree of arrays, of which there is at least one."""
    if _is_array(value):
        return True
    parts = jax.tree_util.tree_leaves(value)
    return bool(parts) and all(map(_is_array, parts))


class CustomVjp(Generic[P, R]):
    """A function with its own rule for reverse-mode differentiation; see `custom_vjp`."""

    def __init__(
        self, fun: Callable[P, R], nondiff_argnums: Sequence[int | DiffState], wrt: Filter
    ) -> None:
        named_after(self, fun)
        self._fun = fun
        self._nondiff_argnums = tuple(nondiff_argnums)
        self._wrt = wrt
        self._rule: tuple[Function, Function] | None = None

    @overload
    def __get__(self, instance: None, owner: Any = ..., /) -> CustomVjp[P, R]: ...
    @overload
    def __get__(
        self: CustomVjp[Concatenate[T, Rest], R], instance: T, owner: Any = ..., /
    ) -> Callable[Rest, R]: ...
    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else functools.partial(self, instance)

    def defvjp(self, fwd: Function, bwd: Function) -> None:
        """Set the rule.

        Args:
            fwd: takes the arguments of the function by position, those left to their defaults too;
                returns ``(out, residual)``. Both may refer to the nodes it was given.
            bwd: takes the arguments named by integers in `nondiff_argnums`, the residual, and
                ``(inputs_g, out_g)``: cotangents of the updates that the function made to its
                differentiated arguments (a State for a node, zero where nothing was updated; what
                it updated without being differentiated, and what it added, is there too), and of
                its result, where a node stands as a State of what is new in it. Returns a tuple
                with the gradient of each differentiated argument, a State for a node; None and
                missing entries count as zero.
        """
        self._rule = fwd, bwd

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the function; differentiating it uses the rule."""
        if self._rule is None:
            raise AttributeError(
                f"No derivative rule defined for custom_vjp function {function_name(self._fun)}: "
                "call its defvjp(fwd, bwd) first."
            )
        given, passed = apart(kwargs)
        positional = _positional(self._fun, args, given)
        fwd, bwd = self._rule
        (fun, fwd), companions = bring_together((self._fun, fwd))
        rule = _CustomVjp((fwd, bwd), self._nondiff_argnums, self._wrt)
        return apply(rule, fun, positional, {**companions, **passed})


@bring.register
def _of_custom_vjp(function: CustomVjp) -> Brought:  # type: ignore[type-arg]
    parts = (function._fun, *(function._rule or ())[:1])
    return Brought(function, bring_together(parts)[1])


def _positional(fun: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """All arguments of a call by position, with defaults, as `jax.custom_vjp` binds them.

    Defaults of keyword-only parameters are left to `fun`. A `functools.partial` or a function
    without a readable signature is called by position only.

    Raises:
        TypeError: the arguments do not fit `fun`, or one cannot be given by position.
    """
    unbound = list(kwargs)
    try:
        signature = None if isinstance(fun, functools.partial) else inspect.signature(fun)
    except (TypeError, ValueError):
        signature = None
    if signature is not None:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"custom_vjp of {function_name(fun)}: {error}.") from error
        bound.apply_defaults()
        args = bound.args
        unbound = [name for name in kwargs if name in bound.kwargs]
    if unbound:
        names = ", ".join(map(repr, unbound))
        raise TypeError(
            f"custom_vjp of {function_name(fun)}: its rule takes arguments by position, and "
            f"{names} cannot be given so. Give {function_name(fun)} a signature with positional "
            "parameters in their place, or close over the values."
        )
    return args


class _Done(NamedTuple):
    """What the function, or its forward rule, did."""

    effects: _core.Effects
    structure: Any
    """Of the result, whose nodes are leaves."""
    nodes: tuple[Path | None, ...]
    """For each leaf of the result its path if it is a node or Variable."""


class _Residual(NamedTuple):
    """What the forward rule keeps for the backward one, without its arrays."""

    graphdef: _core.GraphDef
    leaves: list[Any]
    arrays: list[int]
    """The leaves that are arrays."""


class _Inputs(NamedTuple):
    """What the leaves of a call are."""

    selection: Selection
    skipped: tuple[int, ...]
    """Positions of the arguments of which none is differentiated."""
    rest: list[int]
    """The arrays that are not differentiated."""


class _CustomVjp(Rule):
    name = "custom_vjp"
    remedy = "name the positions of others in nondiff_argnums"

    def __init__(
        self,
        rule: tuple[Function, Function],
        nondiff_argnums: tuple[int | DiffState, ...],
        wrt: Filter,
    ) -> None:
        self.rule = rule
        self.nondiff_argnums = nondiff_argnums
        self.wrt = wrt

    def inputs(self, call: Call) -> _Inputs:
        named = self.nondiff_argnums
        argnums = [entry.argnum if isinstance(entry, DiffState) else entry for entry in named]
        positions = normalize_argnums(
            self.name, "nondiff_argnums", argnums, call.function, len(call.args)
        )
        filters = dict.fromkeys(range(len(call.args)), self.wrt)
        skipped: list[int] = []
        for position, entry in zip(positions, named, strict=True):
            if isinstance(entry, DiffState):
                filters[position] = entry.filter
            else:
                skipped.append(position)
        wanted = [(p, All(_differentiable, f)) for p, f in filters.items() if p not in skipped]
        selection = Selection(call, wanted)
        rest = [
            leaf
            for leaf, value in enumerate(call.leaves)
            if leaf not in selection.positions and _is_jax_value(value)
        ]
        return _Inputs(selection, tuple(skipped), rest)

    def seen(self, call: Call, inputs: _Inputs | None) -> Iterable[int]:
        return () if inputs is None else inputs.selection.leaves

    def body(self, call: Call, inputs: _Inputs) -> _Bodies:
        for leaf in inputs.selection.leaves:
            if not _is_jax_value(call.leaves[leaf]):
                raise TypeError(f"{call.where}: {call.label(leaf)} is not an array.")
        return _Bodies(call, inputs, self.rule)

    def run(self, call: Call, inputs: _Inputs, body: _Bodies) -> Any:
        flat = jax.custom_vjp(body.primal)
        flat.defvjp(body.forward, body.backward)
        rest = tuple(_undifferentiated(call, leaf) for leaf in inputs.rest)
        return None, flat(inputs.selection.values(), rest)

    def finish(self, call: Call, body: _Bodies, tail: Any) -> Any:
        aside, out = tail
        return call.finish(aside.value.effects, out)


class _Bodies:
    """The function and its rule over flat leaves. A traced program keeps them: they hold no arrays."""

    def __init__(self, call: Call, inputs: _Inputs, rule: tuple[Function, Function]) -> None:
        # The leaves that are no arrays, such as texts.
        self.leaves = [None if _is_jax_value(value) else value for value in call.leaves]
        self.outline = call.outline()
        self.where = call.where
        self.selection = inputs.selection.without_values()
        self.skipped = inputs.skipped
        self.rest = inputs.rest
        self.fwd, self.bwd = rule
        # What the function itself did, if it was traced: the forward rule must do the same.
        self.effects: _core.Effects | None = None

    def _inside(self, outline: Outline, chosen: Sequence[Any], rest: Sequence[Any]) -> Inside:
        leaves = list(self.leaves)
        for ids, values in ((self.selection.leaves, chosen), (self.rest, rest)):
            for leaf, value in zip(ids, values, strict=True):
                leaves[leaf] = value
        return Inside(outline, leaves)

    def _leave(self, inside: Inside, result: Any) -> tuple[Aside, tuple[Any, ...]]:
        inside.leave(result)
        found = flatten_with_paths(result)
        nodes = tuple(path if _core.is_node(leaf) else None for path, leaf in found)
        if any(path is not None for path in nodes):
            self._refuse_captured(inside, result)
        _, structure = tree_flatten(result)
        return Aside(_Done(inside.effects, structure, nodes)), tuple(inside.values)

    def _refuse_captured(self, inside: Inside, result: Any) -> None:
        """Raise a GraphError for a node in the result that the function did not make or get.

        In a trace the walk knows it by its owner; a call outside of any has the same owner for all.
        """
        if not jax_core.trace_state_clean():  # type: ignore[attr-defined]
            return
        given = {id(ref) for ref in inside.refs}
        found = {id(ref) for ref in _core.flatten([result]).refs} - given
        for label, node, reader in captured_nodes(inside.outline.function):
            if any(id(ref) in found for ref in _core.flatten([node]).refs):
                raise GraphError(
                    f"{self.where}: the result holds {label}, a {type(node).__name__} that {reader} reads "
                    "and that is no argument, so that it would come back as a copy. Pass it as an "
                    "argument, or leave it out of the result."
                )

    def primal(self, chosen: Sequence[Any], rest: Sequence[Any]) -> Any:
        """The function itself."""
        inside = self._inside(self.outline, chosen, rest)
        out = self._leave(inside, inside.run())
        self.effects = inside.effects
        return out

    def forward(self, chosen: Sequence[Any], rest: Sequence[Any]) -> Any:
        """The forward rule: what the function gives, and a residual."""
        inside = self._inside(self.outline.of(self.fwd), chosen, rest)
        result = inside.run()
        if not (isinstance(result, tuple) and len(result) == 2):
            raise TypeError(
                f"{self.where}: fwd must return a pair (out, residual), got {returned(result)}."
            )
        out, kept = result
        residual = walk(kept, [inside.args[position] for position in self.skipped])
        given = self._leave(inside, out)
        if self.effects is not None and not self.effects.same_as(inside.effects):
            rows, own = inside.effects.outputs(), self.effects.outputs()
            raise ValueError(
                f"{self.where}: fwd must return and update what the function itself does. The "
                f"function gives {_output_paths(own)}, fwd gives {_output_paths(rows)}"
                f"{', in other places or objects' if own == rows else ''}."
            )
        arrays = [i for i, leaf in enumerate(residual.leaves) if _is_jax_value(leaf)]
        others = [None if _is_jax_value(leaf) else leaf for leaf in residual.leaves]
        template = Aside(_Residual(residual.graphdef, others, arrays))
        return given, (tuple(residual.leaves[i] for i in arrays), chosen, template)

    def backward(self, saved: Any, cotangents: Any) -> Any:
        """The backward rule: gradients of the arrays, from cotangents of what came out."""
        kept, chosen, template = saved
        graphdef, others, arrays = template.value
        aside, given = cotangents
        leaves = list(others)
        for i, value in zip(arrays, kept, strict=True):
            leaves[i] = value
        ((residual, skipped), _), _ = _core.unflatten(graphdef, leaves)
        came = _Cotangents(self.selection, aside.value, given, chosen)
        inputs_g = tuple(self.selection.gather(came.updates, came.others, came.made))
        gradients = self.bwd(*skipped, residual, (inputs_g, came.result()))
        if not isinstance(gradients, (tuple, list)) or len(gradients) != len(inputs_g):
            raise TypeError(
                f"{self.where}: bwd must return a tuple with the gradient of each of the "
                f"{len(inputs_g)} differentiated arguments, got {returned(gradients)}."
            )
        filled = scatter(
            self.selection,
            gradients,
            chosen,
            "the result of bwd",
            add_up=True,
            beside=came.without_gradient(),
        )
        return filled, None


class _Cotangents:
    """Cotangents of what a function did, by where it did it.

    Args:
        selection: the leaves that the rule gives gradients for.
        done: what the function did.
        given: the cotangents of its outputs.
        chosen: values of the selected leaves.
    """

    def __init__(
        self, selection: Selection, done: _Done, given: Sequence[Any], chosen: Sequence[Any]
    ) -> None:
        self.selection, self.done = selection, done
        self.updates = list(jax.tree_util.tree_map(zero_tangent, tuple(chosen)))
        """Of the new values of the selected leaves."""
        self.others: dict[int, Any] = {}
        """Of the new values of other leaves that can be differentiated."""
        self.made: dict[int, dict[Path, Any]] = {}
        """Of new state, by the object among the arguments that has it, and the path there."""
        self.of_arrays: list[Any] = []
        """Of the arrays of the result."""
        self.of_nodes: dict[int, dict[Path, Any]] = {}
        """Of new state in the result, by the item there and the path in it."""
        objects = dict(selection.objects())
        types, metadata = done.effects.output_types(), done.effects.output_metadata()
        for number, (kind, which, path) in enumerate(done.effects.outputs()):
            value = given[number]
            if kind == "result":
                self.of_arrays.append(value)
            elif kind == "leaf" and which in selection.positions:
                self.updates[selection.positions[which]] = value
            elif kind == "leaf":
                if _has_derivative(value):
                    self.others[which] = value
            else:
                entry = state_entry(types[number], value, metadata[number])
                if which >= 0:
                    start = len(done.nodes[which] or ())
                    self.of_nodes.setdefault(which, {})[path[start:]] = entry
                    continue
                start = next((n for n in range(len(path), 0, -1) if path[:n] in objects), 0)
                if start:
                    self.made.setdefault(objects[path[:start]], {})[path[start:]] = entry

    def result(self) -> Any:
        """The function's result, with a State for each node: what is new in it.

        What the function returns of its arguments is among those.
        """
        arrays = iter(self.of_arrays)
        parts = []
        for item, path in enumerate(self.done.nodes):
            if path is None:
                parts.append(next(arrays))
            else:
                there = self.of_nodes.get(item, {})
                parts.append(state_of([*there], [*there.values()]))
        return jax.tree_util.tree_unflatten(self.done.structure, parts)

    def without_gradient(self) -> dict[int, set[Path]]:
        """For each object among the arguments, where there are cotangents but no gradients are due."""
        found: dict[int, set[Path]] = {}
        for _, ref in self.selection.objects():
            paths = self.selection.call.relative_paths(ref)
            found[ref] = {paths[leaf] for leaf in self.others if leaf in paths}
            found[ref].update(self.made.get(ref, ()))
        return found


def _undifferentiated(call: Call, leaf: int) -> Any:
    """The value of a leaf for which a rule gives no gradient; differentiating it is an error."""
    value = call.leaves[leaf]
    if not _differentiable((), value):
        return value
    message = (
        f"{call.where}: {call.label(leaf)} is differentiated, but the rule leaves it out "
        "(nondiff_argnums, wrt), so its gradient would be zero without a word. Have wrt or "
        "nondiff_argnums leave it in, where None from bwd says zero, or pass jax.lax.stop_gradient of it."
    )

    def refuse(primals: Any, tangents: Any) -> Any:
        raise ValueError(message)

    # JAX asks for the rule where there is a tangent, however deep in other transforms.
    same = jax.custom_jvp(lambda value: value)
    same.defjvp(refuse)
    return same(value)


def _has_derivative(cotangent: Any) -> bool:
    parts = jax.tree_util.tree_leaves(cotangent)
    return any(jnp.result_type(part) != jax.dtypes.float0 for part in parts)


def _output_paths(rows: Iterable[tuple[str, int, Path]]) -> list[str]:
    return [f"{kind} {format_path(path, '')}" for kind, _, path in rows]


def _differentiable(path: Any, value: Any) -> bool:
    raw = getattr(value, "raw_value", getattr(value, "value", value))
    if not _is_jax_value(raw):
        return False
    parts = jax.tree_util.tree_leaves(raw)
    return any(jnp.issubdtype(jnp.result_type(part), np.inexact) for part in parts)


@custom_rule_transform
def custom_vjp(
    fun: Callable[P, R], *, nondiff_argnums: Sequence[int | DiffState] = (), wrt: Filter = ...
) -> CustomVjp[P, R]:
    """Give a function over graph nodes its own rule for reverse-mode differentiation.

    Args:
        fun: the function.
        nondiff_argnums: positions, in the signature of `fun`, of arguments that are not
            differentiated. An entry ``DiffState(position, filter)`` says which leaves of that
            argument are.
        wrt: filter that selects the differentiated leaves of the other nodes; only floating-point
            and complex leaves are. Differentiating a leaf that the rule leaves out is an error.

    Arguments given by keyword and defaults take their positions in the signature of `fun`, as with
    `jax.custom_vjp`; one that has no position (keyword-only, or in ``**kwargs``) cannot be given.

    Returns:
        A `CustomVjp`, whose ``defvjp(fwd, bwd)`` sets the rule.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> import treadle as nnx
    >>> @nnx.custom_vjp
    ... def scaled(m, x):
    ...     return m["w"] * x
    >>> def fwd(m, x):
    ...     return scaled(m, x), (m, x)
    >>> def bwd(residual, g):
    ...     (m, x), (_, out_g) = residual, g
    ...     of_m = nnx.state(m)
    ...     of_m["w"].value = jnp.clip(out_g * x, -1.0, 1.0)
    ...     return of_m, out_g * m["w"].value
    >>> scaled.defvjp(fwd, bwd)
    >>> model = nnx.Dict(w=nnx.Param(jnp.array(3.0)))
    >>> grads = nnx.grad(scaled)(model, jnp.array(5.0))
    >>> float(grads["w"].value)
    1.0
    """
    return CustomVjp(fun, nondiff_argnums, wrt)


publish(__all__, globals())
