"""shard_map over graph nodes: parts of arrays on several devices."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import PartitionSpec

from treadle._public import publish
from treadle.transforms._arguments import Function, Path
from treadle.transforms._axes import StateSharding
from treadle.transforms._call import Call
from treadle.transforms._companions import apart
from treadle.transforms._decorator import P, R, transform
from treadle.transforms._driver import Rule, lift
from treadle.transforms._inside import Inside, Output
from treadle.transforms._mapped import MappedBody
from treadle.transforms._messages import is_jax_value, part_label, type_of
from treadle.transforms._roles import Plan, Resolver
from treadle.transforms._spelling import MapOptions, StateEntry, axis_leaves

__all__ = ["shard_map"]

_WHOLE = PartitionSpec()


def _spec(entry: Any) -> PartitionSpec:
    return _WHOLE if entry is None else entry


@dataclass(frozen=True)
class _SpecOptions(MapOptions):
    """Specs in the place of axes; they always speak of nodes too."""

    @functools.cached_property
    def speaks_of_nodes(self) -> bool:
        """Specs always do."""
        return True

    @property
    def unselected(self) -> PartitionSpec:
        """State of which nothing is said is whole on each device."""
        return _WHOLE

    def _check_axis(self, parameter: str, axis: Any) -> None:
        if axis is not None and not isinstance(axis, (PartitionSpec, StateSharding)):
            raise TypeError(
                f"{self.name}: specs are PartitionSpec, StateSharding, None, or a pytree of these, "
                f"got {axis!r}."
            )

    def state_entry(self, axis: Any) -> StateEntry:
        """What a spec means for the state of a node in its place."""
        if isinstance(axis, StateSharding):
            rules = tuple((filter_, _spec(entry)) for filter_, entry in axis.items())
            return StateEntry(rules, _WHOLE, required=axis)
        return StateEntry(((..., _spec(axis)),))

    @property
    def companion_entry(self) -> StateEntry:
        """What the function brings along is whole on each device."""
        return StateEntry(((..., _WHOLE),))

    def array_axis(self, axis: Any, label: str) -> Any:
        """What a spec means for an array outside any node."""
        if isinstance(axis, StateSharding):
            raise ValueError(
                f"in_specs has {axis!r} for {label}, which holds an array outside any node. Give a "
                "PartitionSpec for it."
            )
        return _spec(axis)

    def result_axis(self, axis: Any, path: Path) -> Any:
        """What a spec means for an array of the result."""
        return _spec(super().result_axis(axis, path))

    def candidates(self, roles: Sequence[Any]) -> tuple[Any, ...]:
        """Every spec that an output may get, each once."""
        found: dict[PartitionSpec, None] = {_WHOLE: None, **dict.fromkeys(roles)}
        for entry in axis_leaves((self.in_axes, self.out_axes)):
            specs = entry.shardings if isinstance(entry, StateSharding) else (entry,)
            found.update(dict.fromkeys(map(_spec, specs)))
        return tuple(found)


class _ShardMap(Rule):
    name = "shard_map"
    reuses = True

    def __init__(self, options: _SpecOptions, mesh: Any, settings: dict[str, Any]) -> None:
        self.options = options
        self.mesh = mesh
        self.settings = settings

    def inputs(self, call: Call) -> Plan:
        given, _ = apart(call.kwargs)
        if given:
            raise TypeError(
                f"{call.where} takes positional arguments only, because in_specs describes them "
                f"by position; got {', '.join(sorted(given))} by keyword."
            )
        return Resolver(call, self.options).plan()

    def body(self, call: Call, inputs: Plan) -> tuple[_ShardBody, Function]:
        body = _ShardBody(self.options, call, inputs)
        mesh = {} if self.mesh is None else {"mesh": self.mesh}
        out_specs = _WHOLE, (_WHOLE, body.candidates)
        mapped = jax.shard_map(
            body, in_specs=(inputs.roles,), out_specs=out_specs, **mesh, **self.settings
        )
        return body, mapped

    def run(self, call: Call, inputs: Plan, body: tuple[_ShardBody, Function]) -> Any:
        inner, mapped = body
        inner.misfits = None
        return mapped(tuple(call.leaves))

    def explain(self, call: Call, inputs: Any, body: Any, error: Exception) -> Exception | None:
        if body is None or not isinstance(error, ValueError):
            return None
        message = _misfits(call, inputs.roles, self._sizes()) or body[0].misfits
        return None if message is None else ValueError(f"{call.where}: {message}")

    def _sizes(self) -> dict[Hashable, int]:
        """Sizes of the axes that are manual."""
        shape = (jax.sharding.get_abstract_mesh() if self.mesh is None else self.mesh).shape
        names = self.settings["axis_names"] or shape
        return {name: size for name, size in shape.items() if name in names}


class _ShardBody(MappedBody):
    # What the last trace found wrong with its outputs, in case that JAX complains of it.
    misfits: str | None = None

    def check(self, inside: Inside, rows: Sequence[Output], axes: Sequence[Any]) -> None:
        """Note which outputs differ between devices whose specs do not say so."""
        found = []
        along: dict[Hashable, None] = {}
        for row, spec in zip(rows, axes, strict=True):
            named = _axes_of(spec)
            varying = {
                axis
                for part in jax.tree_util.tree_leaves(row.value)
                for axis in _varying(part)
                if axis not in named
            }
            if varying:
                found.append(f"{inside.label(row)} under {spec}")
                along.update(dict.fromkeys(sorted(varying, key=str)))
        self.misfits = None
        if found:
            self.misfits = (
                f"values differ between devices along mesh axis {', '.join(map(repr, along))}, but "
                "come back under specs by which they are replicated along it: "
                f"{'; '.join(found)}. Make them equal inside the function, for example with "
                f"jax.lax.pmean(value, {next(iter(along))!r}), or give specs that name the axis."
            )


@transform
def shard_map(
    f: Callable[P, R],
    *,
    mesh: Any = None,
    in_specs: Any,
    out_specs: Any,
    axis_names: AbstractSet[Hashable] = frozenset(),
    check_vma: bool = True,
) -> Callable[P, R]:
    """A function that runs `f` on each device's part of the arguments.

    Over `jax.shard_map`. The state of a node has the spec given for the node; changed state comes
    back with the spec it went in with.

    Args:
        f: function of positional arguments, which may be or contain graph nodes.
        mesh: the device mesh; default: the current one.
        in_specs: `PartitionSpec` of each argument, a pytree prefix of the tuple of arguments. A
            `StateSharding` gives the specs of a node's state by filters.
        out_specs: the same for the result.
        axis_names: mesh axes that are manual; default: all of them.
        check_vma: check that what a spec calls the same on all devices is.

    Returns:
        A function with the arguments of `f`.

    Raises:
        TypeError: a spec is of the wrong type, or keyword arguments are given.
        ValueError: specs do not fit the arguments, or a leaf is reached under two, such as one of an
            argument that is returned.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> from jax.sharding import PartitionSpec as P
    >>> import treadle as nnx
    >>> mesh = jax.sharding.Mesh(jax.devices(), ("data",))
    >>> model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    >>> forward = nnx.shard_map(
    ...     lambda m, x: m(x), mesh=mesh, in_specs=(P(), P("data")), out_specs=P("data")
    ... )
    >>> forward(model, jnp.ones((8, 2))).shape
    (8, 3)
    """
    options = _SpecOptions(
        "shard_map",
        given=frozenset({"in_axes", "out_axes"}),
        in_axes=in_specs,
        in_axes_kwargs=None,
        out_axes=out_specs,
    )
    settings = {"axis_names": axis_names, "check_vma": check_vma}
    return lift(f, _ShardMap(options, mesh, settings))


def _misfits(call: Call, specs: Sequence[Any], sizes: Mapping[Hashable, int]) -> str | None:
    """Which arguments cannot be split as their specs say, in words; None if all can."""
    if not sizes:  # there is no mesh, which is JAX's to say
        return None
    found = []
    for leaf, (value, spec) in enumerate(zip(call.leaves, specs, strict=True)):
        for number, part in enumerate(jax.tree_util.tree_leaves(value)):
            reason = _misfit(np.shape(part), spec, sizes)
            if reason is not None:
                label = part_label(call.label(leaf), value, number)
                found.append(f"{label}, {type_of(part)} under {spec}, {reason}")
    if not found:
        return None
    return (
        f"in_specs do not fit the arguments: {'; '.join(found)}. Give specs that fit (P() hands the "
        "whole array to each device), or pad the arrays."
    )


def _misfit(
    shape: tuple[int, ...], spec: PartitionSpec, sizes: Mapping[Hashable, int]
) -> str | None:
    """Why an array cannot be split as `spec` says; None if it can."""
    if len(spec) > len(shape):
        return f"has {len(shape)} axes where the spec describes {len(spec)}"
    for axis, entry in enumerate(spec):
        names = entry if isinstance(entry, tuple) else () if entry is None else (entry,)
        for name in names:
            if name not in sizes:
                known = ", ".join(map(repr, sizes))
                return f"would be split over {name!r}, but the axes to split over are {known}"
        parts = math.prod(sizes[name] for name in names)
        if shape[axis] % parts:
            return (
                f"has {shape[axis]} along axis {axis}, which is not a multiple of {parts} devices"
            )
    return None


def _varying(value: Any) -> frozenset[Hashable]:
    """The mesh axes along which a value differs between devices, as far as JAX keeps account."""
    if not is_jax_value(value):
        return frozenset()
    of_type = jax.typeof(value)
    if hasattr(of_type, "vma"):  # until jax 0.10
        return of_type.vma
    return getattr(getattr(of_type, "mat", None), "varying", frozenset())


def _axes_of(spec: PartitionSpec) -> frozenset[Hashable]:
    """The mesh axes that a spec names."""
    return frozenset(
        name for entry in spec for name in (entry if isinstance(entry, tuple) else (entry,))
    )


publish(__all__, globals())
