"""vmap over graph nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax

from treadle.transforms._call import Call
from treadle.transforms._decorator import P, R, transform
from treadle.transforms._driver import Rule, lift
from treadle.transforms._frozen import DEFAULT_STATE_AXES, NO_METADATA
from treadle.transforms._mapped import MappedBody
from treadle.transforms._roles import Plan, Resolver
from treadle.transforms._spelling import MapOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping, Sequence

    from treadle._graph.filters import Filter
    from treadle.transforms._inside import Inside, Output

__all__ = ["vmap"]


class VmapRule(Rule):
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
        self.name = options.name
        self.options = options
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
    return lift(f, VmapRule(options, axis_size, axis_name=axis_name, spmd_axis_name=spmd_axis_name))
