"""A graph in which each call from the engine into user code can be made to raise."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp

import treadle as nnx
from tests.reference.kinds import teach
from tests.reference.model import NodeKind


class Fault(Exception):  # noqa: N818 - it is what the reader knows it by
    """The injected failure."""


class Fuse:
    """Counts calls into user code, and raises in the one it is set for."""

    def __init__(self) -> None:
        self.left = 0
        self.error: type[BaseException] = Fault
        self.calls = 0
        self.where = ""

    def tick(self, where: str) -> None:
        """To be called wherever user code runs."""
        self.calls += 1
        if self.left:
            self.left -= 1
            if not self.left:
                self.where = where
                raise self.error(where)

    @contextmanager
    def blow_at(self, call: int, error: type[BaseException] = Fault) -> Iterator[None]:
        """Raise in the given call, counted from 1, and in no other."""
        self.left, self.error, self.where = call, error, ""
        try:
            yield
        finally:
            self.left = 0


fuse = Fuse()


class Picky:
    """A static whose equality and hash are user code."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        fuse.tick("__eq__")
        return isinstance(other, Picky) and self.value == other.value

    def __hash__(self) -> int:
        fuse.tick("__hash__")
        return hash(self.value)


class Wrapper:
    """A pytree whose flatten and unflatten are user code."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner


def _flatten_wrapper(wrapper: Wrapper) -> tuple[tuple[Any], None]:
    fuse.tick("pytree flatten")
    return (wrapper.inner,), None


def _unflatten_wrapper(_: None, children: tuple[Any, ...]) -> Wrapper:
    fuse.tick("pytree unflatten")
    return Wrapper(children[0])


jax.tree_util.register_pytree_node(Wrapper, _flatten_wrapper, _unflatten_wrapper)


class Shelf:
    """A user's node type whose four functions are user code."""

    def __init__(self, label: Hashable = None) -> None:
        self.items: dict[str, Any] = {}
        self.label = label


def _flatten_shelf(shelf: Shelf) -> tuple[list[tuple[str, Any]], Hashable]:
    fuse.tick("node flatten")
    return list(shelf.items.items()), shelf.label


def _create_shelf(label: Hashable) -> Shelf:
    fuse.tick("node create")
    return Shelf(label)


def _set_shelf(shelf: Shelf, key: str, value: Any) -> None:
    fuse.tick("node set_key")
    shelf.items[key] = value


def _pop_shelf(shelf: Shelf, key: str) -> Any:
    fuse.tick("node pop_key")
    return shelf.items.pop(key)


nnx.register_graph_node_type(
    Shelf,
    flatten=_flatten_shelf,
    create=_create_shelf,
    set_key=_set_shelf,
    pop_key=_pop_shelf,
)


def _fill_shelf(shelf: Shelf, children: list[tuple[Hashable, Any]]) -> None:
    shelf.items = dict(children)  # type: ignore[arg-type]


teach(
    Shelf,
    NodeKind(
        lambda shelf: shelf.items.items(),
        lambda shelf: shelf.label,
        lambda _, label: Shelf(label),
        _fill_shelf,
    ),
)


class Hooked(nnx.Param):
    """A Variable whose hooks are user code."""

    def on_get_value(self, value: Any) -> Any:
        fuse.tick("get hook")
        return value

    def on_set_value(self, value: Any) -> Any:
        fuse.tick("set hook")
        return value


class Model(nnx.Module):
    """One of everything."""

    def __init__(self) -> None:
        self.early = nnx.Param(jnp.ones(1))
        self.weight = nnx.Param(jnp.arange(2.0))
        self.hooked = Hooked(jnp.ones(2))
        self.stat = nnx.BatchStat(jnp.zeros(2))
        self.tied = self.weight
        self.config = Picky(3)
        self.shelf = Shelf("top")
        self.shelf.items["inner"] = nnx.Param(jnp.full(2, 3.0))
        self.shelf.items["gone"] = nnx.Variable(jnp.full(2, 4.0))
        self.wrapped = Wrapper(nnx.Param(jnp.full(2, 5.0)))
        self.layers = nnx.List(
            [nnx.Dict(a=nnx.Param(jnp.ones(2))), nnx.Dict(b=nnx.Param(jnp.ones(2)))]
        )
        self.counter = 0
        self.me = self


def change(model: Model, x: Any) -> Any:
    """Values, statics and structure change; user code runs between the changes."""
    fuse.tick("function begins")
    model.stat.value = model.stat.value + x
    model.hooked.value = model.hooked.value * 2
    model.counter += 1
    fuse.tick("function, values changed")
    model.shelf.items["new"] = nnx.Param(x + model.weight.value)
    model.shelf.items.pop("gone", None)
    vars(model).pop("early", None)
    model.layers[0], model.layers[1] = model.layers[1], model.layers[0]
    model.layers.append(nnx.Dict(c=nnx.Param(x)))
    model.config = Picky(model.config.value + 1)
    model.wrapped = Wrapper(model.stat)
    fuse.tick("function, structure changed")
    return jnp.sum(model.weight.value * x), model.layers[0]


def predicate(path: tuple[Any, ...], value: Any) -> bool:
    """A filter that is user code."""
    fuse.tick("filter")
    return "weight" in path


Operation = Callable[[Model], Any]
