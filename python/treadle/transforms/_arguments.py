"""What messages call functions, arguments and what is in them: the names that the user gave."""

from __future__ import annotations

import functools
import inspect
import operator
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeGuard
from weakref import WeakKeyDictionary

from treadle.errors import GraphError, format_path

Path = tuple[Hashable, ...]
Function = Callable[..., Any]


def function_name(function: Function) -> str:
    """Name of a function for messages."""
    if isinstance(function, functools.partial):
        return function_name(function.func)
    return getattr(function, "__name__", None) or type(function).__name__


# Weak, since a function may be all that keeps a model alive.
_parameters_of: WeakKeyDictionary[Function, tuple[tuple[str, ...], str | None]] = (
    WeakKeyDictionary()
)


def _parameters(function: Function) -> tuple[tuple[str, ...], str | None]:
    """Names of the positional parameters, and of the one that takes the rest."""
    try:
        known = _parameters_of.get(function)
    except TypeError:  # unhashable, or cannot be referred to weakly
        return _read_parameters(function)
    if known is None:
        known = _parameters_of[function] = _read_parameters(function)
    return known


def _read_parameters(function: Function) -> tuple[tuple[str, ...], str | None]:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return (), None
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = tuple(p.name for p in parameters if p.kind in positional)
    rest = [p.name for p in parameters if p.kind is inspect.Parameter.VAR_POSITIONAL]
    return names, rest[0] if rest else None


def parameter_name(function: Function, position: int) -> str:
    """What the author of `function` calls its positional argument number `position`."""
    names, rest = _parameters(function)
    if position < len(names):
        return names[position]
    if rest is not None:
        return f"{rest}[{position - len(names)}]"
    return f"args[{position}]"


# Begins the names of arguments that no caller gives: the nodes that a function itself brings along.
_COMPANION = "."


def companion_name(label: str, number: int) -> str:
    """By which name a node comes along that messages call `label`; another for each number."""
    return f"{_COMPANION}{number}:{label}"


def companion_label(name: str) -> str:
    """What messages call a node that comes along by `name`."""
    return name.partition(":")[2]


def is_companion(name: object) -> TypeGuard[str]:
    """Whether an argument's position or keyword is that of a node that its function brings along."""
    return isinstance(name, str) and name.startswith(_COMPANION)


def argument_label(function: Function, path: Path) -> str:
    """Write a path of a walked call as the function's author would: ``model.kernel``, ``x[0]``.

    The path starts with the position of a positional argument, or with a keyword.
    """
    if not path:
        return "the arguments"
    which, *inner = path
    if isinstance(which, int):
        root = parameter_name(function, which)
    else:
        root = companion_label(which) if is_companion(which) else str(which)
    return format_path(inner, root)


def output_label(function: Function, kind: str, item: int, path: Path) -> str:
    """Where an output leaf is, as the user would write it; a row of `Effects.outputs`."""
    if kind == "result" or (kind == "new" and item >= 0):
        return format_path(path, "the result")
    return argument_label(function, path)


@contextmanager
def naming(label: Callable[[Path], str]) -> Iterator[None]:
    """Let `label` write the path in what a walk raises, which knows arguments by position only."""
    try:
        yield
    except GraphError as error:
        if error.path is None or error.reason is None:
            raise
        better = type(error)(f"{label(error.path)} {error.reason}")
        raise better.with_traceback(error.__traceback__) from error.__cause__


def normalize_argnums(
    name: str, parameter: str, argnums: Iterable[int], function: Function, count: int
) -> tuple[int, ...]:
    """Non-negative positions, checked against the `count` positional arguments of a call."""
    normal = []
    for argnum in argnums:
        if not -count <= argnum < count:
            raise ValueError(
                f"{name} of {function_name(function)}: {parameter}={argnum} is out of range, the "
                f"call has {count} positional argument{'' if count == 1 else 's'}. Pass that "
                f"argument by position, or correct {parameter}."
            )
        normal.append(argnum % count)
    return tuple(normal)


def numbers(argnums: int | Iterable[int]) -> tuple[int, ...]:
    """One position, or several, as a tuple."""
    try:
        return (operator.index(argnums),)  # type: ignore[arg-type]
    except TypeError:
        return tuple(argnums)  # type: ignore[arg-type]
