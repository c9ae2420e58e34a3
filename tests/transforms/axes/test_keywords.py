"""Keywords and defaults take the places that the signature gives them."""

from __future__ import annotations

import functools

import jax.numpy as jnp
import numpy as np
import pytest

import treadle as nnx

from .libraries import both, quiet, same, weights

pytestmark = quiet
X = np.arange(6.0).reshape(2, 3)


def affine(x, scale=2.0, *, shift=0.0):
    return x * scale + shift


def test_a_keyword_takes_its_place_in_a_longer_tuple():
    f = nnx.vmap(affine, in_axes=(0, None))
    same(f(jnp.arange(3.0), scale=jnp.arange(2.0)), np.arange(3.0)[:, None] * np.arange(2.0))
    g = nnx.vmap(affine, in_axes=(0, 1))
    same(g(jnp.arange(3.0), scale=jnp.asarray(X)), (X * np.arange(3.0)).T)


def test_a_default_takes_its_place_in_a_longer_tuple():
    same(nnx.vmap(affine, in_axes=(0, None))(jnp.arange(3.0)), np.arange(3.0) * 2)


def test_all_by_keyword():
    f = nnx.vmap(lambda x, y: x + y, in_axes=(0, None))
    same(f(y=jnp.arange(2.0), x=jnp.arange(3.0)), np.arange(3.0)[:, None] + np.arange(2.0))


@both
def test_a_node_by_keyword_takes_its_place(lib):
    m = weights(3, lib=lib)
    f = nnx.vmap(lambda x, m: x + m["w"].value, in_axes=(0, None))
    same(f(jnp.arange(2.0), m=m), np.arange(2.0)[:, None] + np.arange(3.0))


def test_scan_a_keyword_takes_its_place():
    f = nnx.scan(
        lambda c, x, scale: (c + x * scale, c),
        in_axes=(nnx.Carry, 0, None),
        out_axes=(nnx.Carry, 0),
    )
    c, _ = f(jnp.array(0.0), jnp.arange(3.0), scale=2.0)
    same(c, 6.0)


def test_scan_contract_a_keyword_takes_its_place():
    f = nnx.scan(lambda c, x, scale: (c + x * scale, c), in_axes=(None, 0, None))
    c, _ = f(jnp.array(0.0), jnp.arange(3.0), scale=2.0)
    same(c, 6.0)


def test_a_function_without_a_signature_is_an_error():
    class Opaque:
        __signature__ = "unknown"

        def __call__(self, x, y=0.0):
            return x + y

    with pytest.raises((TypeError, ValueError), match="in_axes"):
        nnx.vmap(Opaque(), in_axes=(0, None))(jnp.arange(2.0), y=1.0)


def test_in_axes_kwargs_that_says_otherwise_is_an_error():
    f = nnx.vmap(affine, in_axes=(0, None), in_axes_kwargs={"scale": 0})
    with pytest.raises(ValueError, match="scale"):
        f(jnp.arange(3.0), scale=jnp.arange(3.0))


def test_in_axes_kwargs_that_says_the_same_is_fine():
    f = nnx.vmap(affine, in_axes=(0, None), in_axes_kwargs={"scale": None})
    same(f(jnp.arange(3.0), scale=3.0), np.arange(3.0) * 3)


def test_a_tuple_too_long_for_the_signature_is_an_error():
    with pytest.raises((TypeError, ValueError), match="in_axes"):
        nnx.vmap(lambda x: x, in_axes=(0, None))(jnp.arange(3.0))


def test_a_single_entry_holds_for_keywords_that_have_a_position():
    f = nnx.vmap(lambda x, y: x + y, in_axes=1)
    same(f(jnp.asarray(X), y=jnp.asarray(X)), (X * 2).T)


@both
def test_a_single_entry_holds_for_nodes_that_come_by_keyword(lib):
    m = weights(2, 3, lib=lib)
    same(nnx.vmap(lambda x, m: x + m["w"].value, in_axes=1)(jnp.asarray(X), m=m), (X * 2).T)


def test_keyword_only_arguments_follow_in_axes_kwargs():
    f = nnx.vmap(lambda x, *, y: x.sum() + y.sum(), in_axes=1)
    with pytest.raises(ValueError, match=r"[xy] has \d along axis"):
        f(jnp.asarray(X), y=jnp.asarray(X))
    same(f(jnp.asarray(X), y=jnp.asarray(X.T)), X.sum(0) * 2)


def test_with_a_contract_parameter_keywords_follow_in_axes_kwargs():
    f = nnx.vmap(lambda x, y: x.sum() + y.sum(), in_axes=1, state_axes={...: 0})
    same(f(jnp.asarray(X), y=jnp.asarray(X.T)), X.sum(0) * 2)


def test_in_axes_kwargs_default_is_0_for_nodes_too():
    m = weights(2, 3)
    same(nnx.vmap(lambda *, m: m["w"].value)(m=m), X)


def test_a_partial_has_the_signature_that_is_left():
    f = nnx.vmap(functools.partial(affine, shift=1.0), in_axes=(0, None))
    same(f(jnp.arange(3.0), scale=3.0), np.arange(3.0) * 3 + 1)


def test_a_method_counts_self():
    class Net(nnx.Module):
        def __init__(self):
            self.w = nnx.Param(jnp.arange(2.0))

        @functools.partial(nnx.vmap, in_axes=(None, 0, None))
        def __call__(self, x, scale=2.0):
            return x * self.w.value * scale

    same(Net()(jnp.arange(3.0)), np.arange(3.0)[:, None] * np.arange(2.0) * 2)
    same(Net()(jnp.arange(3.0), scale=1.0), np.arange(3.0)[:, None] * np.arange(2.0))
