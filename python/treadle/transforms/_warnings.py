"""Warnings about a user's line, wherever below it they are found."""

from __future__ import annotations

import sys
import warnings
from types import FrameType

_PASSED_OVER = ("treadle", "jax", "functools", "contextlib")


def warn(message: str, category: type[Warning]) -> None:
    """Warn about the line that called into treadle, past what JAX does in between."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and _is_passed_over(frame):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)


def _is_passed_over(frame: FrameType) -> bool:
    return frame.f_globals.get("__name__", "").partition(".")[0] in _PASSED_OVER
