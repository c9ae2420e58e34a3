"""scan: which argument is the carry, what is a constant of the loop, and what state does under None."""

from __future__ import annotations

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import treadle as nnx
from tests.open_points import cases

from .libraries import both, quiet, same, weights

pytestmark = quiet
X = np.arange(6.0).reshape(3, 2)


# -- no carry (rule 13) --------------------------------------------------------------------------


def test_both_axes_given_and_no_carry_is_a_map():
    same(nnx.scan(lambda x: x * 2, in_axes=(0,), out_axes=0)(jnp.asarray(X)), X * 2)
    same(nnx.scan(lambda x: x.sum(), in_axes=1, out_axes=0)(jnp.asarray(X)), X.sum(0))
    same(nnx.scan(lambda x: x, in_axes=(0,), out_axes=1)(jnp.asarray(X)), X.T)


def test_no_carry_and_a_pair_is_a_pair_of_stacks():
    a, b = nnx.scan(lambda x, y: (x, y), in_axes=(0, None), out_axes=(0, 0))(jnp.asarray(X), 1.0)
    same(a, X)
    same(b, np.ones(3))


@both
def test_no_carry_over_a_node(lib):
    m = weights(3, 2, lib=lib)
    same(nnx.scan(lambda m: m["w"].value + 1, in_axes=0, out_axes=0)(m), X + 1)


@pytest.mark.parametrize(
    "parameters",
    [
        {"state_axes": {...: 0}},
        {"split_rngs": ...},
        {"in_axes_kwargs": 0},
        {"carry_argnum": 0},
        {"scan_output": True},
    ],
    ids=lambda p: next(iter(p)),
)
def test_any_contract_parameter_brings_the_carry_back(parameters):
    f = nnx.scan(lambda c, x: (c + x, c), in_axes=(None, 0), out_axes=0, **parameters)
    c, out = f(jnp.array(0.0), jnp.arange(3.0))
    same(c, 3.0)
    same(out, [0, 0, 1])


def test_a_pair_with_position_0_unmapped_warns_once():
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        f = nnx.scan(lambda c, x: (c + x, c), in_axes=(None, 0), out_axes=0)
        for _ in range(2):
            a, b = f(jnp.array(1.0), jnp.arange(3.0))
    same(a, np.arange(3.0) + 1)
    same(b, np.ones(3))
    assert len([w for w in seen if "carry" in str(w.message)]) == 1


# -- Carry on both sides (rules 14, 15) ----------------------------------------------------------


def test_carry_in_given_in_axes_needs_one_in_given_out_axes():
    with pytest.raises(ValueError, match="Carry"):
        nnx.scan(lambda c, x: (c, x), in_axes=(nnx.Carry, 0), out_axes=0)


def test_carry_in_given_out_axes_needs_one_in_given_in_axes():
    with pytest.raises(ValueError, match="Carry"):
        nnx.scan(lambda c, x: (c, x), in_axes=(None, 0), out_axes=(nnx.Carry, 0))


def test_at_most_one_carry_in_in_axes():
    with pytest.raises(ValueError, match="more than one Carry"):
        nnx.scan(lambda a, b: (a, b), in_axes=(nnx.Carry, nnx.Carry), out_axes=(nnx.Carry, 0))


def test_at_most_one_carry_in_out_axes():
    with pytest.raises(ValueError, match="more than one Carry"):
        nnx.scan(lambda a, b: (a, b), in_axes=(nnx.Carry, 0), out_axes=(nnx.Carry, nnx.Carry))


def test_no_none_in_out_axes():
    with pytest.raises(ValueError, match="out_axes has None"):
        nnx.scan(lambda a, b: (a, b), in_axes=(nnx.Carry, 0), out_axes=(nnx.Carry, None))


def test_only_in_axes_given_means_carry_and_0():
    c, out = nnx.scan(lambda x, c: (c + x, c), in_axes=(0, nnx.Carry))(
        jnp.arange(3.0), jnp.array(0.0)
    )
    same(c, 3.0)
    same(out, [0, 0, 1])


def test_a_result_that_is_no_pair_with_only_in_axes_given_is_an_error():
    with pytest.raises((TypeError, ValueError), match=r"out_axes|pair|carry"):
        nnx.scan(lambda c, x: c + x, in_axes=(nnx.Carry, 0))(jnp.array(0.0), jnp.arange(3.0))


def test_the_carry_is_at_carry_argnum_otherwise():
    c, out = nnx.scan(lambda c, x: (c + x, c))(jnp.array(0.0), jnp.arange(3.0))
    same(c, 3.0)
    c, out = nnx.scan(lambda x, c: (c + x, c), carry_argnum=1)(jnp.arange(3.0), jnp.array(0.0))
    same(out, [0, 0, 1])


# -- state under None (rule 18) ------------------------------------------------------------------


@both
def test_state_under_none_that_changes_is_carried(lib):
    m = lib.Dict(total=lib.BatchStat(jnp.array(0.0)))
    total = m["total"]

    def f(c, x, m):
        m["total"].value = m["total"].value + x
        return c, m["total"].value

    _, out = nnx.scan(f, in_axes=(nnx.Carry, 0, None), out_axes=(nnx.Carry, 0))(
        0.0, jnp.arange(4.0), m
    )
    same(out, [0, 1, 3, 6])
    same(m["total"].value, 6.0)
    assert m["total"] is total


@both
def test_state_under_none_in_a_map_is_carried_too(lib):
    m = lib.Dict(total=lib.BatchStat(jnp.array(0.0)))

    def f(x, m):
        m["total"].value = m["total"].value + x
        return m["total"].value

    same(nnx.scan(f, in_axes=(0, None), out_axes=0)(jnp.arange(4.0), m), [0, 1, 3, 6])
    same(m["total"].value, 6.0)


@both
def test_none_in_state_axes_that_changes_is_carried(lib):
    m = lib.Dict(w=lib.Param(jnp.arange(3.0)), n=lib.BatchStat(jnp.array(0)))

    def f(c, m):
        m["n"].value = m["n"].value + 1
        return c + m["w"].value, m["n"].value

    axes = nnx.StateAxes({lib.Param: 0, ...: None})
    c, out = nnx.scan(f, in_axes=(nnx.Carry, axes), out_axes=(nnx.Carry, 0))(0.0, m)
    same(c, 3.0)
    same(out, [1, 2, 3])
    assert int(m["n"].value) == 3


@both
def test_state_under_an_axis_is_sliced(lib):
    m = weights(3, 2, lib=lib)

    def f(c, m):
        m["w"].value = m["w"].value * 2
        return c + m["w"].value.sum(), None

    c, _ = nnx.scan(f, in_axes=(nnx.Carry, 1), out_axes=(nnx.Carry, 0))(0.0, m)
    same(c, X.sum() * 2)
    same(m["w"].value, X * 2)


@both
def test_a_bare_variable_in_scan_has_its_entry(lib):
    v = lib.Param(jnp.asarray(X))
    f = nnx.scan(lambda c, v: (c, v.value), in_axes=(nnx.Carry, 1), out_axes=(nnx.Carry, 0))
    same(f(0.0, v)[1], X.T)


def test_gradient_of_state_under_none_is_summed():
    m = weights(2)

    def loss(m):
        f = nnx.scan(
            lambda c, x, m: (c + (m["w"].value * x).sum(), None),
            in_axes=(nnx.Carry, 0, None),
            out_axes=(nnx.Carry, 0),
        )
        return f(0.0, jnp.asarray(X), m)[0]

    same(nnx.grad(loss)(m)["w"].value, X.sum(0))


# -- arguments whose axis is None are constants of the loop (point 26) ---------------------------


def flagged(c, x, train):
    return c + (x if train else -x), c


CONSTANTS = {
    "flag": (True, lambda v: 1.0 if v else -1.0),
    "text": ("plus", lambda v: {"plus": 1.0}[v]),
    "function": (jnp.negative, lambda v: v(1.0)),
    "dtype": (jnp.float16, lambda v: jnp.zeros((), v).dtype.itemsize),
    "shape": ((2, 3), lambda v: float(jnp.zeros(v).size)),
    "none": (None, lambda v: 1.0 if v is None else 0.0),
    "number": (3, lambda v: float(len(range(v)))),
}


@pytest.mark.parametrize(("value", "read"), cases(CONSTANTS))
def test_scan_constants_of_the_loop(value, read):
    f = nnx.scan(lambda c, x, k: (c + x * read(k), c), in_axes=(None, 0, None))
    c, _ = f(0.0, jnp.arange(3.0), value)
    same(c, 3 * read(value))


@pytest.mark.parametrize(("value", "read"), cases(CONSTANTS))
def test_scan_constants_in_todays_spelling(value, read):
    f = nnx.scan(
        lambda c, x, k: (c + x * read(k), c),
        in_axes=(nnx.Carry, 0, None),
        out_axes=(nnx.Carry, 0),
    )
    c, _ = f(0.0, jnp.arange(3.0), value)
    same(c, 3 * read(value))


def test_a_flag_may_change_between_calls():
    f = nnx.scan(flagged, in_axes=(None, 0, None))
    same(f(0.0, jnp.arange(3.0), True)[0], 3.0)
    same(f(0.0, jnp.arange(3.0), False)[0], -3.0)


def test_constants_in_containers_and_keywords():
    f = nnx.scan(lambda c, x, o: flagged(c, x * o["k"], o["train"]), in_axes=(None, 0, None))
    same(f(0.0, jnp.arange(3.0), {"train": False, "k": jnp.float32(2)})[0], -6.0)
    g = nnx.scan(lambda c, x, *, train: flagged(c, x, train), in_axes_kwargs={"train": None})
    same(g(0.0, jnp.arange(3.0), train=True)[0], 3.0)


def test_class_scan_has_constants_too():
    class Block(nnx.Module):
        def __init__(self, rngs):
            self.w = nnx.Param(jnp.ones(()))

        def __call__(self, x, train):
            return (x + self.w.value if train else x - self.w.value), None

    stack = nnx.Scan(Block, length=3, in_axes=None)(nnx.Rngs(0))
    same(stack(jnp.array(0.0), True)[0], 3.0)
    same(stack(jnp.array(0.0), False)[0], -3.0)


def test_scan_of_remat_with_a_static_argument():
    class Block(nnx.Module):
        def __init__(self, rngs):
            self.w = nnx.Param(jnp.ones(()))

        def __call__(self, x, train):
            return (x + self.w.value if train else x - self.w.value), None

    stack = nnx.Scan(nnx.Remat(Block, static_argnums=2), length=3, in_axes=None)(nnx.Rngs(0))
    same(stack(jnp.array(0.0), False)[0], -3.0)


def test_numbers_that_are_equal_but_not_the_same_are_different_constants():
    f = nnx.scan(lambda c, x, k: (c, jnp.asarray(k)), in_axes=(None, 0, None))
    assert f(0.0, jnp.ones(2), 1)[1].dtype == jnp.int32
    assert f(0.0, jnp.ones(2), 1.0)[1].dtype == jnp.float32
    assert f(0.0, jnp.ones(2), True)[1].dtype == bool
    assert np.signbit(f(0.0, jnp.ones(2), -0.0)[1]).all()
    assert not np.signbit(f(0.0, jnp.ones(2), 0.0)[1]).any()


def test_an_object_that_changes_between_calls_is_read_again():
    class Options:
        minus = False

    options = Options()
    f = nnx.scan(lambda c, x, o: flagged(c, x, not o.minus), in_axes=(None, 0, None))
    same(f(0.0, jnp.arange(3.0), options)[0], 3.0)
    options.minus = True
    same(f(0.0, jnp.arange(3.0), options)[0], -3.0)


def test_equal_constants_are_traced_once():
    traces = []

    def body(c, x, k):
        traces.append(k)
        return c, x

    f = nnx.scan(body, in_axes=(None, 0, None))
    for k in ("a", "a", "b", "b"):
        f(0.0, jnp.arange(3.0), k)
    assert traces == ["a", "b"]


@both
def test_the_structure_of_state_under_none_stays(lib):
    m = lib.Dict(n=lib.BatchStat(jnp.array(0.0)))

    def f(x, m):
        m["seen"] = True
        return x

    with pytest.raises(TypeError, match=r"m(\.seen|\['seen'\]) is carried.*structure"):
        nnx.scan(f, in_axes=(0, None), out_axes=0)(jnp.arange(3.0), m)
    assert "seen" not in m


def test_the_same_as_vmap():
    f = nnx.vmap(lambda x, train: x if train else -x, in_axes=(0, None))
    same(f(jnp.arange(3.0), False), -np.arange(3.0))


def test_jax_numbers_agree():
    body = lambda c, x: (c * 2 + x, c - x)  # noqa: E731
    ours = nnx.scan(body, in_axes=(nnx.Carry, 0), out_axes=(nnx.Carry, 0))(1.0, jnp.arange(4.0))
    theirs = jax.lax.scan(body, 1.0, jnp.arange(4.0))
    for a, b in zip(ours, theirs, strict=True):
        same(a, b)
