"""Pytrees whose leaves may be nodes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax

from treadle import _core
from treadle.transforms._arguments import Path
from treadle.transforms._messages import structure_text


def is_none(value: Any) -> bool:
    """True for None: an axis that says "not mapped" rather than an empty pytree."""
    return value is None


def tree_leaves(tree: Any) -> list[Any]:
    """Leaves of a pytree; graph nodes and Variables count as leaves."""
    return jax.tree_util.tree_leaves(tree, is_leaf=_core.is_node)


def tree_flatten(tree: Any) -> tuple[list[Any], Any]:
    """Leaves and structure of a pytree; graph nodes and Variables count as leaves."""
    return jax.tree_util.tree_flatten(tree, is_leaf=_core.is_node)


def flatten_with_paths(tree: Any) -> list[tuple[Path, Any]]:
    """Path and value of each leaf of a pytree; graph nodes and Variables count as leaves."""
    found, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=_core.is_node)
    return [(plain_path(path), leaf) for path, leaf in found]


def leaf_paths(structure: Any) -> list[Path]:
    """Path of each leaf of a structure of `jax.tree_util`."""
    numbered = jax.tree_util.tree_unflatten(structure, range(structure.num_leaves))
    return [plain_path(path) for path, _ in jax.tree_util.tree_flatten_with_path(numbered)[0]]


def plain_path(path: Iterable[Any]) -> Path:
    """A key path of `jax.tree_util` as a tuple of the keys themselves."""
    return tuple(
        getattr(key, "key", getattr(key, "idx", getattr(key, "name", key))) for key in path
    )


def walk(*roots: Any) -> _core.Flat:
    """Walk pytrees that may hold nodes; each path starts with the root's position."""
    return _core.flatten_call(roots, {}, frozenset(), frozenset())


def spread_prefix(
    prefix: Any, tree: Any, what: str, is_leaf: Callable[[Any], bool] = is_none
) -> list[Any]:
    """One entry of `prefix` for each leaf of `tree`, which `prefix` is a pytree prefix of.

    Raises:
        ValueError: `prefix` does not fit; the message starts with `what`.
    """
    spread: list[Any] = []

    def add(entry: Any, subtree: Any) -> None:
        spread.extend([entry] * len(tree_leaves(subtree)))

    try:
        jax.tree_util.tree_map(add, prefix, tree, is_leaf=is_leaf)
    except ValueError as error:
        raise ValueError(
            f"{what} must be one entry, or a pytree prefix of what it describes. "
            f"Got {prefix!r} for {structure_text(tree)}."
        ) from error
    return spread
