"""The axis rules in force: a thread's own, and part of the key of whatever JAX traces under them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import jax

__all__ = ["AxisName", "Rules", "rules_in_force", "setting"]

AxisName: TypeAlias = "str | tuple[str, ...] | None"
Rules: TypeAlias = Sequence[tuple[str, AxisName]]


def _make_context() -> Any:
    """A context manager factory with a `value`, which JAX compares when it looks up a trace."""
    if hasattr(jax, "make_user_context"):
        return jax.make_user_context(())
    from jax._src import config

    # What the public function is made of, in the releases before it.
    return config.string_or_object_state(
        "treadle_axis_rules",
        (),
        "The rules of treadle.logical_axis_rules.",
        include_in_jit_key=True,
        include_in_trace_context=True,
    )


# JAX reads the value in C++, so that a call under rules costs what a call without costs. It is made
# on import, since JAX does not want it made beside running programs.
setting = _make_context()


def rules_in_force() -> tuple[tuple[str, AxisName], ...]:
    """All rules of the blocks around, the innermost first."""
    return setting.value
