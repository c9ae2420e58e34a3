"""nnx.Vmap, nnx.Scan and nnx.Remat, a case per parameter of their signatures."""

from __future__ import annotations

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import treadle as nnx
from tests.open_points import cases


class Block(nnx.Module):
    """y = x * w; returns a pair for scan, an array for the others."""

    pair = False

    def __init__(self, rngs, width=2):
        self.w = nnx.Param(jax.random.normal(rngs.params(), (width,)), sharding=("m",))
        self.s = nnx.BatchStat(jnp.zeros(()))

    def __call__(self, x, train=True, *, scale=1.0):
        self.s.value = self.s.value + 1
        y = x * self.w.value * scale if train else x
        return (y, y.sum()) if self.pair else y


class Pair(Block):
    pair = True


def keys(n, seed=0):
    return jax.random.split(jax.random.key(seed), n)


def weights(n):
    return jnp.stack([jax.random.normal(jax.random.fold_in(k, 0), (2,)) for k in keys(n)])


@pytest.mark.parametrize("kind", ["Vmap", "Scan", "Remat"])
def test_signatures_are_those_of_the_page(kind):
    function = inspect.signature(getattr(nnx, kind.lower())).parameters
    parameters = inspect.signature(getattr(nnx, kind)).parameters
    assert list(parameters)[1:] == list(function)[1:]
    if kind == "Scan":
        assert parameters["carry_argnum"].default == 1


def test_vmap_makes_and_calls_a_stack():
    stack = nnx.Vmap(Block, axis_size=3)(nnx.Rngs(0))
    np.testing.assert_allclose(stack.vmap_module.w.value, weights(3), rtol=1e-6)
    x = jnp.arange(6.0).reshape(3, 2)
    np.testing.assert_allclose(stack(x), x * weights(3), rtol=1e-6)
    np.testing.assert_allclose(stack.vmap_module.s.value, np.ones(3))


def test_vmap_in_axes_and_out_axes():
    stack = nnx.Vmap(Block, axis_size=3, in_axes=(None, None), out_axes=1)(nnx.Rngs(0))
    np.testing.assert_allclose(stack(jnp.ones(2)), weights(3).T, rtol=1e-6)


def test_vmap_in_axes_kwargs():
    stack = nnx.Vmap(Block, axis_size=3, in_axes_kwargs={"scale": None})(nnx.Rngs(0))
    x = jnp.arange(6.0).reshape(3, 2)
    np.testing.assert_allclose(stack(x, scale=2.0), 2 * x * weights(3), rtol=1e-6)


def test_vmap_axis_name():
    class Mean(Block):
        def __call__(self, x):
            return jax.lax.pmean(x * self.w.value, "i")

    stack = nnx.Vmap(Mean, axis_size=3, axis_name="i")(nnx.Rngs(0))
    np.testing.assert_allclose(stack(jnp.ones((3, 2)))[0], weights(3).mean(0), rtol=1e-5)


def test_vmap_state_axes():
    stack = nnx.Vmap(Block, axis_size=3, state_axes={nnx.Param: 1, ...: None})(nnx.Rngs(0))
    assert stack.vmap_module.w.shape == (2, 3)
    assert stack.vmap_module.s.shape == ()


@pytest.mark.parametrize(("split", "same"), [(..., False), (False, True)], ids=str)
def test_vmap_split_rngs(split, same):
    w = nnx.Vmap(Block, axis_size=3, split_rngs=split)(nnx.Rngs(0)).vmap_module.w.value
    assert bool((w == w[0]).all()) is same


@pytest.mark.parametrize("kind", ["Vmap", "Scan"])
@pytest.mark.parametrize("name", cases({"layers": "layers", "None": None}))
def test_transform_metadata(kind, name):
    size = {"Vmap": "axis_size", "Scan": "length"}[kind]
    make = getattr(nnx, kind)(
        {"Vmap": Block, "Scan": Pair}[kind],
        transform_metadata={nnx.PARTITION_NAME: name},
        **{size: 3},
    )
    module = getattr(make(nnx.Rngs(0)), f"{kind.lower()}_module")
    assert module.w.sharding == (name, "m")


@pytest.mark.parametrize("options", [{}, {"reverse": True}, {"unroll": 3}], ids=str)
def test_scan_makes_and_calls_a_stack(options):
    stack = nnx.Scan(Pair, length=3, **options)(nnx.Rngs(0))
    c, out = stack(jnp.ones(2))

    def body(c, w):
        return c * w, (c * w).sum()

    expected = jax.lax.scan(body, jnp.ones(2), weights(3), **options)
    np.testing.assert_allclose(c, expected[0], rtol=1e-5)
    np.testing.assert_allclose(out, expected[1], rtol=1e-5)


def test_scan_length_is_needed():
    with pytest.raises(ValueError, match="length"):
        nnx.Scan(Pair)(nnx.Rngs(0))


def test_scan_output():
    stack = nnx.Scan(Block, length=3, scan_output=False)(nnx.Rngs(0))
    np.testing.assert_allclose(stack(jnp.ones(2)), weights(3).prod(0), rtol=1e-5)


def test_scan_carry_argnum_counts_the_module():
    class Swapped(Pair):
        def __call__(self, x, c):
            return c * self.w.value + x, c

    stack = nnx.Scan(Swapped, length=3, carry_argnum=2)(nnx.Rngs(0))
    c, _ = stack(jnp.zeros((3, 2)), jnp.ones(2))
    np.testing.assert_allclose(c, weights(3).prod(0), rtol=1e-5)


@pytest.mark.parametrize("in_axes", [None, (None, None, None), (0, None, None)], ids=str)
def test_scan_flags_are_constants(in_axes):
    stack = nnx.Scan(Pair, length=3, in_axes=in_axes)(nnx.Rngs(0))
    np.testing.assert_allclose(stack(jnp.ones(2), False)[0], np.ones(2))
    np.testing.assert_allclose(stack(jnp.ones(2), True)[0], weights(3).prod(0), rtol=1e-5)


def test_scan_out_axes():
    class Wide(Pair):
        def __call__(self, x):
            return x, x * self.w.value

    _, out = nnx.Scan(Wide, length=3, out_axes=1)(nnx.Rngs(0))(jnp.ones(2))
    np.testing.assert_allclose(out, weights(3).T, rtol=1e-6)


def test_scan_state_axes_carries_what_is_not_selected():
    stack = nnx.Scan(Pair, length=3, state_axes={nnx.Param: 0})(nnx.Rngs(0))
    stack(jnp.ones(2))
    assert float(stack.scan_module.s.value) == 3.0


def test_remat():
    layer = nnx.Remat(Block)(nnx.Rngs(0))
    x = jnp.ones(2)
    grads = nnx.grad(lambda m: (m(x) ** 2).sum())(layer)
    w = layer.remat_module.w.value
    np.testing.assert_allclose(grads["remat_module"]["w"].value, 2 * w, rtol=1e-6)


@pytest.mark.parametrize(
    "argnums",
    cases({repr(a): (a,) for a in (2, (2,), np.int64(2), np.array([2]))}),
)
def test_remat_static_argnums_count_the_module(argnums):
    layer = nnx.Remat(Block, static_argnums=argnums)(nnx.Rngs(0))
    np.testing.assert_allclose(layer(jnp.ones(2), False), np.ones(2))


def test_remat_prevent_cse_and_policy():
    policy = jax.checkpoint_policies.everything_saveable
    layer = nnx.Remat(Block, False, (), policy)(nnx.Rngs(0))
    text = str(jax.make_jaxpr(lambda x: nnx.clone(layer)(x))(jnp.ones(2)))
    assert "prevent_cse=False" in text
    assert "everything_saveable" in text


def test_scan_of_remat_with_a_flag():
    stack = nnx.Scan(nnx.Remat(Pair, static_argnums=2), length=3, in_axes=None)(nnx.Rngs(0))
    np.testing.assert_allclose(stack(jnp.ones(2), False)[0], np.ones(2))


@pytest.mark.parametrize("kind", ["Vmap", "Scan"])
def test_state_axes_none_is_an_error_that_says_what_it_takes(kind):
    with pytest.raises((TypeError, ValueError), match="state_axes"):
        getattr(nnx, kind)(Block, state_axes=None)
