"""Kinds of graph nodes as Python sees them: their children, and registration of users' own."""

from __future__ import annotations

import builtins
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any, NamedTuple, TypeVar

import jax

from treadle import _bootstrap as _bootstrap
from treadle import _core
from treadle._core import ObjectNode, VariableCell
from treadle._objects.adapters import adapt, description_of
from treadle._objects.descriptions import NodeLayout, VariableLayout
from treadle._objects.keys import sorted_keys
from treadle._objects.pytrees import is_registered
from treadle._public import publish
from treadle.errors import NodeTypeError

__all__ = ["register_graph_node_type"]

T = TypeVar("T")
Children = Iterable[tuple[Hashable, Any]]


class NodeFunctions(NamedTuple):
    """How nodes of a type show, make and change their children."""

    flatten: Callable[[Any], tuple[Children, Hashable]]
    create: Callable[[Hashable], Any]
    set_key: Callable[[Any, Hashable, Any], None]
    pop_key: Callable[[Any, Hashable], None]


_registered: dict[type[Any], NodeFunctions] = {}


def _object_children(node: ObjectNode) -> Iterator[tuple[Hashable, Any]]:
    attributes = vars(node)
    transparent = getattr(type(node), "_transparent_", None)
    for name in sorted(attributes):
        if name == transparent:
            yield from _container_children(attributes[name])
        else:
            yield name, attributes[name]


def _container_children(items: Any) -> Iterator[tuple[Hashable, Any]]:
    if isinstance(items, dict):
        for key in sorted_keys(items):
            yield key, items[key]
    else:
        yield from enumerate(items)


def _items_of(node: ObjectNode, key: Hashable) -> Any:
    """The plain container that holds the child `key`."""
    attributes = vars(node)
    transparent = getattr(type(node), "_transparent_", None)
    # An item may have the name of the attribute that holds the items, which is no child itself.
    if transparent is None or (key in attributes and key != transparent):
        return attributes
    return attributes[transparent]


def _set_child(node: ObjectNode, key: Any, value: Any) -> None:
    items = _items_of(node, key)
    if isinstance(items, list):
        items.insert(key, value)
    else:
        items[key] = value


def _pop_child(node: ObjectNode, key: Any) -> None:
    del _items_of(node, key)[key]


_OBJECT = NodeFunctions(
    flatten=lambda node: (_object_children(node), type(node)),
    create=lambda kind: ObjectNode.__new__(kind),  # type: ignore[type-var]
    set_key=_set_child,
    pop_key=_pop_child,
)


def node_functions(node: Any) -> NodeFunctions | NodeLayout:
    """The functions for a node, which must be one."""
    if isinstance(node, ObjectNode):
        return _OBJECT
    description = description_of(type(node))
    return description if isinstance(description, NodeLayout) else _registered[type(node)]


def _children_of(node: Any) -> Children:
    functions = node_functions(node)
    if isinstance(functions, NodeLayout):
        return functions.children(node)
    return functions.flatten(node)[0]


def iter_children(value: Any) -> Iterator[tuple[Hashable, Any]]:
    """Children of a node, or of a pytree that holds something of a graph, in canonical order."""
    if _core.is_variable(value):
        return
    if _core.is_node(value):
        children = _children_of(value)
        if not isinstance(value, ObjectNode):
            by_key = dict(children)
            children = ((key, by_key[key]) for key in sorted_keys(by_key))
        yield from children
    elif is_walked_callable(value):
        yield from _core.callable_parts(value)
    elif holds_graph(value):
        fields = getattr(value, "_fields", None)
        if isinstance(value, tuple) and fields is not None:
            # jaxlib gives every field of a named tuple the first one's key.
            yield from zip(fields, value, strict=True)
            return
        registry = jax.tree_util.default_registry
        pairs, _ = registry.flatten_one_level_with_keys(value)
        for key, child in pairs:
            yield _plain_key(key), child


def is_walked_callable(value: Any) -> bool:
    """True for a bound method, a partial or a transformed function that leads to a node."""
    # Most of what lies in a graph is no callable, which is told fastest.
    return callable(value) and bool(_core.callable_parts(value)) and _core.holds_node(value)


def static_part(node: Any) -> Hashable:
    """What is static in a node besides its children, its type included."""
    functions = node_functions(node)
    if isinstance(functions, NodeLayout):
        return type(node)
    return type(node), functions.flatten(node)[1]


def holds_graph(value: Any) -> bool:
    """True for a pytree, other than an array, that holds a node, a Variable or an array."""
    if _bootstrap.is_array(value) or jax.tree_util.all_leaves([value]):
        return False
    parts = jax.tree_util.tree_leaves(value, is_leaf=_core.is_node)
    return any(_core.is_node(part) or _bootstrap.is_array(part) for part in parts)


def _plain_key(key: Any) -> Hashable:
    """The index, name or mapping key that a JAX key entry stands for."""
    for attribute in ("key", "idx", "name"):
        if hasattr(key, attribute):
            return getattr(key, attribute)
    return key


# -- registration ------------------------------------------------------------------------------


def register_graph_node_type(
    type: type[T],
    flatten: Callable[[T], tuple[Children, Hashable]],
    create: Callable[[Any], T],
    set_key: Callable[[T, Any, Any], None],
    pop_key: Callable[[T, Any], None],
) -> None:
    """Make instances of a class graph nodes, without the class knowing of treadle.

    Args:
        type: the class; subclasses must be registered on their own.
        flatten: ``flatten(node)`` gives ``(children, static)``: pairs of a hashable key and a child
            (node, Variable, array, pytree of these, or static), and what else `create` needs,
            hashable.
        create: ``create(static)`` makes a node without children.
        set_key: ``set_key(node, key, child)`` adds or replaces a child.
        pop_key: ``pop_key(node, key)`` removes a child.

    Raises:
        NodeTypeError: `type` is not a class or is already a node, a Variable or a pytree, or a
            function cannot be called. Later, in any walk: `flatten` gives something else than it
            should, or `create` an object of another type.

    >>> import treadle as nnx
    >>> class Bag:
    ...     def __init__(self, label):
    ...         self.label, self.things = label, {}
    >>> nnx.register_graph_node_type(
    ...     Bag,
    ...     flatten=lambda bag: (bag.things.items(), bag.label),
    ...     create=Bag,
    ...     set_key=lambda bag, key, child: bag.things.__setitem__(key, child),
    ...     pop_key=lambda bag, key: bag.things.pop(key),
    ... )
    >>> bag = Bag("mine")
    >>> bag.things["weight"] = nnx.Param(1.0)
    >>> copy = nnx.clone(bag)
    >>> copy.label, copy.things["weight"].value
    ('mine', 1.0)
    """
    if not isinstance(type, builtins.type):
        raise NodeTypeError(f"register_graph_node_type: expected a class, got {type!r}.")
    if (
        type in _registered
        or issubclass(type, (ObjectNode, VariableCell))
        or isinstance(adapt(type), (NodeLayout, VariableLayout))
    ):
        raise NodeTypeError(
            f"{type.__name__} is a graph node type already; it needs no registration."
        )
    if _is_pytree_type(type):
        raise NodeTypeError(
            f"{type.__name__} is walked by value, as an array or a JAX pytree, and can be no node. "
            "Register a class of your own that holds it."
        )
    functions = NodeFunctions(flatten, create, set_key, pop_key)
    for name, function in functions._asdict().items():
        if not callable(function):
            raise NodeTypeError(
                f"register_graph_node_type({type.__name__}): {name} must be a function, got "
                f"{function!r}."
            )
    checked = NodeFunctions(
        _checked_flatten(type, flatten), _checked_create(type, create), set_key, pop_key
    )
    _core.register_node_type(type, *checked)
    _registered[type] = checked


def _is_pytree_type(kind: type[Any]) -> bool:
    if issubclass(kind, _bootstrap._ARRAYS) or hasattr(kind, "_fields"):
        return True
    return is_registered(kind)


def _checked_flatten(
    kind: type[Any], flatten: Callable[[Any], Any]
) -> Callable[[Any], tuple[Children, Hashable]]:
    where = f"flatten function of graph node type {kind.__name__}"

    def checked(node: Any) -> tuple[Children, Hashable]:
        made = flatten(node)
        if not isinstance(made, tuple) or len(made) != 2:
            raise NodeTypeError(f"The {where} must return (children, static), got {made!r}.")
        children, static = made
        pairs: list[tuple[Hashable, Any]] = []
        try:
            for key, child in children:
                pairs.append((key, child))
        except (TypeError, ValueError) as error:
            raise NodeTypeError(
                f"The {where} must return children as (key, child) pairs: {error}."
            ) from error
        try:
            distinct = len({key for key, _ in pairs})
        except TypeError as error:
            raise NodeTypeError(
                f"The {where} gives a key that is not hashable: {error}."
            ) from error
        if distinct != len(pairs):
            raise NodeTypeError(f"The {where} gives the same key for several children.")
        try:
            hash(static)
        except TypeError as error:
            raise NodeTypeError(
                f"The {where} gives a static part that is not hashable: {error}. "
                "Use tuples instead of lists and dicts."
            ) from error
        return pairs, static

    return checked


def _checked_create(kind: type[Any], create: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def checked(static: Any) -> Any:
        node = create(static)
        if type(node) is not kind:
            raise NodeTypeError(
                f"The create function of graph node type {kind.__name__} must return a "
                f"{kind.__name__}, got a {type(node).__name__}."
            )
        return node

    return checked


publish(__all__, globals())
