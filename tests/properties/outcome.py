"""Comparison of what two runs of one program left behind."""

from __future__ import annotations

import dataclasses
import pickle
from typing import TYPE_CHECKING, Any

import numpy as np

from tests.reference.kinds import TREADLE
from tests.reference.model import Expr, Node, Tree, Walk, first_difference, walk
from treadle._objects.adapters import description_of
from treadle._objects.descriptions import NodeLayout

if TYPE_CHECKING:
    from .graphs import Graph


def identities(found: Walk, graph: Graph) -> list[int]:
    """For each object of a walk its place among the graph's original objects, or -1 if new."""
    places = {id(obj): i for i, obj in enumerate(graph.objects)}
    return [places.get(id(ref), -1) for ref in found.refs]


def assert_same_leaves(seen: list[Any], expected: list[Any]) -> None:
    """Leaves agree in number, shape, dtype and value."""
    assert len(seen) == len(expected)
    for a, b in zip(seen, expected, strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert a.shape == b.shape
        if a.dtype == b.dtype:
            assert np.array_equal(a.astype(np.complex128), b.astype(np.complex128))
        else:  # a Python number in a Variable is weakly typed: tracing may narrow it
            assert np.allclose(a.astype(np.complex128), b.astype(np.complex128))


def pickled(value: Any) -> bytes | None:
    """The value's pickle, or None if it holds a lambda: pickle refuses those, and nothing else here."""
    try:
        return pickle.dumps(value)
    except (pickle.PicklingError, AttributeError) as error:
        if "lambda" in str(error):
            return None
        raise


def _as_carried_back(root: Expr) -> Expr:
    """Without the order of attributes in nodes of another library, which stays the caller's."""
    if not isinstance(root, Node | Tree):
        return root
    items = tuple((key, _as_carried_back(item)) for key, item in root.items)
    theirs = isinstance(root, Node) and isinstance(description_of(root.type), NodeLayout)
    return dataclasses.replace(root, items=items, order=() if theirs else root.order)


def assert_same_outcome(seen: Graph, seen_result: Any, kept: Graph, kept_result: Any) -> None:
    """Two graphs and two results agree in structure, identity and values.

    So do the objects that are no longer part of the graph: the caller may still hold them.
    """
    ours = walk((seen.root, seen_result, seen.objects), TREADLE)
    theirs = walk((kept.root, kept_result, kept.objects), TREADLE)
    ours.root, theirs.root = map(_as_carried_back, (ours.root, theirs.root))
    assert first_difference(ours.root, theirs.root) is None, (ours.root, theirs.root)
    assert identities(ours, seen) == identities(theirs, kept)
    assert_same_leaves(ours.leaves, theirs.leaves)
