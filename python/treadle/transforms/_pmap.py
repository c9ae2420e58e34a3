"""pmap over graph nodes: slices on several devices."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import jax
import numpy as np

from treadle._public import publish
from treadle.transforms._arguments import Function, normalize_argnums, numbers
from treadle.transforms._call import Call
from treadle.transforms._constants import Constant, constants
from treadle.transforms._copies import separated
from treadle.transforms._decorator import P, R, transform
from treadle.transforms._driver import lift
from treadle.transforms._frozen import AXIS_0, DEFAULT_STATE_AXES, NO_METADATA, knowing_given
from treadle.transforms._mapped import MappedBody, MapRule
from treadle.transforms._roles import Plan, Resolver, Role
from treadle.transforms._spelling import MapOptions

if TYPE_CHECKING:
    from treadle._graph.filters import Filter

__all__ = ["pmap"]


class _Settings(NamedTuple):
    """What a body depends on besides the structure of the call and the roles of its leaves."""

    size: int
    donated: frozenset[int]
    constants: tuple[tuple[int, Constant], ...]


def _settings(plan: Plan) -> _Settings:
    return cast(_Settings, plan.settings)


class _Pmap(MapRule):
    reuses = True

    def __init__(
        self,
        options: MapOptions,
        static: int | Sequence[int],
        donated: int | Sequence[int],
        size: int | None,
        settings: dict[str, Any],
    ) -> None:
        super().__init__(options)
        self.static_argnums, self.donate_argnums = numbers(static), numbers(donated)
        self.size = size
        self.settings = settings

    def static(self, function: Function, count: int) -> Iterable[int]:
        parameter = "static_broadcasted_argnums"
        return normalize_argnums(self.name, parameter, self.static_argnums, function, count)

    def inputs(self, call: Call) -> Plan:
        plan = Resolver(call, self.options).plan(self.size, "axis_size")
        positions = normalize_argnums(
            self.name, "donate_argnums", self.donate_argnums, call.function, len(call.args)
        )
        fixed = constants(call, plan.of(Role.BROADCAST))
        donated = _donated(call, positions).difference(dict(fixed))
        return replace(plan, settings=_Settings(plan.size, donated, fixed))

    def seen(self, call: Call, inputs: Plan | None) -> Iterable[int]:
        """All leaves but those that are constants."""
        fixed = () if inputs is None else dict(_settings(inputs).constants)
        return (leaf for leaf in super().seen(call, inputs) if leaf not in fixed)

    def body(self, call: Call, inputs: Plan) -> Function:
        size, given, _ = settings = _settings(inputs)
        fixed = {leaf: constant.value for leaf, constant in settings.constants}
        numbers = range(len(inputs.roles))
        body = MappedBody(self.options, call, inputs, [leaf not in given for leaf in numbers])

        def flat(gone: tuple[Any, ...], kept: tuple[Any, ...], slices: Any) -> Any:
            del slices
            donated, others = iter(gone), iter(kept)
            return body(
                [
                    next(donated)
                    if leaf in given
                    else fixed[leaf]
                    if leaf in fixed
                    else next(others)
                    for leaf in numbers
                ]
            )

        return jax.pmap(
            flat,
            in_axes=(*_apart(body.in_axes, settings), 0),
            out_axes=body.out_axes,
            axis_size=size,
            donate_argnums=(0,) if given else (),
            **self.settings,
        )

    def run(self, call: Call, inputs: Plan, body: Function) -> Any:
        settings = _settings(inputs)
        # JAX wants something mapped to see the number of slices by.
        slices = np.zeros((settings.size, 0), np.int8)
        leaves = separated(call, settings.donated) if settings.donated else call.leaves
        return body(*_apart(inputs.slices(leaves), settings), slices)


def _apart(leaves: Sequence[Any], settings: _Settings) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """What there is for leaves that are donated, and for the others that are no constants."""
    fixed = dict(settings.constants)
    return (
        tuple(value for leaf, value in enumerate(leaves) if leaf in settings.donated),
        tuple(
            value
            for leaf, value in enumerate(leaves)
            if leaf not in settings.donated and leaf not in fixed
        ),
    )


def _donated(call: Call, positions: Sequence[int]) -> frozenset[int]:
    """Leaves of the arguments at `positions`, less those that others hold too."""
    donated: set[int] = set()
    kept: set[int] = set()
    for which, _, items in call.argument_items():
        into = donated if which in positions else kept
        for is_object, number in items:
            into.update(call.graphdef.reachable(number) if is_object else (number,))
    return frozenset(donated - kept)


@transform
@knowing_given
def pmap(
    _given: frozenset[str],
    f: Callable[P, R],
    axis_name: Hashable | None = None,
    *,
    in_axes: Any = AXIS_0,
    out_axes: Any = AXIS_0,
    static_broadcasted_argnums: int | Sequence[int] = (),
    devices: Sequence[Any] | None = None,
    backend: str | None = None,
    axis_size: int | None = None,
    donate_argnums: int | Sequence[int] = (),
    in_axes_kwargs: Any = AXIS_0,
    state_axes: Mapping[Filter, int | None] = DEFAULT_STATE_AXES,
    split_rngs: Filter = ...,
    transform_metadata: Mapping[str, Any] = NO_METADATA,
) -> Callable[P, R]:
    """A function that maps `f` over devices; as `vmap`, each slice on a device of its own.

    Args:
        f: function whose arguments may be or contain graph nodes.
        axis_name: name of the axis for collectives.
        in_axes: axis of positional arguments, as in `vmap`.
        out_axes: axis of results, as in `vmap`. What is not mapped there, and
            state under None that changes, is taken from the first device: reduce it over
            `axis_name`.
        static_broadcasted_argnums: positions of arguments that are compared instead of traced.
        devices: the devices; default: the first ones that `jax.devices` gives.
        backend: their platform.
        axis_size: number of slices; needed when nothing is mapped.
        donate_argnums: positions of arguments whose arrays may be overwritten; what others hold
            too is copied instead, with a `DonationWarning`.
        in_axes_kwargs: axis of keyword arguments, as in `vmap`.
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
    >>> forward = nnx.pmap(lambda m, x: m(x), in_axes=(None, 0))
    >>> forward(model, jnp.ones((n, 4, 2))).shape == (n, 4, 3)
    True
    """
    options = MapOptions(
        "pmap",
        given=_given,
        in_axes=in_axes,
        in_axes_kwargs=in_axes_kwargs,
        out_axes=out_axes,
        state_axes=state_axes,
        split_rngs=split_rngs,
        transform_metadata=transform_metadata,
    )
    settings = {"axis_name": axis_name, "devices": devices, "backend": backend}
    return lift(f, _Pmap(options, static_broadcasted_argnums, donate_argnums, axis_size, settings))


publish(__all__, globals())
