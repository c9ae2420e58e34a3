"""nnx.vmap, a case per parameter of its signature; the rule for axes is in tests/transforms/axes."""

from __future__ import annotations

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import treadle as nnx

X = jnp.arange(6.0).reshape(2, 3)


def net():
    return nnx.Dict(w=nnx.Param(X), s=nnx.BatchStat(jnp.arange(3.0)))


def test_the_signature_is_that_of_the_page():
    parameters = inspect.signature(nnx.vmap).parameters
    assert list(parameters)[1:] == [
        "in_axes",
        "out_axes",
        "axis_name",
        "axis_size",
        "spmd_axis_name",
        "in_axes_kwargs",
        "state_axes",
        "split_rngs",
        "transform_metadata",
    ]
    assert parameters["in_axes"].default == 0
    assert parameters["out_axes"].default == 0
    assert parameters["in_axes_kwargs"].default == 0
    assert dict(parameters["state_axes"].default) == {...: 0}
    assert parameters["split_rngs"].default is ...
    assert dict(parameters["transform_metadata"].default) == {}


@pytest.mark.parametrize("in_axes", [0, 1, -1, (0,), (1,), [1]], ids=str)
def test_in_axes(in_axes):
    f = lambda x: x * 2 + x.sum()  # noqa: E731
    np.testing.assert_allclose(nnx.vmap(f, in_axes=in_axes)(X), jax.vmap(f, in_axes=in_axes)(X))


@pytest.mark.parametrize("out_axes", [0, 1, -1])
def test_out_axes(out_axes):
    f = lambda x: x * 2  # noqa: E731
    np.testing.assert_allclose(nnx.vmap(f, out_axes=out_axes)(X), jax.vmap(f, out_axes=out_axes)(X))


def test_axis_name():
    f = lambda x: jax.lax.psum(x, "i")  # noqa: E731
    np.testing.assert_allclose(nnx.vmap(f, axis_name="i")(X), jax.vmap(f, axis_name="i")(X))


@pytest.mark.parametrize("size", [3, np.int64(3)], ids=repr)
def test_axis_size(size):
    assert nnx.vmap(lambda: jnp.ones(2), axis_size=size)().shape == (3, 2)


def test_in_axes_kwargs():
    f = nnx.vmap(lambda *, x, y: x + y, in_axes_kwargs={"x": 0, "y": None})
    np.testing.assert_allclose(f(x=X, y=1.0), X + 1)


def test_state_axes():
    f = lambda m: m["w"].value.sum() + m["s"].value  # noqa: E731
    out = nnx.vmap(f, state_axes={nnx.Param: 1, nnx.BatchStat: 0})(net())
    np.testing.assert_allclose(out, X.sum(0) + jnp.arange(3.0))
    out = nnx.vmap(lambda m: m["w"].value + m["s"].value, state_axes={nnx.Param: 0})(net())
    np.testing.assert_allclose(out, X + jnp.arange(3.0))


def test_state_axes_none_is_an_error_that_says_what_it_takes():
    with pytest.raises((TypeError, ValueError), match="state_axes"):
        nnx.vmap(lambda m: m, state_axes=None)


@pytest.mark.parametrize(
    ("split", "same"),
    [(..., False), (True, False), (False, True), (None, True), ("k", False)],
    ids=str,
)
def test_split_rngs(split, same):
    out = nnx.vmap(lambda r, x: jax.random.normal(r.k()), split_rngs=split, state_axes={...: 0})(
        nnx.Rngs(k=0), jnp.ones(3)
    )
    assert bool((out == out[0]).all()) is same


def test_transform_metadata():
    f = nnx.vmap(
        lambda r: nnx.Param(jnp.ones(2), sharding=("m",)),
        axis_size=3,
        transform_metadata={nnx.PARTITION_NAME: "layers"},
    )
    assert f(nnx.Rngs(0)).sharding == ("layers", "m")


def test_transform_metadata_with_a_name_that_is_none():
    f = nnx.vmap(
        lambda r: nnx.Param(jnp.ones(2), sharding=("m",)),
        axis_size=3,
        transform_metadata={nnx.PARTITION_NAME: None},
    )
    assert f(nnx.Rngs(0)).sharding == (None, "m")


def test_what_is_not_mapped_may_be_anything():
    f = nnx.vmap(lambda x, g, name, train: g(x) if train else x, in_axes=(0, None, None, None))
    np.testing.assert_allclose(f(X, jnp.sin, "sin", True), jnp.sin(X))
