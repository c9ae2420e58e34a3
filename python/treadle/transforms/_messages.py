"""What messages say about values, and about the mistakes that JAX finds in a call's leaves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jax._src.array import ArrayImpl
from jax.core import Tracer

from treadle import _core

_PLAIN = (ArrayImpl, np.ndarray, jax.ShapeDtypeStruct, bool, int, float, complex)
BIND = "bind other arguments beforehand, for example with functools.partial"


class _Short:
    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


def _short(value: Any) -> _Short:
    return _Short(type(value).__name__ if _core.is_node(value) else type_of(value))


def structure_text(tree: Any) -> str:
    """A pytree as text, with the types of its leaves in their place: ``(float32[2], int32[])``."""
    return repr(jax.tree_util.tree_map(_short, tree, is_leaf=_core.is_node))


def type_of(value: Any) -> str:
    """Shape and dtype of an array (``float32[2,3]``), the type's name of anything else."""
    dtype = getattr(value, "dtype", None)
    if dtype is None:
        return type(value).__name__
    return f"{dtype}[{','.join(map(str, np.shape(value)))}]"


def jax_type(value: Any) -> str:
    """What JAX takes a leaf for: dtype and shape, also of a Python number."""

    def typed(part: Any) -> _Short:
        return _Short(
            type_of(jax.api_util.shaped_abstractify(part) if is_jax_value(part) else part)
        )

    return repr(jax.tree_util.tree_map(typed, value, is_leaf=_core.is_node))


def described(value: Any) -> str:
    """What a function returned in place of a pair, say."""
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)}"
    return type_of(value)


def returned(value: Any) -> str:
    """What stands where something else is expected, in words."""
    return (
        described(value) if isinstance(value, tuple) else f"a value of type {type(value).__name__}"
    )


def is_jax_value(value: Any) -> bool:
    """Whether a leaf's value is an array, a scalar, or a pytree of those.

    JAX would take nodes and Variables, too, but by value: what is done to them would be lost.
    """
    try:
        jax.tree_util.tree_map(jax.api_util.shaped_abstractify, value, is_leaf=_core.is_node)
    except (TypeError, ValueError):
        return False
    return True


def refuse_nodes(values: Iterable[Any], label: Callable[[int], str]) -> None:
    """Raise a TypeError if a leaf's value is a node or a Variable, or holds some."""
    for number, value in enumerate(values):
        if isinstance(value, Tracer) or type(value) in _PLAIN:
            continue
        parts = jax.tree_util.tree_leaves(value, is_leaf=_core.is_node)
        held = next(filter(_core.is_node, parts), None)
        if held is not None:
            raise TypeError(
                f"{label(number)} is a {type(value).__name__!r}, which is not a valid JAX type"
                f"{'' if held is value else f': it holds a {type(held).__name__!r}'}. Give the "
                "Variable an array or a scalar, and keep other values in attributes of the node "
                "itself."
            )


def part_label(label: str, value: Any, number: int) -> str:
    """What to call part number `number` (of `jax.tree_util.tree_leaves`) of a leaf's value.

    Nodes count as parts.

    A Variable may hold a pytree, such as the tuple that `sow` makes, so that one leaf of a call is
    several arrays: ``model.seen[0]``. A value that is one array keeps the leaf's `label`.
    """
    paths, _ = jax.tree_util.tree_flatten_with_path(value, is_leaf=_core.is_node)
    return label + jax.tree_util.keystr(paths[number][0])


def explain_call_error(
    error: Exception,
    label: Callable[[int], str],
    graphdef: _core.GraphDef,
    leaves: Sequence[Any],
    *,
    seen: Iterable[int] | None = None,
    remedy: str = BIND,
) -> Exception | None:
    """What is wrong with the first leaf of a call that JAX cannot take, None if it takes all.

    The one door for what JAX says of leaves without knowing their names; all transforms use it.

    Args:
        error: what a call ended with.
        label: names a leaf.
        graphdef: structure of the call.
        leaves: the call's leaves.
        seen: the leaves that JAX was given; default: all.
        remedy: what to do with an argument that is no array.
    """
    for leaf in range(graphdef.num_leaves) if seen is None else seen:
        value = leaves[leaf]
        if isinstance(error, RuntimeError):
            if "delete" in str(error) and _is_deleted(value):
                return RuntimeError(
                    f"{label(leaf)} holds an array that has been deleted, as happens to a buffer "
                    "donated to an earlier call. Keep using what that call returned or wrote back, "
                    "or copy the array before donating it."
                )
        elif isinstance(error, (TypeError, ValueError)) and not is_jax_value(value):
            if graphdef.leaf_types()[leaf] is None:
                what_to_do = (
                    f"Pass an array, a scalar, a graph node or a container of those, and {remedy}."
                )
            else:
                what_to_do = (
                    "Give the Variable an array or a scalar, and keep other values in attributes "
                    "of the node itself."
                )
            return TypeError(
                f"{label(leaf)} is a {type(value).__name__!r}, which is not a valid JAX type"
                f"{_bad_part(label(leaf), value)}. {what_to_do}"
            )
    return None


def _bad_part(label: str, value: Any) -> str:
    """Which part of a value that holds several JAX cannot take."""
    parts = jax.tree_util.tree_leaves(value, is_leaf=_core.is_node)
    for number, part in enumerate(parts):
        if part is not value and not is_jax_value(part):
            return f": {part_label(label, value, number)} is a {type(part).__name__!r}"
    return ""


def _is_deleted(value: Any) -> bool:
    return any(
        isinstance(part, jax.Array) and not isinstance(part, Tracer) and part.is_deleted()
        for part in jax.tree_util.tree_leaves(value)
    )
