"""pmap and shard_map over graph nodes: one program on several devices."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.sharding import PartitionSpec

from treadle.transforms._decorator import P, R, transform
from treadle.transforms._lift import (
    Aside,
    Bodies,
    Call,
    Function,
    function_name,
    is_jax_value,
    normalize_argnums,
    part_label,
    trace,
    type_of,
)
from treadle.transforms._mapping import (
    DEFAULT_STATE_AXES,
    NO_METADATA,
    MapOptions,
    NewState,
    Part,
    Resolver,
    output_label,
)
from treadle.transforms.axes import StateSharding
from treadle.transforms.vmap import MappedBody, slices

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from treadle import _core
    from treadle._graph.filters import Filter

__all__ = ["pmap", "shard_map"]


@transform
def pmap(
    f: Callable[P, R],
    axis_name: Hashable | None = None,
    *,
    in_axes: Any = 0,
    out_axes: Any = 0,
    static_broadcasted_argnums: int | Sequence[int] = (),
    devices: Sequence[Any] | None = None,
    backend: str | None = None,
    axis_size: int | None = None,
    donate_argnums: int | Sequence[int] = (),
    in_axes_kwargs: Any = 0,
    state_axes: Mapping[Filter, int | None] = DEFAULT_STATE_AXES,
    split_rngs: Filter = ...,
    transform_metadata: Mapping[str, Any] = NO_METADATA,
) -> Callable[P, R]:
    """A function that maps `f` over devices; as `vmap`, each slice on a device of its own.

    Args:
        f: function whose arguments may be or contain graph nodes.
        axis_name: name of the axis for collectives.
        in_axes: axis of arrays in positional arguments, as in `vmap`.
        out_axes: axis of arrays in the result, as in `vmap`. What is not mapped there, and
            broadcast state that changes, is taken from the first device: reduce it over
            `axis_name`.
        static_broadcasted_argnums: positions of arguments that are compared instead of traced.
        devices: the devices; default: the first ones that `jax.devices` gives.
        backend: their platform.
        axis_size: number of slices; needed when nothing is mapped.
        donate_argnums: positions of arguments whose arrays may be overwritten.
        in_axes_kwargs: axis of arrays in keyword arguments, as in `vmap`.
        state_axes: filter -> axis of the state of nodes, as in `vmap`.
        split_rngs: filter of the random streams to split, as in `vmap`.
        transform_metadata: names of the axis in sharding metadata, as in `vmap`.

    Returns:
        A function with the arguments of `f`.

    Raises:
        ValueError: as `vmap`, or there are fewer devices than slices.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> import treadle as nnx
    >>> n = jax.local_device_count()
    >>> model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    >>> forward = nnx.pmap(lambda m, x: m(x), state_axes={})
    >>> forward(model, jnp.ones((n, 4, 2))).shape == (n, 4, 3)
    True
    """
    options = MapOptions(
        "pmap",
        in_axes=in_axes,
        in_axes_kwargs=in_axes_kwargs,
        out_axes=out_axes,
        state_axes=state_axes,
        split_rngs=split_rngs,
        transform_metadata=transform_metadata,
    )
    static = _numbers(static_broadcasted_argnums)
    donated = _numbers(donate_argnums)
    bodies: Bodies[tuple[MappedBody, Function]] = Bodies()

    def make(call: Call, roles: Any, size: int, given: frozenset[int]) -> Any:
        keep = tuple(leaf not in given for leaf in range(len(roles)))
        body = MappedBody(options, f, call.graphdef, roles, keep)
        chosen = tuple(axis for leaf, axis in enumerate(body.in_axes) if leaf in given)
        others = tuple(axis for leaf, axis in enumerate(body.in_axes) if leaf not in given)

        def flat(gone: tuple[Any, ...], kept: tuple[Any, ...], slices: Any) -> Any:
            del slices
            sources = {True: iter(gone), False: iter(kept)}
            return body([next(sources[leaf in given]) for leaf in range(len(roles))])

        return body, jax.pmap(
            flat,
            axis_name,
            in_axes=(chosen, others, 0),
            out_axes=(None, body.out_axes),
            devices=devices,
            backend=backend,
            axis_size=size,
            donate_argnums=(0,) if given else (),
        )

    @functools.wraps(f)
    def pmap_wrapper(*args: Any, **kwargs: Any) -> Any:
        fixed = normalize_argnums("pmap", "static_broadcasted_argnums", static, f, len(args))
        call = Call.collect("pmap", f, args, kwargs, frozenset(fixed))
        resolver = Resolver(call, options)
        roles = resolver.roles()
        size = resolver.size(roles, axis_size, "axis_size")
        given = _donated(call, normalize_argnums("pmap", "donate_argnums", donated, f, len(args)))
        key = call.graphdef, roles, size, given
        body, mapped = bodies.get(key, lambda: make(call, roles, size, given))
        leaves = slices(call.leaves, roles, size)
        aside, groups = call.run(
            mapped,
            tuple(leaf for i, leaf in enumerate(leaves) if i in given),
            tuple(leaf for i, leaf in enumerate(leaves) if i not in given),
            # JAX wants something mapped to see the number of slices by.
            np.zeros((size, 0), np.int8),
        )
        return call.finish(aside.value[0], body.gather(aside.value, groups))

    return pmap_wrapper


def _numbers(argnums: int | Sequence[int]) -> tuple[int, ...]:
    return (argnums,) if isinstance(argnums, int) else tuple(argnums)


def _donated(call: Call, positions: Sequence[int]) -> frozenset[int]:
    """Leaves of the arguments at `positions`, less those that others hold too."""
    donated: set[int] = set()
    kept: set[int] = set()
    for which, items in call.argument_items():
        into = donated if which in positions else kept
        for is_object, number in items:
            into.update(call.graphdef.reachable(number) if is_object else (number,))
    return frozenset(donated - kept)


# -- shard_map -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _SpecOptions(MapOptions):
    """Specs in the place of axes."""

    def _check_axis(self, parameter: str, axis: Any) -> None:
        if axis is not None and not isinstance(axis, (PartitionSpec, StateSharding)):
            raise TypeError(
                f"{self.name}: specs are PartitionSpec, StateSharding, None, or a pytree of these, "
                f"got {axis!r}."
            )

    @functools.cached_property
    def later_spelling(self) -> bool:
        """Specs always speak of nodes too."""
        return True


def _spec(entry: Any) -> PartitionSpec:
    return PartitionSpec() if entry is None else entry


class _SpecResolver(Resolver):
    """Finds the spec of each leaf of a call."""

    def _value_role(self, axis: Any, label: str) -> Any:
        if isinstance(axis, StateSharding):
            raise ValueError(
                f"{self.where}: in_specs has {axis!r} for {label}, which holds an array outside "
                "any node. Give a PartitionSpec for it."
            )
        return _spec(axis)

    def _node_role(self, leaf: int, axis: Any) -> Any:
        if not isinstance(axis, StateSharding):
            return _spec(axis)
        return _spec(self._selected(leaf, axis))

    def _checked(self, leaf: int, role: Any) -> Any:
        return role


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
        ValueError: specs do not fit the arguments, or a shared Variable is reached under two.

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
    options = _SpecOptions("shard_map", in_axes=in_specs, in_axes_kwargs=None, out_axes=out_specs)
    settings: dict[str, Any] = {"axis_names": axis_names, "check_vma": check_vma}
    if mesh is not None:
        settings["mesh"] = mesh
    bodies: Bodies[tuple[_ShardBody, Function]] = Bodies()

    def sizes() -> dict[Hashable, int]:
        shape = (jax.sharding.get_abstract_mesh() if mesh is None else mesh).shape
        return {name: size for name, size in shape.items() if name in (axis_names or shape)}

    def make(call: Call, specs: tuple[Any, ...]) -> tuple[_ShardBody, Function]:
        body = _ShardBody(options, f, call.graphdef, specs)
        mapped = jax.shard_map(
            body, in_specs=(specs,), out_specs=(PartitionSpec(), body.out_specs), **settings
        )
        return body, mapped

    @functools.wraps(f)
    def shard_map_wrapper(*args: Any, **kwargs: Any) -> Any:
        if kwargs:
            raise TypeError(
                f"shard_map of {function_name(f)} takes positional arguments only, because "
                f"in_specs describes them by position; got {', '.join(sorted(kwargs))} by keyword."
            )
        call = Call.collect("shard_map", f, args, {})
        specs = _SpecResolver(call, options).roles()
        body, mapped = bodies.get((call.graphdef, specs), lambda: make(call, specs))
        body.misfits = None
        try:
            aside, groups = call.run(mapped, tuple(call.leaves))
        except ValueError as error:
            message = _misfits(call, specs, sizes()) or body.misfits
            if message is None:
                raise
            raise ValueError(f"shard_map of {function_name(f)}: {message}") from error
        return call.finish(aside.value[0], body.gather(aside.value, groups))

    return shard_map_wrapper


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


class _ShardBody:
    """What runs on each device: leaves in, tuples of changed leaves by spec out."""

    def __init__(
        self,
        options: MapOptions,
        function: Function,
        graphdef: _core.GraphDef,
        specs: tuple[Any, ...],
    ) -> None:
        self.options = options
        self.function = function
        self.graphdef = graphdef
        self.in_specs = specs
        self.out_specs = _all_specs(specs, options.in_axes, options.out_axes)
        # What the last trace found wrong with its outputs, in case that JAX complains of it.
        self.misfits: str | None = None

    def __call__(self, leaves: tuple[Any, ...]) -> tuple[Aside, tuple[tuple[Any, ...], ...]]:
        new: Any = None

        def leave(refs: list[Any], arguments: Any, result: Any) -> Any:
            nonlocal new
            parts = [Part((), result, self.options.out_axes)]
            new = NewState(
                self.options, self.function, self.graphdef, leaves, refs, arguments, result, parts
            )
            return result

        effects, out = trace(self.function, self.graphdef, leaves, leave=leave)
        made = new.new_axes(effects, out)
        values = iter(new.value_axes)
        specs = []
        for i, (kind, leaf, _) in enumerate(effects.outputs()):
            if kind == "new":
                specs.append(_spec(made[i]))
            else:
                specs.append(self.in_specs[leaf] if kind == "leaf" else _spec(next(values)))
        members = [
            [i for i, spec in enumerate(specs) if spec == candidate] for candidate in self.out_specs
        ]
        self.misfits = self._unequal(effects, out, specs)
        return Aside((effects, members)), tuple(tuple(out[i] for i in group) for group in members)

    def _unequal(
        self, effects: _core.Effects, out: Sequence[Any], specs: Sequence[PartitionSpec]
    ) -> str | None:
        """Which outputs differ between devices whose specs do not say so, in words."""
        found = []
        axes: dict[Hashable, None] = {}
        for (kind, _, path), value, spec in zip(effects.outputs(), out, specs, strict=True):
            named = _axes_of(spec)
            varying = {
                axis
                for part in jax.tree_util.tree_leaves(value)
                for axis in _varying(part)
                if axis not in named
            }
            if varying:
                found.append(f"{output_label(self.function, kind, path)} under {spec}")
                axes.update(dict.fromkeys(sorted(varying, key=str)))
        if not found:
            return None
        along = ", ".join(map(repr, axes))
        return (
            f"values differ between devices along mesh axis {along}, but come back under specs by "
            f"which they are replicated along it: {'; '.join(found)}. Make them equal inside the "
            f"function, for example with jax.lax.pmean(value, {next(iter(axes))!r}), or give specs "
            "that name the axis."
        )

    gather = MappedBody.gather


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


def _all_specs(*trees: Any) -> tuple[PartitionSpec, ...]:
    """Every spec that an output may get, each once."""
    found = {PartitionSpec(): None}
    entries = jax.tree_util.tree_leaves(
        trees, is_leaf=lambda x: x is None or isinstance(x, (PartitionSpec, StateSharding))
    )
    for entry in entries:
        for spec in entry.shardings if isinstance(entry, StateSharding) else (entry,):
            found[_spec(spec)] = None
    return tuple(found)
