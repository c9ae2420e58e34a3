"""What pickle and copy see of a node's attributes: transformed functions of nodes are made again.

``self.step = nnx.remat(self._step)`` is a function to Python, which copies share and pickles cannot
hold; its instance would stay the original's.
"""

from __future__ import annotations

import functools
from typing import Any

from treadle import _core, pickles

__all__ = ["copyable"]


def copyable(value: Any) -> Any:
    """A value in which what makes a transformed function again stands for it; the value itself if it has none.

    It looks into plain tuples, lists and dicts, and partials.

    >>> from treadle._modules.copying import copyable
    >>> state = {"scale": 2.0}
    >>> copyable(state) is state
    True
    """
    return _copyable(value, {})


class _Again:
    """Stands for a callable: copied or loaded, it is one that was made in the same way.

    Args:
        held: what it stands for, which must not be released while others look for it.
        reduced: as from ``__reduce__``.
    """

    def __init__(self, held: Any, reduced: tuple[Any, ...]) -> None:
        self._held, self._reduced = held, reduced

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
        made = items if _differ(items.values(), value.values()) else value
    elif kind in (list, tuple):
        parts = kind(_copyable(item, known) for item in value)
        made = parts if _differ(parts, value) else value
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
