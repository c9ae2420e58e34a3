"""What a mapped function makes: new nodes follow out_axes, new state in an argument its entry."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

import treadle as nnx

from .libraries import both, quiet, same, weights

pytestmark = quiet
X = np.arange(6.0).reshape(3, 2)


def made(lib):
    return lambda x: lib.Dict(w=lib.Param(x))


@both
def test_new_nodes_follow_out_axes(lib):
    same(nnx.vmap(made(lib), out_axes=0)(jnp.asarray(X))["w"].value, X)
    same(nnx.vmap(made(lib), out_axes=1)(jnp.asarray(X))["w"].value, X.T)
    same(nnx.vmap(made(lib), out_axes=-1)(jnp.asarray(X))["w"].value, X.T)


@both
def test_new_nodes_under_none_hold_one_slice(lib):
    m = nnx.vmap(lambda x: lib.Dict(w=lib.Param(jnp.ones(2))), out_axes=None)(jnp.asarray(X))
    same(m["w"].value, np.ones(2))


@both
def test_none_with_slices_that_differ_is_an_error(lib):
    with pytest.raises(ValueError, match=r"\bw\b"):
        nnx.vmap(made(lib), out_axes=None)(jnp.asarray(X))


@both
def test_prefixes_of_out_axes(lib):
    def f(x):
        return {"a": lib.Dict(w=lib.Param(x)), "b": [lib.Param(x)]}, x

    out, x = nnx.vmap(f, out_axes=({"a": 1, "b": 0}, -1))(jnp.asarray(X))
    same(out["a"]["w"].value, X.T)
    same(out["b"][0].value, X)
    same(x, X.T)


@both
def test_a_state_as_result_follows_out_axes(lib):
    out = nnx.vmap(lambda x: lib.state(lib.Dict(w=lib.Param(x))), out_axes=1)(jnp.asarray(X))
    same(out["w"].value if hasattr(out["w"], "value") else out["w"], X.T)


@both
def test_new_state_in_an_argument_follows_its_entry(lib):
    m = weights(2, 3, lib=lib)

    def f(m):
        m["new"] = lib.Param(m["w"].value * 2)

    nnx.vmap(f, in_axes=1, axis_size=3)(m)
    same(m["new"].value, np.arange(6.0).reshape(2, 3) * 2)


@both
def test_new_state_in_an_argument_under_none(lib):
    m = weights(2, lib=lib)

    def f(m, x):
        m["new"] = lib.Param(m["w"].value * 2)
        return x

    nnx.vmap(f, in_axes=(None, 0))(m, jnp.ones(3))
    same(m["new"].value, [0, 2])


@both
def test_new_state_under_none_that_differs_is_an_error(lib):
    m = weights(2, lib=lib)

    def f(m, x):
        m["new"] = lib.Param(x)

    with pytest.raises(ValueError, match=r"m(\.new|\['new'\])"):
        nnx.vmap(f, in_axes=(None, 0))(m, jnp.arange(3.0))
    assert "new" not in m


@both
def test_state_axes_in_out_axes_tells_new_state_apart(lib):
    axes = nnx.StateAxes({lib.Param: 1, ...: 0})
    m = nnx.vmap(lambda x: lib.Dict(w=lib.Param(x), s=lib.BatchStat(x)), out_axes=axes)(
        jnp.asarray(X)
    )
    same(m["w"].value, X.T)
    same(m["s"].value, X)


def test_new_nodes_of_a_scan_follow_out_axes():
    f = nnx.scan(
        lambda c, x: (c, nnx.Dict(w=nnx.Param(x))),
        in_axes=(nnx.Carry, 0),
        out_axes=(nnx.Carry, 1),
    )
    same(f(0.0, jnp.asarray(X))[1]["w"].value, X.T)


def test_new_nodes_of_a_map_scan_follow_out_axes():
    m = nnx.scan(lambda x: nnx.Dict(w=nnx.Param(x)), in_axes=0, out_axes=1)(jnp.asarray(X))
    same(m["w"].value, X.T)


def test_contract_new_nodes_follow_state_axes():
    f = nnx.vmap(lambda x: (nnx.Dict(w=nnx.Param(x)), x), out_axes=0, state_axes={...: 1})
    m, x = f(jnp.asarray(X))
    same(m["w"].value, X.T)
    same(x, X)
