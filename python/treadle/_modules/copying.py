"""What pickle and copy see of a node's attributes: transformed functions of nodes are made again.

``self.step = nnx.remat(self._step)`` is a function to Python, which copies share and pickles cannot
hold; its instance would stay the original's.
"""

from __future__ import annotations

import functools
from typing import Any

from treadle import _core, pickles

__all__ = ["as_they_are", "copyable"]


def copyable(state: Any) -> Any:
    """A node's attributes, where what makes a transformed function again stands for it; or `state` itself.

    It looks into plain tuples, lists and dicts, and partials.

    >>> from treadle._modules.copying import copyable
    >>> state = {"scale": 2.0}
    >>> copyable(state) is state
    True
    """
    if type(state) is not dict:
        return state
    known: dict[int, tuple[Any, Any]] = {}
    made = {name: _copyable(value, known) for name, value in state.items()}
    return made if _differ(made.values(), state.values()) else state


def as_they_are(state: dict[str, Any]) -> dict[str, Any]:
    """The attributes themselves: a shallow copy shares them, and nothing was made again for it."""
    return {name: value.held if type(value) is _Again else value for name, value in state.items()}


class _Again:
    """Stands for a callable: copied or loaded, it is one that was made in the same way.

    Args:
        held: what it stands for.
        reduced: as from ``__reduce__``.
    """

    def __init__(self, held: Any, reduced: tuple[Any, ...]) -> None:
        self.held, self._reduced = held, reduced

    def __reduce__(self) -> tuple[Any, ...]:
        return self._reduced


def _copyable(value: Any, known: dict[int, tuple[Any, Any]]) -> Any:
    """As `copyable`; what was met is in `known` with what stands for it."""
    kind = type(value)
    if id(value) in known:
        return known[id(value)][1]
    # A container that holds itself is shared as it is.
    known[id(value)] = value, value
    made: Any = value
    if kind is dict:
        items = {key: _copyable(item, known) for key, item in value.items()}
        if _differ(items.values(), value.values()):
            made = _Again(value, (dict, (items,)))
    elif kind in (list, tuple):
        parts = [_copyable(item, known) for item in value]
        if _differ(parts, value):
            made = _Again(value, (kind, (parts,)))
    elif kind is functools.partial:
        bound, state = value.args, vars(value)
        before = value.func, *bound, *value.keywords.values()
        after = [_copyable(item, known) for item in before]
        if _differ(after, before):
            keywords = dict(zip(value.keywords, after[1 + len(bound) :], strict=True))
            content = after[0], tuple(after[1 : 1 + len(bound)]), keywords, state or None
            made = _Again(value, (kind, (after[0],), content))
    else:
        recipe = _core.recipe_of(value)
        if recipe is not None:
            ((_, function),) = _core.callable_parts(value)
            arguments = (pickles.VERSION, recipe[0], _copyable(function, known), *recipe[1:])
            made = _Again(value, (pickles.transformed, arguments))
    known[id(value)] = value, made
    return made


def _differ(one: Any, other: Any) -> bool:
    return any(a is not b for a, b in zip(one, other, strict=True))
