"""A jitted function looks like the function it was made of: repr, dir, help, signature."""

from __future__ import annotations

import functools
import inspect
import pydoc
import re

import jax
import jax.numpy as jnp
import pytest

import treadle as nnx
from treadle import _core


@nnx.jit
def train_step(x: jax.Array, rate: float = 0.1, *, deep: bool = False) -> jax.Array:
    """Makes a step."""
    return x * rate


class Model(nnx.Module):
    """Doubles."""

    @nnx.jit(donate_state=True)
    def step(self, x: jax.Array) -> jax.Array:
        """Steps once."""
        return 2 * x

    def __call__(self, x: jax.Array) -> jax.Array:
        return 2 * x


@pytest.mark.parametrize(
    ("jitted", "name"),
    [
        (train_step, "train_step"),
        (Model.step, "Model.step"),
        (nnx.jit(Model()), "Model"),
        (nnx.jit(functools.partial(train_step, 1.0)), "partial"),
        (nnx.jit(nnx.jit(train_step)), "train_step"),
        (nnx.jit(len), "len"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_repr_names_the_function(jitted: object, name: str) -> None:
    assert re.fullmatch(rf"<treadle\.jit of {re.escape(name)} at 0x[0-9a-fA-F]+>", repr(jitted))


def test_repr_of_a_function_with_a_strange_name() -> None:
    def f(x: jax.Array) -> jax.Array:
        return x

    jitted = nnx.jit(f)
    f.__qualname__ = "größe % {}"
    assert "of größe % {} at" in repr(jitted)
    # Others may look before there is anything to see.
    bare = _core.Dispatcher.__new__(_core.Dispatcher)
    assert repr(bare).startswith("<treadle.jit at ")
    with pytest.raises(RuntimeError, match="not initialized"):
        dir(bare)


def test_dir_lists_what_it_has() -> None:
    public = {name for name in dir(train_step) if not name.startswith("_")}
    assert public == {"clear_cache", "eval_shape", "lower", "num_traces", "retraces", "trace"}
    assert all(hasattr(train_step, name) for name in dir(train_step))
    assert {"__wrapped__", "__name__", "__call__"} <= {*dir(train_step)}


def test_what_types_promise_is_listed() -> None:
    promised = {name for name in dir(nnx.JitWrapped) if not name.startswith("_")}
    assert promised == {name for name in dir(train_step) if not name.startswith("_")}


def test_help_shows_signature_and_docstring() -> None:
    shown = pydoc.plain(pydoc.render_doc(train_step))
    assert "train_step(x: 'jax.Array', rate: 'float' = 0.1, *, deep: 'bool' = False)" in shown
    assert "Makes a step." in shown
    of_class = pydoc.plain(pydoc.render_doc(Model))
    assert re.search(r"step\(self, x: 'jax\.Array'\).*\n.*Steps once\.", of_class)
    assert "Steps once." in pydoc.plain(pydoc.render_doc(Model().step))


def test_signature_is_the_users() -> None:
    assert inspect.signature(train_step) == inspect.signature(train_step.__wrapped__)
    assert list(inspect.signature(Model().step).parameters) == ["x"]
    assert list(inspect.signature(nnx.jit(Model())).parameters) == ["x"]
    assert train_step.__doc__ == "Makes a step."


def test_beside_a_bound_method_is_what_its_function_has() -> None:
    model, x = Model(), jnp.ones(2)
    assert model.step.lower(model, x).compile()(model, x).tolist() == [2.0, 2.0]
    assert model.step.num_traces == Model.step.num_traces


@pytest.mark.parametrize(
    "transform",
    [nnx.vmap, nnx.remat, nnx.grad, nnx.value_and_grad, nnx.scan, nnx.checkify, nnx.custom_vjp],
)
def test_other_transforms_show_the_users_function(transform: object) -> None:
    def loss(model: Model, x: jax.Array) -> jax.Array:
        """Of the model."""
        return model(x)

    made = transform(loss)  # type: ignore[operator]
    assert inspect.signature(made) == inspect.signature(loss)
    assert made.__doc__ == "Of the model."
    assert made.__name__ == "loss"


def test_a_structure_can_say_what_it_is_the_structure_of() -> None:
    alias = nnx.GraphDef[Model]
    assert alias.__origin__ is nnx.GraphDef
    assert alias.__args__ == (Model,)
