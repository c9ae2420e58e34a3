"""A leaf that is reached under two axes that differ for it is an error that names both."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

import treadle as nnx

from .libraries import both, quiet, same, weights

pytestmark = quiet
X = np.arange(6.0).reshape(2, 3)


@both
def test_one_node_under_none_and_0(lib):
    m = weights(3, 3, lib=lib)
    with pytest.raises(ValueError, match=r"(?s)(?=.*\ba\b)(?=.*\bb\b)"):
        nnx.vmap(lambda a, b: a["w"].value, in_axes=(None, 0))(m, m)


@both
def test_one_node_under_0_and_1(lib):
    m = weights(3, 3, lib=lib)
    with pytest.raises(ValueError, match=r"(?s)(?=.*\ba\b)(?=.*\bb\b)"):
        nnx.vmap(lambda a, b: a["w"].value, in_axes=(0, 1))(m, m)


@both
def test_one_variable_in_two_nodes(lib):
    v = lib.Param(jnp.ones((3, 3)))
    a, b = lib.Dict(v=v), lib.Dict(v=v)
    with pytest.raises(ValueError, match=r"(?s)(?=.*\ba\b)(?=.*\bb\b)"):
        nnx.vmap(lambda a, b: a["v"].value, in_axes=(0, 1))(a, b)


@both
def test_1_and_minus_1_of_two_dimensions_do_not_differ(lib):
    m = weights(2, 3, lib=lib)
    out = nnx.vmap(lambda a, b: a["w"].value + b["w"].value, in_axes=(1, -1))(m, m)
    same(out, (X * 2).T)


@both
def test_an_argument_returned_under_another_given_axis(lib):
    with pytest.raises(ValueError, match=r"\bm\b"):
        nnx.vmap(lambda m: m, in_axes=0, out_axes=1)(weights(3, 3, lib=lib))


@both
def test_an_argument_returned_under_a_given_none(lib):
    with pytest.raises(ValueError, match=r"\bm\b"):
        nnx.vmap(lambda m, x: (m, x), in_axes=(0, 0), out_axes=(None, 0))(
            weights(3, lib=lib), jnp.ones(3)
        )


@both
def test_an_argument_returned_under_its_own_axis(lib):
    m = weights(2, 3, lib=lib)
    assert nnx.vmap(lambda m: m, in_axes=1, out_axes=1)(m) is m
    assert nnx.vmap(lambda m: m, in_axes=1, out_axes=-1)(m) is m


@both
def test_a_default_out_axes_contradicts_nothing(lib):
    m = weights(2, 3, lib=lib)
    assert nnx.vmap(lambda m: m, in_axes=1)(m) is m
    out, x = nnx.vmap(lambda m, x: (m, x), in_axes=(None, 0))(m, jnp.arange(2.0))
    assert out is m
    same(x, [0, 1])


@both
def test_one_new_node_twice_under_0_and_1(lib):
    def f(x):
        m = lib.Dict(w=lib.Param(x))
        return m, m

    with pytest.raises(ValueError, match=r"result\[0\].*result\[1\]|0.*1"):
        nnx.vmap(f, out_axes=(0, 1))(jnp.asarray(X))


@both
def test_a_part_of_an_argument_returned_under_another_axis(lib):
    m = lib.Dict(inner=weights(3, 3, lib=lib))
    with pytest.raises(ValueError, match="inner"):
        nnx.vmap(lambda m: m["inner"], in_axes=0, out_axes=1)(m)


def test_scan_the_same_node_under_two_axes():
    m = weights(3, 3)
    with pytest.raises(ValueError, match=r"(?s)(?=.*\ba\b)(?=.*\bb\b)"):
        nnx.scan(
            lambda c, a, b: (c, a["w"].value),
            in_axes=(nnx.Carry, 0, 1),
            out_axes=(nnx.Carry, 0),
        )(0.0, m, m)


def test_scan_an_argument_returned_under_another_axis():
    m = weights(3, 3)
    with pytest.raises(ValueError, match=r"\bm\b"):
        nnx.scan(lambda c, m: (c, m), in_axes=(nnx.Carry, 0), out_axes=(nnx.Carry, 1))(0.0, m)


def test_contract_an_argument_returned_is_the_argument():
    m = weights(3, 2)
    assert nnx.vmap(lambda m: m, state_axes={...: 1})(m) is m


def test_an_error_changes_nothing():
    m = weights(3, 3)

    def f(m):
        m["w"].value = m["w"].value + 1
        m["new"] = nnx.Param(jnp.ones(()))
        return m

    with pytest.raises(ValueError, match=r"\bm\b"):
        nnx.vmap(f, in_axes=0, out_axes=1)(m)
    assert list(m) == ["w"]
    same(m["w"].value, np.arange(9.0).reshape(3, 3))


@both
def test_one_new_variable_put_into_two_arguments(lib):
    a, b = weights(3, 3, lib=lib), weights(3, 3, lib=lib)

    def f(a, b):
        a["new"] = b["new"] = lib.Param(a["w"].value)

    with pytest.raises(ValueError, match=r"new.* through a, .* through b"):
        nnx.vmap(f, in_axes=(0, 1))(a, b)
    assert list(a) == list(b) == ["w"]


@both
def test_new_state_in_two_arguments_follows_each(lib):
    a, b = weights(2, 3, lib=lib), weights(3, 2, lib=lib)

    def f(a, b):
        a["new"], b["new"] = lib.Param(a["w"].value), lib.Param(b["w"].value)
        return a["new"].value

    nnx.vmap(f, in_axes=(0, 1))(a, b)
    same(a["new"].value, X)
    same(b["new"].value, np.arange(6.0).reshape(3, 2))


@both
def test_a_variable_moved_to_an_argument_with_another_axis(lib):
    a, b = weights(3, 3, lib=lib), weights(3, 3, lib=lib)

    def f(a, b):
        b["moved"] = a["w"]

    with pytest.raises(ValueError, match=r"w.* through a, .* through b"):
        nnx.vmap(f, in_axes=(0, 1))(a, b)


def test_bare_arrays_of_nodes_are_compared_too():
    m = nnx.Dict(w=jnp.ones((3, 3)))
    with pytest.raises(ValueError, match=r"m\.w .*through m, .* through the result"):
        nnx.vmap(lambda m: m, in_axes=0, out_axes=1)(m)
    assert nnx.vmap(lambda m: m, in_axes=1, out_axes=-1)(m) is m
