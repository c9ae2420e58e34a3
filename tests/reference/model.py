"""The semantics of Treadle's graphs, written down once more in plain Python.

This is the oracle of the property tests: it is small, recursive and slow, and shares no code with
the engine. It knows objects only through a `Kinds` table (see `kinds.py`), which says what is a
node, what is a Variable, and how their children are read and written.

Words are those of the architecture page: a *node* and a *Variable* have identity, a *pytree* is
walked by value, a *leaf* is an array or a Variable's value, anything else is *static*.
"""

from __future__ import annotations

import dataclasses
import functools
import types
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

Path = tuple[Hashable, ...]


# --- structure: what is left of a graph when its arrays and identities are taken out -------------


@dataclasses.dataclass(frozen=True)
class Static:
    """A value that belongs to the structure."""

    value: Any


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A bare array; `index` is its place in the list of leaves."""

    index: int


@dataclasses.dataclass(frozen=True)
class Ref:
    """A node or Variable that was met before."""

    ref: int


@dataclasses.dataclass(frozen=True)
class Cell:
    """First meeting with a Variable."""

    ref: int
    type: type
    metadata: tuple[tuple[str, Static], ...]
    index: int


@dataclasses.dataclass(frozen=True)
class Node:
    """First meeting with a node."""

    ref: int
    type: type
    meta: Static
    items: tuple[tuple[Hashable, Expr], ...]
    order: tuple[Hashable, ...]
    """The keys as somebody put them there."""


@dataclasses.dataclass(frozen=True)
class Tree:
    """A pytree, one level of it."""

    treedef: Any
    items: tuple[tuple[Hashable, Expr], ...]
    order: tuple[Hashable, ...] = ()
    """Of dicts and the like in nodes, as for nodes."""


Expr = Static | Leaf | Ref | Cell | Node | Tree


@dataclasses.dataclass
class Walk:
    """What a walk finds."""

    root: Expr
    leaves: list[Any] = dataclasses.field(default_factory=list)
    leaf_paths: list[Path] = dataclasses.field(default_factory=list)
    leaf_refs: list[int] = dataclasses.field(default_factory=list)
    refs: list[Any] = dataclasses.field(default_factory=list)
    ref_paths: list[Path] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class NodeKind:
    """How nodes of one type are read and written.

    `children` gives keys and values in their order, `meta` the static remainder, `create` an empty
    node, `assign` makes the given ones its only children. Numbers below a child that `is_data` are
    leaves, `assign_meta` is for nodes whose static remainder may change, and `shown` gives a key as
    paths have it.
    """

    children: Callable[[Any], Iterable[tuple[Hashable, Any]]]
    meta: Callable[[Any], Hashable]
    create: Callable[[type, Hashable], Any]
    assign: Callable[[Any, list[tuple[Hashable, Any]]], None]
    is_data: Callable[[Any, Hashable], bool] = lambda _node, _key: False
    assign_meta: Callable[[Any, Hashable], None] = lambda _node, _meta: None
    shown: Callable[[Hashable], Hashable] = lambda key: key


@dataclasses.dataclass(frozen=True)
class VariableKind:
    """How Variables of one type are read, made and written."""

    metadata: Callable[[Any], Mapping[str, Any]]
    value: Callable[[Any], Any]
    create: Callable[[type, Any, Mapping[str, Any]], Any]
    assign: Callable[[Any, Any, Mapping[str, Any]], None]


@dataclasses.dataclass(frozen=True)
class Kinds:
    """What the oracle is told about the library under test."""

    node_kind: Callable[[Any], NodeKind | None]
    is_variable: Callable[[Any], bool]
    metadata: Callable[[Any], Mapping[str, Any]]
    value: Callable[[Any], Any]
    create_variable: Callable[[type, Any, Mapping[str, Any]], Any]
    assign_variable: Callable[[Any, Any, Mapping[str, Any]], None]
    entries: Callable[[Any], dict[Any, Any] | None] = lambda value: (
        value if type(value) is dict else None
    )
    """The dict inside a mapping that is walked by value; None for anything else."""


# --- statics -------------------------------------------------------------------------------------


def same_static(a: Any, b: Any) -> bool:
    """Statics are equal if they are the same object, or equal values of one type.

    Functions are equal if they are the same code over equal values, partials if their parts are equal.
    """
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    match a:
        case types.FunctionType():
            parts = ("__code__", "__defaults__", "__kwdefaults__")
            return all(same_static(getattr(a, p), getattr(b, p)) for p in parts) and same_static(
                _closure(a), _closure(b)
            )
        case functools.partial():
            return all(
                same_static(getattr(a, p), getattr(b, p)) for p in ("func", "args", "keywords")
            )
        case tuple():
            return len(a) == len(b) and all(map(same_static, a, b))
        case dict():
            return a.keys() == b.keys() and all(same_static(a[k], b[k]) for k in a)
        case float() | complex():
            return repr(a) == repr(b)  # tells 0.0 from -0.0, and takes NaN for itself
    return bool(a == b)


def _closure(function: types.FunctionType) -> tuple[Any, ...]:
    return tuple(cell.cell_contents for cell in function.__closure__ or ())


def first_difference(a: Expr, b: Expr) -> Path | None:
    """Path of the first place, in canonical order, where two structures part, or None."""
    return next(differences(a, b), None)


def differences(a: Expr, b: Expr, path: Path = ()) -> Iterator[Path]:
    """Paths of all places, in canonical order, where two structures part."""
    if type(a) is not type(b):
        yield path
        return
    match a:
        case Static(value):
            if not same_static(value, b.value):
                yield path
        case Ref(ref):
            if ref != b.ref:
                yield path
        case Cell():
            equal = a.type is b.type and len(a.metadata) == len(b.metadata)
            equal = equal and all(
                k == m and same_static(v.value, w.value)
                for (k, v), (m, w) in zip(a.metadata, b.metadata, strict=True)
            )
            if not equal:
                yield path
        case Node():
            if a.type is not b.type or not same_static(a.meta.value, b.meta.value):
                yield path
            else:
                yield from _order_difference(a, b, path)
                yield from _item_differences(a.items, b.items, path)
        case Tree():
            # Of the same kind but with other keys or another length: what is missing says it better.
            other_kind = a.treedef.node_data()[0] is not b.treedef.node_data()[0]
            if other_kind or (a.treedef != b.treedef and len(a.items) == len(b.items)):
                yield path
            if not other_kind:
                yield from _order_difference(a, b, path)
                yield from _item_differences(a.items, b.items, path)


def _order_difference(a: Node | Tree, b: Node | Tree, path: Path) -> Iterator[Path]:
    # Of other keys it is these that differ.
    if a.order != b.order and set(a.order) == set(b.order):
        yield path


def _item_differences(a: Any, b: Any, path: Path) -> Iterator[Path]:
    ours, theirs = dict(a), dict(b)
    for key in canonical(set(ours) | set(theirs)):
        if key in ours and key in theirs:
            yield from differences(ours[key], theirs[key], (*path, key))
        else:
            yield (*path, key)


# --- walk ----------------------------------------------------------------------------------------


def canonical(keys: Iterable[Hashable]) -> list[Any]:
    """Keys in canonical order."""
    return sorted(keys)  # type: ignore[type-var]


def is_array(value: Any) -> bool:
    """Arrays are leaves wherever they stand."""
    return isinstance(value, jax.Array | np.ndarray | np.generic)


def one_level(value: Any) -> tuple[list[tuple[Hashable, Any]], Any] | None:
    """Keyed children and structure of a pytree, one level deep; None if `value` is no pytree."""
    if value is None:
        return None
    items, treedef = jax.tree_util.tree_flatten_with_path(value, is_leaf=lambda x: x is not value)
    if len(items) == 1 and items[0][1] is value:
        return None
    return [(key_name(path[0]), child) for path, child in items], treedef


def key_name(entry: Any) -> Hashable:
    """The bare key in one of JAX's key path entries."""
    for attribute in ("key", "idx", "name"):
        if hasattr(entry, attribute):
            return getattr(entry, attribute)
    raise AssertionError(entry)


def walk(root: Any, kinds: Kinds) -> Walk:
    """Walk a graph in canonical order."""
    result = Walk(Static(None))
    seen: dict[int, int] = {}

    def meet(value: Any, path: Path) -> int:
        ref = seen[id(value)] = len(result.refs)
        result.refs.append(value)
        result.ref_paths.append(path)
        return ref

    def leaf(value: Any, path: Path, ref: int) -> int:
        result.leaves.append(value)
        result.leaf_paths.append(path)
        result.leaf_refs.append(ref)
        return len(result.leaves) - 1

    def visit(value: Any, path: Path, data: bool = False, inside: bool = False) -> Expr:
        if id(value) in seen:
            return Ref(seen[id(value)])
        if kinds.is_variable(value):
            ref = meet(value, path)
            metadata = tuple((k, Static(v)) for k, v in sorted(kinds.metadata(value).items()))
            return Cell(ref, type(value), metadata, leaf(kinds.value(value), path, ref))
        kind = kinds.node_kind(value)
        if kind is not None:
            ref = meet(value, path)
            children = dict(kind.children(value))
            items = tuple(
                (
                    key,
                    visit(children[key], (*path, kind.shown(key)), kind.is_data(value, key), True),
                )
                for key in canonical(children)
            )
            return Node(ref, type(value), Static(kind.meta(value)), items, tuple(children))
        if is_array(value) or (data and type(value) in (bool, int, float, complex)):
            return Leaf(leaf(value, path, -1))
        level = one_level(value)
        if level is None:
            return Static(value)
        items = tuple((k, visit(child, (*path, k), data, inside)) for k, child in level[0])
        return Tree(level[1], items, tuple(kinds.entries(value) or ()) if inside else ())

    result.root = visit(root, ())
    return result


# --- rebuild and scatter -------------------------------------------------------------------------


def rebuild(structure: Expr, leaves: Sequence[Any], kinds: Kinds) -> tuple[Any, dict[int, Any]]:
    """Fresh objects for a structure: the root, and the objects by reference id."""
    return realize(structure, leaves, {}, kinds)


def realize(
    structure: Expr, leaves: Sequence[Any], existing: Mapping[int, Any], kinds: Kinds
) -> tuple[Any, dict[int, Any]]:
    """Objects for a structure; `existing` gives, by reference id, objects to reuse."""
    made: dict[int, Any] = {}

    def obtain(expr: Expr) -> None:
        """First pass: every reference gets its object, still without content."""
        match expr:
            case Cell(ref, kind, metadata, index):
                plain = {k: v.value for k, v in metadata}
                made[ref] = existing.get(ref)
                if made[ref] is None:
                    made[ref] = kinds.create_variable(kind, leaves[index], plain)
                else:
                    kinds.assign_variable(made[ref], leaves[index], plain)
            case Node(ref, cls, meta, items, _):
                made[ref] = existing.get(ref)
                if made[ref] is None:
                    blank = cls.__new__(cls)
                    kind = kinds.node_kind(blank)
                    assert kind is not None
                    made[ref] = kind.create(cls, meta.value)
                for _, child in items:
                    obtain(child)
            case Tree(_, items, _):
                for _, child in items:
                    obtain(child)

    def fill(expr: Expr) -> Any:
        """Second pass: content."""
        match expr:
            case Static(value):
                return value
            case Leaf(index):
                return leaves[index]
            case Ref(ref) | Cell(ref):
                return made[ref]
            case Node(ref, _, meta, items, order):
                filled = {key: fill(child) for key, child in items}
                children = [(key, filled[key]) for key in order]
                kind = kinds.node_kind(made[ref])
                assert kind is not None
                kind.assign(made[ref], children)
                kind.assign_meta(made[ref], meta.value)
                return made[ref]
            case Tree(treedef, items, order):
                tree = jax.tree_util.tree_unflatten(treedef, [fill(child) for _, child in items])
                held = kinds.entries(tree) if order else None
                if held is not None:
                    filled = dict(held)
                    held.clear()
                    held.update((key, filled[key]) for key in order)
                return tree
        raise AssertionError(expr)

    obtain(structure)
    return fill(structure), made


def scatter(after: Walk, inner: Sequence[Any], outer: Sequence[Any], kinds: Kinds) -> Any:
    """Make the outer objects what the inner ones have become, and return the outer root.

    `inner[i]` is the stand-in for `outer[i]`; `after` is a walk of the inner objects when the
    user's function is done. Inner objects that stand for nothing get new outer objects.
    """
    twin = {id(i): o for i, o in zip(inner, outer, strict=True)}
    existing = {ref: twin[id(o)] for ref, o in enumerate(after.refs) if id(o) in twin}
    return realize(after.root, after.leaves, existing, kinds)[0]


def changed_leaves(before: Walk, after: Walk) -> list[int]:
    """Leaves of `after` that hold no array that came in with `before`, by identity."""
    known = {id(leaf) for leaf in before.leaves}
    return [i for i, leaf in enumerate(after.leaves) if id(leaf) not in known]


# --- filters -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Entry:
    """What a filter sees of one leaf."""

    path: Path
    value: Any  # the Variable that owns the leaf, or the bare array
    tag: Any


def matches(description: Any, entry: Entry) -> bool:
    """Whether a filter selects a leaf.

    Filters are described by tuples, so that the model needs none of the library's filter types:
    ``("all",)``, ``("none",)``, ``("type", T)``, ``("tag", t)``, ``("contains", key)``,
    ``("not", f)``, ``("any", f, …)``, ``("every", f, …)``, ``("call", predicate of the path)``.
    """
    head, *rest = description
    match head:
        case "all":
            return True
        case "none":
            return False
        case "type":
            return isinstance(entry.value, rest[0])
        case "tag":
            return entry.tag is not None and entry.tag == rest[0]
        case "contains":
            return rest[0] in entry.path
        case "not":
            return not matches(rest[0], entry)
        case "any":
            return any(matches(f, entry) for f in rest)
        case "every":
            return all(matches(f, entry) for f in rest)
        case "call":
            return rest[0](entry.path)
    raise AssertionError(head)


def partition(descriptions: Sequence[Any], entries: Sequence[Entry]) -> list[int]:
    """For each leaf the first filter that selects it, or -1."""
    return [
        next((i for i, f in enumerate(descriptions) if matches(f, entry)), -1) for entry in entries
    ]


def entries(found: Walk, kinds: Kinds) -> list[Entry]:
    """What filters see of the leaves of a walk."""
    out = []
    for path, ref, leaf in zip(found.leaf_paths, found.leaf_refs, found.leaves, strict=True):
        if ref < 0:
            out.append(Entry(path, leaf, None))
        else:
            variable = found.refs[ref]
            out.append(Entry(path, variable, kinds.metadata(variable).get("tag")))
    return out
