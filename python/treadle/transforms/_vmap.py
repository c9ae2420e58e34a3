"""vmap over graph nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax

from treadle._public import publish
from treadle.transforms._arguments import Function
from treadle.transforms._call import Call
from treadle.transforms._decorator import P, R, transform
from treadle.transforms._driver import lift
from treadle.transforms._frozen import AXIS_0, DEFAULT_STATE_AXES, NO_METADATA, knowing_given
from treadle.transforms._mapped import MappedBody, MapRule
from treadle.transforms._roles import Plan, Resolver
from treadle.transforms._spelling import MapOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping, Sequence

    from treadle._graph.filters import Filter
    from treadle.transforms._inside import Inside, Output

__all__ = ["vmap"]


class VmapRule(MapRule):
    """Maps over an axis.

    Args:
        options: the transform's parameters.
        size: number of slices, None to infer it.
        parameter: what the user calls `size`.
        **names: ``axis_name`` and ``spmd_axis_name``.
    """

    def __init__(
        self, options: MapOptions, size: int | None, parameter: str = "axis_size", **names: Any
    ) -> None:
        super().__init__(options)
        self.size, self.parameter = size, parameter
        self.names = names

    def inputs(self, call: Call) -> Plan:
        """What happens to each leaf."""
        return Resolver(call, self.options).plan(self.size, self.parameter)

    def body(self, call: Call, inputs: Plan) -> MappedBody:
        """What is mapped."""
        return _VmappedBody(self.options, call, inputs)

    def run(self, call: Call, inputs: Plan, body: MappedBody) -> Any:
        """Map the body."""
        mapped = jax.vmap(
            body,
            in_axes=(body.in_axes,),
            out_axes=body.out_axes,
            axis_size=inputs.size,
            **self.names,
        )
        return mapped(inputs.slices(call.leaves))


class _VmappedBody(MappedBody):
    def check(self, inside: Inside, rows: Sequence[Output], axes: Sequence[Any]) -> None:
        """Raise for what must be the same in all slices and is not, naming it as JAX cannot."""
        mapped = [
            leaf for leaf, axis in zip(inside.leaves, self.in_axes, strict=True) if axis is not None
        ]
        levels = {id(getattr(part, "_trace", None)) for part in jax.tree_util.tree_leaves(mapped)}

        def differs(part: Any) -> bool:
            is_mapped = getattr(part, "batch_dim", None) is not None
            return is_mapped and id(getattr(part, "_trace", None)) in levels

        for row, axis in zip(rows, axes, strict=True):
            if axis is None and any(map(differs, jax.tree_util.tree_leaves(row.value))):
                raise ValueError(
                    f"{self.outline.where}: {inside.label(row)} is broadcast, but "
                    "comes back with a value that differs between slices. Map it over an axis "
                    "(state_axes for state, out_axes for results), or make its value the same in "
                    "all slices, for example with jax.lax.pmean over axis_name."
                )


@transform
@knowing_given
def vmap(
    _given: frozenset[str],
    f: Callable[P, R],
    *,
    in_axes: Any = AXIS_0,
    out_axes: Any = AXIS_0,
    axis_name: Hashable | None = None,
    axis_size: int | None = None,
    spmd_axis_name: Hashable | tuple[Hashable, ...] | None = None,
    in_axes_kwargs: Any = AXIS_0,
    state_axes: Mapping[Filter, int | None] = DEFAULT_STATE_AXES,
    split_rngs: Filter = ...,
    transform_metadata: Mapping[str, Any] = NO_METADATA,
) -> Callable[P, R]:
    """A function that maps `f`, whose arguments may be or contain graph nodes, over an axis.

    `in_axes` speaks of nodes and Variables as it does of arrays: an int maps all state of a node over
    that axis, None is the same in all slices and must come back so. Random streams are special: under
    an int, one that `split_rngs` selects has key ``jax.random.split(key, size)[i]`` in slice i, with
    the caller's count; afterwards the caller's key is back and its count is the one that the slices
    reached. The other streams, and all under None, are the same in all slices. A stream whose key is
    an array of keys already (see `split_rngs`) is mapped over its axis. Nodes and Variables that `f`
    makes come back stacked as `out_axes` says; those that it puts in an argument, as that argument.

    Code written for the first release of NNX gives `state_axes` (and `in_axes` for arrays only): then
    the state of nodes follows it, what no filter there selects is the same in all slices, `out_axes`
    speaks of arrays only, and `split_rngs` alone decides about streams.

    Args:
        f: function to map; a method, and ``__init__``, too.
        in_axes: axis of positional arguments: an int, None for the same in all slices, or a tuple
            with a pytree prefix of them per argument (``self`` included), which ends at nodes.
            `StateAxes` in the place of a node tells its state apart by filters. If the tuple is
            longer than the positional arguments, keywords and defaults take their places in it; one
            entry for all holds for keywords that have a position, too.
        out_axes: axis of arrays and new nodes in the result, a pytree prefix of it. An argument that
            is returned must have the same axis there.
        axis_name: name of the axis for collectives such as ``jax.lax.pmean``.
        axis_size: number of slices; needed when nothing is mapped.
        spmd_axis_name: mesh axes over which the mapped axis is sharded inside ``jit``.
        in_axes_kwargs: as `in_axes`, for other keyword arguments: one entry, or a dict of them.
        state_axes: filter -> axis (or None) of the Variables and arrays in nodes, first match wins.
            ``{}`` broadcasts all. With it an entry of `in_axes` for a node may be None, 0 or the
            same axis.
        split_rngs: filter (or list of stream names, True, False, None) of streams to split. If it
            is given, also of streams under None.
        transform_metadata: ``{PARTITION_NAME: name}`` puts `name` (None, too) at the mapped axis of
            the sharding metadata outside and takes it away inside, through `Variable.add_axis` and
            `Variable.remove_axis`, which get the other entries, too.

    Returns:
        A function with the arguments of `f`.

    Raises:
        ValueError: an axis is out of bounds, sizes disagree or cannot be inferred, what is the
            same in all slices comes back mapped, or a leaf is reached under two axes.
        TypeError: an axis is of the wrong type.

    >>> import jax.numpy as jnp
    >>> import treadle as nnx
    >>> @nnx.vmap(axis_size=5)
    ... def make(rngs):
    ...     return nnx.Linear(2, 3, rngs=rngs)
    >>> model = make(nnx.Rngs(0))
    >>> model.kernel.shape
    (5, 2, 3)
    >>> nnx.vmap(lambda m, x: m(x), in_axes=(0, None))(model, jnp.ones(2)).shape
    (5, 3)
    >>> one = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    >>> nnx.vmap(lambda m, x: m(x), in_axes=(None, 0))(one, jnp.ones((4, 2))).shape
    (4, 3)
    """
    return vmapped(
        f,
        given=_given,
        axis_size=axis_size,
        axis_name=axis_name,
        spmd_axis_name=spmd_axis_name,
        in_axes=in_axes,
        in_axes_kwargs=in_axes_kwargs,
        out_axes=out_axes,
        state_axes=state_axes,
        split_rngs=split_rngs,
        transform_metadata=transform_metadata,
    )


def vmapped(
    f: Function,
    *,
    given: frozenset[str],
    axis_size: int | None,
    axis_name: Hashable | None,
    spmd_axis_name: Hashable | tuple[Hashable, ...] | None,
    of_class: bool = False,
    **parameters: Any,
) -> Function:
    """`vmap`, for a function or the call of a lifted class."""
    options = MapOptions("vmap", given=given, of_class=of_class, **parameters)
    return lift(f, VmapRule(options, axis_size, axis_name=axis_name, spmd_axis_name=spmd_axis_name))


publish(__all__, globals())
