"""Layers on shards of themselves, on 4 virtual CPU devices; run by `test_four_devices`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

import treadle as nnx
from tests.nn.peers import normal

MESH = Mesh(np.array(jax.devices()), ("t",))
T = "t"


def by_name(**specs):
    return nnx.StateSharding({**{nnx.PathContains(k): v for k, v in specs.items()}, ...: P()})


def summed(layer, x):
    """The part of the outputs that a shard of the inputs gives, summed; the bias counts once."""
    once = layer.bias is None or jax.lax.axis_index(T) == 0
    bias = 0.0 if layer.bias is None else layer.bias.value
    return jax.lax.psum(layer(x) - (0.0 if once is True else jnp.where(once, 0.0, bias)), T)


def apart(layer, x):
    return layer(x)


def check(layer, x, sharding, x_spec, out_spec, call):
    """Outputs and gradients on shards are those of the whole layer."""
    for path, entry in nnx.state(layer, nnx.Param).flat_state().items():
        entry.value = normal(*entry.value.shape, seed=len(str(path))) * 0.5
        nnx.update(layer, nnx.State.from_flat_state({path: entry}))
    run = nnx.shard_map(call, mesh=MESH, in_specs=(sharding, x_spec), out_specs=out_spec)

    def loss(layer, x, f):
        return jnp.sum(jnp.sin(f(layer, x)))

    whole = nnx.clone(layer)
    # Compiled as a whole, since one operation at a time takes ten times as long.
    np.testing.assert_allclose(nnx.jit(run)(layer, x), apart(whole, x), rtol=2e-5, atol=2e-5)
    grad = nnx.jit(nnx.grad(loss, argnums=(0, 1)), static_argnums=2)
    found, wanted = grad(layer, x, run), grad(whole, x, apart)
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5 * max(1.0, jnp.abs(b).max()))


ROWS = by_name(kernel=P(T, None))
COLUMNS = by_name(kernel=P(None, T), bias=P(T))


@pytest.mark.parametrize("use_bias", [True, False])
def test_linear_by_rows(use_bias):
    layer = nnx.Linear(8, 16, use_bias=use_bias, rngs=nnx.Rngs(0))
    check(layer, normal(4, 8), ROWS, P(None, T), P(), summed)


def test_linear_by_columns():
    layer = nnx.Linear(8, 16, rngs=nnx.Rngs(0))
    check(layer, normal(4, 8), COLUMNS, P(), P(None, T), apart)


def test_linear_with_one_column_a_device_does_not_spread_its_bias():
    layer = nnx.Linear(8, 4, rngs=nnx.Rngs(0))
    check(layer, normal(4, 8), COLUMNS, P(), P(None, T), apart)
    run = nnx.shard_map(
        apart,
        mesh=MESH,
        in_specs=(by_name(kernel=P(None, T)), P()),
        out_specs=P(None, T),
    )
    with pytest.raises(ValueError, match=r"kernel of shape \(8, 1\).*its bias has shape \(4,\)"):
        run(layer, normal(4, 8))


def test_linear_general():
    layer = nnx.LinearGeneral((2, 8), (3, 4), axis=(1, 2), rngs=nnx.Rngs(0))
    sharding = by_name(kernel=P(None, T, None, None))
    check(layer, normal(5, 2, 8), sharding, P(None, None, T), P(), summed)
    sharding = by_name(kernel=P(None, None, None, T), bias=P(None, T))
    check(layer, normal(5, 2, 8), sharding, P(), P(None, None, T), apart)


def test_linear_general_by_batch_axis():
    layer = nnx.LinearGeneral(3, (2, 5), batch_axis={0: 8}, rngs=nnx.Rngs(0))
    sharding = by_name(kernel=P(T), bias=P(T))
    check(layer, normal(8, 7, 3), sharding, P(T), P(T), apart)


def test_einsum():
    layer = nnx.Einsum("nta,hab->nthb", (8, 2, 4), (8, 4), rngs=nnx.Rngs(0))
    sharding = by_name(kernel=P(T), bias=P(T))
    check(layer, normal(3, 5, 2), sharding, P(), P(None, None, T), apart)
    layer = nnx.Einsum("...ab,bc...->a...c", (8, 6, 7), (7, 6), rngs=nnx.Rngs(0))
    layer.bias = None
    sharding = by_name(kernel=P(T))
    check(layer, normal(7, 3, 8), sharding, P(None, None, T), P(), summed)


@pytest.mark.parametrize("groups", [1, 2, 4, 8])
def test_conv_by_output_channels(groups):
    layer = nnx.Conv(8, 16, (3,), feature_group_count=groups, padding="CIRCULAR", rngs=nnx.Rngs(0))
    sharding = by_name(kernel=P(None, None, T), bias=P(T))
    if groups in (4, 8):
        check(layer, normal(2, 9, 8), sharding, P(None, None, T), P(None, None, T), apart)
    elif groups == 1:
        check(layer, normal(2, 9, 8), sharding, P(), P(None, None, T), apart)
    else:
        # Half of a group's outputs: they look at all inputs of their group.
        def call(layer, x):
            own = jax.lax.axis_index(T) // 2 * 4
            return layer(jax.lax.dynamic_slice_in_dim(x, own, 4, axis=-1))

        check(layer, normal(2, 9, 8), sharding, P(), P(None, None, T), call)


def test_conv_by_input_channels_and_with_a_mask():
    mask = jnp.asarray(np.random.default_rng(0).integers(0, 2, (3, 3, 8, 4)), jnp.float32)
    layer = nnx.Conv(8, 4, (3, 3), mask=mask, rngs=nnx.Rngs(0))
    spec = P(None, None, T)
    check(
        layer,
        normal(2, 5, 5, 8),
        by_name(kernel=spec, mask=spec),
        P(None, None, None, T),
        P(),
        summed,
    )
    run = nnx.shard_map(
        summed, mesh=MESH, in_specs=(by_name(kernel=spec), P(None, None, None, T)), out_specs=P()
    )
    with pytest.raises(ValueError, match=r"mask of shape .* kernel of shape \(3, 3, 2, 4\)"):
        run(layer, normal(2, 5, 5, 8))


@pytest.mark.parametrize("transpose", [False, True])
def test_conv_transpose(transpose):
    layer = nnx.ConvTranspose(8, 4, (3,), strides=2, transpose_kernel=transpose, rngs=nnx.Rngs(0))
    spec = P(None, None, T) if transpose else P(None, T)
    check(layer, normal(2, 5, 8), by_name(kernel=spec), P(None, None, T), P(), summed)


def test_embed_by_features_and_by_rows():
    ids = jnp.array([[0, 5], [3, 3]])
    table = nnx.Embed(8, 12, rngs=nnx.Rngs(0)).embedding.value
    layer = nnx.Embed(8, 12, rngs=nnx.Rngs(0))
    run = nnx.shard_map(
        apart,
        mesh=MESH,
        in_specs=(by_name(embedding=P(None, T)), P()),
        out_specs=P(None, None, T),
    )
    np.testing.assert_array_equal(run(layer, ids), table[ids])

    def look_up(layer, ids):
        rows = layer.embedding.value.shape[0]
        own = ids - jax.lax.axis_index(T) * rows
        found = layer(own)
        return jax.lax.psum(jnp.where(((own >= 0) & (own < rows))[..., None], found, 0.0), T)

    for count in (8, 4):
        # With 4 there is one row on each device, which is not for all numbers.
        layer = nnx.Embed(count, 12, rngs=nnx.Rngs(0))
        run = nnx.shard_map(
            look_up, mesh=MESH, in_specs=(by_name(embedding=P(T)), P()), out_specs=P()
        )
        np.testing.assert_array_equal(run(layer, ids % count), layer.embedding.value[ids % count])

    def attend(layer, query):
        return jax.lax.psum(layer.attend(query), T)

    layer = nnx.Embed(8, 12, rngs=nnx.Rngs(0))
    run = nnx.shard_map(
        attend,
        mesh=MESH,
        in_specs=(by_name(embedding=P(None, T)), P(None, T)),
        out_specs=P(),
    )
    np.testing.assert_allclose(
        run(layer, normal(3, 12)), layer.attend(normal(3, 12)), rtol=1e-4, atol=1e-5
    )


def norms():
    options = {"axis_name": T}
    pairs = {
        "layer": lambda r, **o: nnx.LayerNorm(8, rngs=r, **o),
        "layer, slow": lambda r, **o: nnx.LayerNorm(8, use_fast_variance=False, rngs=r, **o),
        "layer, bare": lambda r, **o: nnx.LayerNorm(
            8, use_scale=False, use_bias=False, rngs=r, **o
        ),
        "rms": lambda r, **o: nnx.RMSNorm(8, rngs=r, **o),
        "group": lambda r, **o: nnx.GroupNorm(8, 1, rngs=r, **o),
        "groups over two": lambda r, **o: nnx.GroupNorm(
            8, 2, rngs=r, **(o and {**o, "axis_index_groups": [[0, 1], [2, 3]]})
        ),
    }
    for name, make in pairs.items():
        yield pytest.param(make, options, id=name)
    for name, make in {
        "batch": lambda r: nnx.BatchNorm(8, rngs=r),
        "instance": lambda r: nnx.InstanceNorm(8, rngs=r),
        "groups of two": lambda r: nnx.GroupNorm(8, 4, rngs=r),
        "groups of one": lambda r: nnx.GroupNorm(8, None, 1, rngs=r),
    }.items():
        yield pytest.param(make, {}, id=name)


@pytest.mark.parametrize(("make", "options"), norms())
def test_norms_by_features(make, options):
    sharded, whole = make(nnx.Rngs(0), **options), make(nnx.Rngs(0))
    filled = {
        path: entry.replace(normal(*entry.value.shape, seed=len(path)))
        for path, entry in nnx.state(whole, nnx.Param).flat_state().items()
    }
    for layer in (sharded, whole):
        nnx.update(layer, nnx.State.from_flat_state(filled))
    x = normal(3, 5, 8) * 2 + 1
    run = nnx.shard_map(
        apart,
        mesh=MESH,
        in_specs=(nnx.StateSharding({...: P(T)}), P(None, None, T)),
        out_specs=P(None, None, T),
        # JAX does not know how groups of devices vary.
        check_vma=sharded.axis_index_groups is None,
    )

    def loss(layer, x, f):
        return jnp.sum(jnp.sin(f(layer, x)))

    np.testing.assert_allclose(nnx.jit(run)(sharded, x), whole(x), rtol=1e-4, atol=1e-5)
    grad = nnx.jit(nnx.grad(loss, argnums=(0, 1) if filled else 1), static_argnums=2)
    found, wanted = grad(sharded, x, run), grad(whole, x, apart)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5)
    if isinstance(whole, nnx.BatchNorm):
        np.testing.assert_allclose(sharded.mean.value, whole.mean.value, rtol=1e-5)
        np.testing.assert_allclose(sharded.var.value, whole.var.value, rtol=1e-5)


def test_a_group_that_is_cut_is_explained():
    layer = nnx.GroupNorm(8, 2, axis_name=T, rngs=nnx.Rngs(0))
    run = nnx.shard_map(
        apart,
        mesh=MESH,
        in_specs=(nnx.StateSharding({...: P(T)}), P(None, T)),
        out_specs=P(None, T),
    )
    with pytest.raises(ValueError, match=r"groups of 4 features.*axis_index_groups"):
        run(layer, normal(3, 8))


def of_heads(name):
    heads = nnx.Any(*map(nnx.PathContains, ("query", "key", "value")))
    return nnx.All(heads, nnx.PathContains(name))


ATTENTION = nnx.StateSharding(
    {
        of_heads("kernel"): P(None, T),
        of_heads("bias"): P(T),
        nnx.All(nnx.PathContains("out"), nnx.PathContains("kernel")): P(T),
        nnx.Any(nnx.PathContains("cached_key"), nnx.PathContains("cached_value")): P(None, None, T),
        ...: P(),
    }
)


def attend(layer, x, **options):
    out = layer(x, **options)
    bias = layer.out.bias.value
    return jax.lax.psum(out - jnp.where(jax.lax.axis_index(T) == 0, 0.0, bias), T)


@pytest.mark.parametrize("kv_heads", [4, 8])
@pytest.mark.parametrize("normalize_qk", [False, True])
def test_attention_with_heads_apart(kv_heads, normalize_qk):
    layer = nnx.MultiHeadAttention(
        8, 16, 64, num_kv_heads=kv_heads, normalize_qk=normalize_qk, rngs=nnx.Rngs(0)
    )
    check(layer, normal(2, 5, 16), ATTENTION, P(), P(), attend)


def test_decoding_with_heads_apart():
    layer = nnx.MultiHeadAttention(8, 16, decode=True, rngs=nnx.Rngs(0))
    whole = nnx.clone(layer)
    x = normal(2, 3, 16)
    for made in (layer, whole):
        made.init_cache(x.shape)
    run = nnx.jit(nnx.shard_map(attend, mesh=MESH, in_specs=(ATTENTION, P()), out_specs=P()))
    for i in range(3):
        step = x[:, i : i + 1]
        np.testing.assert_allclose(run(layer, step), whole(step), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(layer.cached_key.value, whole.cached_key.value, rtol=1e-4, atol=1e-5)

    def shape_inside(layer):
        layer.init_cache(x.shape)
        assert layer.cached_key.value.shape == (2, 3, 2, 2)

    inside = nnx.MultiHeadAttention(8, 16, rngs=nnx.Rngs(0))

    def decode_inside(layer, x):
        layer = nnx.clone(layer)
        shape_inside(layer)
        return attend(layer, x[:, :1], decode=True)

    run = nnx.jit(nnx.shard_map(decode_inside, mesh=MESH, in_specs=(ATTENTION, P()), out_specs=P()))
    np.testing.assert_allclose(
        run(inside, x), inside(x, is_causal=True)[:, :1], rtol=1e-4, atol=1e-5
    )
