"""Treadle's transforms on objects of flax, and the two libraries' transforms inside each other."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import treadle

pytest.importorskip("flax.nnx", reason="flax has no release for this Python")
from flax import nnx

from tests.integrations.flax_models import add

X = jnp.arange(6.0).reshape(3, 2)


def linear(seed: int = 0) -> Any:
    return nnx.Linear(2, 2, rngs=nnx.Rngs(seed))


def loss(model: Any, x: Any) -> Any:
    return (model(x) ** 2).sum()


def test_gradients_are_those_of_flax() -> None:
    model = linear()
    grads = treadle.grad(loss)(model, X)
    expected = nnx.grad(loss)(model, X)
    for name in ("kernel", "bias"):
        np.testing.assert_allclose(grads[name].value, expected[name][...], rtol=1e-6)
    assert grads["kernel"].type is nnx.Param


def test_a_gradient_lets_statistics_through() -> None:
    norm = nnx.BatchNorm(2, rngs=nnx.Rngs(0))
    value, grads = treadle.value_and_grad(loss, wrt=nnx.Param)(norm, X)
    assert sorted(grads) == ["bias", "scale"]
    assert not np.allclose(norm.mean[...], 0.0)
    assert np.isfinite(value)


def test_vmap_makes_and_maps_an_ensemble() -> None:
    make = treadle.vmap(lambda rngs: nnx.Linear(2, 2, rngs=rngs), axis_size=4)
    rngs = nnx.Rngs(0)
    ensemble = make(rngs)
    assert ensemble.kernel.shape == (4, 2, 2)
    assert not np.allclose(ensemble.kernel[0], ensemble.kernel[1])
    assert rngs.default.key.shape == ()
    out = treadle.vmap(lambda model, x: model(x), in_axes=(0, None))(ensemble, X)
    assert out.shape == (4, 3, 2)


def test_vmap_splits_the_streams_of_flax_as_those_of_treadle() -> None:
    def draw(rngs: Any) -> Any:
        return jax.random.normal(rngs.noise(), ())

    ours, theirs = treadle.Rngs(noise=3), nnx.Rngs(noise=3)
    draws = treadle.vmap(draw, axis_size=5)
    np.testing.assert_allclose(draws(theirs), draws(ours))
    assert int(theirs.noise.count[...]) == int(ours.noise.count.value) == 1
    with treadle.split_rngs(theirs, splits=2):
        assert theirs.noise.key.shape == (2,)
    assert theirs.noise.key.shape == ()


def test_scan_runs_stacked_layers() -> None:
    layers = treadle.vmap(lambda rngs: nnx.Linear(2, 2, rngs=rngs), axis_size=3)(nnx.Rngs(0))
    run = treadle.scan(
        lambda x, layer: layer(x), in_axes=(treadle.Carry, 0), out_axes=treadle.Carry, length=3
    )
    expected = X
    for i in range(3):
        expected = expected @ layers.kernel[...][i] + layers.bias[...][i]
    np.testing.assert_allclose(run(X, layers), expected, rtol=1e-5)


def test_mapped_axes_come_and_go_in_the_metadata_of_flax() -> None:
    key = (
        "out_sharding"
        if isinstance(getattr(nnx.Variable, "sharding_names", None), property)
        else ("sharding_names")
    )
    seen: list[Any] = []

    class Row(nnx.Module):
        def __init__(self) -> None:
            self.w = nnx.Param(jnp.ones((3, 2)))
            self.w._var_metadata[key] = ("layers", "model")

    row = Row()
    metadata = {nnx.PARTITION_NAME: "layers"}

    def body(row: Any) -> None:
        seen.append(row.w.get_metadata()[key])

    treadle.vmap(body, in_axes=(0,), transform_metadata=metadata)(row)
    assert seen == [("model",)]
    assert row.w.get_metadata()[key] == ("layers", "model")
    assert tuple(treadle.get_partition_spec(row).w.value) == ("layers", "model")


def test_remat_and_cond() -> None:
    model = linear()
    expected = loss(model, X)
    np.testing.assert_allclose(treadle.remat(loss)(model, X), expected, rtol=1e-6)

    def grow(model: Any) -> None:
        add(model.bias, 1.0)

    treadle.jit(lambda p, m: treadle.cond(p, grow, lambda m: None, m))(jnp.array(True), model)
    np.testing.assert_allclose(model.bias[...], 1.0)


def test_transforms_of_flax_run_inside() -> None:
    @nnx.split_rngs(splits=3)
    @nnx.vmap(in_axes=0, out_axes=0)
    def make(rngs: Any) -> Any:
        return nnx.Linear(2, 2, rngs=rngs)

    @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
    def through(x: Any, layer: Any) -> Any:
        return layer(x)

    def step(layers: Any, x: Any) -> Any:
        value, grads = nnx.value_and_grad(lambda layers: (through(x, layers) ** 2).sum())(layers)
        nnx.update(layers, jax.tree.map(lambda p, g: p - 0.1 * g, nnx.state(layers), grads))
        return value

    ours, theirs = make(nnx.Rngs(0)), make(nnx.Rngs(0))
    for _ in range(2):
        np.testing.assert_allclose(treadle.jit(step)(ours, X), nnx.jit(step)(theirs, X), rtol=1e-5)
    np.testing.assert_allclose(ours.kernel[...], theirs.kernel[...], rtol=1e-4, atol=1e-5)


def test_transforms_of_flax_run_outside() -> None:
    inner = treadle.jit(loss)
    model = linear()
    expected = nnx.grad(loss)(model, X)
    grads = nnx.jit(lambda model, x: nnx.grad(inner)(model, x))(model, X)
    np.testing.assert_allclose(grads["kernel"][...], expected["kernel"][...], rtol=1e-5)

    count = treadle.jit(lambda model: add(model.bias, 1.0))
    nnx.jit(lambda model: count(model))(model)
    np.testing.assert_allclose(model.bias[...], 1.0)


def test_donated_state_comes_back() -> None:
    model = linear()
    step = treadle.jit(lambda model: add(model.bias, 1.0), donate_state=True)
    for _ in range(3):
        step(model)
    np.testing.assert_allclose(model.bias[...], 3.0)
    assert model(X).shape == (3, 2)


@pytest.mark.others_keep(
    "Dispatcher", reason="flax keeps the classes of modules, and so their methods"
)
def test_methods_and_other_entrances_of_a_jitted_function() -> None:
    class Model(nnx.Module):
        def __init__(self) -> None:
            self.w = nnx.Param(jnp.ones(2))

        @treadle.jit
        def __call__(self, x: Any) -> Any:
            return (self.w[...] * x).sum()

    model = Model()
    assert float(model(jnp.ones(2))) == 2.0
    step = treadle.jit(lambda model, x: model.w[...] * x)
    assert step.eval_shape(model, jnp.ones(2)).shape == (2,)
    assert "mul" in step.lower(model, jnp.ones(2)).as_text()
