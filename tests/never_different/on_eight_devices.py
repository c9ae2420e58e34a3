"""Placement, axis rules and layers on their shard (points 10, 12, 13); run by `test_placement`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import treadle as nnx


def grid():
    return Mesh(np.array(jax.devices()).reshape(4, 2), ("a", "b"))


def model():
    return nnx.Dict(w=nnx.Param(jnp.arange(32.0).reshape(8, 4), sharding=("x", None), mesh=grid()))


def placed(m, *spec):
    return m["w"].value.sharding.is_equivalent_to(NamedSharding(grid(), P(*spec)), 2)


RULES = {"a": [("x", "a")], "b": [("x", "b")]}


def advance(m):
    m["w"].value = m["w"].value + 1


def test_rules_are_in_the_key_of_jit():
    f = nnx.jit(advance, constrain_state=True)
    for axis in ("a", "b", "a"):
        m = model()
        with nnx.logical_axis_rules(RULES[axis]):
            f(m)
        assert placed(m, axis)


def test_rules_are_in_the_key_where_the_function_reads_them():
    @nnx.jit
    def f(m):
        spec = nnx.get_partition_spec(nnx.state(m))["w"].value
        return jax.lax.with_sharding_constraint(m["w"].value * 1, NamedSharding(grid(), spec))

    for axis in ("a", "b"):
        with nnx.logical_axis_rules(RULES[axis]):
            out = f(model())
        assert out.sharding.is_equivalent_to(NamedSharding(grid(), P(axis)), 2)


def test_rules_are_in_the_key_of_inner_transforms():
    def inner(m):
        nnx.jit(advance, constrain_state=True)(m)

    f = nnx.jit(inner)
    for axis in ("a", "b"):
        m = model()
        with nnx.logical_axis_rules(RULES[axis]):
            f(m)
        assert placed(m, axis)


def test_rules_are_named_by_what_explains_retraces():
    f = nnx.jit(advance, constrain_state=True)
    for axis in ("a", "b"):
        with nnx.logical_axis_rules(RULES[axis]):
            f(model())
    (retrace,) = f.retraces
    assert retrace.path == "logical_axis_rules"
    assert (retrace.before, retrace.after) == ((("x", "a"),), (("x", "b"),))


def test_rules_are_in_the_key_of_what_is_compiled_outside_of_jit():
    @nnx.remat
    def f(m):
        spec = nnx.get_partition_spec(nnx.state(m))["w"].value
        return m["w"].value * (2 if spec[0] == "a" else 3)

    for axis, factor in (("a", 2), ("b", 3), ("a", 2)):
        with nnx.logical_axis_rules(RULES[axis]):
            np.testing.assert_allclose(f(model())[0, 1], factor)
            of_scan = nnx.fori_loop(
                0, 1, lambda _, c: (c[0], f(c[0])), (model(), jnp.zeros((8, 4)))
            )
        np.testing.assert_allclose(of_scan[1][0, 1], factor)


def test_the_same_rules_do_not_retrace():
    traces = []

    def f(m):
        traces.append(1)
        advance(m)

    jitted = nnx.jit(f, constrain_state=True)
    for _ in range(3):
        with nnx.logical_axis_rules(list(RULES["a"])):
            jitted(model())
    assert len(traces) == 1


# -- point 12 ----------------------------------------------------------------------------------


def physical():
    return nnx.Dict(w=nnx.Param(jnp.arange(32.0).reshape(8, 4), sharding=("a", "b"), mesh=grid()))


def test_constrain_state_places_what_is_only_read():
    m = physical()
    total = nnx.jit(lambda m: m["w"].value.sum(), constrain_state=True)(m)
    assert float(total) == 496.0
    assert placed(m, "a", "b")


def test_a_callable_places_what_is_only_read():
    m = physical()

    def constrain(state):
        return jax.lax.with_sharding_constraint(state, NamedSharding(grid(), P("b", "a")))

    nnx.jit(lambda m: m["w"].value.sum(), constrain_state=constrain)(m)
    assert placed(m, "b", "a")


def test_in_shardings_place_what_is_only_read():
    m = physical()
    f = nnx.jit(
        lambda m, x: m["w"].value.sum() * x, in_shardings=(NamedSharding(grid(), P("b")), None)
    )
    f(m, 1.0)
    assert placed(m, "b")
    before = m["w"].value
    f(m, 1.0)
    assert m["w"].value is before


def test_state_sharding_places_what_is_only_read():
    m = physical()
    m["s"] = nnx.BatchStat(jnp.arange(8.0))
    shardings = nnx.StateSharding({nnx.Param: NamedSharding(grid(), P("a")), ...: None})
    nnx.jit(lambda m: m["w"].value.sum() + m["s"].value.sum(), in_shardings=(shardings,))(m)
    assert placed(m, "a")


def test_state_that_the_function_never_looks_at_is_placed_too():
    m = physical()
    nnx.jit(lambda m: 1.0, constrain_state=True)(m)
    assert placed(m, "a", "b")


def test_placement_with_an_exception_changes_nothing():
    m = physical()
    before = m["w"].value

    def fail(m):
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        nnx.jit(fail, constrain_state=True)(m)
    assert m["w"].value is before


def test_constrain_state_without_any_mesh_says_that_nothing_was_constrained():
    m = nnx.Dict(w=nnx.Param(jnp.ones((8, 4)), sharding=("a", "b")))
    with pytest.warns(Warning, match="mesh"):
        nnx.jit(lambda m: m["w"].value.sum(), constrain_state=True)(m)


# -- point 13 ----------------------------------------------------------------------------------


def line():
    return Mesh(np.array(jax.devices()[:4]), ("t",))


REPLICATED = P()


def total(y):
    return jax.lax.psum(y, "t")


def on_shards(layer, x, spec, x_spec=REPLICATED, out=REPLICATED, combine=total):
    state = nnx.StateSharding({nnx.PathContains("kernel"): spec, ...: P()})
    return nnx.shard_map(
        lambda m, x: combine(m(x)), mesh=line(), in_specs=(state, x_spec), out_specs=out
    )(layer, x)


def same(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_linear_with_split_inputs():
    layer = nnx.Linear(8, 16, use_bias=False, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (3, 8))
    same(on_shards(layer, x, P("t", None), x_spec=P(None, "t")), layer(x))


def test_linear_with_split_outputs():
    layer = nnx.Linear(8, 16, use_bias=False, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (3, 8))
    same(on_shards(layer, x, P(None, "t"), out=P(None, "t"), combine=lambda y: y), layer(x))


def test_linear_general():
    layer = nnx.LinearGeneral(8, (4, 2), use_bias=False, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (3, 8))
    same(on_shards(layer, x, P("t"), x_spec=P(None, "t")), layer(x))
    same(on_shards(layer, x, P(None, "t"), out=P(None, "t"), combine=lambda y: y), layer(x))


def test_einsum():
    layer = nnx.Einsum("ab,bc->ac", (8, 16), None, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (3, 8))
    same(on_shards(layer, x, P("t", None), x_spec=P(None, "t")), layer(x))


def test_conv_with_split_input_channels():
    layer = nnx.Conv(8, 4, (3,), use_bias=False, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (2, 5, 8))
    same(on_shards(layer, x, P(None, "t", None), x_spec=P(None, None, "t")), layer(x))


def test_conv_transpose_with_split_input_channels():
    layer = nnx.ConvTranspose(8, 4, (3,), use_bias=False, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (2, 5, 8))
    same(on_shards(layer, x, P(None, "t", None), x_spec=P(None, None, "t")), layer(x))


def test_embed_with_split_features():
    layer = nnx.Embed(6, 8, rngs=nnx.Rngs(0))
    state = nnx.StateSharding({...: P(None, "t")})
    x = jnp.array([0, 3, 5])
    out = nnx.shard_map(
        lambda m, x: m(x), mesh=line(), in_specs=(state, P()), out_specs=P(None, "t")
    )(layer, x)
    same(out, layer(x))


def test_embed_with_split_rows():
    """Each device has three of the rows: indices count within its own."""
    layer = nnx.Embed(12, 2, rngs=nnx.Rngs(0))
    state = nnx.StateSharding({...: P("t")})
    out = nnx.shard_map(lambda m, x: m(x), mesh=line(), in_specs=(state, P()), out_specs=P("t"))(
        layer, jnp.array([0, 1, 2])
    )
    same(out, layer.embedding.value)


@pytest.mark.parametrize("kind", ["LayerNorm", "RMSNorm"])
def test_norms_on_a_shard_of_the_features(kind):
    layer = getattr(nnx, kind)(8, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (3, 8))
    out = nnx.shard_map(
        lambda m, x: m(x),
        mesh=line(),
        in_specs=(nnx.StateSharding({...: P("t")}), P(None, "t")),
        out_specs=P(None, "t"),
    )(layer, x)
    alone = getattr(nnx, kind)(2, rngs=nnx.Rngs(0))
    same(out, jnp.concatenate([alone(part) for part in jnp.split(x, 4, 1)], 1))


def test_batch_norm_on_a_shard_of_the_features():
    layer = nnx.BatchNorm(8, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (3, 8))
    out = nnx.shard_map(
        lambda m, x: m(x),
        mesh=line(),
        in_specs=(nnx.StateSharding({...: P("t")}), P(None, "t")),
        out_specs=P(None, "t"),
    )(layer, x)
    whole = nnx.BatchNorm(8, rngs=nnx.Rngs(0))
    same(out, whole(x))
    same(layer.mean.value, whole.mean.value)


def test_attention_with_split_heads():
    layer = nnx.MultiHeadAttention(
        num_heads=4, in_features=8, qkv_features=8, use_bias=False, decode=False, rngs=nnx.Rngs(0)
    )
    x = jax.random.normal(jax.random.key(0), (2, 5, 8))
    out_kernel = nnx.All(nnx.PathContains("out"), nnx.PathContains("kernel"))
    state = nnx.StateSharding(
        {out_kernel: P("t"), nnx.PathContains("kernel"): P(None, "t"), ...: P()}
    )
    out = nnx.shard_map(
        lambda m, x: jax.lax.psum(m(x), "t"), mesh=line(), in_specs=(state, P()), out_specs=P()
    )(layer, x)
    same(out, layer(x))


def test_a_shard_of_the_wrong_size_still_says_so():
    layer = nnx.Linear(8, 16, use_bias=False, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="8"):
        layer(jnp.ones((3, 4)))


def test_an_array_that_is_nowhere_yet_is_constrained_under_a_mesh_in_context():
    mesh = Mesh(np.array(jax.devices()), ("data",))
    with jax.set_mesh(mesh):
        placed = nnx.with_sharding_constraint(jnp.ones((8, 2)), ("data", None))
        assert placed.sharding.is_equivalent_to(NamedSharding(mesh, P("data")), 2)
        inside = jax.jit(lambda x: nnx.with_sharding_constraint(x * 2, ("data", None)))(placed)
        assert inside.sharding.is_equivalent_to(NamedSharding(mesh, P("data")), 2)
