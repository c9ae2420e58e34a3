"""Hypothesis strategies: bytes for graphs and programs, and settings for tests that compile."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st

graph_bytes = st.binary(min_size=48, max_size=260)
program_bytes = st.binary(min_size=4, max_size=48)
seeds = st.integers(0, 2**16)


def compiling(share: int) -> settings:
    """Settings for a test that compiles with every example: fewer of them, by `share`."""
    return settings(max_examples=max(10, settings.default.max_examples // share))
