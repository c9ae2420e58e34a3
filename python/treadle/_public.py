"""Where public objects say that they live: at the place that users import them from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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
