"""Random programs that change a graph in place, read from a `Source`.

A program looks at the graph it finds (in the oracle's canonical order) and reads its next choices
from the bytes, so the same bytes do the same thing to equal graphs, eagerly or under a transform.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp

import treadle as nnx
from tests.reference.kinds import TREADLE
from tests.reference.model import walk

from . import graphs
from .outsiders import Shed

if TYPE_CHECKING:
    from collections.abc import Callable

    from .source import Source


class View:
    """The graph as a program sees it at one moment."""

    def __init__(self, root: Any, source: Source, palette: graphs.Palette) -> None:
        self.source = source
        self.palette = palette
        self.refs = walk(root, TREADLE).refs
        self.variables = [r for r in self.refs if TREADLE.is_variable(r)]
        self.nodes = [r for r in self.refs if not TREADLE.is_variable(r)]
        self.results: list[Any] = []

    def variable(self) -> Any:
        """Some Variable of the graph."""
        return self.source.pick(self.variables)

    def node(self) -> Any:
        """Some node of the graph."""
        return self.source.pick(self.nodes)

    def place(self, node: Any) -> Any:
        """Some key of a node, existing or new; None if it has none to offer."""
        if isinstance(node, nnx.List):
            return self.source.below(len(node)) if len(node) else None
        return self.source.pick(graphs.NAMES)

    def existing(self) -> tuple[Any, Any] | None:
        """A node and a key it has."""
        node = self.node()
        keys = sorted(key for key, _ in children(node))
        return (node, self.source.pick(keys)) if keys else None


def children(node: Any) -> list[tuple[Any, Any]]:
    """Keys and values of any node."""
    kind = TREADLE.node_kind(node)
    assert kind is not None
    return list(kind.children(node))


def _put(view: View, child: Any) -> None:
    node = view.node()
    key = view.place(node)
    if key is None:
        node.append(child)
    else:
        graphs.set_item(node, key, child)


def compute(view: View) -> None:
    """Give a Variable a new value computed from the old one."""
    variable = view.variable()
    variable.value = jnp.asarray(variable.value) * 2


def exchange_values(view: View) -> None:
    """Swap two Variables' values."""
    a, b = view.variable(), view.variable()
    a.value, b.value = b.value, a.value


def copy_value(view: View) -> None:
    """Let two Variables hold one array."""
    view.variable().value = view.variable().value


def replace_value(view: View) -> None:
    """Give a Variable an array of another shape and dtype."""
    view.variable().value = view.source.pick(graphs.ARRAYS)


def combine(view: View) -> None:
    """Let one Variable depend on another."""
    a, b = view.variable(), view.variable()
    a.value = jnp.sum(jnp.asarray(b.value)).astype(jnp.float32) + 1


def set_static(view: View) -> None:
    """Set a static attribute."""
    _put(view, view.source.pick(graphs.STATICS)())


def set_array(view: View) -> None:
    """Set a bare array."""
    _put(view, view.source.pick(graphs.ARRAYS))


def add_variable(view: View) -> None:
    """Attach a new Variable."""
    _put(view, graphs.new_variable(view.source, view.palette))


def add_node(view: View) -> None:
    """Attach a new node that holds a new Variable and an old object."""
    node = graphs.Block()
    node.fresh = nnx.Param(jnp.asarray(1.0))
    node.old = view.source.pick(view.refs)
    _put(view, node)


def tie(view: View) -> None:
    """Let a node hold an object that is elsewhere in the graph."""
    _put(view, view.source.pick(view.refs))


def untie(view: View) -> None:
    """Replace a child that is a Variable by a copy of it."""
    place = view.existing()
    if place is None:
        return
    child = dict(children(place[0]))[place[1]]
    if TREADLE.is_variable(child):
        copy = type(child)(child.value, **dict(TREADLE.metadata(child)))
        graphs.set_item(*place, copy)


def remove(view: View) -> None:
    """Delete a child."""
    place = view.existing()
    if place is not None:
        graphs.del_item(*place)


def exchange_children(view: View) -> None:
    """Swap what stands at two places."""
    a, b = view.existing(), view.existing()
    if a is None or b is None:
        return
    at_a, at_b = dict(children(a[0]))[a[1]], dict(children(b[0]))[b[1]]
    graphs.set_item(*a, at_b)
    graphs.set_item(*b, at_a)


def append(view: View) -> None:
    """Append to a list of the graph, if there is one."""
    lists = [node for node in view.nodes if isinstance(node, nnx.List)]
    if lists:
        view.source.pick(lists).append(view.source.pick(view.refs))


def set_metadata(view: View) -> None:
    """Change a Variable's metadata."""
    view.variable().tag = view.source.pick(("decay", "other", None))


def set_container(view: View) -> None:
    """Set a pytree that may hold any object of the graph."""
    _put(view, graphs.pytree(view.source, view.refs, random.Random(0), view.palette))


def mark(view: View) -> None:
    """Change which attributes of a node are data, where the node keeps books about that."""
    node = view.node()
    if isinstance(node, Shed):
        node.mark(view.source.pick(((), graphs.NAMES, ("a", "b", "0"))))


def return_value(view: View) -> None:
    """Return a Variable's value."""
    view.results.append(jnp.asarray(view.variable().value))


def return_object(view: View) -> None:
    """Return a node or Variable of the graph."""
    view.results.append(view.source.pick(view.refs))


NEEDS_VARIABLE: tuple[Callable[[View], None], ...] = (
    compute,
    exchange_values,
    copy_value,
    replace_value,
    combine,
    set_metadata,
    return_value,
)
NEEDS_NODE: tuple[Callable[[View], None], ...] = (
    set_static,
    set_array,
    add_variable,
    add_node,
    tie,
    untie,
    remove,
    exchange_children,
    append,
    set_container,
)


def run(
    root: Any, source: Source, palette: graphs.Palette = graphs.OWN, steps: int = 6
) -> list[Any]:
    """Run a program on a graph in place; gives what the program returns."""
    results: list[Any] = []
    for _ in range(steps):
        if source.dry:
            break
        view = View(root, source, palette)
        moves = list(NEEDS_VARIABLE) if view.variables else []
        moves += NEEDS_NODE if view.nodes else ()
        moves += [mark] if view.nodes and palette is graphs.MIXED else ()
        moves += [return_object] if view.refs else ()
        if not moves:
            break
        source.pick(moves)(view)
        results += view.results
    return results
