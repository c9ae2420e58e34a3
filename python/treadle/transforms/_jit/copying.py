"""Copying and pickling of jitted functions: as functions, or by the parts that `jit` was given."""

from __future__ import annotations

import copy
import copyreg
import functools
import inspect
import operator
import sys
from collections.abc import Callable
from typing import Any

from treadle import _core


class Recipe:
    """What one `jit` was given: enough to do it again to another function."""

    def __init__(self, jit: Callable[..., Any], settings: dict[str, Any]) -> None:
        defaults = inspect.signature(jit).parameters
        given = {k: v for k, v in settings.items() if v is not defaults[k].default}
        self.jit = functools.partial(jit, **given)

    def deepcopied(self, dispatcher: Any, memo: dict[int, Any]) -> Any:
        """A jitted function in a deep copy: itself, as functions are, if it holds nothing copied.

        The method of a copied object is bound to the copy.
        """
        wrapped = dispatcher.__wrapped__
        copied = copy.deepcopy(wrapped, memo)
        known = memo.get(id(dispatcher))  # what holds `wrapped` may hold this, too
        if known is None:
            known = memo[id(dispatcher)] = dispatcher if copied is wrapped else self.jit(copied)
        return known


def _reduced(dispatcher: Any) -> Any:
    """By its name where that leads to it, as functions are pickled; else what to jit, and how."""
    name = getattr(dispatcher, "__qualname__", "")
    module = sys.modules.get(getattr(dispatcher, "__module__", None) or "")
    try:
        found = operator.attrgetter(name)(module)
    except AttributeError:
        found = None
    if found is dispatcher:
        return name
    recipe = getattr(dispatcher, "recipe", None)
    if recipe is None:
        raise TypeError("cannot pickle a compiled program: pickle the jitted function instead")
    return recipe.jit, (dispatcher.__wrapped__,)


copyreg.pickle(_core.Dispatcher, _reduced)  # type: ignore[arg-type]
