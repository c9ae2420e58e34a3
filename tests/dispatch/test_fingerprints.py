"""What functions read, at any depth, as the engine tells it apart for programs compiled outside of a trace."""

from __future__ import annotations

import enum
import functools
import math
import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import treadle as nnx
from treadle import _core

SCALE = 2.0


def chain(n: int) -> Any:
    """A function that calls one that calls one, `n` times."""
    inner: Any = jnp.sin
    for _ in range(n):
        inner = functools.partial(lambda f, x: f(x), inner)
    return inner


def outer(x: Any) -> Any:
    return inner(x)


def inner(x: Any) -> Any:
    return x * SCALE


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Pair(NamedTuple):
    a: float
    b: float


KNOWN = [1, -0.0, "text", b"bytes", None, ..., Level.LOW, np.float64(2.5), (1, ("a", 2.0)), math.pi]
KNOWN += [
    jnp.add,
    jax.nn.relu,
    jnp.linalg.norm,
    jnp.float32,
    math.sin,
    operator.add,
    jnp,
    "a b".split,
]


def holding(value: Any) -> Any:
    return lambda x: (x, value)


@pytest.mark.parametrize("value", KNOWN, ids=lambda value: type(value).__name__)
def test_functions_made_anew_over_constants_have_one_fingerprint(value: Any) -> None:
    one, two = _core.fingerprint(holding(value)), _core.fingerprint(holding(value))
    assert one is not None
    assert one == two
    assert hash(one) == hash(two)
    assert one != _core.fingerprint(lambda x: (x, value))  # other code


UNKNOWN = [[1.0], {"a": 1}, {1}, Pair(1.0, 2.0), jnp.ones(2), np.ones(2), iter([1]), nnx.Param(1.0)]
UNKNOWN += [
    np.random.default_rng(0),
    [].append,
    functools.lru_cache(inner),
]


@pytest.mark.parametrize("value", UNKNOWN, ids=lambda value: type(value).__name__)
def test_what_may_change_has_none(value: Any) -> None:
    assert _core.fingerprint(holding(value)) is None
    assert _core.fingerprint(functools.partial(operator.add, value)) is None


APART = [(0.0, -0.0), (1, 1.0), (1, True), (Level.LOW, Level.HIGH)]
WRAPPED = [
    *((lambda v: v, *pair) for pair in APART),
    *((lambda v: (v,), *pair) for pair in APART),
    (np.float64, 0.0, -0.0),  # of one type
]


@pytest.mark.parametrize(("wrap", "a", "b"), WRAPPED)
def test_constants_compare_by_type_and_representation(wrap: Any, a: Any, b: Any) -> None:
    assert _core.fingerprint(holding(wrap(a))) != _core.fingerprint(holding(wrap(b)))
    assert _core.fingerprint(holding(wrap(a))) == _core.fingerprint(holding(wrap(a)))


def test_a_function_that_a_global_leads_to_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    before = _core.fingerprint(outer)
    assert before == _core.fingerprint(outer)
    monkeypatch.setitem(globals(), "SCALE", 3.0)
    assert before != _core.fingerprint(outer)
    monkeypatch.setitem(globals(), "SCALE", 2.0)
    assert before == _core.fingerprint(outer)
    monkeypatch.setitem(globals(), "inner", lambda x: x)
    assert before != _core.fingerprint(outer)


@pytest.mark.parametrize("transform", [jax.jit, jax.vmap, jax.grad, nnx.jit, nnx.remat])
def test_what_was_made_of_a_function_is_read_through(
    transform: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = transform(inner)
    before = _core.fingerprint(holding(made))
    assert before is not None
    assert before == _core.fingerprint(holding(made))
    assert before != _core.fingerprint(holding(transform(lambda x: x)))
    monkeypatch.setitem(globals(), "SCALE", 3.0)
    assert before != _core.fingerprint(holding(made))


def test_deep_chains_are_read_as_far_as_the_stack_should_bear() -> None:
    assert _core.fingerprint(chain(50)) is not None
    assert _core.fingerprint(chain(2_000)) is None
