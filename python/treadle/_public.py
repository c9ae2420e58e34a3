"""Where public objects say that they live, and how they come when they are first asked for."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from types import FunctionType
from typing import Any

_PACKAGE = __name__.partition(".")[0]


def publish(names: Iterable[str], namespace: Mapping[str, Any], place: str = _PACKAGE) -> None:
    """Make `place` the ``__module__`` of our own classes and functions among `names`.

    Pickles, tracebacks and messages then name what users write, and files can be rearranged without
    breaking anybody's pickles.
    """
    for name in names:
        value = namespace[name]
        ours = isinstance(value, (type, FunctionType)) and value.__module__.startswith(_PACKAGE)
        if ours:
            value.__module__ = place


def later(
    package: str, listed: Sequence[str], homes: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package whose names are imported when they are first asked for.

    Args:
        package: its name.
        listed: its public names.
        homes: for each of its modules the names that are found there; a module that is public itself
            has its own.
    """
    home_of = {name: home for home, names in homes.items() for name in names}

    def found(name: str) -> Any:
        if name not in home_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = import_module(f"{package}.{home_of[name]}")
        value = module if home_of[name] == name else getattr(module, name)
        setattr(sys.modules[package], name, value)
        return value

    def names() -> list[str]:
        return [*listed, *(name for name in vars(sys.modules[package]) if name.startswith("__"))]

    return found, names
