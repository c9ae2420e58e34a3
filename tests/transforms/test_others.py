"""Promises of eval_shape, checkify and split_rngs."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

import treadle as nnx
from tests.transforms.models import Block, assert_same, plain, values


def shapes(node):
    return jax.tree.map(lambda x: (x.shape, x.dtype), nnx.state(node))


# -- eval_shape ------------------------------------------------------------------------------------


def test_eval_shape_makes_an_abstract_module():
    model = nnx.eval_shape(lambda: Block(3, rngs=nnx.Rngs(0)))
    assert isinstance(model, Block)
    assert isinstance(model.kernel.value, jax.ShapeDtypeStruct)
    assert shapes(model) == shapes(Block(3, rngs=nnx.Rngs(0)))


def test_eval_shape_takes_abstract_and_concrete_arguments_and_changes_nothing():
    model = Block(3, rngs=nnx.Rngs(0))
    before = values(model)
    out, returned = nnx.eval_shape(
        lambda m, x, *, scale: (m(x) * scale, m), model, jnp.ones((2, 3)), scale=2.0
    )
    assert out.shape == (2, 3)
    assert isinstance(returned.seen.value, jax.ShapeDtypeStruct)
    assert_same(values(model), before)
    abstract = nnx.eval_shape(lambda: Block(3, rngs=nnx.Rngs(0)))
    x = jax.ShapeDtypeStruct((5, 3), jnp.float32)
    assert nnx.eval_shape(lambda m, x: m(x), abstract, x).shape == (5, 3)


# -- checkify --------------------------------------------------------------------------------------


def checked(m, x):
    checkify.check(x > 0, "x must be positive")
    m["w"].value = m["w"].value + x
    return jnp.log(x)


def test_checkify_returns_error_and_result_and_updates_state():
    m = nnx.Dict(w=nnx.Param(jnp.array(1.0)))
    error, out = nnx.checkify(checked)(m, 2.0)
    error.throw()
    assert float(out) == pytest.approx(np.log(2.0))
    assert float(m["w"].value) == 3.0
    error, _ = nnx.checkify(checked)(m, -2.0)
    with pytest.raises(checkify.JaxRuntimeError, match="x must be positive"):
        error.throw()


def test_checkify_errors_selects_the_checks():
    m = nnx.Dict(w=nnx.Param(jnp.array(1.0)))
    error, _ = nnx.checkify(lambda m, x: jnp.log(x), errors=checkify.nan_checks)(m, -1.0)
    assert "nan" in error.get()
    error, _ = nnx.checkify(lambda m, x: jnp.log(x))(m, -1.0)
    assert error.get() is None


def test_checkify_under_jit():
    m = nnx.Dict(w=nnx.Param(jnp.array(1.0)))
    error, _ = nnx.jit(nnx.checkify(checked))(m, -2.0)
    assert "x must be positive" in error.get()
    assert float(m["w"].value) == -1.0


# -- split_rngs ------------------------------------------------------------------------------------


def key_data(key):
    return np.asarray(jax.random.key_data(key))


def test_split_rngs_splits_the_next_key_and_restores():
    rngs = nnx.Rngs(params=0, dropout=1)
    rngs.params()
    backups = nnx.split_rngs(rngs, splits=3)
    drawn = jax.random.fold_in(jax.random.key(0), 1)
    np.testing.assert_array_equal(
        key_data(rngs.params.key.value), key_data(jax.random.split(drawn, 3))
    )
    assert rngs.params.count.value.tolist() == [0, 0, 0]
    backups.restore()
    np.testing.assert_array_equal(key_data(rngs.params.key.value), key_data(jax.random.key(0)))
    assert int(rngs.params.count.value) == 2
    assert int(rngs.dropout.count.value) == 1


def test_split_rngs_only_and_shape_and_squeeze():
    rngs = nnx.Rngs(params=0, dropout=1)
    with nnx.split_rngs({"nested": [rngs]}, splits=(2, 3), only="dropout"):
        assert rngs.params.key.shape == ()
        assert rngs.dropout.key.shape == (2, 3)
    assert rngs.dropout.key.shape == ()
    with nnx.split_rngs(rngs, splits=1, squeeze=True):
        drawn = jax.random.fold_in(jax.random.key(0), 0)
        assert rngs.params.key.shape == ()
        np.testing.assert_array_equal(
            key_data(rngs.params.key.value), key_data(jax.random.split(drawn, 1)[0])
        )
    with pytest.raises(ValueError, match="squeeze=True needs splits=1"):
        nnx.split_rngs(rngs, splits=2, squeeze=True)


def test_split_rngs_as_decorator_restores_also_when_it_raises():
    rngs = nnx.Rngs(0)
    seen = []

    @nnx.split_rngs(splits=2)
    def f(rngs, fail):
        seen.append(rngs.default.key.shape)
        if fail:
            raise RuntimeError("stop")

    f(rngs, False)
    assert seen == [(2,)]
    assert (rngs.default.key.shape, int(rngs.default.count.value)) == ((), 1)
    with pytest.raises(RuntimeError, match="stop"):
        f(rngs, fail=True)
    assert (rngs.default.key.shape, int(rngs.default.count.value)) == ((), 1)
    assert plain(rngs.default.key.value).tolist() == plain(jax.random.key(0)).tolist()


def test_split_rngs_then_scan_with_state_axes():
    rngs = nnx.Rngs(0)
    axes = nnx.StateAxes({nnx.RngState: 0})

    @nnx.split_rngs(splits=3)
    @nnx.scan(in_axes=(nnx.Carry, axes), out_axes=(nnx.Carry, 0))
    def draw(c, rngs):
        return c, jax.random.key_data(rngs())

    _, drawn = draw(0, rngs)
    keys = jax.random.split(jax.random.fold_in(jax.random.key(0), 0), 3)
    expected = np.stack([key_data(jax.random.fold_in(k, 0)) for k in keys])
    np.testing.assert_array_equal(drawn, expected)
