"""Calls through the dispatcher do what the function does, whatever happened to the graph before."""

from __future__ import annotations

import pytest
from hypothesis import given

from .dispatch import check_dispatch
from .graphs import MIXED, OWN, Palette, build_argument
from .source import Source
from .strategies import compiling, graph_bytes, program_bytes


@pytest.mark.parametrize("palette", [OWN, MIXED], ids=["own", "mixed"])
@compiling(4)
@given(graph_bytes, program_bytes)
def test_hot_warm_and_cold_calls(palette: Palette, data: bytes, program: bytes) -> None:
    lifted, plain = (build_argument(Source(data), palette) for _ in range(2))
    check_dispatch(lifted, plain, program, palette)
