"""scan over graph nodes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import jax
import jax.numpy as jnp

from treadle import _core
from treadle._public import publish
from treadle.transforms._arguments import Function
from treadle.transforms._aside import Aside
from treadle.transforms._axes import Carry
from treadle.transforms._axis_names import AxisNames
from treadle.transforms._call import Call
from treadle.transforms._carry import Carried, CarriedObjects, check_type
from treadle.transforms._constants import Constant, constants
from treadle.transforms._decorator import P, R, transform
from treadle.transforms._driver import lift
from treadle.transforms._frozen import (
    AXIS_0,
    DEFAULT_STATE_AXES,
    NO_METADATA,
    ByDefault,
    knowing_given,
)
from treadle.transforms._inside import Inside, Output
from treadle.transforms._mapped import MapRule
from treadle.transforms._new_state import NewState, Part
from treadle.transforms._random_keys import restore_keys
from treadle.transforms._roles import AxisRole, Plan, Resolver, Role
from treadle.transforms._scan_carry import (
    carry_position,
    check_carry,
    result_parts,
    warn_of_lost_carry,
)
from treadle.transforms._spelling import MapOptions
from treadle.transforms._trees import tree_leaves

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from treadle._graph.filters import Filter

__all__ = ["scan"]

_FIRST_ARGUMENT = ByDefault(0)


class _Settings(NamedTuple):
    """What a body depends on besides the structure of the call and the roles of its leaves."""

    carry: int | None
    """Position of the argument that is carried."""
    constants: tuple[tuple[int, Constant], ...]


def _settings(plan: Plan) -> _Settings:
    return cast(_Settings, plan.settings)


class _Source(NamedTuple):
    """Where an output leaf of the call is found in what `jax.lax.scan` returns."""

    kind: str  # "carry" or "stack"
    number: int
    axis: int = 0


class _Iteration:
    """What comes out of one iteration."""

    def __init__(self, body: _Body, leaves: Sequence[Any]) -> None:
        self.carried = {leaf: leaves[leaf] for leaf in body.carried}
        self.stack: list[Any] = []
        self.sources: list[_Source] = []

    def carry(self, leaf: int, value: Any) -> None:
        self.carried[leaf] = value
        self.sources.append(_Source("carry", [*self.carried].index(leaf)))

    def stacked(self, axis: int, value: Any) -> None:
        self.sources.append(_Source("stack", len(self.stack), axis))
        self.stack.append(value)


class _Body:
    """What `jax.lax.scan` runs: (carried, the same) and slices in, what is next out."""

    def __init__(
        self, options: MapOptions, call: Call, plan: Plan, settings: _Settings, scan_output: bool
    ) -> None:
        carry = settings.carry
        self.options = options
        self.outline = call.outline()
        self.where = call.where
        self.plan = plan
        self.carry = carry
        self.scan_output = scan_output
        self.carried_argument = None if carry is None else Carried(call, carry)
        self.objects = _carried_objects(call, plan.roles, carry)
        self.carried = plan.of(Role.CARRY, Role.KEPT, Role.COUNT)
        self.constants = {leaf: constant.value for leaf, constant in settings.constants}
        self.same = tuple(leaf for leaf in plan.of(Role.BROADCAST) if leaf not in self.constants)
        self.scanned = plan.of(int, Role.SPLIT)
        self.split_keys = plan.of(Role.SPLIT)
        self.names = AxisNames(options.transform_metadata, self.outline, plan)

    def start(self, leaves: Sequence[Any]) -> tuple[Any, ...]:
        """What is carried into the first iteration."""
        return tuple(tuple(leaves[leaf] for leaf in ids) for ids in (self.carried, self.same))

    def slices(self, leaves: Sequence[Any]) -> tuple[Any, ...]:
        """What there is one slice of for each iteration, with the axis of slices first."""
        sliced, roles = self.plan.slices(leaves), self.plan.roles
        return tuple(
            sliced[leaf] if roles[leaf] is Role.SPLIT else _axis_first(sliced[leaf], roles[leaf])
            for leaf in self.scanned
        )

    def __call__(self, carry: Any, xs: tuple[Any, ...]) -> Any:
        carried, same = carry
        leaves: list[Any] = [None] * len(self.plan.roles)
        for leaf, constant in self.constants.items():
            leaves[leaf] = constant
        for ids, values in ((self.carried, carried), (self.same, same), (self.scanned, xs)):
            for leaf, value in zip(ids, values, strict=True):
                leaves[leaf] = value
        inside = Inside(self.outline, leaves)
        entered = self.objects.enter(inside.refs)
        self.names.remove(inside)
        result = inside.run()
        self.objects.check(entered, inside.refs)
        restore_keys(inside, self.split_keys)
        out_axes = self.options.out_axes
        if self.options.has_no_carry:
            warn_of_lost_carry(self.where, self.options.in_axes, result)
        parts = result_parts(self.where, out_axes, self.carry, self.scan_output, result)
        continued = self._continued(inside, parts)
        stacked = [part for is_carry, part in parts if not is_carry]
        new = NewState(self.options, self.plan, inside, result, stacked)
        self.names.add(inside, new)
        rows = inside.leave(result)
        # For each array of the result the leaf that it continues, None if it is stacked.
        leaf_of = iter([next(continued) if is_carry else None for is_carry in _which_part(parts)])
        found = self._sorted(inside, rows, leaf_of, new)
        following = tuple(found.carried.values()), same
        return following, (Aside((inside.effects, found.sources)), tuple(found.stack))

    def _continued(self, inside: Inside, parts: Sequence[tuple[bool, Part]]) -> Iterator[int]:
        """Leaf ids that the arrays of the returned carry continue."""
        returned = [part for is_carry, part in parts if is_carry]
        if not returned:
            return iter(())
        if self.carried_argument is None:
            raise ValueError(
                f"{self.where}: out_axes has a Carry, but no argument is one. Put Carry at the "
                "carry's place in in_axes."
            )
        return iter(self.carried_argument.continued(inside, returned[0].value))

    def _sorted(
        self,
        inside: Inside,
        rows: Sequence[Output],
        leaf_of: Iterator[int | None],
        new: NewState,
    ) -> _Iteration:
        """Sort the output leaves into what is carried, counted and stacked."""
        found = _Iteration(self, inside.leaves)
        made, axes = new.axes(rows), iter(new.value_axes)
        for i, row in enumerate(rows):
            if row.kind == "leaf":
                role = self.plan.roles[row.leaf]
                if role in (Role.CARRY, Role.KEPT, Role.COUNT):
                    check_type(self.where, inside.label(row), inside.leaves[row.leaf], row.value)
                    found.carry(row.leaf, row.value)
                elif isinstance(role, int):
                    found.stacked(role, row.value)
                else:
                    raise ValueError(
                        f"{self.where}: {inside.label(row)} is broadcast to all iterations, but "
                        "the function changes it. Carry it from iteration to iteration (no filter "
                        "of state_axes selects it, or Carry in StateAxes), or map it over an axis."
                    )
                continue
            leaf = next(leaf_of) if row.kind == "result" else None
            if leaf is not None:
                found.carry(leaf, row.value)
                continue
            axis = made[i] if row.kind == "new" else next(axes)
            if not isinstance(axis, int):
                raise ValueError(self._no_axis_message(row.kind, inside.label(row), axis))
            found.stacked(axis, row.value)
        return found

    def _no_axis_message(self, kind: str, label: str, axis: Any) -> str:
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


def _carried_objects(call: Call, roles: Sequence[AxisRole], carry: int | None) -> CarriedObjects:
    """The objects in the carry, and those elsewhere that hold carried state."""
    graphdef = call.graphdef

    def held(ref: int) -> set[AxisRole]:
        return {roles[leaf] for leaf in graphdef.reachable(ref)}

    whole: list[int] = []
    partly: list[int] = []
    for position, _, items in call.argument_items():
        for is_object, number in items:
            if not is_object:
                continue
            if position == carry:
                whole.append(number)
                continue
            found = held(number)
            if Role.KEPT in found and found <= {Role.KEPT, Role.COUNT}:
                whole.append(number)
            elif found & {Role.CARRY, Role.KEPT}:
                partly.append(number)
    holding: list[int] = []
    if partly:
        every = ((ref, held(ref)) for ref in range(graphdef.num_refs))
        holding = [ref for ref, found in every if not found or found & {Role.CARRY, Role.KEPT}]
    return CarriedObjects(call.where, call.function, graphdef, whole, partly, holding)


def _which_part(parts: Sequence[tuple[bool, Part]]) -> list[bool]:
    """For each array of the result, whether it is part of the carry."""
    return [
        is_carry
        for is_carry, part in parts
        for leaf in tree_leaves(part.value)
        if not _core.is_node(leaf)
    ]


class _Scan(MapRule):
    reuses = True

    def __init__(
        self, options: MapOptions, length: int | None, scan_output: bool, settings: dict[str, Any]
    ) -> None:
        super().__init__(options)
        self.length = length
        self.scan_output = scan_output
        self.settings = settings

    def inputs(self, call: Call) -> Plan:
        carry = carry_position(self.options, call)
        if carry is None and not self.scan_output:
            raise ValueError(
                f"{call.where}: scan_output=False says that the function returns the "
                "carry alone, but no argument is the carry. Put Carry at its place in in_axes, or "
                "leave out scan_output=False."
            )
        plan = Resolver(call, self.options, carry).plan(self.length, "length")
        return replace(plan, settings=_Settings(carry, constants(call, plan.of(Role.BROADCAST))))

    def seen(self, call: Call, inputs: Plan | None) -> Iterable[int]:
        """All leaves but those that are constants of the loop."""
        skipped = () if inputs is None else dict(_settings(inputs).constants)
        return (leaf for leaf in super().seen(call, inputs) if leaf not in skipped)

    def body(self, call: Call, inputs: Plan) -> _Body:
        return _Body(self.options, call, inputs, _settings(inputs), self.scan_output)

    def run(self, call: Call, inputs: Plan, body: _Body) -> Any:
        xs = body.slices(call.leaves)
        start = body.start(call.leaves)
        return None, jax.lax.scan(body, start, xs, length=inputs.size, **self.settings)

    def finish(self, call: Call, body: _Body, tail: Any) -> Any:
        (carried, _), (aside, stack) = tail
        effects, sources = aside.value
        found = {"carry": carried, "stack": stack}
        values = [_axis_to(found[source.kind][source.number], source.axis) for source in sources]
        return call.finish(effects, values)


@transform
@knowing_given
def scan(
    _given: frozenset[str],
    f: Callable[P, R],
    *,
    length: int | None = None,
    reverse: bool = False,
    unroll: int | bool = 1,
    _split_transpose: bool = False,
    in_axes: Any = AXIS_0,
    in_axes_kwargs: Any = AXIS_0,
    out_axes: Any = AXIS_0,
    carry_argnum: int = _FIRST_ARGUMENT,
    state_axes: Mapping[Filter, int | None] = DEFAULT_STATE_AXES,
    split_rngs: Filter = ...,
    transform_metadata: Mapping[str, Any] = NO_METADATA,
    scan_output: bool = True,
) -> Callable[P, R]:
    """A function that runs `f` in a loop, compiled once, over slices of its arguments.

    One argument is the carry: each iteration gets what the one before returned for it. If it is or
    contains nodes they are carried whole, and `f` returns the same objects. Nodes that hold carried
    state stay as they are but for values and new state that is stacked: what else `f` changed would
    be lost on the next iteration.

    With `Carry` or `StateAxes` in the axes, `in_axes` and `out_axes` speak of nodes as in `vmap`: an
    int slices their state, None is the same object in all iterations, in which changes of values go
    on to the next one. Without, and with `state_axes` given, the state of nodes follows `state_axes`:
    what a filter there selects is sliced, so that each iteration sees its own (one set of parameters
    per layer, say); what none selects is carried (statistics that flow from layer to layer).

    If both `in_axes` and `out_axes` are given without `Carry`, and none of `state_axes`, `split_rngs`,
    `in_axes_kwargs`, `carry_argnum` and `scan_output` is, there is no carry: all results are stacked.

    Random streams are as in `vmap`, but that their counts go on from iteration to iteration. State that
    `f` makes is stacked along its axis.

    Args:
        f: function that returns ``(carry, out)``.
        length: number of iterations; needed when nothing is sliced.
        reverse: run from the last slice to the first.
        unroll: how many iterations to compile as one, or True for all.
        _split_transpose: passed to `jax.lax.scan`: splits the backward pass in two loops.
        in_axes: axis of positional arguments: an int, None for the same in all iterations, or a
            tuple with a pytree prefix of them per argument, ``self`` included; the carry's entry does
            not matter. Arguments under None need not be arrays: a flag, text, function, dtype or
            number is a constant of the loop; another one compiles anew. `Carry` as the entry of an
            argument names the carry instead of `carry_argnum`; in the place of another node it has
            the state of that node carried. A `StateAxes` says everything about a node's state.
        in_axes_kwargs: as `in_axes`, for keyword arguments: one entry, or a dict of them.
        out_axes: axis along which to stack ``out``, a pytree prefix of it. With `Carry`
            as one entry of a tuple it describes the whole result; `Carry` itself is
            ``scan_output=False``. Either both `in_axes` and `out_axes` have a Carry, or only one of
            them is given.
        carry_argnum: position of the carry; what `in_axes` says of it must agree.
        state_axes: filter -> axis (None: the same in all iterations, must not change) of the state
            of nodes. With it an entry of `in_axes` for a node may be None, 0 or the same axis.
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
    return scanned(
        f,
        given=_given,
        length=length,
        reverse=reverse,
        unroll=unroll,
        _split_transpose=_split_transpose,
        scan_output=scan_output,
        in_axes=in_axes,
        in_axes_kwargs=in_axes_kwargs,
        out_axes=out_axes,
        carry_argnum=carry_argnum,
        state_axes=state_axes,
        split_rngs=split_rngs,
        transform_metadata=transform_metadata,
    )


def scanned(
    f: Function,
    *,
    given: frozenset[str],
    length: int | None,
    reverse: bool,
    unroll: int | bool,
    _split_transpose: bool,
    scan_output: bool,
    of_class: bool = False,
    **parameters: Any,
) -> Function:
    """`scan`, for a function or the call of a lifted class."""
    options = MapOptions("scan", given=given, carries=True, of_class=of_class, **parameters)
    check_carry(options, scan_output)
    settings = {"reverse": reverse, "unroll": unroll, "_split_transpose": _split_transpose}
    return lift(f, _Scan(options, length, scan_output, settings))


# The value of a Variable may be a pytree, whose arrays are moved one by one.


def _axis_first(value: Any, axis: Any) -> Any:
    if axis == 0:
        return value
    return jax.tree_util.tree_map(lambda part: jnp.moveaxis(part, axis, 0), value)


def _axis_to(value: Any, axis: int) -> Any:
    if axis == 0:
        return value
    return jax.tree_util.tree_map(lambda part: jnp.moveaxis(part, 0, axis), value)


publish(__all__, globals())
