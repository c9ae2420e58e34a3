from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

import treadle as nnx
from tests.nn.peers import assert_same_call, assert_same_gradients, make, normal


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({"kernel_size": (3, 3)}, (2, 8, 7, 4)),
        ({"kernel_size": (3, 3), "strides": 2, "padding": "VALID"}, (8, 7, 4)),
        ({"kernel_size": (3, 3), "strides": (1, 2), "padding": "same"}, (2, 8, 7, 4)),
        ({"kernel_size": 3, "padding": "CAUSAL", "kernel_dilation": 2}, (2, 3, 8, 4)),
        ({"kernel_size": (3, 2), "padding": "CIRCULAR", "kernel_dilation": (2, 1)}, (2, 8, 7, 4)),
        ({"kernel_size": (4, 2), "padding": "REFLECT"}, (2, 8, 7, 4)),
        ({"kernel_size": (3, 2), "padding": ((1, 2), 0), "input_dilation": 2}, (2, 5, 4, 4)),
        ({"kernel_size": (3, 2), "padding": 1, "feature_group_count": 2}, (2, 8, 7, 4)),
        ({"kernel_size": (3,), "use_bias": False}, (2, 8, 4)),
        ({"kernel_size": (2, 2, 2), "strides": None}, (1, 4, 4, 4, 4)),
        ({"kernel_size": (3,), "dtype": jnp.bfloat16}, (2, 8, 4)),
        ({"kernel_size": (3,), "param_dtype": jnp.float16, "dtype": jnp.float32}, (2, 8, 4)),
    ],
)
def test_conv_computes_what_flax_does(options, shape):
    if isinstance(options.get("padding"), str):
        options = {**options, "padding": options["padding"].upper()}
    ours, theirs = make("Conv", 4, 6, **options)
    assert_same_call(ours, theirs, normal(*shape))


def test_conv_multiplies_the_kernel_with_the_mask():
    mask = jnp.asarray(np.random.default_rng(0).integers(0, 2, (3, 4, 6)), jnp.float32)
    ours, theirs = make("Conv", 4, 6, (3,), mask=mask)
    assert_same_call(ours, theirs, normal(2, 8, 4))


def test_conv_has_the_gradients_of_flax():
    ours, theirs = make("Conv", 2, 3, (3, 3))
    x = normal(2, 5, 5, 2)
    assert_same_gradients(ours, theirs, lambda m: m(x))


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({"kernel_size": (3, 3)}, (2, 5, 4, 4)),
        ({"kernel_size": (3, 3), "strides": 2, "padding": "VALID"}, (5, 4, 4)),
        ({"kernel_size": 3, "kernel_dilation": 2, "use_bias": False}, (2, 3, 8, 4)),
        ({"kernel_size": (3, 2), "strides": (2, 1), "padding": ((1, 2), 0)}, (2, 5, 4, 4)),
        ({"kernel_size": (3, 2), "transpose_kernel": True}, (2, 5, 4, 4)),
        ({"kernel_size": (3, 2), "padding": 1}, (2, 5, 4, 4)),
    ],
)
def test_conv_transpose_computes_what_flax_does(options, shape):
    ours, theirs = make("ConvTranspose", 4, 6, **options)
    assert_same_call(ours, theirs, normal(*shape))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda r: nnx.Conv(3, 4, (3,), padding="ROUND", rngs=r), "'ROUND' is not one of"),
        (lambda r: nnx.Conv(3, 4, (3, 3), padding="CAUSAL", rngs=r), "one spatial dimension"),
        (lambda r: nnx.Conv(3, 4, (3, 3), strides=(1,), rngs=r), r"strides=\(1,\) has 1 entries"),
        (lambda r: nnx.Conv(3, 4, (3, 3), padding=(1,), rngs=r), "one entry for each"),
        (lambda r: nnx.Conv(3, 4, (3,), feature_group_count=2, rngs=r), "must divide"),
        (lambda r: nnx.Conv(3, 4, (3,), rngs=r)(normal(2, 5, 4)), r"\(\.\.\., spatial, 3\)"),
        (lambda r: nnx.Conv(3, 4, (3, 3), rngs=r)(normal(5, 3)), r"got \(5, 3\)"),
        (lambda r: nnx.Conv(3, 4, (3,), mask=jnp.ones((5, 1, 1)), rngs=r), "mask of shape"),
        (lambda r: nnx.ConvTranspose(3, 4, (3,), padding="CIRCULAR", rngs=r), "SAME, VALID"),
    ],
)
def test_conv_explains_wrong_options(call, message):
    with pytest.raises(ValueError, match=message):
        call(nnx.Rngs(0))
