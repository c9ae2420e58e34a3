"""Variables and nodes as JAX pytrees: what the rest of JAX takes them for.

Transforms of treadle meet the node before the pytree and go on by reference. Everything else in JAX
takes a Variable for a pytree with one child, its value, and a node for one whose children are its
distinct Variables and bare arrays.

A class is registered when its first instance is made, and JAX keeps it from then on.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import jax
from jax._src import tree_util as jax_tree_util

from treadle import _core

__all__ = ["register_pytree"]


def register_pytree(kind: type[Any]) -> None:
    """Register a class of Variables or nodes; the engine calls this once for each.

    A class of nodes that was defined with ``pytree=False`` stays an object like any other to JAX.
    """
    if not kind.__dict__.get("_is_pytree_", True):
        return
    functions = _OF_VARIABLES if issubclass(kind, _core.VariableCell) else _OF_NODES
    try:
        jax.tree_util.register_pytree_with_keys(kind, *functions)
    except ValueError:
        # What the class itself was registered with counts.
        if not is_registered(kind):
            raise


def is_registered(kind: type[Any]) -> bool:
    """Whether JAX's registry has a class."""
    return kind in getattr(jax_tree_util, "_registry", (dict, list, tuple))


def _flatten_node_with_keys(node: _core.ObjectNode) -> tuple[list[tuple[Any, Any]], Any]:
    children, structure = _core._flatten_node(node)
    paths = _core._child_paths(structure)
    return [(_key(path), child) for path, child in zip(paths, children, strict=True)], structure


def _key(path: tuple[Hashable, ...]) -> Any:
    """A child's full path as the one key that JAX has room for: ``.blocks.0.kernel``."""
    if len(path) == 1 and not isinstance(path[0], str):
        key = path[0]
        return jax.tree_util.SequenceKey(key) if type(key) is int else jax.tree_util.DictKey(key)
    return jax.tree_util.GetAttrKey(".".join(map(str, path)))


_OF_VARIABLES: tuple[Any, Any, Any] = (
    _core._flatten_variable_with_keys,
    _core._unflatten_variable,
    _core._flatten_variable,
)
_OF_NODES: tuple[Any, Any, Any] = (
    _flatten_node_with_keys,
    _core._unflatten_node,
    _core._flatten_node,
)
