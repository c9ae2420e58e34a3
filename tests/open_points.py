"""Marks for what is promised and not kept yet.

Such a test fails when it starts to pass, so whoever mends the point takes its mark away.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import pytest


def open_point(issue: int, point: str) -> pytest.MarkDecorator:
    """A mark for a test that an open point of an issue still makes fail."""
    return pytest.mark.xfail(strict=True, reason=f"issue {issue} point {point}")


def cases(
    table: Mapping[str, Any], point: str = "", still_open: Collection[str] = (), issue: int = 18
) -> list[Any]:
    """Parameters from a table of named cases, a tuple being several; those in `still_open` are marked."""
    assert set(still_open) <= set(table)
    return [
        pytest.param(
            *(value if isinstance(value, tuple) else (value,)),
            id=name,
            marks=[open_point(issue, point)] if name in still_open else [],
        )
        for name, value in table.items()
    ]


def pairs(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """All pairs of two tables, named after both."""
    return {f"{a}-{b}": (x, y) for a, x in first.items() for b, y in second.items()}
