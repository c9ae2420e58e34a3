"""Copies of a model in another mode."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

import treadle as nnx


class Block(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.linear = nnx.Linear(2, 2, rngs=rngs)
        self.norm = nnx.BatchNorm(2, rngs=rngs)
        self.drops = [nnx.Dropout(0.5, rngs=rngs), nnx.Dropout(0.1, rngs=rngs)]
        self.table = {"again": self.linear}
        self.impl = self.times

    def times(self, x):
        return self.drops[0](self.norm(self.linear(x)))

    def __call__(self, x):
        return self.impl(x)


MAKERS = [nnx.with_attributes, nnx.view]


@pytest.mark.parametrize("make", MAKERS)
def test_a_copy_shares_variables_and_has_attributes_of_its_own(make):
    model = Block()
    other = make(model, deterministic=True, use_running_average=True)
    assert type(other) is Block
    assert other.linear is not model.linear
    assert other.linear.kernel is model.linear.kernel
    assert other.table["again"] is other.linear
    assert [d.deterministic for d in (*other.drops, *model.drops)] == [True, True, False, False]
    assert (other.norm.use_running_average, model.norm.use_running_average) == (True, False)
    x = jnp.ones((3, 2))
    before = model.norm.mean.value
    np.testing.assert_allclose(other(x), other(x))
    assert model.norm.mean.value is before
    # State goes on in the model itself, and the copy sees it.
    model(x)
    assert other.norm.mean.value is model.norm.mean.value is not before


@pytest.mark.parametrize("make", MAKERS)
def test_only_selects_modules(make):
    other = make(Block(), only=nnx.PathContains("drops"), deterministic=True)
    assert [d.deterministic for d in other.drops] == [True, True]
    with pytest.raises(nnx.GraphError, match="use_running_average"):
        make(Block(), only=nnx.Dropout, use_running_average=True)
    make(Block(), only=nnx.Dropout, use_running_average=True, raise_if_not_found=False)


@pytest.mark.parametrize("make", MAKERS)
def test_a_name_that_nobody_has_is_an_error(make):
    with pytest.raises(nnx.GraphError, match="no_such_mode"):
        make(Block(), no_such_mode=True)


@pytest.mark.parametrize("make", MAKERS)
def test_copies_in_transforms(make):
    model = Block()

    @nnx.jit
    def evaluate(model, x):
        return make(model, deterministic=True, use_running_average=True)(x)

    @nnx.jit
    def train(model, x):
        return make(model, deterministic=True)(x).sum()

    x = jnp.ones((3, 2))
    np.testing.assert_allclose(
        evaluate(model, x), make(model, deterministic=True, use_running_average=True)(x)
    )
    before = model.norm.mean.value
    train(model, x)
    assert model.norm.mean.value is not before
    grads = nnx.grad(lambda m: make(m, deterministic=True)(x).sum())(model)
    assert "kernel" in grads["linear"]
    assert [d.deterministic for d in model.drops] == [False, False]


class Anything(nnx.Module):
    def __init__(self):
        self.got = {}

    def set_view(self, **modes):
        self.got = modes


def test_a_view_may_take_any_mode():
    other = nnx.view(nnx.Dict(a=Anything(), d=nnx.Dropout(0.5)), deterministic=True, speed=3)
    assert other.a.got == {"deterministic": True, "speed": 3}
    assert other.d.deterministic is True


def test_what_a_view_can_set_is_told():
    text = nnx.view_info(nnx.Dict(a=Anything(), b=Block(), c=Block()))
    assert text.splitlines() == [
        "Anything:",
        "  **modes",
        "BatchNorm:",
        "  use_running_average: bool | None = None",
        "    normalize with the running statistics and leave them alone; None: as",
        "    before.",
        "Dropout:",
        "  deterministic: bool | None = None",
        "    return the inputs as they are; None: as before.",
    ]
    assert nnx.view_info(Block(), only=nnx.Linear) == ""


def test_decoding_views_make_their_cache():
    layer = nnx.MultiHeadAttention(2, in_features=4, decode=False, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="batch_size and max_length"):
        nnx.view(layer, decode=True)
    with pytest.raises(ValueError, match="together"):
        nnx.view(layer, decode=True, batch_size=2)
    decoding = nnx.view(layer, decode=True, batch_size=(2, 3), max_length=5)
    assert decoding(jnp.ones((2, 3, 1, 4))).shape == (2, 3, 1, 4)
    assert int(decoding.cache_index.value) == 1
    assert layer.cache_index is None
    assert nnx.view(decoding, decode=True).cache_index is decoding.cache_index


def test_the_same_as_flax():
    flax = pytest.importorskip("flax.nnx", reason="flax has no release for this Python")

    def results(lib):
        model = lib.Sequential(
            lib.Linear(2, 2, rngs=lib.Rngs(0)),
            lib.BatchNorm(2, rngs=lib.Rngs(0)),
            lib.Dropout(0.5, rngs=lib.Rngs(1)),
        )
        views = (
            lib.view(model, deterministic=True, use_running_average=True),
            lib.view(model, only=lib.Dropout, deterministic=True),
            lib.with_attributes(model, use_running_average=True, deterministic=True),
        )
        layers = [list(v) if lib is nnx else list(v.layers) for v in views]
        return [
            (drop.deterministic, norm.use_running_average, np.asarray(v(jnp.ones((3, 2)))).tolist())
            for v, (_, norm, drop) in zip(views, layers, strict=True)
        ]

    assert results(nnx) == results(flax)
