"""Random object graphs, built from a `Source`.

The same bytes always build the same graph, so calling `build` twice gives *twins*: equal graphs
without a common node or Variable.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import random
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import treadle as nnx
from tests.reference.kinds import TREADLE, teach
from tests.reference.model import NodeKind

from .outsiders import Folio, Ledger, Rack, Shed, Tank, Vat

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from .source import Source


class Block(nnx.Module):
    """A module without behaviour."""


class Other(nnx.Module):
    """A second module type, so that types matter."""


class Scale(nnx.Param):
    """A Variable type below `Param`."""


class Box:
    """A user's own node type: children by name, and a label that belongs to the structure."""

    __slots__ = ("__weakref__", "items", "label")

    def __init__(self, label: Hashable = None) -> None:
        self.items: dict[str, Any] = {}
        self.label = label


nnx.register_graph_node_type(
    Box,
    flatten=lambda box: (list(box.items.items()), box.label),
    create=lambda label: Box(label),
    set_key=lambda box, key, value: box.items.__setitem__(key, value),
    pop_key=lambda box, key: box.items.pop(key),
)


def _fill_box(box: Box, children: list[tuple[Hashable, Any]]) -> None:
    box.items = dict(children)  # type: ignore[arg-type]


teach(
    Box,
    NodeKind(
        lambda box: box.items.items(), lambda box: box.label, lambda _, label: Box(label), _fill_box
    ),
)


class Pair(NamedTuple):
    """A namedtuple pytree."""

    left: Any
    right: Any


@functools.partial(jax.tree_util.register_dataclass, data_fields=["x", "y"], meta_fields=["unit"])
@dataclasses.dataclass
class Point:
    """A dataclass pytree with one field that is structure."""

    x: Any
    y: Any
    unit: str = "m"


class Mode(enum.Enum):
    """An enumeration as a static."""

    FAST = 1
    SLOW = 2


@dataclasses.dataclass(frozen=True)
class Config:
    """A static with equality of its own."""

    width: int
    name: str = "config"


def halve(x: Any) -> Any:
    """A function as a static."""
    return x / 2


NAMES = ("a", "b", "c", "kernel", "_private", "z9", "B", "é")
# Names in nodes whose numbered attributes are indices.
NUMBERED = {"z9": "0", "B": "2", "é": "10"}
SHAPES = ((), (2,), (1,), (2, 2), (0,), (3,))
ARRAYS = tuple(
    jnp.full(SHAPES[i % len(SHAPES)], i, (jnp.float32, jnp.int32, jnp.bfloat16)[i % 3])
    for i in range(24)
)
NUMPY = tuple(np.full(SHAPES[i % len(SHAPES)], 100 + i, np.float32) for i in range(6))

# Each call gives an equal value, and where the type allows it not the same object.
STATICS: tuple[Callable[[], Any], ...] = (
    lambda: None,
    lambda: int("7000"),
    lambda: float("2.5"),
    lambda: "".join(["re", "lu"]),
    lambda: True,
    lambda: Config(int("3000")),
    lambda: Mode.SLOW,
    lambda: halve,
    lambda: lambda x: x + 1,
    lambda: functools.partial(jnp.sum, axis=0),
    lambda: frozenset({"a", "b"}),
    lambda: jnp.float32,
    lambda: np.dtype("int8"),
    lambda: b"".join([b"by", b"tes"]),
    lambda: complex(1, 2),
    lambda: Block,
)
METADATA: tuple[Callable[[], dict[str, Any]], ...] = (
    dict,
    lambda: {"tag": "".join(["de", "cay"])},
    lambda: {"sharding": ("data", None), "tag": "frozen"},
    lambda: {"note": Config(1)},
)


def new_box(source: Source) -> Box:
    """A registered node with some static part."""
    return Box(source.pick(("plain", None, ("t", 1))))


def new_shed(source: Source) -> Shed:
    """A node of another library, with some of its attributes marked as data."""
    return source.pick((Shed, Rack))(source.pick((None, (), ("a", "kernel"), NAMES)))


@dataclasses.dataclass(frozen=True)
class Palette:
    """What graphs are made of."""

    variables: tuple[type, ...]
    nodes: tuple[Callable[[Source], Any], ...]
    pytrees: tuple[str, ...]


OWN = Palette(
    (nnx.Param, nnx.BatchStat, Scale, nnx.Variable),
    (lambda _: Block(), lambda _: nnx.Dict(), lambda _: nnx.List(), lambda _: Other(), new_box),
    ("list", "tuple", "dict", "pair", "point"),
)
# With objects of a library that is described to treadle.
MIXED = Palette(
    (nnx.Param, Tank, nnx.BatchStat, Vat),
    (new_shed, lambda _: Block(), new_shed, lambda _: nnx.List(), new_box),
    ("list", "ledger", "dict", "folio", "pair", "point"),
)

ARGUMENTS = (nnx.Object, nnx.Variable, Box, Shed, Tank, jax.Array, np.ndarray, int, float, complex)


@dataclasses.dataclass
class Graph:
    """A built graph, with its nodes and Variables in the order in which they were made."""

    root: Any
    objects: list[Any]


def new_variable(source: Source, palette: Palette = OWN) -> Any:
    """A Variable of a random type, value and metadata."""
    kind = source.pick(palette.variables)
    value = source.weighted(
        [(12, ARRAYS), (2, NUMPY), (1, (1.5, 2, True))]  # Python numbers are leaves in Variables
    )
    return kind(source.pick(value), **source.pick(METADATA)())


def new_node(source: Source, palette: Palette = OWN) -> Any:
    """A node of a random type, without children."""
    return source.pick(palette.nodes)(source)


def build(source: Source, *, shuffle: int = 0, palette: Palette = OWN) -> Graph:
    """A random graph; `shuffle` changes the order of insertion and nothing else."""
    order = random.Random(shuffle)
    first = source.weighted([(12, new_node), (1, new_variable)])(source, palette)
    objects = [first]
    children: list[list[tuple[str, Any]]] = [[]]
    for _ in range(source.pick((4, 2, 7, 1, 11, 0))):
        new = source.weighted([(3, new_variable), (3, new_node)])(source, palette)
        nodes = [i for i, known in enumerate(objects) if not TREADLE.is_variable(known)]
        objects.append(new)
        children.append([])
        if nodes:  # most objects are reached through one that was made earlier
            siblings = children[source.pick(nodes)]
            free = [name for name in NAMES if name not in dict(siblings)]
            siblings.append((source.pick(free or NAMES), new))
    for node, known in zip(objects, children, strict=True):
        if not TREADLE.is_variable(node):
            extra = source.weighted([(3, 0), (3, 1), (2, 2), (1, 3)])
            more = [
                (source.pick(NAMES), value(source, objects, order, palette)) for _ in range(extra)
            ]
            fill(node, known + more, order)
    root = source.weighted(
        [(4, lambda: first), (1, lambda: pytree(source, objects, order, palette))]
    )()
    return Graph(root, objects)


def fill(node: Any, items: list[tuple[str, Any]], order: random.Random) -> None:
    """Give a node its children; a list takes them in order and without their names."""
    if isinstance(node, nnx.List):
        node.extend(child for _, child in items)
    else:
        for key, child in _ordered(dict(items), order):
            set_item(node, key, child)


def build_argument(source: Source, palette: Palette = OWN) -> Graph:
    """A random graph that may be an argument of a transform.

    Outside any node a transform takes what JAX takes; where the root holds other statics than
    numbers, it is put into a node.
    """
    graph = build(source, palette=palette)
    leaves = jax.tree.leaves(graph.root, is_leaf=lambda x: type(x) is Box)
    if not all(isinstance(leaf, ARGUMENTS) for leaf in leaves):
        graph.root = nnx.Dict(root=graph.root)
        graph.objects.append(graph.root)
    return graph


def _ordered(items: dict[str, Any], order: random.Random) -> list[tuple[str, Any]]:
    pairs = list(items.items())
    order.shuffle(pairs)
    return pairs


def value(
    source: Source,
    objects: list[Any],
    order: random.Random,
    palette: Palette = OWN,
    depth: int = 0,
) -> Any:
    """What an attribute may hold; references may point anywhere, so cycles and sharing arise."""
    kinds: list[tuple[int, Callable[[], Any]]] = [
        (6, lambda: source.pick(objects)),
        (2, lambda: source.pick(STATICS)()),
        (1, lambda: source.pick(ARRAYS)),
        (1, lambda: source.pick(NUMPY)),
    ]
    if depth < 2:
        kinds.append((3, lambda: pytree(source, objects, order, palette, depth + 1)))
    return source.weighted(kinds)()


def pytree(
    source: Source,
    objects: list[Any],
    order: random.Random,
    palette: Palette = OWN,
    depth: int = 0,
) -> Any:
    """A plain Python container, or one of the registered ones."""
    kind = source.pick(palette.pytrees)
    size = 2 if kind in ("pair", "point") else source.below(4)
    children = [value(source, objects, order, palette, depth + 1) for _ in range(size)]
    match kind:
        case "list":
            return children
        case "tuple":
            return tuple(children)
        case "dict":
            return dict(_ordered({source.pick(NAMES): c for c in children}, order))
        case "ledger" | "folio":
            entries = dict(_ordered({source.pick(NAMES): c for c in children}, order))
            return Ledger(entries) if kind == "ledger" else Folio(entries)
        case "pair":
            return Pair(*children)
    return Point(*children, unit=source.pick(("m", "km")))


# --- one way to write to nodes of every kind -----------------------------------------------------


def set_item(node: Any, key: Any, child: Any) -> None:
    """Set a child of any node."""
    is_array = isinstance(child, jax.Array | np.ndarray)
    # An array in the place of a Variable is refused, whose value may have been meant: delete it first.
    if isinstance(node, Box):
        node.items[key] = child
    elif isinstance(node, nnx.List):
        node[key] = child
    elif isinstance(node, nnx.Dict):
        if is_array and isinstance(node.get(key), nnx.Variable):
            del node[key]
        node[key] = child
    else:
        name = NUMBERED.get(key, key) if isinstance(node, Rack) else key
        if is_array and isinstance(getattr(node, name, None), nnx.Variable):
            delattr(node, name)
        setattr(node, name, child)


def del_item(node: Any, key: Any) -> None:
    """Remove a child of any node."""
    if isinstance(node, Box):
        del node.items[key]
    elif isinstance(node, nnx.List | nnx.Dict):
        del node[key]
    else:
        delattr(node, key)
