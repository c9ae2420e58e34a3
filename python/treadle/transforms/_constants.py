"""Arguments that are the same in all slices and need not be arrays: flags, texts, functions, dtypes."""

from __future__ import annotations

import types
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from treadle.transforms._call import Call
from treadle.transforms._messages import is_jax_value

_BY_CONTENT = (bool, int, float, complex, str, bytes, np.generic, np.dtype)
_BY_IDENTITY = (type, types.FunctionType, types.BuiltinFunctionType, type(None))


class Constant:
    """A constant of a compiled body; equal if one body serves for both.

    Of an object that could change, each use is a constant of its own.
    """

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Constant):
            return NotImplemented
        ours, theirs = self.value, other.value
        if self is other:
            return True
        if type(ours) is not type(theirs):
            return False
        if isinstance(ours, _BY_CONTENT):
            # As text: 0.0 is not -0.0, and NaN is itself.
            return repr(ours) == repr(theirs)
        return isinstance(ours, _BY_IDENTITY) and ours is theirs

    def __hash__(self) -> int:
        return hash(type(self.value))


def constants(call: Call, leaves: Sequence[int]) -> tuple[tuple[int, Constant], ...]:
    """Of some leaves those that JAX need not see: arguments that are no arrays."""
    outside = {number for is_object, number in call.graphdef.root_items() if not is_object}
    return tuple(
        (leaf, Constant(call.leaves[leaf]))
        for leaf in leaves
        if leaf in outside and _is_constant(call.leaves[leaf])
    )


def _is_constant(value: Any) -> bool:
    if isinstance(value, (jax.Array, np.ndarray)):
        return False
    return isinstance(value, _BY_CONTENT) or not is_jax_value(value)
