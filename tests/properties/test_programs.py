"""Random programs do the same eagerly and under transforms: values, identities, structure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from hypothesis import example, given

import treadle as nnx
from tests.reference.kinds import TREADLE
from tests.reference.model import walk

from .graphs import build_argument
from .outcome import assert_same_outcome
from .programs import run
from .source import Source
from .strategies import compiling, graph_bytes, program_bytes

Program = Callable[[Any], Any]


def assert_agrees(lift: Callable[[Program], Program], data: bytes, program: bytes) -> None:
    """Run a program eagerly on one graph and lifted on its twin, and compare."""
    plain, lifted = build_argument(Source(data)), build_argument(Source(data))
    expected = run(plain.root, Source(program))
    seen = lift(lambda root: run(root, Source(program)))(lifted.root)
    assert_same_outcome(lifted, seen, plain, expected)


@compiling(6)
@given(graph_bytes, program_bytes)
def test_programs_under_jit(data: bytes, program: bytes) -> None:
    assert_agrees(nnx.jit, data, program)


@compiling(4)
@given(graph_bytes, program_bytes)
def test_programs_under_jit_disabled(data: bytes, program: bytes) -> None:
    with jax.disable_jit():
        assert_agrees(nnx.jit, data, program)


# A constant that comes back in another type than jax.Array.
@example(b"\x00@\x00\x03\x9f" + bytes(48), b"\x00\x00\x00\x00\xae\x03~")
@compiling(6)
@given(graph_bytes, program_bytes)
def test_programs_under_remat(data: bytes, program: bytes) -> None:
    assert_agrees(nnx.remat, data, program)


def through_grad(program: Program) -> Program:
    """The program as a side effect of a function that is differentiated."""

    def loss(x: Any, root: Any) -> Any:
        return x * x, program(root)

    return lambda root: nnx.grad(loss, has_aux=True)(1.0, root)[1]


@compiling(6)
@given(graph_bytes, program_bytes)
def test_programs_inside_grad(data: bytes, program: bytes) -> None:
    assert_agrees(through_grad, data, program)


def through_vmap(program: Program) -> Program:
    """The program as a side effect of a mapped function; its own objects are not mapped."""
    mapped = nnx.vmap(
        lambda x, root: (x, program(root)),
        in_axes=(0, None),
        out_axes=(0, None),
        state_axes={...: None},
        split_rngs=False,
    )
    return lambda root: mapped(jnp.zeros(2), root)[1]


@compiling(6)
@given(graph_bytes, program_bytes)
def test_programs_inside_vmap(data: bytes, program: bytes) -> None:
    assert_agrees(through_vmap, data, program)


def through_cond(program: Program) -> Program:
    """The program as the branch that is taken; the other one does the same."""
    return lambda root: nnx.cond(jnp.array(True), program, program, root)


@compiling(12)
@given(graph_bytes, program_bytes)
def test_programs_inside_cond(data: bytes, program: bytes) -> None:
    assert_agrees(through_cond, data, program)


@compiling(12)
@given(graph_bytes, program_bytes)
def test_programs_under_jit_of_grad(data: bytes, program: bytes) -> None:
    assert_agrees(lambda f: nnx.jit(through_grad(f)), data, program)


@compiling(12)
@given(graph_bytes, program_bytes)
def test_programs_run_twice_through_one_jitted_function(data: bytes, program: bytes) -> None:
    """The second call finds the structure that the first one left, the third a known one."""
    plain, lifted = build_argument(Source(data)), build_argument(Source(data))
    jitted = nnx.jit(lambda root: run(root, Source(program), steps=3))
    for _ in range(2):
        expected = run(plain.root, Source(program), steps=3)
        seen = jitted(lifted.root)
        assert_same_outcome(lifted, seen, plain, expected)
    twin = build_argument(Source(data))
    plain = build_argument(Source(data))
    assert_same_outcome(twin, jitted(twin.root), plain, run(plain.root, Source(program), steps=3))


def doubled(root: Any, program: bytes) -> None:
    """What loops may do, whose carry keeps its structure, shapes and dtypes: new values."""
    variables = [ref for ref in walk(root, TREADLE).refs if isinstance(ref, nnx.Variable)]
    for choice in program if variables else b"":
        variable = variables[choice % len(variables)]
        variable.value = variable.value * 2 + 1


LOOPS: dict[str, Callable[[Callable[[Any], None], Any], Any]] = {
    "scan": lambda body, root: nnx.scan(
        lambda root, _: (body(root), (root, None))[1],
        in_axes=(nnx.Carry, 0),
        out_axes=(nnx.Carry, 0),
    )(root, jnp.zeros(3))[0],
    "fori_loop": lambda body, root: nnx.fori_loop(0, 3, lambda _, r: (body(r), r)[1], root),
    "while_loop": lambda body, root: nnx.while_loop(
        lambda carry: carry[1] < 3,
        lambda carry: (body(carry[0]), (carry[0], carry[1] + 1))[1],
        (root, jnp.zeros((), jnp.int32)),
    )[0],
    "switch": lambda body, root: nnx.switch(
        1, [lambda r: r, lambda r: (body(r), body(r), body(r), r)[3]], root
    ),
}


@pytest.mark.parametrize("loop", LOOPS.values(), ids=LOOPS)
@compiling(16)
@given(graph_bytes, program_bytes)
def test_values_in_loops(loop: Any, data: bytes, program: bytes) -> None:
    plain, lifted = build_argument(Source(data)), build_argument(Source(data))
    for graph in (plain, lifted):
        for ref in walk(graph.root, TREADLE).refs:
            if isinstance(ref, nnx.Variable):
                ref.value = jnp.asarray(ref.value, jnp.float32)
    for _ in range(3):
        doubled(plain.root, program[:6])
    seen = loop(lambda root: doubled(root, program[:6]), lifted.root)
    assert_same_outcome(lifted, seen, plain, plain.root)
