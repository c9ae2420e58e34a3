"""Split and merge by reference: how to write transforms that change the caller's own objects."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, overload

import jax

from treadle import _bootstrap as _bootstrap
from treadle import _core
from treadle._graph.leaves import build
from treadle._graph.splitting import states_of, walk
from treadle._public import publish
from treadle.errors import GraphError, format_path

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from treadle._core import GraphDef
    from treadle._graph.filters import Filter
    from treadle._graph.state import State

__all__ = ["GraphUpdates", "UpdateContext"]

N = TypeVar("N")


class GraphUpdates:
    """What happened to objects inside a JAX transform: a pytree that can be returned from it.

    Its children are the new leaves; what else changed (attributes, new and removed nodes, the
    function's result) travels along as static data. Made by `UpdateContext.collect`.
    """

    __slots__ = ("effects", "leaves")

    def __init__(self, effects: _core.Effects, leaves: Sequence[Any]) -> None:
        self.effects = effects
        self.leaves = tuple(leaves)

    def __repr__(self) -> str:
        return f"GraphUpdates({len(self.leaves)} leaves)"


jax.tree_util.register_pytree_node(
    GraphUpdates, lambda updates: (updates.leaves, updates.effects), GraphUpdates
)


class _Side(NamedTuple):
    graphdef: GraphDef
    leaves: Sequence[Any]
    refs: list[Any]


def _another_structure(graphdef: GraphDef, collected: GraphDef) -> str:
    message = "These updates were collected from objects of another structure than were split here"
    difference = graphdef.difference(collected)
    if difference is not None:
        path, here, there = difference
        message += f": {format_path(path)} is {here} here and {there} there"
    return f"{message}. Collect them from what `split` of this context gave."


class UpdateContext:
    """Carries objects through a JAX transform by reference, with all that is done to them inside.

    Outside the transform, `split` takes the caller's objects apart and `update` changes them
    afterwards. Inside, `merge` builds objects over the tracers and `collect` gathers what was done
    to them. Identity is kept: an object that went in is the same object afterwards, new objects
    appear where they were put, removed attributes are gone. Inside and outside need not share a
    context, so the inner function can live at module level and keep its compiled code.

    Leaving the ``with`` block forgets all objects.

    >>> import functools, jax
    >>> import treadle as nnx
    >>> @functools.partial(jax.jit, static_argnums=0)
    ... def double(graphdef, state):
    ...     with nnx.UpdateContext() as inner:
    ...         model = inner.merge(graphdef, state)
    ...         model.weight.value *= 2
    ...         model.me = model
    ...         return inner.collect(model.weight.value.sum())
    >>> model = nnx.Dict(weight=nnx.Param(jax.numpy.ones(2)))
    >>> with nnx.UpdateContext() as outer:
    ...     total = outer.update(double(*outer.split(model)))
    >>> float(total), model.weight.value, model.me is model
    (4.0, Array([2., 2.], dtype=float32), True)
    """

    def __init__(self) -> None:
        self._outer: _Side | None = None
        self._inner: _Side | None = None

    def __enter__(self) -> UpdateContext:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._outer = self._inner = None

    @overload
    def split(self, node: N, filter: Filter = ..., /) -> tuple[GraphDef[N], State]: ...
    @overload
    def split(self, node: N, a: Filter, b: Filter, /) -> tuple[GraphDef[N], State, State]: ...
    @overload
    def split(
        self, node: N, a: Filter, b: Filter, c: Filter, /
    ) -> tuple[GraphDef[N], State, State, State]: ...
    @overload
    def split(self, node: N, /, *filters: Filter) -> tuple[GraphDef[N], *tuple[State, ...]]: ...
    def split(self, node: Any, /, *filters: Filter) -> tuple[Any, ...]:
        """Outside: as `treadle.split`, and remember the objects for `update`.

        Raises:
            FilterError, GraphError: as for `treadle.split`.

        >>> import treadle as nnx
        >>> with nnx.UpdateContext() as ctx:
        ...     graphdef, state = ctx.split(nnx.Dict(a=nnx.Param(1.0)))
        >>> list(state)
        ['a']
        """
        flat = walk(node)
        states = states_of(flat, filters)
        self._outer = _Side(flat.graphdef, flat.leaves, flat.refs)
        return (flat.graphdef, *states)

    def merge(self, graphdef: GraphDef[N], state: Any, /, *states: Any) -> N:
        """Inside: as `treadle.merge`, and remember the objects for `collect`.

        Raises:
            StateError, LeafTypeError: as for `treadle.merge`.

        >>> import treadle as nnx
        >>> with nnx.UpdateContext() as ctx:
        ...     ctx.merge(*ctx.split(nnx.Dict(a=nnx.Param(1.0)))).a.value
        1.0
        """
        root, refs, leaves = build(graphdef, (state, *states))
        self._inner = _Side(graphdef, leaves, refs)
        return root

    def collect(self, result: Any = None, *, only_changed: bool = True) -> GraphUpdates:
        """Inside: gather what was done to the merged objects.

        Args:
            result: what `update` shall return, a pytree of arrays and graph objects; objects that
                went in are returned as the caller's own.
            only_changed: leave out leaves that are the very values that went in. Transforms that
                need the same leaves every time (a loop's carry, say) pass False.

        Raises:
            GraphError: nothing was merged in this context.

        >>> import treadle as nnx
        >>> with nnx.UpdateContext() as ctx:
        ...     model = ctx.merge(*ctx.split(nnx.Dict(a=nnx.Param(1.0))))
        ...     ctx.collect()
        GraphUpdates(0 leaves)
        """
        if self._inner is None:
            raise GraphError("Nothing to collect: call merge on this context first.")
        graphdef, leaves, refs = self._inner
        effects, out = _core.trace_effects(refs, graphdef, leaves, result, only_changed)
        return GraphUpdates(effects, out)

    def update(self, updates: GraphUpdates) -> Any:
        """Outside: do to the caller's objects what was done inside. All of it happens, or nothing.

        Returns:
            The result given to `collect`; an object that went in is the caller's own.

        Raises:
            GraphError: nothing was split in this context, or `updates` are of objects of another
                structure. Nothing is changed then.
            TraceContextError: an object belongs to another trace level.

        >>> import treadle as nnx
        >>> model = nnx.Dict(a=nnx.Param(1.0))
        >>> with nnx.UpdateContext() as ctx:
        ...     inner = ctx.merge(*ctx.split(model))
        ...     inner.b = inner.a
        ...     ctx.update(ctx.collect(inner)) is model
        True
        >>> model.b is model.a
        True
        """
        if self._outer is None:
            raise GraphError("Nothing to update: call split on this context first.")
        graphdef, leaves, refs = self._outer
        if not isinstance(getattr(updates, "effects", None), _core.Effects):
            raise GraphError(f"update takes what `collect` returned, got {updates!r}.")
        collected = updates.effects.before
        if collected is not graphdef and collected != graphdef:
            raise GraphError(_another_structure(graphdef, collected))
        return _core.apply_effects(updates.effects, refs, leaves, list(updates.leaves))


publish(__all__, globals())
