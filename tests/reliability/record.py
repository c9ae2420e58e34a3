"""A record of a graph, exact to the identity of every object and array in it."""

from __future__ import annotations

import gc
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import jax

from tests.reference.kinds import TREADLE
from tests.reference.model import first_difference, walk

if TYPE_CHECKING:
    from collections.abc import Iterator


class Record:
    """What a graph was. Comparing needs no equality of arrays: they must be the same objects."""

    def __init__(self, root: Any) -> None:
        self.root = root
        self.found = walk(root, TREADLE)
        self.attributes = [
            [(key, id(value)) for key, value in vars(ref).items()]
            if hasattr(ref, "__dict__")
            else None
            for ref in self.found.refs
        ]

    def assert_unchanged(self) -> None:
        """The graph is as it was when recorded."""
        now = Record(self.root)
        assert first_difference(self.found.root, now.found.root) is None
        assert list(map(id, now.found.refs)) == list(map(id, self.found.refs))
        assert list(map(id, now.found.leaves)) == list(map(id, self.found.leaves))
        assert now.attributes == self.attributes
        assert_no_tracers(self.root)


@contextmanager
def works_or_names(place: str) -> Iterator[None]:
    """What happens inside may be refused, if the error says where the trouble is."""
    try:
        yield
    except (TypeError, ValueError, RecursionError) as error:
        if place not in str(error):
            raise AssertionError(f"the error does not name {place!r}") from error


def assert_no_tracers(root: Any) -> None:
    """No tracer is reachable from a graph, in whatever attribute."""
    for obj in reachable(root):
        assert not isinstance(obj, jax.core.Tracer), f"a tracer is left: {type(obj)}"


def reachable(root: Any) -> list[Any]:
    """All that the garbage collector sees from an object, except through types and modules."""
    seen: dict[int, Any] = {}
    stack = [root]
    passed_over = (type, type(sys), type(reachable), type(print))
    while stack:
        obj = stack.pop()
        if id(obj) in seen or isinstance(obj, passed_over):
            continue
        seen[id(obj)] = obj
        if not isinstance(obj, jax.Array):
            stack.extend(gc.get_referents(obj))
    return list(seen.values())


def reference_counts(root: Any) -> list[int]:
    """Reference counts of all nodes, Variables and leaves, in canonical order."""
    found = walk(root, TREADLE)
    objects = [*found.refs, *found.leaves]
    del found
    gc.collect()
    return [sys.getrefcount(objects[i]) for i in range(len(objects))]
