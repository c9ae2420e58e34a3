"""scan over graph nodes."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from treadle import _core
from treadle.errors import format_path
from treadle.transforms._carry import Carried, CarriedObjects, check_type
from treadle.transforms._decorator import P, R, transform
from treadle.transforms._lift import (
    Aside,
    Bodies,
    Call,
    Path,
    argument_label,
    function_name,
    plain_path,
    trace,
    tree_flatten,
    type_of,
)
from treadle.transforms._mapping import (
    DEFAULT_STATE_AXES,
    NO_METADATA,
    AxisNames,
    AxisRole,
    ByDefault,
    MapOptions,
    NewState,
    Part,
    Resolver,
    Role,
    has_carry,
    is_axis,
    output_label,
    restore_keys,
    split_key,
)
from treadle.transforms.axes import Carry, StateAxes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from treadle._graph.filters import Filter

__all__ = ["scan"]

_FIRST_ARGUMENT = ByDefault(0)


@dataclass(frozen=True)
class _Layout:
    """Which leaves of a call go where in `jax.lax.scan`."""

    roles: tuple[AxisRole, ...]

    def of(self, *wanted: AxisRole | type[int]) -> tuple[int, ...]:
        """Ids of the leaves with one of the roles; `int` stands for all mapped ones."""
        return tuple(
            leaf
            for leaf, role in enumerate(self.roles)
            if role in wanted or (int in wanted and isinstance(role, int))
        )


@dataclass(frozen=True)
class _Source:
    """Where an output leaf of the call is found in what `jax.lax.scan` returns."""

    kind: str  # "carry", "count" or "stack"
    index: int
    axis: int = 0


class _Body:
    """What `jax.lax.scan` runs. Knows structure only, so that JAX can reuse its trace."""

    def __init__(
        self,
        options: MapOptions,
        call: Call,
        roles: tuple[AxisRole, ...],
        carry: int | None,
        scan_output: bool,
    ) -> None:
        function, graphdef = call.function, call.graphdef
        self.options = options
        self.function = function
        self.graphdef = graphdef
        self.roles = roles
        self.carry = carry
        self.scan_output = scan_output
        self.where = f"{options.name} of {function_name(function)}"
        self.carried_argument = None if carry is None else Carried(self.where, call, carry)
        self.objects = _carried_objects(self.where, call, roles, carry)
        layout = _Layout(roles)
        self.carried = layout.of(Role.CARRY)
        self.constant = layout.of(Role.BROADCAST, Role.COUNT)
        self.counts = layout.of(Role.COUNT)
        self.scanned = layout.of(int, Role.SPLIT)
        self.split = layout.of(Role.SPLIT)
        self.names = AxisNames(options, graphdef, roles)

    # -- parts of the result ---------------------------------------------------------------------

    def parts(self, result: Any) -> list[tuple[bool, Part]]:
        """The result in pytree order, as parts that are the carry (True) or are stacked (False)."""
        out_axes = self.options.out_axes
        if out_axes is Carry:
            return [(True, Part((), result, Carry))]
        if isinstance(out_axes, (tuple, list)) and any(axis is Carry for axis in out_axes):
            if not isinstance(result, (tuple, list)) or len(result) != len(out_axes):
                raise TypeError(
                    f"{self.where}: out_axes has a Carry in a tuple of {len(out_axes)}, so the "
                    f"function must return one of that length, but it returned "
                    f"{_described(result)}."
                )
            return [
                (axis is Carry, Part((i,), value, axis))
                for i, (axis, value) in enumerate(zip(out_axes, result, strict=True))
            ]
        if self.carry is None:
            return [(False, Part((), result, out_axes))]
        if not self.scan_output:
            return [(True, Part((), result, Carry))]
        if not isinstance(result, (tuple, list)) or len(result) != 2:
            if has_carry(out_axes):
                raise TypeError(
                    f"{self.where}: out_axes has Carry at {_carry_place(out_axes)}, but the carry "
                    "of a result is out_axes itself or one entry of a tuple there, and the "
                    f"function returned {_described(result)}. Return a tuple such as (carry, out), "
                    "and give one such as (Carry, 0) as out_axes."
                )
            raise TypeError(
                f"{self.where}: the function must return a pair (carry, out), but it returned "
                f"{_described(result)}. Return (carry, None) when there is nothing to stack, or "
                "pass scan_output=False and return the carry alone."
            )
        return [(True, Part((0,), result[0], Carry)), (False, Part((1,), result[1], out_axes))]

    # -- the body --------------------------------------------------------------------------------

    def __call__(self, carry: Any, xs: tuple[Any, ...]) -> Any:
        carried, constant, _ = carry
        leaves: list[Any] = [None] * self.graphdef.num_leaves
        for ids, values in (
            (self.carried, carried),
            (self.constant, constant),
            (self.scanned, xs),
        ):
            for leaf, value in zip(ids, values, strict=True):
                leaves[leaf] = value
        entered: Any = None
        seen: Any = None

        def enter(refs: list[Any]) -> None:
            nonlocal entered
            entered = self.objects.enter(refs)
            self.names.remove(refs)

        def leave(refs: list[Any], arguments: Any, result: Any) -> Any:
            nonlocal seen
            self.objects.check(entered, refs)
            restore_keys(self.graphdef, refs, leaves, self.split)
            parts = self.parts(result)
            carries = self._carry_leaves(refs, leaves, parts)
            stacked = [part for is_carry, part in parts if not is_carry]
            new = NewState(
                self.options,
                self.function,
                self.graphdef,
                leaves,
                refs,
                arguments,
                result,
                stacked,
            )
            self.names.add(refs, arguments, result, new)
            seen = parts, carries, new
            return result

        effects, out = trace(self.function, self.graphdef, leaves, enter=enter, leave=leave)
        return self._collect(effects, out, leaves, constant, *seen)

    def _collect(
        self,
        effects: _core.Effects,
        out: Sequence[Any],
        leaves: Sequence[Any],
        constant: Sequence[Any],
        parts: Sequence[tuple[bool, Part]],
        carries: Sequence[int],
        new: NewState,
    ) -> Any:
        """Sort the output leaves into next carry and stacked outputs."""
        following = dict(zip(self.carried, (leaves[i] for i in self.carried), strict=True))
        counts = {leaf: leaves[leaf] for leaf in self.counts}
        stack: list[Any] = []
        sources: list[_Source] = []
        made = new.new_axes(effects, out)
        axes = iter(new.value_axes)
        carried_results = iter(carries)
        in_carry = iter(_which_part(parts))
        for i, (kind, leaf, path) in enumerate(effects.outputs()):
            value = out[i]
            axis: Any
            if kind == "result" and next(in_carry):
                leaf = next(carried_results)
                following[leaf] = value
                sources.append(_Source("carry", self.carried.index(leaf)))
                continue
            if kind == "leaf":
                role = self.roles[leaf]
                if role is Role.CARRY:
                    label = argument_label(self.function, path)
                    check_type(self.where, label, leaves[leaf], value)
                    following[leaf] = value
                    sources.append(_Source("carry", self.carried.index(leaf)))
                    continue
                if role is Role.COUNT:
                    counts[leaf] = value
                    sources.append(_Source("count", self.counts.index(leaf)))
                    continue
                if not isinstance(role, int):
                    raise ValueError(
                        f"{self.where}: {argument_label(self.function, path)} is broadcast to all "
                        "iterations, but the function changes it. Carry it from iteration to "
                        "iteration (no filter of state_axes selects it, or Carry in StateAxes), "
                        "or map it over an axis."
                    )
                axis = role
            else:
                axis = made[i] if kind == "new" else next(axes)
            if not isinstance(axis, int):
                raise ValueError(self._no_axis_message(kind, path, axis))
            sources.append(_Source("stack", len(stack), axis))
            stack.append(value)
        carry = (
            tuple(following[leaf] for leaf in self.carried),
            tuple(constant),
            tuple(counts[leaf] for leaf in self.counts),
        )
        return carry, (Aside((effects, tuple(sources))), tuple(stack))

    def _no_axis_message(self, kind: str, path: Path, axis: Any) -> str:
        label = output_label(self.function, kind, path)
        if kind == "result":
            return (
                f"{self.where}: out_axes has None for {label}, but every iteration gives one. Give "
                "the axis to stack it along, or carry it to have the last one."
            )
        return (
            f"{self.where}: {label} is made inside, but is to be "
            f"{'carried' if axis is Carry else 'broadcast'}, so it must exist before. Make it "
            "beforehand, or select it with an axis in state_axes to have it stacked."
        )

    def _carry_leaves(
        self, refs: Sequence[Any], leaves: Sequence[Any], parts: Sequence[tuple[bool, Part]]
    ) -> list[int]:
        """Leaf ids that the arrays of the returned carry continue."""
        returned = [part for is_carry, part in parts if is_carry]
        if not returned:
            return []
        if self.carried_argument is None:
            raise ValueError(
                f"{self.where}: out_axes has a Carry, but no argument is one. Put Carry at the "
                "carry's place in in_axes."
            )
        return self.carried_argument.continued(refs, leaves, returned[0].value)


def _carried_objects(
    where: str, call: Call, roles: Sequence[AxisRole], carry: int | None
) -> CarriedObjects:
    """The objects in the carry, and those elsewhere that hold carried state."""
    graphdef = call.graphdef

    def held(ref: int) -> set[AxisRole]:
        return {roles[leaf] for leaf in graphdef.reachable(ref)}

    whole: list[int] = []
    partly: list[int] = []
    for position, items in call.argument_items():
        for is_object, number in items:
            if not is_object:
                continue
            if position == carry:
                whole.append(number)
            elif Role.CARRY in held(number):
                partly.append(number)
    holding: list[int] = []
    if partly:
        every = ((ref, held(ref)) for ref in range(graphdef.num_refs))
        holding = [ref for ref, found in every if not found or Role.CARRY in found]
    return CarriedObjects(where, call.function, graphdef, whole, partly, holding)


def _which_part(parts: Sequence[tuple[bool, Part]]) -> list[bool]:
    """For each array of the result, whether it is part of the carry."""
    return [
        is_carry
        for is_carry, part in parts
        for leaf in tree_flatten(part.value)[0]
        if not _core.is_node(leaf)
    ]


def _described(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)}"
    return type_of(value)


def _carry_place(out_axes: Any) -> str:
    """Where the first Carry in a pytree of axes is, as the user would write it."""
    entries, _ = jax.tree_util.tree_flatten_with_path(out_axes, is_leaf=is_axis)
    return next(
        format_path(plain_path(path), "out_axes") for path, axis in entries if axis is Carry
    )


def _check_out_axes(out_axes: Any, scan_output: bool) -> None:
    """Raise a ValueError for what no result fits, and for what `scan_output` contradicts."""
    for axis in jax.tree_util.tree_leaves(out_axes, is_leaf=is_axis):
        if axis is None:
            raise ValueError(
                "scan: out_axes has None, but every iteration gives an output. Give the axis to "
                "stack it along, or carry it to have the last one."
            )
    if isinstance(out_axes, (tuple, list)):
        carries = [position for position, axis in enumerate(out_axes) if axis is Carry]
        if len(carries) > 1:
            raise ValueError(
                f"scan: out_axes has more than one Carry, at {carries}. Return what is carried as "
                "one entry, for example in a tuple, as it comes in as one argument; for what is to "
                "be stacked give an axis."
            )
    if not scan_output and out_axes is not Carry and has_carry(out_axes):
        raise ValueError(
            f"scan: out_axes has Carry at {_carry_place(out_axes)}, as one part of the result, but "
            "scan_output=False says that the function returns the carry alone. Leave out "
            "scan_output=False, or give out_axes=Carry."
        )


def _carry_position(options: MapOptions, call: Call) -> int | None:
    """Position of the carry among the call's arguments, None if there is none.

    Raises:
        ValueError: `in_axes` marks no one argument as the carry, or not that of `carry_argnum`.
        TypeError: there is no argument at `carry_argnum`.
    """
    in_axes, argnum, count = options.in_axes, options.carry_argnum, len(call.args)
    where = f"{options.name} of {function_name(call.function)}"
    given = argnum is not None and not isinstance(argnum, ByDefault)
    marked = _marked_position(where, in_axes, count)
    if marked is not None:
        if given and argnum not in (marked, marked - count):
            raise ValueError(
                f"{where}: in_axes has its Carry at {marked}, but carry_argnum={argnum}. Give one "
                f"of the two, or carry_argnum={marked}."
            )
        return marked
    if argnum is None:
        return None
    if (
        isinstance(in_axes, tuple)
        and -len(in_axes) <= argnum < len(in_axes)
        and isinstance(in_axes[argnum], StateAxes)
    ):
        if given:
            raise ValueError(
                f"{where}: carry_argnum={argnum} says that this argument is the carry, which is "
                f"carried whole, but in_axes has {in_axes[argnum]!r} for it. Give Carry there, or "
                "leave out carry_argnum."
            )
        return None
    if not -count <= argnum < count:
        needed = argnum + 1 if argnum >= 0 else -argnum
        raise TypeError(
            f"Expected at least {needed} positional arguments, got {count}: {where} has its carry "
            f"at carry_argnum={argnum}."
        )
    return argnum % count


def _marked_position(where: str, in_axes: Any, count: int) -> int | None:
    """Position of the argument that `in_axes` marks as the carry, None if it marks none."""
    if in_axes is Carry:
        if count != 1:
            raise ValueError(
                f"{where}: in_axes=Carry says that the only argument is the carry, but the call "
                f"has {count} positional arguments. Give a tuple with one entry per argument."
            )
        return 0
    if isinstance(in_axes, tuple):
        carries = [position for position, axis in enumerate(in_axes) if axis is Carry]
        if len(carries) > 1:
            raise ValueError(
                f"{where}: in_axes has more than one Carry, at {carries}. Put what is carried in "
                "one argument, for example in a tuple."
            )
        if carries:
            return carries[0]
    return None


@transform
def scan(
    f: Callable[P, R],
    *,
    length: int | None = None,
    reverse: bool = False,
    unroll: int | bool = 1,
    _split_transpose: bool = False,
    in_axes: Any = 0,
    in_axes_kwargs: Any = 0,
    out_axes: Any = 0,
    carry_argnum: int = _FIRST_ARGUMENT,
    state_axes: Mapping[Filter, int | None] = DEFAULT_STATE_AXES,
    split_rngs: Filter = ...,
    transform_metadata: Mapping[str, Any] = NO_METADATA,
    scan_output: bool = True,
) -> Callable[P, R]:
    """A function that runs `f` in a loop, compiled once, over slices of its arguments.

    One argument is the carry: each iteration gets what the one before returned for it. If it is or
    contains nodes they are carried whole, and `f` returns the same objects. The other arrays follow
    `in_axes`. The state of other nodes follows `state_axes`: what a filter there selects is sliced,
    so that each iteration sees its own (one set of parameters per layer, say); what none selects is
    carried (statistics that flow from layer to layer). Random streams are as in `vmap`. State that
    `f` makes is stacked along its axis. Nodes that hold carried state stay as they are but for values
    and such new state: what else `f` changed would be lost on the next iteration.

    Args:
        f: function that returns ``(carry, out)``.
        length: number of iterations; needed when nothing is sliced.
        reverse: run from the last slice to the first.
        unroll: how many iterations to compile as one, or True for all.
        _split_transpose: passed to `jax.lax.scan`: splits the backward pass in two loops.
        in_axes: axis of arrays in positional arguments: an int, None for the same in all
            iterations, or a tuple with a pytree prefix of them per argument, ``self`` included; the
            carry's entry does not matter. `Carry` as the entry of an argument names the carry
            instead of `carry_argnum`; in the place of another node it has the state of that node
            carried. A `StateAxes` says everything about a node's state.
        in_axes_kwargs: as `in_axes`, for keyword arguments: one entry, or a dict of them.
        out_axes: axis along which to stack arrays in ``out``, a pytree prefix of it. With `Carry`
            as one entry of a tuple it describes the whole result; `Carry` itself is
            ``scan_output=False``.
        carry_argnum: position of the carry; what `in_axes` says of it must agree.
        state_axes: filter -> axis (None: the same in all iterations) of the state of nodes.
        split_rngs: filter (or list of stream names, True, False, None) of streams to split.
        transform_metadata: as in `vmap`.
        scan_output: False: `f` returns the carry alone.

    Returns:
        A function with the arguments of `f` that returns ``(carry, stacked out)``, or the carry
        alone.

    Raises:
        TypeError: too few positional arguments for the carry, `f` does not return a pair, or the
            carry changes its structure, shape or dtype. `f` puts another object in the place of one
            that holds carried state, or changes static attributes there.
        ValueError: an axis is out of bounds, sizes disagree or cannot be inferred, broadcast state
            changes, or a shared Variable is reached under two axes. `Carry` stands for an array that
            is not in the carry, or parameters disagree about what the carry is.

    >>> import jax.numpy as jnp
    >>> import treadle as nnx
    >>> layers = nnx.vmap(lambda rngs: nnx.Linear(3, 3, rngs=rngs), axis_size=4)(nnx.Rngs(0))
    >>> forward = nnx.scan(lambda x, layer: (layer(x), x.sum()))
    >>> x, sums = forward(jnp.ones(3), layers)
    >>> x.shape, sums.shape
    ((3,), (4,))
    """
    options = MapOptions(
        "scan",
        in_axes=in_axes,
        in_axes_kwargs=in_axes_kwargs,
        out_axes=out_axes,
        state_axes=state_axes,
        split_rngs=split_rngs,
        transform_metadata=transform_metadata,
        carry_argnum=carry_argnum,
        unselected=Role.CARRY,
    )
    _check_out_axes(out_axes, scan_output)
    bodies: Bodies[_Body] = Bodies()

    @functools.wraps(f)
    def scan_wrapper(*args: Any, **kwargs: Any) -> Any:
        call = Call.collect("scan", f, args, kwargs)
        carry = _carry_position(options, call)
        if carry is None and not scan_output:
            raise ValueError(
                f"scan of {function_name(f)}: scan_output=False says that the function returns the "
                "carry alone, but no argument is the carry. Put Carry at its place in in_axes, or "
                "leave out scan_output=False."
            )
        resolver = Resolver(call, replace(options, carry_argnum=carry))
        roles = resolver.roles()
        size = resolver.size(roles, length, "length")
        body = bodies.get(
            (call.graphdef, roles, carry),
            lambda: _Body(resolver.options, call, roles, carry, scan_output),
        )
        leaves = call.leaves
        xs = tuple(
            split_key(leaves[leaf], size)
            if roles[leaf] is Role.SPLIT
            else _axis_first(leaves[leaf], roles[leaf])
            for leaf in body.scanned
        )
        start = tuple(
            tuple(leaves[leaf] for leaf in ids)
            for ids in (body.carried, body.constant, body.counts)
        )
        (carried, _, counts), (aside, stack) = jax.lax.scan(
            body,
            start,
            xs,
            length=size,
            reverse=reverse,
            unroll=unroll,
            _split_transpose=_split_transpose,
        )
        effects, sources = aside.value
        found = {"carry": carried, "count": counts, "stack": stack}
        out = [
            _axis_to(found[source.kind][source.index], source.axis)
            if source.kind == "stack"
            else found[source.kind][source.index]
            for source in sources
        ]
        return call.finish(effects, out)

    return scan_wrapper


# The value of a Variable may be a pytree, whose arrays are moved one by one.


def _axis_first(value: Any, axis: Any) -> Any:
    if axis == 0:
        return value
    return jax.tree_util.tree_map(lambda part: jnp.moveaxis(part, axis, 0), value)


def _axis_to(value: Any, axis: int) -> Any:
    if axis == 0:
        return value
    return jax.tree_util.tree_map(lambda part: jnp.moveaxis(part, 0, axis), value)
