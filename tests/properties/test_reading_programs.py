"""Programs over what code reads: eagerly, through one persistent function, and through a fresh one.

``TREADLE_HYPOTHESIS_PROFILE=long`` runs a hundred times as many of them.
"""

from __future__ import annotations

import pytest
from hypothesis import example, given

from . import reading_programs
from .reading_programs import TRANSFORMS
from .source import Source
from .strategies import compiling, program_bytes

every_transform = pytest.mark.parametrize("transform", TRANSFORMS)


def program(themes: set[str]):  # type: ignore[no-untyped-def]
    return lambda data, transform: reading_programs.run(Source(data), frozenset(themes), transform)


@every_transform
@compiling(40)
@given(data=program_bytes)
def test_models_taking_turns(transform: str, data: bytes) -> None:
    program(set())(data, transform)


@every_transform
@example(data=b"^\xd2\xdb(v\x8b\r\xc3W\xd3\x11\xccH\x1ej\x12\xeaB\x86#\x1ci0\x9eK")
@example(data=b"\x8a\xf1v\\\x91S7j\x80\x18|*\x93\x1b\x90\xefd\xb8L%\xfc-\x89C\x00\xff")
@compiling(40)
@given(data=program_bytes)
def test_functions_that_read_globals_lists_and_attributes(transform: str, data: bytes) -> None:
    program({"functions"})(data, transform)


@every_transform
@compiling(100)
@given(data=program_bytes)
def test_builtins_that_are_never_the_same(transform: str, data: bytes) -> None:
    reading_programs.run_clock(Source(data), transform)


@every_transform
@compiling(40)
@given(data=program_bytes)
def test_bound_methods_and_partials(transform: str, data: bytes) -> None:
    program({"callables"})(data, transform)


@every_transform
@compiling(40)
@given(data=program_bytes)
def test_order(transform: str, data: bytes) -> None:
    program({"order"})(data, transform)


@every_transform
@compiling(40)
@given(data=program_bytes)
def test_configs_with_and_without_a_hash(transform: str, data: bytes) -> None:
    program({"configs"})(data, transform)


@pytest.mark.parametrize("transform", [t for t in TRANSFORMS if t != "jit"])
@compiling(40)
@given(data=program_bytes)
def test_what_operands_bring_along(transform: str, data: bytes) -> None:
    """A jitted function is taken at its word there, as by JAX."""
    program({"operands"})(data, transform)


@compiling(20)
@given(data=program_bytes)
def test_axes_of_nodes(data: bytes) -> None:
    reading_programs.run_axes(Source(data))


@every_transform
@compiling(40)
@given(data=program_bytes)
def test_everything_at_once(transform: str, data: bytes) -> None:
    program({"functions", "callables", "order", "configs"})(data, transform)
