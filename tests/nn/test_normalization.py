from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import treadle as nnx
from tests.nn.peers import (
    assert_close,
    assert_same_call,
    assert_same_gradients,
    make,
    normal,
)

BATCH_NORM = [
    ({}, (6, 5)),
    ({}, (6, 3, 4, 5)),
    ({"axis": 1}, (6, 5, 3)),
    ({"use_fast_variance": False}, (2, 3, 5)),
    ({"use_scale": False}, (4, 5)),
    ({"use_bias": False, "momentum": 0.9, "epsilon": 1e-2}, (4, 5)),
    ({"param_dtype": jnp.bfloat16}, (4, 5)),
]
LAYER_NORM = [
    ({}, (6, 5)),
    ({"reduction_axes": (-1, -2)}, (6, 3, 5)),
    ({"feature_axes": 1}, (2, 5, 3)),
    ({"reduction_axes": 1, "feature_axes": 1}, (2, 5, 3)),
    ({"use_scale": False}, (2, 5)),
    ({"use_fast_variance": False, "epsilon": 1e-3}, (2, 5)),
    ({"dtype": jnp.bfloat16}, (2, 5)),
]
GROUP_NORM = [
    ({"num_groups": 2}, (6, 8)),
    ({"num_groups": 4}, (6, 3, 3, 8)),
    ({"num_groups": None, "group_size": 2}, (6, 3, 8)),
    ({"num_groups": 2, "reduction_axes": (1, -1)}, (6, 3, 8)),
    ({"num_groups": 2, "use_bias": False, "use_fast_variance": False}, (6, 3, 8)),
    ({"num_groups": 8, "use_scale": False}, (6, 3, 8)),
]


@pytest.mark.parametrize(("options", "shape"), BATCH_NORM)
def test_batch_norm_computes_what_flax_does_and_remembers_it(options, shape):
    ours, theirs = make("BatchNorm", 5, **options)
    x = normal(*shape) * 3 + 1
    assert_same_call(ours, theirs, x)
    assert_close(ours.mean.value, theirs.mean[...])
    assert_close(ours.var.value, theirs.var[...])
    assert_same_call(ours, theirs, x, use_running_average=True)


@pytest.mark.parametrize(("options", "shape"), BATCH_NORM[:5])
def test_batch_norm_has_the_gradients_of_flax(options, shape):
    ours, theirs = make("BatchNorm", 5, **options)
    x = normal(*shape)
    assert_same_gradients(ours, theirs, lambda m: m(x))


def test_batch_norm_takes_statistics_where_the_mask_is_true():
    ours, theirs = make("BatchNorm", 5)
    mask = jnp.array([1, 1, 0, 1, 0, 1], bool)[:, None]
    assert_same_call(ours, theirs, normal(6, 5), mask=mask)
    assert_close(ours.var.value, theirs.var[...])


def test_batch_norm_leaves_running_statistics_alone_when_it_uses_them():
    layer = nnx.BatchNorm(5, use_running_average=True, rngs=nnx.Rngs(0))
    mean, var = layer.mean.value, layer.var.value
    layer(normal(6, 5))
    assert layer.mean.value is mean
    assert layer.var.value is var


def test_batch_norm_follows_train_and_eval_and_the_call_goes_first():
    layer = nnx.BatchNorm(5, use_running_average=None, rngs=nnx.Rngs(0))
    x = normal(6, 5) * 2 + 1
    with pytest.raises(ValueError, match=r"`use_running_average`.*model\.train\(\)"):
        layer(x)
    layer.eval()
    np.testing.assert_allclose(layer(x), x / np.sqrt(1 + layer.epsilon), rtol=1e-5)
    layer.train()
    np.testing.assert_allclose(layer(x).mean(0), np.zeros(5), atol=1e-5)
    before = layer.mean.value
    layer(x, use_running_average=True)
    assert layer.mean.value is before


def test_batch_norm_averages_statistics_over_a_mapped_axis():
    layer = nnx.BatchNorm(5, axis_name="devices", rngs=nnx.Rngs(0))
    plain = nnx.BatchNorm(5, rngs=nnx.Rngs(0))
    x = normal(4, 3, 5) * 2 + 1
    graphdef, state = nnx.split(layer)

    def apply(x):
        module = nnx.merge(graphdef, state)
        return module(x), module.mean.value

    y, mean = jax.vmap(apply, axis_name="devices")(x)
    np.testing.assert_allclose(y.reshape(12, 5), plain(x.reshape(12, 5)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(mean, np.tile(plain.mean.value, (4, 1)), rtol=1e-5, atol=1e-6)


def test_batch_norm_averages_within_groups_of_a_mapped_axis():
    layer = nnx.BatchNorm(2, axis_name="i", axis_index_groups=[[0, 1], [2, 3]], rngs=nnx.Rngs(0))
    assert layer.axis_index_groups == ((0, 1), (2, 3))
    hash(nnx.graphdef(layer))


def test_batch_norm_keeps_the_dtype_of_its_statistics():
    layer = nnx.BatchNorm(5, rngs=nnx.Rngs(0))
    with jax.enable_x64(True):
        layer(jnp.asarray(np.ones((3, 5)), jnp.float64))
    assert layer.mean.value.dtype == jnp.float32


def test_half_precision_inputs_get_float32_statistics():
    x = (normal(64, 5) * 0.01 + 10).astype(jnp.float16)
    layer = nnx.BatchNorm(5, momentum=0.0, rngs=nnx.Rngs(0))
    layer(x)
    np.testing.assert_allclose(layer.mean.value, np.asarray(x, np.float64).mean(0), rtol=1e-5)


@pytest.mark.parametrize("name", ["LayerNorm", "RMSNorm"])
@pytest.mark.parametrize(("options", "shape"), LAYER_NORM)
def test_layer_norms_compute_what_flax_does(name, options, shape):
    ours, theirs = make(name, 5, **options)
    x = normal(*shape) * 2 + 1
    assert_same_call(ours, theirs, x)
    if "dtype" not in options:
        assert_same_gradients(ours, theirs, lambda m: m(x))


@pytest.mark.parametrize("name", ["LayerNorm", "RMSNorm"])
def test_layer_norms_take_statistics_where_the_mask_is_true(name):
    ours, theirs = make(name, 5)
    mask = jnp.array([True, False, True, True, False])
    assert_same_call(ours, theirs, normal(3, 5), mask=mask)


@pytest.mark.parametrize(("options", "shape"), GROUP_NORM)
def test_group_norm_computes_what_flax_does(options, shape):
    ours, theirs = make("GroupNorm", 8, **options)
    x = normal(*shape) * 2 + 1
    assert_same_call(ours, theirs, x)
    assert_same_gradients(ours, theirs, lambda m: m(x))


def test_group_norm_over_the_features_alone_matches_numpy():
    # flax is right for one batch axis only, so the formula itself is the reference here.
    layer = nnx.GroupNorm(8, num_groups=2, reduction_axes=(-1,), rngs=nnx.Rngs(0))
    x = np.asarray(normal(2, 3, 8), np.float64)
    groups = x.reshape(2, 3, 2, 4)
    expected = groups - groups.mean(-1, keepdims=True)
    expected /= np.sqrt(groups.var(-1, keepdims=True) + layer.epsilon)
    np.testing.assert_allclose(layer(jnp.asarray(x)), expected.reshape(x.shape), atol=1e-5)


def test_group_norm_takes_statistics_where_the_mask_is_true():
    layer = nnx.GroupNorm(4, num_groups=2, rngs=nnx.Rngs(0))
    x = normal(2, 3, 4)
    mask = jnp.array([True, True, False])[:, None]
    shorter = layer(x[:, :2])
    np.testing.assert_allclose(layer(x, mask=mask)[:, :2], shorter, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("options", "shape"), [({}, (6, 3, 8)), ({"feature_axes": 1}, (6, 8, 3))])
def test_instance_norm_computes_what_flax_does(options, shape):
    ours, theirs = make("InstanceNorm", 8, **options)
    x = normal(*shape) * 2 + 1
    assert_same_call(ours, theirs, x)
    assert_same_gradients(ours, theirs, lambda m: m(x))


@pytest.mark.parametrize("fast", [True, False])
def test_complex_inputs_are_normalized_by_their_magnitude(fast):
    layer = nnx.LayerNorm(4, use_fast_variance=fast, rngs=nnx.Rngs(0))
    x = (normal(2, 4) + 1j * normal(2, 4, seed=1)).astype(jnp.complex64)
    centered = np.asarray(x) - np.asarray(x).mean(-1, keepdims=True)
    variance = (np.abs(centered) ** 2).mean(-1, keepdims=True)
    np.testing.assert_allclose(layer(x), centered / np.sqrt(variance + 1e-6), rtol=1e-4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda r: nnx.BatchNorm(4, rngs=r)(normal(2, 5)), "num_features=4"),
        (lambda r: nnx.LayerNorm(4, rngs=r)(normal(2, 5)), "have 5 on axes"),
        (lambda r: nnx.RMSNorm(4, rngs=r)(normal(2, 8)), r"has a scale of shape \(4,\)"),
        (
            lambda r: nnx.LayerNorm(4, use_scale=False, use_bias=False, rngs=r)(normal(2, 5)),
            "no scale and no bias, but its inputs",
        ),
        (
            lambda r: nnx.GroupNorm(8, 2, use_scale=False, use_bias=False, rngs=r)(normal(2, 2)),
            "groups of 4 features",
        ),
        (lambda r: nnx.LayerNorm(5, reduction_axes=2, rngs=r)(normal(2, 5)), "rank 2"),
        (lambda r: nnx.GroupNorm(8, 3, rngs=r), "num_groups=3 does not divide"),
        (lambda r: nnx.GroupNorm(8, None, 5, rngs=r), "group_size=5 does not divide"),
        (lambda r: nnx.GroupNorm(8, 2, 4, rngs=r), "either num_groups or group_size"),
        (lambda r: nnx.GroupNorm(8, None, None, rngs=r), "either num_groups or group_size"),
        (
            lambda r: nnx.GroupNorm(8, 2, reduction_axes=(1,), rngs=r)(normal(2, 3, 8)),
            "must include the last axis",
        ),
        (lambda r: nnx.InstanceNorm(2, feature_axes=0, rngs=r)(normal(2, 3)), "batch axis 0"),
    ],
)
def test_norms_explain_wrong_sizes(call, message):
    with pytest.raises(ValueError, match=message):
        call(nnx.Rngs(0))
