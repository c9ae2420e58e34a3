"""Promises of vmap: every parameter, state, randomness, metadata and errors."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import treadle as nnx
from tests.transforms.models import Block, assert_same, plain, restacked, stacked, unstacked, values


def add(m, x):
    return m["w"].value + x


def weights(*shape):
    return nnx.Dict(w=nnx.Param(jnp.arange(float(np.prod(shape))).reshape(shape)))


def test_in_axes_of_arrays():
    x = jnp.arange(6.0).reshape(2, 3)
    f = nnx.vmap(lambda a, b: a * b["k"], in_axes=(1, {"k": None}), axis_size=3)
    np.testing.assert_allclose(f(x, {"k": 2.0}), (x * 2).T)
    np.testing.assert_allclose(nnx.vmap(jnp.sum, in_axes=-1)(x), x.sum(0))
    np.testing.assert_allclose(nnx.vmap(jnp.sum, in_axes=1)(x), x.sum(0))
    np.testing.assert_allclose(nnx.vmap(jnp.sum)(x), x.sum(1))
    np.testing.assert_allclose(nnx.vmap(lambda a, b: a + b, in_axes=[0, None])(x, 1.0), x + 1)


def test_in_axes_kwargs():
    x = jnp.arange(6.0).reshape(2, 3)
    f = lambda *, a, b: a * b  # noqa: E731
    np.testing.assert_allclose(nnx.vmap(f)(a=x, b=x), x * x)
    one = nnx.vmap(f, in_axes_kwargs={"a": 1, "b": None})
    np.testing.assert_allclose(one(a=x, b=2.0), (x * 2).T)
    np.testing.assert_allclose(nnx.vmap(f, in_axes_kwargs=1)(a=x, b=x), (x * x).T)


def test_out_axes():
    x = jnp.arange(6.0).reshape(2, 3)
    f = nnx.vmap(lambda x: (x, {"k": x, "c": 1.0}), out_axes=(1, {"k": -1, "c": None}))
    a, b = f(x)
    np.testing.assert_allclose(a, x.T)
    np.testing.assert_allclose(b["k"], x.T)
    assert jnp.shape(b["c"]) == ()


def test_axis_name_serves_collectives():
    x = jnp.arange(4.0)
    f = nnx.vmap(lambda x: x - jax.lax.pmean(x, "batch"), axis_name="batch")
    np.testing.assert_allclose(f(x), x - 1.5)
    norm = nnx.BatchNorm(3, axis_name="batch", rngs=nnx.Rngs(0))
    g = nnx.vmap(lambda m, x: m(x), axis_name="batch", state_axes={})
    data = jax.random.normal(jax.random.key(0), (4, 2, 3))
    out = g(norm, data)
    whole = nnx.BatchNorm(3, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(out.reshape(8, 3), whole(data.reshape(8, 3)), atol=1e-5)
    np.testing.assert_allclose(norm.mean.value, whole.mean.value, atol=1e-6)


def test_axis_size_where_nothing_is_mapped():
    assert nnx.vmap(lambda: jnp.ones(2), axis_size=3)().shape == (3, 2)
    with pytest.raises(ValueError, match="Pass axis_size"):
        nnx.vmap(lambda: jnp.ones(2))()


def test_spmd_axis_name_shards_the_mapped_axis():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("data", "model"))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("model"))

    def traced(vmap, **names):
        f = vmap(lambda x: jax.lax.with_sharding_constraint(x, sharding), **names)
        return str(jax.make_jaxpr(f)(jnp.ones((2, 2))))

    assert traced(nnx.vmap, spmd_axis_name="data") == traced(jax.vmap, spmd_axis_name="data")
    assert traced(nnx.vmap, spmd_axis_name="data") != traced(nnx.vmap)


def test_state_axes_by_filter():
    m = nnx.Dict(
        a=nnx.Param(jnp.arange(6.0).reshape(2, 3)),
        b=nnx.BatchStat(jnp.arange(6.0).reshape(3, 2)),
        c=nnx.Variable(jnp.array(10.0)),
    )

    def f(m):
        assert m["a"].shape == (3,)
        assert m["b"].shape == (3,)
        assert m["c"].shape == ()
        return m["a"].value + m["b"].value + m["c"].value

    out = nnx.vmap(f, state_axes={nnx.Param: 0, nnx.BatchStat: 1, ...: None})(m)
    np.testing.assert_allclose(out, m["a"].value + m["b"].value.T + 10)
    unselected = nnx.vmap(f, state_axes={nnx.Param: 0, nnx.BatchStat: -1})(m)
    np.testing.assert_allclose(unselected, out)


def test_empty_state_axes_broadcast_all():
    m = weights(3)
    np.testing.assert_allclose(
        nnx.vmap(add, state_axes={})(m, jnp.ones((2, 3))), jnp.stack([m["w"].value + 1] * 2)
    )


def test_updates_come_back_along_their_axis():
    m = nnx.Dict(a=nnx.Param(jnp.zeros((3, 2))), b=nnx.BatchStat(jnp.zeros((2, 3))))

    def f(m, x):
        m["a"].value = m["a"].value + x
        m["b"].value = m["b"].value - x

    a, b = m["a"], m["b"]
    nnx.vmap(f, state_axes={nnx.Param: 1, ...: 0})(m, jnp.array([1.0, 2.0]))
    assert m["a"] is a
    assert m["b"] is b
    np.testing.assert_allclose(a.value, [[1, 2]] * 3)
    np.testing.assert_allclose(b.value, [[-1] * 3, [-2] * 3])


def test_swapped_values_of_different_axes_keep_their_layout():
    m = nnx.Dict(a=nnx.Param(jnp.arange(6.0).reshape(2, 3)), b=nnx.BatchStat(jnp.ones((3, 2))))

    def swap(m):
        m["a"].value, m["b"].value = m["b"].value, m["a"].value

    a, b = m["a"].value, m["b"].value
    nnx.vmap(swap, state_axes={nnx.Param: 0, ...: 1})(m)
    np.testing.assert_allclose(m["a"].value, b.T)
    np.testing.assert_allclose(m["b"].value, a.T)


def test_broadcast_state_may_change_if_all_slices_agree():
    m = nnx.Dict(w=nnx.Param(jnp.array(1.0)))

    def f(m, x):
        m["w"].value = m["w"].value + 1
        return x

    nnx.vmap(f, state_axes={})(m, jnp.ones(3))
    assert float(m["w"].value) == 2.0


def test_new_state_is_stacked_along_its_axis():
    @functools.partial(nnx.vmap, axis_size=5, state_axes={nnx.Param: 1, ...: 0})
    def make(rngs):
        return nnx.Dict(p=nnx.Param(jnp.ones(3)), s=nnx.BatchStat(jnp.zeros(2)), r=rngs.fork())

    made = make(nnx.Rngs(0))
    assert made["p"].shape == (3, 5)
    assert made["s"].shape == (5, 2)
    assert made["r"].default.key.shape == (5,)


def test_several_modules_shared_between_arguments():
    shared = nnx.Param(jnp.arange(3.0))
    a, b = nnx.Dict(w=shared), nnx.Dict(w=shared)

    def f(a, b, x):
        assert a["w"] is b["w"]
        a["w"].value = a["w"].value + x
        return b["w"].value

    out = nnx.vmap(f)(a, b, jnp.ones(3))
    np.testing.assert_allclose(out, [1, 2, 3])
    assert a["w"] is b["w"] is shared


def test_as_decorator_on_methods_and_init():
    class Stack(nnx.Module):
        @functools.partial(nnx.vmap, axis_size=4)
        def __init__(self, rngs):
            self.kernel = nnx.Param(jax.random.normal(rngs(), (2, 3)))
            self.kind = "stack"

        @nnx.vmap
        def __call__(self, x):
            return x @ self.kernel.value

    stack = Stack(nnx.Rngs(0))
    assert stack.kernel.shape == (4, 2, 3)
    assert stack.kind == "stack"
    assert stack(jnp.ones((4, 2))).shape == (4, 3)
    keys = jax.random.split(jax.random.key(0), 4)
    expected = jax.random.normal(jax.random.fold_in(keys[2], 0), (2, 3))
    np.testing.assert_allclose(stack.kernel.value[2], expected)


def test_results_that_are_inputs_are_the_same_objects():
    m = stacked(lambda rngs: Block(2, rngs=rngs), 3)
    returned, kernel = nnx.vmap(lambda m: (m, m.kernel))(m)
    assert returned is m
    assert kernel is m.kernel


# -- randomness ------------------------------------------------------------------------------------


def draws(rngs, _):
    return jax.random.key_data(rngs.dropout()), jax.random.key_data(rngs.params())


def expected_keys(key, size, count=0):
    keys = jax.random.split(key, size)
    return np.stack([jax.random.key_data(jax.random.fold_in(k, count)) for k in keys])


@pytest.mark.parametrize("selected", [..., True])
def test_split_streams_have_the_split_keys_and_the_callers_count(selected):
    rngs = nnx.Rngs(params=0, dropout=1)
    rngs.dropout()
    key = rngs.dropout.key.value
    dropout, params = nnx.vmap(draws, split_rngs=selected)(rngs, jnp.arange(3))
    np.testing.assert_array_equal(dropout, expected_keys(jax.random.key(1), 3, count=1))
    np.testing.assert_array_equal(params, expected_keys(jax.random.key(0), 3))
    assert rngs.dropout.key.value is key
    assert int(rngs.dropout.count.value) == 2
    assert int(rngs.params.count.value) == 1


@pytest.mark.parametrize("selected", ["dropout", ["dropout"], nnx.WithTag("dropout")])
def test_unselected_streams_are_the_same_in_all_slices(selected):
    rngs = nnx.Rngs(params=0, dropout=1)
    dropout, params = nnx.vmap(draws, split_rngs=selected)(rngs, jnp.arange(3))
    np.testing.assert_array_equal(dropout, expected_keys(jax.random.key(1), 3))
    whole = jax.random.key_data(jax.random.fold_in(jax.random.key(0), 0))
    np.testing.assert_array_equal(params, np.stack([whole] * 3))
    assert int(rngs.params.count.value) == 1


@pytest.mark.parametrize("selected", [None, False])
def test_no_stream_is_split(selected):
    rngs = nnx.Rngs(params=0, dropout=1)
    dropout, _ = nnx.vmap(draws, split_rngs=selected)(rngs, jnp.arange(3))
    whole = jax.random.key_data(jax.random.fold_in(jax.random.key(1), 0))
    np.testing.assert_array_equal(dropout, np.stack([whole] * 3))


def test_streams_with_an_axis_already_are_mapped_not_split():
    rngs = nnx.Rngs(0)
    keys = jax.random.split(jax.random.key(7), 3)
    rngs.default.key.value = keys
    out = nnx.vmap(lambda r: jax.random.key_data(r()))(rngs)
    expected = [jax.random.key_data(jax.random.fold_in(k, 0)) for k in keys]
    np.testing.assert_array_equal(out, np.stack(expected))
    assert rngs.default.key.shape == (3,)


def test_rng_state_ignores_state_axes():
    rngs = nnx.Rngs(0)
    out = nnx.vmap(lambda r, x: jax.random.key_data(r()), state_axes={...: None})(
        rngs, jnp.arange(2)
    )
    np.testing.assert_array_equal(out, expected_keys(jax.random.key(0), 2))


def test_reseeding_inside_is_undone_by_the_restored_key():
    rngs = nnx.Rngs(0)

    def f(rngs, x):
        rngs.default.key.value = jax.random.key(5)
        return x

    nnx.vmap(f)(rngs, jnp.arange(2))
    np.testing.assert_array_equal(
        plain(rngs.default.key.value), jax.random.key_data(jax.random.key(0))
    )


# -- metadata --------------------------------------------------------------------------------------


def test_transform_metadata_names_the_axis_outside_and_not_inside():
    seen = []
    names = {nnx.PARTITION_NAME: "layers"}

    @functools.partial(
        nnx.vmap, axis_size=4, state_axes={nnx.Param: 1, ...: 0}, transform_metadata=names
    )
    def make(rngs):
        kernel = nnx.Param(
            jax.random.normal(rngs(), (2, 3)),
            sharding=("in", "out"),
            add_axis_hooks=lambda v, index, name: seen.append(("add", index, name)),
            remove_axis_hooks=lambda v, index, name: seen.append(("remove", index, name)),
        )
        return nnx.Dict(kernel=kernel)

    m = make(nnx.Rngs(0))
    assert m["kernel"].shape == (2, 4, 3)
    assert m["kernel"].sharding == ("in", "layers", "out")
    assert seen == [("add", 1, "layers")]

    def forward(m):
        assert m["kernel"].sharding == ("in", "out")
        m["kernel"].value = m["kernel"].value * 2

    before = m["kernel"]._metadata
    nnx.vmap(forward, state_axes={nnx.Param: -2}, transform_metadata=names)(m)
    assert m["kernel"].sharding == ("in", "layers", "out")
    assert dict(m["kernel"]._metadata) == dict(before)
    assert seen[1:] == [("remove", 1, "layers"), ("add", 1, "layers")]


def test_without_transform_metadata_sharding_stays():
    m = nnx.Dict(w=nnx.Param(jnp.ones((3, 2)), sharding=("layers", "in")))

    def f(m):
        assert m["w"].sharding == ("layers", "in")
        return m["w"].value.sum()

    nnx.vmap(f)(m)


# -- the later spelling ----------------------------------------------------------------------------


def test_state_axes_in_in_axes_says_everything_about_its_argument():
    m = stacked(lambda rngs: nnx.Dict(w=nnx.Param(jnp.ones(2)), r=rngs.fork()), 3)
    m["calls"] = nnx.Variable(jnp.array(0))
    axes = nnx.StateAxes({nnx.Param: 0, nnx.RngState: 0, ...: None})

    def f(m, x):
        m["calls"].value = m["calls"].value + 1
        return m["w"].value + x, jax.random.key_data(m["r"]())

    keys = m["r"].default.key.value
    out, drawn = nnx.vmap(f, in_axes=(axes, 0))(m, jnp.arange(3.0))
    assert out.shape == (3, 2)
    assert int(m["calls"].value) == 1
    expected = [jax.random.key_data(jax.random.fold_in(k, 0)) for k in keys]
    np.testing.assert_array_equal(drawn, np.stack(expected))


def test_state_axes_broadcasts_random_streams_it_gives_none():
    rngs = nnx.Rngs(0)
    f = nnx.vmap(lambda r, x: jax.random.key_data(r()), in_axes=(nnx.StateAxes({...: None}), 0))
    out = f(rngs, jnp.arange(2))
    np.testing.assert_array_equal(out[0], out[1])
    assert int(rngs.default.count.value) == 1


def test_plain_axes_beside_state_axes_speak_of_nodes_too():
    a, b, c = weights(3, 2), weights(2), weights(2, 3)
    axes = nnx.StateAxes({...: 0})
    f = nnx.vmap(
        lambda a, b, c: a["w"].value + b["w"].value + c["w"].value, in_axes=(axes, None, 1)
    )
    out = f(a, b, c)
    np.testing.assert_allclose(out, a["w"].value + b["w"].value + c["w"].value.T)


def test_state_axes_in_out_axes_and_for_new_state():
    axes = nnx.StateAxes({nnx.Param: 1, ...: None})

    def make(x):
        return x, nnx.Dict(w=nnx.Param(x * jnp.ones(2)), s=nnx.BatchStat(jnp.zeros(3)))

    x, m = nnx.vmap(make, out_axes=(0, axes))(jnp.arange(4.0))
    assert x.shape == (4,)
    assert m["w"].shape == (2, 4)
    assert m["s"].shape == (3,)

    def extend(m, x):
        m["new"] = nnx.Param(x * jnp.ones(5))
        return nnx.Dict(other=nnx.Param(x * jnp.ones(6)))

    other = nnx.vmap(extend, in_axes=(axes, 0), out_axes=0)(m, jnp.arange(4.0))
    assert m["new"].shape == (5, 4)
    assert other["other"].shape == (4, 6)


def test_state_axes_must_select_everything():
    with pytest.raises(ValueError, match=r"no filter of StateAxes.* selects m\.w"):
        nnx.vmap(add, in_axes=(nnx.StateAxes({nnx.BatchStat: 0}), 0))(weights(2), jnp.ones(2))


def test_split_rngs_then_plain_in_axes():
    rngs = nnx.Rngs(0)

    @nnx.split_rngs(splits=4)
    @nnx.vmap(in_axes=0)
    def make(rngs):
        return nnx.Linear(2, 3, rngs=rngs)

    m = make(rngs)
    keys = jax.random.split(jax.random.fold_in(jax.random.key(0), 0), 4)
    by_hand = [nnx.Linear(2, 3, rngs=nnx.Rngs(k)).kernel.value for k in keys]
    np.testing.assert_allclose(m.kernel.value, np.stack(by_hand))
    assert rngs.default.key.shape == ()
    assert int(rngs.default.count.value) == 1


# -- equivalence -----------------------------------------------------------------------------------


def test_same_as_a_loop_over_unstacked_modules():
    m = stacked(lambda rngs: Block(3, rngs=rngs), 4)
    x = jax.random.normal(jax.random.key(1), (4, 2, 3))
    slices = unstacked(m, 4)
    out = nnx.vmap(lambda m, x: m(x))(m, x)
    expected = jnp.stack([slices[i](x[i]) for i in range(4)])
    np.testing.assert_allclose(out, expected, atol=1e-6)
    assert_same(nnx.state(m), restacked(slices))


# -- errors ----------------------------------------------------------------------------------------


def broadcast_comes_back_mapped(m, x):
    m.extra = 1
    m["w"].value = m["w"].value + x
    return x


@pytest.mark.parametrize("axis_name", [None, "i"])
def test_broadcast_state_that_comes_back_mapped_names_the_path(axis_name):
    m = weights()
    before, attributes = values(m), set(vars(m))
    with pytest.raises(ValueError, match=r"m\.w is broadcast, but comes back"):
        nnx.vmap(broadcast_comes_back_mapped, state_axes={}, axis_name=axis_name)(m, jnp.ones(3))
    assert_same(values(m), before)
    assert set(vars(m)) == attributes


def test_unmapped_result_that_is_mapped_names_the_path():
    with pytest.raises(ValueError, match=r"the result\[1\] is broadcast, but comes back"):
        nnx.vmap(lambda x: (x, x), out_axes=(0, None))(jnp.ones(3))


def test_sizes_that_disagree_name_both():
    with pytest.raises(ValueError, match=r"m\.w has 3 along axis 0; x has 4 along axis 0"):
        nnx.vmap(add)(weights(3), jnp.ones(4))
    with pytest.raises(ValueError, match=r"axis_size=5, but m\.w has 3 along axis 0"):
        nnx.vmap(add, axis_size=5)(weights(3), jnp.ones(3))


def test_axis_out_of_bounds_names_the_argument():
    with pytest.raises(ValueError, match=r"axis 2 is out of bounds for x, which is float32\[3\]"):
        nnx.vmap(add, in_axes=(0, 2))(weights(3), jnp.ones(3))
    with pytest.raises(ValueError, match=r"axis 1 is out of bounds for m\.w"):
        nnx.vmap(add, state_axes={...: 1})(weights(3), jnp.ones(3))


def test_mismatched_state_is_told_how_state_is_mapped():
    remedy = r"Correct in_axes: None \(in a StateAxes, too\) is for what is the same in all slices"
    with pytest.raises(ValueError, match=remedy):
        nnx.vmap(add, in_axes=(0, 0))(weights(3), jnp.ones(4))
    with pytest.raises(ValueError, match=remedy):
        nnx.vmap(add, in_axes=(0, 0))(weights(), jnp.ones(4))
    remedy = r"state of nodes follows state_axes: give None there .* StateAxes in in_axes"
    with pytest.raises(ValueError, match=remedy):
        nnx.vmap(add, in_axes=(None, 0), state_axes={...: 0})(weights(3), jnp.ones(4))
    with pytest.raises(ValueError, match="Correct in_axes_kwargs, or give None there"):
        nnx.vmap(lambda *, a: a)(a=1.0)


def test_variables_without_a_value_are_filled_along_their_axis():
    m = nnx.Dict(w=nnx.Param(jnp.ones((3, 2))), bias=nnx.Param(None), cache=nnx.Cache(None))

    def f(m, x):
        assert m["bias"].value is None
        m["cache"].value = x
        return m["w"].value.sum() * x

    out = nnx.vmap(f, state_axes={...: 0})(m, jnp.arange(3.0))
    np.testing.assert_allclose(out, [0, 2, 4])
    np.testing.assert_allclose(m["cache"].value, [0, 1, 2])
    assert m["bias"].value is None


def test_shared_variable_under_two_axes_names_both():
    shared = nnx.Param(jnp.ones((2, 2)))
    a, b = nnx.Dict(w=shared), nnx.Dict(v=shared)
    f = nnx.vmap(lambda a, b: None, in_axes=(nnx.StateAxes({...: 0}), nnx.StateAxes({...: 1})))
    with pytest.raises(ValueError, match=r"a\.w is reached under two different axes: .* b\."):
        f(a, b)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"in_axes": "x"}, "in_axes takes ints"),
        ({"out_axes": 1.5}, "out_axes takes ints"),
        ({"in_axes_kwargs": True}, "in_axes_kwargs takes ints"),
        ({"state_axes": {nnx.Param: "x"}}, "state_axes maps filters"),
        ({"in_axes": nnx.Carry}, "only scan has"),
    ],
)
def test_wrong_axes_are_clear_errors(arguments, message):
    with pytest.raises(TypeError, match=message):
        nnx.vmap(add, **arguments)


def test_in_axes_of_the_wrong_length_or_structure():
    with pytest.raises(ValueError, match="in_axes has 3 entries, the call has 2"):
        nnx.vmap(add, in_axes=(0, 0, 0))(weights(3), jnp.ones(3))
    with pytest.raises(ValueError, match="the in_axes entry for x must be"):
        nnx.vmap(add, in_axes=(0, {"a": 0}))(weights(3), jnp.ones(3))
    with pytest.raises(ValueError, match="out_axes must be"):
        nnx.vmap(add, out_axes=(0, 1))(weights(3), jnp.ones(3))
