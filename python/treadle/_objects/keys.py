"""The canonical order of keys and attribute names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def sorted_keys(levels: Mapping[Any, Any]) -> list[Any]:
    """Keys in canonical order; keys that do not compare are grouped by the name of their type."""
    try:
        return sorted(levels)
    except TypeError:
        return sorted(levels, key=lambda key: (type(key).__name__, key))
