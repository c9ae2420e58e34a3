"""pmap as vmap, and the specs of shard_map as entries; run by `test_on_several_devices`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import treadle as nnx
from tests.transforms.axes.libraries import both, quiet, same, weights

pytestmark = quiet
W = np.arange(6.0).reshape(2, 3)


def mesh():
    return jax.sharding.Mesh(np.array(jax.devices()[:4]), ("d",))


@both
def test_pmap_none_is_the_same_on_all_devices(lib):
    m = weights(3, lib=lib)
    out = nnx.pmap(lambda m, x: m["w"].value * x, in_axes=(None, 0))(m, jnp.arange(2.0))
    same(out, [[0, 0, 0], [0, 1, 2]])


@both
def test_pmap_an_int_is_the_axis(lib):
    m = weights(2, 3, lib=lib)
    out = nnx.pmap(lambda m: m["w"].value * 2, in_axes=1)(m)
    same(out, (W * 2).T)


@both
def test_pmap_changes_come_back_along_the_axis(lib):
    m = weights(2, 3, lib=lib)

    def f(m, x):
        m["w"].value = m["w"].value * x

    nnx.pmap(f, in_axes=(1, 0))(m, jnp.arange(3.0))
    same(m["w"].value, W * np.arange(3.0))


def test_pmap_a_bare_variable():
    same(nnx.pmap(lambda v: v.value.sum(), in_axes=1)(nnx.Param(jnp.asarray(W))), W.sum(0))


def test_pmap_new_nodes_follow_out_axes():
    m = nnx.pmap(lambda x: nnx.Dict(w=nnx.Param(x)), out_axes=1)(jnp.asarray(W))
    same(m["w"].value, W.T)


def test_pmap_one_node_under_two_axes():
    m = weights(2, 2)
    with pytest.raises(ValueError, match=r"(?s)(?=.*\ba\b)(?=.*\bb\b)"):
        nnx.pmap(lambda a, b: a["w"].value, in_axes=(0, 1))(m, m)


def test_pmap_a_keyword_takes_its_place():
    f = nnx.pmap(lambda x, m: x + m["w"].value, in_axes=(0, None))
    same(f(jnp.arange(2.0), m=weights(3)), np.arange(2.0)[:, None] + np.arange(3.0))


def test_pmap_what_is_under_none_may_be_a_flag_or_a_function():
    f = nnx.pmap(lambda x, g, plus: g(x) if plus else -g(x), in_axes=(0, None, None))
    same(f(jnp.arange(2.0), jnp.sin, True), np.sin(np.arange(2.0)))
    same(f(jnp.arange(2.0), jnp.sin, False), -np.sin(np.arange(2.0)))


def test_pmap_contract_spelling():
    f = nnx.pmap(lambda m, x: m["w"].value + x, in_axes=(None, 0), state_axes={...: 1})
    same(f(weights(2, 3), jnp.zeros(3)), W.T)


@both
def test_shard_map_specs_are_for_nodes_by_position(lib):
    m = lib.Dict(w=lib.Param(jnp.arange(8.0)))
    f = nnx.shard_map(
        lambda m, x: m["w"].value * x, mesh=mesh(), in_specs=(P("d"), P()), out_specs=P("d")
    )
    same(f(m, jnp.float32(2)), np.arange(8.0) * 2)


@both
def test_shard_map_a_spec_for_all_leaves_of_a_container(lib):
    m, n = lib.Dict(w=lib.Param(jnp.arange(8.0))), lib.Param(jnp.arange(8.0))
    f = nnx.shard_map(
        lambda t: t["m"]["w"].value + t["n"].value,
        mesh=mesh(),
        in_specs=({"m": P("d"), "n": P("d")},),
        out_specs=P("d"),
    )
    same(f({"m": m, "n": n}), np.arange(8.0) * 2)


def test_shard_map_is_by_position_and_says_so():
    f = nnx.shard_map(
        lambda m, x: m["w"].value * x, mesh=mesh(), in_specs=(P("d"), P()), out_specs=P("d")
    )
    with pytest.raises(TypeError, match="position"):
        f(nnx.Dict(w=nnx.Param(jnp.arange(8.0))), x=jnp.float32(2))


def test_shard_map_an_argument_returned_under_another_spec():
    m = nnx.Dict(w=nnx.Param(jnp.arange(8.0)))

    def returned(*spec):
        return nnx.shard_map(lambda m: m, mesh=mesh(), in_specs=(P("d"),), out_specs=P(*spec))(m)

    assert returned("d") is m
    assert returned(("d",)) is m
    with pytest.raises(
        ValueError, match=r"m\.w is reached under two different axes: .*'d'.*the result"
    ):
        returned()


def test_shard_map_one_node_under_two_specs():
    m = nnx.Dict(w=nnx.Param(jnp.arange(8.0)))
    with pytest.raises(ValueError, match=r"(?s)(?=.*\ba\b)(?=.*\bb\b)"):
        nnx.shard_map(
            lambda a, b: a["w"].value, mesh=mesh(), in_specs=(P("d"), P()), out_specs=P("d")
        )(m, m)
