"""Indented text of Variables, States and objects, safe for cycles."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.core import Tracer

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from treadle._core import VariableState

_INDENT = "  "
# Deeper nodes and levels are left out: indented, a chain's text takes the square of its length.
MAX_DEPTH = 64
# Above this many elements an array is described instead of printed.
_MAX_ELEMENTS = 64

Field = tuple[str, str]


def indent(text: str) -> str:
    """Indent every line of `text` but the first."""
    return text.replace("\n", "\n" + _INDENT)


def block(opening: str, fields: Iterable[Field], closing: str, separator: str) -> str:
    """`opening`, one indented line (or more) for each field, `closing`."""
    lines = [f"{_INDENT}{name}{separator}{indent(text)}" for name, text in fields]
    if not lines:
        return opening + closing
    return f"{opening}\n" + ",\n".join(lines) + f"\n{closing}"


def value(obj: Any) -> str:
    """Text of a value: small arrays in full, large ones by type and shape, types by name."""
    if isinstance(obj, type):
        return obj.__name__
    if isinstance(obj, (jax.Array, np.ndarray)) and obj.size > _MAX_ELEMENTS:
        return f"{type_name(obj)}(shape={obj.shape}, dtype={obj.dtype})"
    return repr(obj)


def cell_fields(raw_value: Any, metadata: Mapping[str, Any]) -> list[Field]:
    """A value and its metadata, as they are shown for Variables and their states."""
    fields = [("value", value(raw_value))]
    fields += [(name, value(entry)) for name, entry in metadata.items()]
    return fields


def type_name(obj: Any) -> str:
    """Name of an object's type; all concrete JAX arrays are called ``Array``."""
    if isinstance(obj, jax.Array) and not isinstance(obj, Tracer):
        return "Array"
    return type(obj).__name__


def variable_state(state: VariableState) -> str:
    """Text of a `VariableState`; the C++ type calls this for its repr."""
    fields = [("type", state.type.__name__), *cell_fields(state.value, state._metadata)]
    return block("VariableState(", fields, ")", "=")
