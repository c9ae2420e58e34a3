"""Donation never kills what somebody else still holds (point 17)."""

from __future__ import annotations

import warnings

import jax.numpy as jnp
import numpy as np
import pytest

import treadle as nnx


def net():
    return nnx.Dict(w=nnx.Param(jnp.arange(4.0)))


def advance(m):
    m["w"].value = m["w"].value + 1


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


DONATE = {
    "donate_state": {"donate_state": True},
    "donate_argnums": {"donate_argnums": 0},
    "donate_argnames": {"donate_argnames": "m"},
}


@pytest.mark.parametrize("options", DONATE.values(), ids=DONATE)
def test_a_clone_survives(options):
    a = net()
    b = nnx.clone(a)
    nnx.jit(advance, **options)(a)
    np.testing.assert_array_equal(b["w"].value, np.arange(4.0))
    np.testing.assert_array_equal(a["w"].value, np.arange(4.0) + 1)


def test_a_target_network_survives():
    a, target = net(), net()
    nnx.update(target, nnx.state(a))
    nnx.jit(advance, donate_state=True)(a)
    np.testing.assert_array_equal(target["w"].value, np.arange(4.0))


def test_a_name_in_the_callers_frame_survives():
    a = net()
    before = a["w"].value
    nnx.jit(advance, donate_state=True)(a)
    np.testing.assert_array_equal(before, np.arange(4.0))


def test_a_state_taken_before_survives():
    a = net()
    state = nnx.state(a)
    nnx.jit(advance, donate_state=True)(a)
    np.testing.assert_array_equal(state["w"].value, np.arange(4.0))


def test_a_hot_call_keeps_others_alive_too():
    a = net()
    f = nnx.jit(advance, donate_state=True)
    f(a), f(a)
    b = nnx.clone(a)
    f(a)
    np.testing.assert_array_equal(b["w"].value, np.arange(4.0) + 2)
    np.testing.assert_array_equal(a["w"].value, np.arange(4.0) + 3)


def test_what_has_one_owner_is_donated():
    a = nnx.Dict(w=nnx.Param(jnp.arange(1024.0)))
    pointer = a["w"].value.unsafe_buffer_pointer()
    nnx.jit(advance, donate_state=True)(a)
    assert a["w"].value.unsafe_buffer_pointer() == pointer


def test_a_warning_names_paths_and_bytes_once():
    a = net()
    b = nnx.clone(a)
    f = nnx.jit(advance, donate_state=True)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        f(a)
        c = nnx.clone(a)
        f(a)
    named = [str(w.message) for w in seen if "m.w" in str(w.message) or "m['w']" in str(w.message)]
    assert len(named) == 1
    assert "16" in named[0]
    assert float(b["w"].value.sum() + c["w"].value.sum()) == 16.0


def test_clone_with_arrays_copies_buffers():
    a = net()
    b = nnx.clone(a, arrays=True)
    assert b["w"].value is not a["w"].value
    assert b["w"].value.unsafe_buffer_pointer() != a["w"].value.unsafe_buffer_pointer()
    nnx.jit(advance, donate_state=True)(a)
    np.testing.assert_array_equal(b["w"].value, np.arange(4.0))


def test_clone_with_arrays_keeps_sharing():
    v = nnx.Param(jnp.arange(4.0))
    b = nnx.clone(nnx.Dict(a=v, b=v, k=nnx.Rngs(0)), arrays=True)
    assert b["a"] is b["b"]


def test_donate_state_takes_a_filter():
    # Of different shapes, or the buffer of one could be reused for the other.
    m = nnx.Dict(w=nnx.Param(jnp.arange(1024.0)), s=nnx.BatchStat(jnp.arange(4.0)))

    def f(m):
        m["w"].value = m["w"].value + 1
        m["s"].value = m["s"].value + 1

    w, s = m["w"].value.unsafe_buffer_pointer(), m["s"].value
    nnx.jit(f, donate_state=nnx.Param)(m)
    assert m["w"].value.unsafe_buffer_pointer() == w
    np.testing.assert_array_equal(s, np.arange(4.0))
