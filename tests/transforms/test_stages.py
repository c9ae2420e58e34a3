"""Tracing, lowering and compiling ahead of the first call."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import treadle as nnx


class Model(nnx.Module):
    def __init__(self, size: int = 2, rate: float = 0.5) -> None:
        self.w = nnx.Param(jnp.ones(size))
        self.tied = nnx.List([self.w])
        self.steps = nnx.BatchStat(jnp.zeros(()))
        self.rate = rate


def advance(model: Model, x: Any) -> Any:
    model.steps.value = model.steps.value + 1
    model.tied[0].value = model.w.value * model.rate + x
    return model, model.w.value.sum()


def test_a_compiled_program_does_what_the_function_does() -> None:
    step, model, twin = nnx.jit(advance), Model(), Model()
    compiled = step.lower(model, jnp.ones(2)).compile()
    np.testing.assert_array_equal(model.w.value, [1, 1])
    weight = model.w
    for n in range(1, 4):
        result, total = compiled(model, jnp.full(2, float(n)))
        _, expected = advance(twin, jnp.full(2, float(n)))
        assert result is model
        assert model.w is model.tied[0] is weight
        assert float(total) == pytest.approx(float(expected))
        np.testing.assert_allclose(model.w.value, twin.w.value)
        assert float(model.steps.value) == n
    assert step.num_traces == 1
    # Other objects of the structure, and the jitted function on the first ones.
    other = Model()
    compiled(other, jnp.ones(2))
    np.testing.assert_array_equal(other.w.value, [1.5, 1.5])
    step(model, jnp.ones(2))
    assert step.num_traces == 1


def test_stages_come_one_from_the_other_and_have_what_those_of_jax_have() -> None:
    traced = nnx.jit(advance).trace(Model(), jnp.ones(2))
    assert "add" in str(traced.jaxpr)
    lowered = traced.lower()
    assert "stablehlo" in lowered.as_text()
    compiled = lowered.compile(compiler_options={"xla_cpu_enable_fast_math": True})
    assert "HloModule" in compiled.as_text()
    assert compiled.cost_analysis() is not None
    model = Model()
    compiled(model, jnp.ones(2))
    np.testing.assert_array_equal(model.w.value, [1.5, 1.5])
    for stage in (traced, lowered, compiled):
        with pytest.raises(AttributeError, match="nonsense"):
            _ = stage.nonsense


def test_lowering_for_several_types_keeps_them_apart() -> None:
    def grow(model: Model, x: Any) -> Any:
        if x.ndim:  # other effects, for the same structure of arguments
            model.w.value = model.w.value + x
            return None
        model.extra = nnx.Param(x)
        return model.extra

    step, model = nnx.jit(grow), Model()
    vector = step.lower(model, jnp.ones(2)).compile()
    scalar = step.lower(model, jnp.ones(())).compile()
    assert vector(model, jnp.ones(2)) is None
    np.testing.assert_array_equal(model.w.value, [2, 2])
    assert scalar(model, jnp.ones(())) is model.extra
    np.testing.assert_array_equal(model.w.value, [2, 2])
    assert step.num_traces == 2


def test_another_structure_or_type_is_refused_by_path_and_changes_nothing() -> None:
    step, model = nnx.jit(advance), Model()
    compiled = step.lower(model, jnp.ones(2)).compile()
    cases: list[tuple[tuple[Any, ...], str]] = [
        ((Model(rate=0.25), jnp.ones(2)), r"model\.rate: 0\.5, and called with 0\.25"),
        ((model, jnp.ones(3)), r"x: float32\[2\], and called with float32\[3\]"),
        ((Model(3), jnp.ones(2)), r"model\.tied\[0\]: float32\[2\], and called with float32\[3\]"),
        ((model, jnp.ones(2), 1), "compiled ahead"),
        ((model,), "compiled ahead"),
    ]
    for args, message in cases:
        with pytest.raises(TypeError, match=message):
            compiled(*args)
    np.testing.assert_array_equal(model.w.value, [1, 1])
    assert float(model.steps.value) == 0
    assert step.num_traces == 1
    compiled(model, jnp.ones(2))
    assert float(model.steps.value) == 1


def test_static_arguments_are_left_out_of_the_call() -> None:
    @nnx.jit(static_argnums=(0, 2), static_argnames=("mode", "a", "b"))
    def scaled(a: int, model: Model, b: int, x: Any, *, mode: str) -> Any:
        model.steps.value = model.steps.value + a * b
        return x * (a - b) if mode == "difference" else x * (a + b)

    model = Model()
    for mode, factor in {"difference": 3, "sum": 7}.items():
        compiled = scaled.lower(5, model, 2, jnp.ones(()), mode=mode).compile()
        assert float(compiled(model, jnp.ones(()))) == factor
    assert float(model.steps.value) == 20
    with pytest.raises(TypeError, match="compiled ahead for mode='sum'"):
        compiled(model, jnp.ones(()), mode="difference")
    with pytest.raises(TypeError, match=r"Arguments \[0, 2\] are static: leave them out"):
        compiled(5, model, 2, jnp.ones(()))
    assert float(model.steps.value) == 20
    by_name = scaled.lower(5, model, b=2, x=jnp.ones(()), mode="sum").compile()
    assert float(by_name(model, x=jnp.ones(()))) == 7


def test_state_can_be_donated() -> None:
    shared = jnp.ones(2)
    pair = nnx.Dict(a=nnx.Param(shared), b=nnx.Param(shared))

    @nnx.jit(donate_state=True)
    def step(pair: Any) -> None:
        pair.a.value = pair.a.value + 1

    compiled = step.lower(pair).compile()
    compiled(pair)
    pointers = {v.value.unsafe_buffer_pointer() for v in (pair.a, pair.b)}
    compiled(pair)
    assert {v.value.unsafe_buffer_pointer() for v in (pair.a, pair.b)} == pointers
    np.testing.assert_array_equal(pair.a.value, [3, 3])
    np.testing.assert_array_equal(pair.b.value, [1, 1])
    pair.a.value.delete()
    with pytest.raises(RuntimeError, match=r"pair\.a holds an array that has been deleted"):
        compiled(pair)


def test_lowering_takes_shapes_in_the_place_of_arrays() -> None:
    step = nnx.jit(advance)
    abstract = nnx.eval_shape(Model)
    compiled = step.lower(abstract, jax.ShapeDtypeStruct((2,), jnp.float32)).compile()
    model = Model()
    compiled(model, jnp.ones(2))
    np.testing.assert_array_equal(model.w.value, [1.5, 1.5])


def test_compiled_programs_outlive_caches_and_keep_no_model() -> None:
    step, model = nnx.jit(advance), Model()
    compiled = step.lower(model, jnp.ones(2)).compile()
    compiled(model, jnp.ones(2))
    jax.clear_caches()
    compiled(model, jnp.ones(2))
    assert float(model.steps.value) == 2
    seen = weakref.ref(model)
    del model
    gc.collect()
    assert seen() is None
    alone = step.lower(Model(), jnp.ones(2)).compile()
    del step
    gc.collect()
    other = Model()
    alone(other, jnp.ones(2))
    assert float(other.steps.value) == 1


def test_methods_and_transforms_around_it() -> None:
    class Counter(nnx.Module):
        def __init__(self) -> None:
            self.n = nnx.Variable(jnp.zeros(()))

        @nnx.jit
        def add(self, by: Any) -> Any:
            self.n.value = self.n.value + by
            return self.n.value

    counter = Counter()
    compiled = Counter.add.lower(counter, 2.0).compile()
    assert float(compiled(counter, 3.0)) == 3
    with pytest.raises(TypeError, match="Cannot apply JAX transformations"):
        nnx.grad(lambda x: compiled(counter, x))(1.0)
    assert float(counter.n.value) == 3
