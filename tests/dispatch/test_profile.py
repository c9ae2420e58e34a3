"""`profile` tells the class of a call, its leaves, and what would make it cheaper."""

from __future__ import annotations

import json
import os
import platform
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import treadle as nnx
from treadle.transforms._jit.profiling import _on_glibc_malloc

X = jnp.ones(3)


class Slow:
    """A static that can change, so it is hashed at every call."""

    def __init__(self) -> None:
        self.values = [1] * 2000

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Slow) and other.values == self.values

    def __hash__(self) -> int:
        return hash(tuple(self.values))


class Model(nnx.Module):
    def __init__(self) -> None:
        self.used = nnx.Param(jnp.ones(3))
        self.unused = nnx.Param(jnp.ones(3))
        self.calls = nnx.Variable(jnp.zeros(()))

    @nnx.jit
    def method(self, x: Any) -> Any:
        self.calls.value = self.calls.value + 1
        return self.used.value + x


def apply(model: Model, x: Any) -> Any:
    model.calls.value = model.calls.value + 1
    return model.used.value + x


def test_it_measures_and_leaves_the_callers_objects_alone() -> None:
    model, step = Model(), nnx.jit(apply)
    found = nnx.profile(step, model, X)
    assert (found.first_call_class, found.call_class) == ("cold", "hot")
    assert (found.leaves_in, found.leaves_out) == (4, 2)
    assert found.function == "apply"
    assert float(model.calls.value) == 0
    assert step.num_traces == 1


def test_a_donating_step_leaves_the_callers_arrays_alone() -> None:
    model, step = Model(), nnx.jit(apply, donate_state=True)
    found = nnx.profile(step, model, X)
    np.testing.assert_array_equal(model.used.value, np.ones(3))
    assert found.leaves_out == 4
    assert any(
        "model.unused" in line and "donated and not changed" in line for line in found.advice
    )


def test_methods_keywords_and_statics() -> None:
    assert nnx.profile(Model().method, X).call_class == "hot"
    step = nnx.jit(lambda model, *, x, n: apply(model, x) * n, static_argnames="n")
    assert nnx.profile(step, Model(), x=X, n=2).call_class == "hot"


def test_it_reads_as_a_table_and_as_data() -> None:
    found = nnx.profile(nnx.jit(apply), Model(), X)
    lines = str(found).splitlines()
    assert lines[0].startswith("apply: hot, first cold, 4 leaves in, 2 out")
    named = [line.split()[0] for line in lines]
    for phase in ("verify", "gather", "dispatch", "scatter", "whole", "bare", "ratio"):
        assert phase in named
    data = json.loads(json.dumps(found.as_dict()))
    assert data["total"] == pytest.approx(
        data["verify"] + data["gather"] + data["dispatch"] + data["scatter"]
    )
    assert found.ratio_low <= found.ratio <= found.ratio_high


def advice(function: Any, *args: Any) -> str:
    return "\n".join(nnx.profile(nnx.jit(function), *args).advice)


def test_unused_inputs_are_named() -> None:
    assert "model.unused: not used" in advice(apply, Model(), X)


def test_inputs_from_the_host_are_named() -> None:
    assert "x: no jax.Array" in advice(apply, Model(), np.ones(3, np.float32))
    assert "no jax.Array" not in advice(apply, Model(), X)


def test_inputs_handed_back_are_named() -> None:
    assert "model.used: an input handed back" in advice(lambda model: model.used.value, Model())


def test_slow_statics_are_named() -> None:
    model = Model()
    model.config = Slow()
    assert "model.config: a static value that is hashed" in advice(apply, model, X)


def test_random_keys_that_come_back_are_named() -> None:
    class Keyed(nnx.Module):
        def __init__(self) -> None:
            self.key = nnx.Variable(jax.random.key(0))

    def draw(model: Keyed) -> Any:
        model.key.value, key = jax.random.split(model.key.value)
        return jax.random.normal(key, ())

    assert "model.key: a random key that comes back" in advice(draw, Keyed())


def test_many_outputs_on_a_slow_allocator_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def split(x: Any) -> Any:
        return tuple(x + i for i in range(100))

    for on_glibc in (True, False):
        monkeypatch.setattr(
            sys.modules[_on_glibc_malloc.__module__], "_on_glibc_malloc", lambda on=on_glibc: on
        )
        told = "100 outputs, each allocated by glibc's malloc" in advice(split, X)
        assert told == (on_glibc and jax.default_backend() == "cpu")
        assert "malloc" not in advice(apply, Model(), X)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads what Linux tells")
def test_the_allocator_of_a_process_is_known() -> None:
    """A program may run on another one already, as this one may."""
    names = ("jemalloc", "mimalloc", "tcmalloc")
    replaced = any(f"lib{name}" in os.environ.get("LD_PRELOAD", "") for name in names)
    assert _on_glibc_malloc() == (platform.libc_ver()[0] == "glibc" and not replaced)


def test_arguments_that_cannot_be_checked_in_place_are_told() -> None:
    @jax.tree_util.register_pytree_node_class
    class Box:
        def __init__(self, value: Any) -> None:
            self.value = value

        def tree_flatten(self) -> Any:
            return (self.value,), None

        @classmethod
        def tree_unflatten(cls, _: None, children: Any) -> Any:
            return cls(*children)

    found = nnx.profile(nnx.jit(lambda box: box.value + 1), Box(X))
    assert found.call_class == "warm"
    assert "walked at every call" in found.advice[0]


def test_a_clean_call_gets_no_advice() -> None:
    assert nnx.profile(nnx.jit(lambda x: x + 1), X).advice == ()


def test_another_callable_is_refused() -> None:
    with pytest.raises(TypeError, match=r"made by treadle\.jit"):
        nnx.profile(jax.jit(lambda x: x), X)
