"""Which places keywords and defaults take among a function's positional arguments."""

from __future__ import annotations

import inspect
from typing import Any

from treadle.transforms._arguments import Function

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def places(function: Function) -> tuple[inspect.Parameter, ...] | None:
    """The positional parameters of a function; None if it has no signature."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return None
    return tuple(parameter for parameter in parameters if parameter.kind in _POSITIONAL)


def has_place(parameter: inspect.Parameter, name: str) -> bool:
    """Whether a keyword is the argument of a positional parameter."""
    return parameter.name == name and parameter.kind is not inspect.Parameter.POSITIONAL_ONLY


def by_place(
    parameters: tuple[inspect.Parameter, ...],
    count: int,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """`args` filled up to `count` from keywords and defaults, as far as there are any."""
    filled, left = list(args), dict(kwargs)
    for parameter in parameters[len(args) : count]:
        if parameter.name in left and has_place(parameter, parameter.name):
            filled.append(left.pop(parameter.name))
        elif parameter.default is not inspect.Parameter.empty:
            filled.append(parameter.default)
        else:
            break
    return tuple(filled), left
