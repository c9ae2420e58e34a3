"""vmap over graph nodes."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import jax

from treadle.transforms._decorator import P, R, transform
from treadle.transforms._lift import Aside, Call, Function, function_name, trace
from treadle.transforms._mapping import (
    DEFAULT_STATE_AXES,
    NO_METADATA,
    AxisNames,
    AxisRole,
    MapOptions,
    NewState,
    Part,
    Resolver,
    Role,
    candidate_axes,
    output_label,
    restore_keys,
    split_key,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping, Sequence

    from treadle import _core
    from treadle._graph.filters import Filter

__all__ = ["vmap"]


Groups = tuple[tuple[Any, ...], ...]


class MappedBody:
    """The function that JAX maps: leaves in, tuples of changed leaves by axis out.

    Knows structure only and hands its effects out beside the leaves, so that its trace can be
    reused.
    """

    def __init__(
        self,
        options: MapOptions,
        function: Function,
        graphdef: _core.GraphDef,
        roles: Sequence[AxisRole],
        keep: bool | tuple[bool, ...] = True,
    ) -> None:
        self.options = options
        self.function = function
        self.graphdef = graphdef
        self.keep = keep
        self.where = f"{options.name} of {function_name(function)}"
        self.split = [leaf for leaf, role in enumerate(roles) if role is Role.SPLIT]
        self.in_axes = tuple(
            0 if role is Role.SPLIT else role if isinstance(role, int) else None for role in roles
        )
        self.out_axes = candidate_axes(options, roles)
        self.names = AxisNames(options, graphdef, roles)

    def __call__(self, leaves: Sequence[Any]) -> tuple[Aside, Groups]:
        new: Any = None

        def leave(refs: list[Any], arguments: Any, result: Any) -> Any:
            nonlocal new
            restore_keys(self.graphdef, refs, leaves, self.split)
            parts = [Part((), result, self.options.out_axes)]
            new = NewState(
                self.options, self.function, self.graphdef, leaves, refs, arguments, result, parts
            )
            self.names.add(refs, arguments, result, new)
            return result

        effects, out = trace(
            self.function,
            self.graphdef,
            leaves,
            enter=self.names.remove,
            leave=leave,
            keep=self.keep,
        )
        axes = self._output_axes(effects, out, new)
        self._check_unmapped(effects, axes, out, leaves)
        members = [
            [i for i, axis in enumerate(axes) if axis == candidate] for candidate in self.out_axes
        ]
        groups = tuple(tuple(out[i] for i in group) for group in members)
        return Aside((effects, members)), groups

    def _output_axes(
        self, effects: _core.Effects, out: Sequence[Any], new: NewState
    ) -> list[int | None]:
        made = new.new_axes(effects, out)
        values = iter(new.value_axes)
        axes: list[int | None] = []
        for i, (kind, leaf, _) in enumerate(effects.outputs()):
            if kind == "new":
                axes.append(made[i])
            else:
                axes.append(self.in_axes[leaf] if kind == "leaf" else next(values))
        return axes

    def _check_unmapped(
        self,
        effects: _core.Effects,
        axes: Sequence[int | None],
        out: Sequence[Any],
        leaves: Sequence[Any],
    ) -> None:
        """Raise for what must be the same in all slices and is not, naming it as JAX cannot."""
        mapped = [leaf for leaf, axis in zip(leaves, self.in_axes, strict=True) if axis is not None]
        levels = {id(getattr(part, "_trace", None)) for part in jax.tree_util.tree_leaves(mapped)}

        def differs(part: Any) -> bool:
            is_mapped = getattr(part, "batch_dim", None) is not None
            return is_mapped and id(getattr(part, "_trace", None)) in levels

        for (kind, _, path), axis, value in zip(effects.outputs(), axes, out, strict=True):
            if axis is None and any(map(differs, jax.tree_util.tree_leaves(value))):
                raise ValueError(
                    f"{self.where}: {output_label(self.function, kind, path)} is broadcast, but "
                    "comes back with a value that differs between slices. Map it over an axis "
                    "(state_axes for state, out_axes for results), or make its value the same in "
                    "all slices, for example with jax.lax.pmean over axis_name."
                )

    def gather(self, held: tuple[_core.Effects, list[list[int]]], groups: Groups) -> list[Any]:
        """The output leaves in their own order."""
        effects, members = held
        out: list[Any] = [None] * effects.num_out
        for group, values in zip(members, groups, strict=True):
            for index, value in zip(group, values, strict=True):
                out[index] = value
        return out


def slices(leaves: Sequence[Any], roles: Sequence[AxisRole], size: int) -> tuple[Any, ...]:
    """The leaves as they are mapped: keys to split are split."""
    return tuple(
        split_key(leaf, size) if role is Role.SPLIT else leaf
        for leaf, role in zip(leaves, roles, strict=True)
    )


def vmap_call(
    options: MapOptions,
    call: Call,
    size: int | None,
    parameter: str = "axis_size",
    **names: Any,
) -> Any:
    """Run a call under `jax.vmap`.

    Args:
        options: the transform's parameters.
        call: the walked call.
        size: number of slices, None to infer it.
        parameter: what the user calls `size`.
        **names: ``axis_name`` and ``spmd_axis_name``.
    """
    resolver = Resolver(call, options)
    roles = resolver.roles()
    size = resolver.size(roles, size, parameter)
    body = MappedBody(options, call.function, call.graphdef, roles)
    mapped = jax.vmap(
        body, in_axes=(body.in_axes,), out_axes=(None, body.out_axes), axis_size=size, **names
    )
    aside, groups = mapped(slices(call.leaves, roles, size))
    return call.finish(aside.value[0], body.gather(aside.value, groups))


@transform
def vmap(
    f: Callable[P, R],
    *,
    in_axes: Any = 0,
    out_axes: Any = 0,
    axis_name: Hashable | None = None,
    axis_size: int | None = None,
    spmd_axis_name: Hashable | tuple[Hashable, ...] | None = None,
    in_axes_kwargs: Any = 0,
    state_axes: Mapping[Filter, int | None] = DEFAULT_STATE_AXES,
    split_rngs: Filter = ...,
    transform_metadata: Mapping[str, Any] = NO_METADATA,
) -> Callable[P, R]:
    """A function that maps `f`, whose arguments may be or contain graph nodes, over an axis.

    Arrays follow `in_axes`, the state of nodes follows `state_axes`. What no filter there selects
    is the same in all slices and must come back without the mapped axis. Random streams are
    special: one that `split_rngs` selects has key ``jax.random.split(key, size)[i]`` in slice i,
        with the caller's
    count; afterwards the caller's key is back and its count is the one that the slices reached. The
    other streams are the same in all slices. A stream whose key is an array of keys already (see
    `split_rngs`) is mapped over its first axis. Nodes and Variables that `f` makes come back
    stacked along their axis.

    Args:
        f: function to map; a method, and ``__init__``, too.
        in_axes: axis of arrays in positional arguments: an int, None for not mapped, or a tuple
            with a pytree prefix of them per argument (``self`` included). `StateAxes` in the place
            of a node says everything about that node's state; then ints and None speak of nodes
            too.
        out_axes: axis of arrays in the result, a pytree prefix of it.
        axis_name: name of the axis for collectives such as ``jax.lax.pmean``.
        axis_size: number of slices; needed when nothing is mapped.
        spmd_axis_name: mesh axes over which the mapped axis is sharded inside ``jit``.
        in_axes_kwargs: as `in_axes`, for keyword arguments: one entry, or a dict of them.
        state_axes: filter -> axis (or None) of the Variables and arrays in nodes, first match wins.
            ``{}`` broadcasts all.
        split_rngs: filter (or list of stream names, True, False, None) of streams to split.
        transform_metadata: ``{PARTITION_NAME: name}`` puts `name` at the mapped axis of the
            sharding metadata outside and takes it away inside, through `Variable.add_axis` and
            `Variable.remove_axis`.

    Returns:
        A function with the arguments of `f`.

    Raises:
        ValueError: an axis is out of bounds, sizes disagree or cannot be inferred, something
            broadcast comes back mapped, or a shared Variable is reached under two axes.
        TypeError: an axis is of the wrong type.

    >>> import jax.numpy as jnp
    >>> import treadle as nnx
    >>> @nnx.vmap(axis_size=5)
    ... def make(rngs):
    ...     return nnx.Linear(2, 3, rngs=rngs)
    >>> model = make(nnx.Rngs(0))
    >>> model.kernel.shape
    (5, 2, 3)
    >>> nnx.vmap(lambda m, x: m(x), in_axes=(None, 0))(model, jnp.ones((5, 2))).shape
    (5, 3)
    """
    options = MapOptions(
        "vmap",
        in_axes=in_axes,
        in_axes_kwargs=in_axes_kwargs,
        out_axes=out_axes,
        state_axes=state_axes,
        split_rngs=split_rngs,
        transform_metadata=transform_metadata,
    )

    @functools.wraps(f)
    def vmap_wrapper(*args: Any, **kwargs: Any) -> Any:
        return vmap_call(
            options,
            Call.collect("vmap", f, args, kwargs),
            axis_size,
            axis_name=axis_name,
            spmd_axis_name=spmd_axis_name,
        )

    return vmap_wrapper
