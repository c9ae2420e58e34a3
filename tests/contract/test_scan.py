"""nnx.scan, a case per parameter of its signature."""

from __future__ import annotations

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import treadle as nnx
from tests.open_points import cases

X = jnp.arange(6.0).reshape(2, 3)


def body(c, x):
    return c * 2 + x.sum(), c - x


def layers():
    return nnx.Dict(w=nnx.Param(jnp.arange(3.0)), s=nnx.BatchStat(jnp.array(0.0)))


def test_the_signature_is_that_of_the_page():
    parameters = inspect.signature(nnx.scan).parameters
    assert list(parameters)[1:] == [
        "length",
        "reverse",
        "unroll",
        "_split_transpose",
        "in_axes",
        "in_axes_kwargs",
        "out_axes",
        "carry_argnum",
        "state_axes",
        "split_rngs",
        "transform_metadata",
        "scan_output",
    ]
    assert parameters["carry_argnum"].default == 0
    assert parameters["scan_output"].default is True
    assert parameters["unroll"].default == 1


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"length": 2},
        {"reverse": True},
        {"unroll": 2},
        {"unroll": True},
        {"_split_transpose": True},
    ],
    ids=str,
)
def test_what_is_passed_through(options):
    ours = nnx.scan(body, **options)(1.0, X)
    theirs = jax.lax.scan(body, 1.0, X, **options)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b)


def test_length_alone():
    c, out = nnx.scan(lambda c: (c + 1, c), length=3)(0.0)
    assert float(c) == 3.0
    np.testing.assert_allclose(out, [0, 1, 2])


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_in_axes(axis):
    ours = nnx.scan(body, in_axes=(None, axis))(1.0, X)
    theirs = jax.lax.scan(body, 1.0, jnp.moveaxis(X, axis, 0))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b)


@pytest.mark.parametrize("train", [True, False])
def test_arguments_whose_axis_is_none_are_constants(train):
    def body(c, x, train):
        return (c + x, c) if train else (c - x, c)

    c, _ = nnx.scan(body, in_axes=(None, 0, None))(0.0, jnp.arange(3.0), train)
    np.testing.assert_allclose(c, 3.0 if train else -3.0)


def test_in_axes_kwargs():
    f = nnx.scan(lambda c, *, x, k: (c + x.sum() * k, c), in_axes_kwargs={"x": 1, "k": None})
    np.testing.assert_allclose(f(0.0, x=X, k=2.0)[0], X.sum() * 2)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_out_axes(axis):
    _, out = nnx.scan(body, out_axes=axis)(1.0, X)
    np.testing.assert_allclose(out, jnp.moveaxis(jax.lax.scan(body, 1.0, X)[1], 0, axis))


@pytest.mark.parametrize("argnum", [1, -1, np.int64(1)], ids=repr)
def test_carry_argnum(argnum):
    c, out = nnx.scan(lambda x, c: body(c, x), carry_argnum=argnum)(X, 1.0)
    np.testing.assert_allclose(c, jax.lax.scan(body, 1.0, X)[0])
    np.testing.assert_allclose(out, jax.lax.scan(body, 1.0, X)[1])


@pytest.mark.parametrize("argnum", [(0,), [0], "0", 1.0], ids=repr)
def test_a_carry_argnum_that_is_no_int_says_so(argnum):
    with pytest.raises((TypeError, ValueError), match="carry_argnum"):
        nnx.scan(body, carry_argnum=argnum)(1.0, X)


def test_state_axes():
    def f(c, m):
        m["s"].value = m["s"].value + m["w"].value
        return c + m["w"].value, m["s"].value

    m = layers()
    c, out = nnx.scan(f, state_axes={nnx.Param: 0})(0.0, m)
    assert float(c) == 3.0
    np.testing.assert_allclose(out, [0, 1, 3])
    np.testing.assert_allclose(m["s"].value, 3.0)


def test_state_axes_none_is_an_error_that_says_what_it_takes():
    with pytest.raises((TypeError, ValueError), match="state_axes"):
        nnx.scan(body, state_axes=None)


@pytest.mark.parametrize("split", [..., False], ids=str)
def test_split_rngs(split):
    key = jax.random.key(0)
    _, out = nnx.scan(lambda c, r: (c, jax.random.key_data(r.k())), length=3, split_rngs=split)(
        0.0, nnx.Rngs(k=key)
    )
    keys = jax.random.split(key, 3) if split is ... else [key] * 3
    expected = [jax.random.key_data(jax.random.fold_in(k, i)) for i, k in enumerate(keys)]
    np.testing.assert_array_equal(out, np.stack(expected))


@pytest.mark.parametrize("name", cases({"layers": "layers", "None": None}))
def test_transform_metadata(name):
    m = nnx.Dict(w=nnx.Param(jnp.ones((3, 2)), sharding=(name, "m")))
    seen = []

    def f(c, m):
        seen.append(m["w"].sharding)
        return c, None

    nnx.scan(f, transform_metadata={nnx.PARTITION_NAME: name})(0.0, m)
    assert set(seen) == {("m",)}
    assert m["w"].sharding == (name, "m")


def test_scan_output():
    assert float(nnx.scan(lambda c, x: c + x, scan_output=False)(0.0, jnp.arange(3.0))) == 3.0
    with pytest.raises(TypeError, match="pair"):
        nnx.scan(lambda c, x: c + x)(0.0, jnp.arange(3.0))


def test_too_few_positional_arguments():
    with pytest.raises(TypeError, match="Expected at least 2 positional arguments"):
        nnx.scan(body, carry_argnum=1)(1.0)
