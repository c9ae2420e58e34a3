"""Promises of scan: every parameter, carried and stacked state, randomness, metadata and errors."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import treadle as nnx
from tests.transforms.models import Block, assert_same, restacked, stacked, unstacked, values


def layers(size=4, width=3):
    return stacked(lambda rngs: Block(width, rngs=rngs), size)


def step(x, layer):
    return layer(x), x.sum()


def test_same_as_a_loop_over_unstacked_modules():
    m = layers()
    slices = unstacked(m, 4)
    x = jnp.ones((2, 3))
    out, sums = nnx.scan(step)(x, m)
    expected = []
    for layer in slices:
        x, y = step(x, layer)
        expected.append(y)
    np.testing.assert_allclose(out, x, atol=1e-6)
    np.testing.assert_allclose(sums, jnp.stack(expected), atol=1e-6)
    assert_same(nnx.state(m), restacked(slices))


def test_unselected_state_is_carried_from_layer_to_layer():
    m = layers()
    m.seen = nnx.BatchStat(jnp.zeros(3))
    m.calls = nnx.Variable(jnp.array(0))
    kernels = m.kernel.value
    x = jnp.ones((2, 3))
    out, _ = nnx.scan(step, state_axes={nnx.Param: 0})(x, m)
    seen = jnp.zeros(3)
    for kernel in kernels:
        seen = 0.9 * seen + 0.1 * x.mean(0)
        x = jnp.tanh(x @ kernel)
    assert int(m.calls.value) == 4
    np.testing.assert_allclose(m.seen.value, seen, atol=1e-6)
    np.testing.assert_allclose(out, x, atol=1e-6)


def test_length_where_nothing_is_sliced():
    x, y = nnx.scan(lambda x: (x + 1, x), length=3)(jnp.array(0))
    assert int(x) == 3
    assert y.tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="Pass length"):
        nnx.scan(lambda x: (x + 1, x))(jnp.array(0))
    with pytest.raises(ValueError, match=r"length=3, but x has 4 along axis 0"):
        nnx.scan(lambda c, x: (c, x), length=3)(0, jnp.ones(4))


def test_reverse_runs_from_the_last_slice():
    c, y = nnx.scan(lambda c, x: (c * 2 + x, c), reverse=True)(jnp.array(0), jnp.arange(3))
    assert (int(c), y.tolist()) == (10, [5, 2, 0])


def test_unroll_and_split_transpose_reach_jax():
    def traced(**parameters):
        f = nnx.scan(lambda c, x: (c * x, c), **parameters)
        return str(jax.make_jaxpr(jax.grad(lambda c, x: f(c, x)[0]))(1.0, jnp.ones(4)))

    assert "unroll=1" in traced()
    assert "unroll=2" in traced(unroll=2)
    assert "unroll=4" in traced(unroll=True)
    f = jax.lax.scan
    seen = {}
    try:
        jax.lax.scan = lambda *a, **k: seen.update(k) or f(*a, **k)
        nnx.scan(lambda c, x: (c, x), _split_transpose=True)(1.0, jnp.ones(4))
    finally:
        jax.lax.scan = f
    assert seen["_split_transpose"] is True


def test_in_axes_of_arrays():
    x = jnp.arange(6.0).reshape(2, 3)
    f = nnx.scan(lambda c, a, b: (c, a * b), in_axes=(None, -1, None))
    _, y = f(0.0, x, 2.0)
    np.testing.assert_allclose(y, x.T * 2)


def test_in_axes_kwargs():
    x = jnp.arange(6.0).reshape(2, 3)
    f = nnx.scan(lambda c, *, a, b: (c, a * b["k"]), in_axes_kwargs={"a": 1, "b": {"k": None}})
    _, y = f(0.0, a=x, b={"k": 2.0})
    np.testing.assert_allclose(y, x.T * 2)
    _, y = nnx.scan(lambda c, *, a: (c, a))(0.0, a=x)
    np.testing.assert_allclose(y, x)


def test_out_axes():
    x = jnp.arange(6.0).reshape(2, 3)
    _, (a, b) = nnx.scan(lambda c, x: (c, (x, {"k": x})), out_axes=(1, {"k": -1}))(0, x)
    np.testing.assert_allclose(a, x.T)
    np.testing.assert_allclose(b["k"], x.T)
    with pytest.raises(ValueError, match="out_axes has None"):
        nnx.scan(lambda c, x: (c, x), out_axes=None)


@pytest.mark.parametrize("argnum", [1, -1])
def test_carry_argnum(argnum):
    c, y = nnx.scan(lambda x, c: (c + x, c), carry_argnum=argnum)(jnp.arange(3), jnp.array(10))
    assert (int(c), y.tolist()) == (13, [10, 10, 11])


def test_too_few_arguments_for_the_carry():
    with pytest.raises(TypeError, match="Expected at least 2 positional arguments, got 1"):
        nnx.scan(step, carry_argnum=1)(jnp.ones(3))


def test_scan_output_false_returns_the_carry_alone():
    assert int(nnx.scan(lambda c, x: c + x, scan_output=False)(jnp.array(0), jnp.arange(4))) == 6
    c = nnx.scan(lambda c, x: (c[0] + x, c[1]), scan_output=False)((0, 1), jnp.arange(4))
    assert (int(c[0]), int(c[1])) == (6, 1)


def test_state_axes_several_and_none():
    m = nnx.Dict(
        a=nnx.Param(jnp.arange(6.0).reshape(2, 3)),
        b=nnx.BatchStat(jnp.arange(6.0).reshape(3, 2)),
        c=nnx.Variable(jnp.array(10.0)),
    )

    def f(total, m):
        assert (m["a"].shape, m["b"].shape, m["c"].shape) == ((3,), (3,), ())
        m["b"].value = m["b"].value + 1
        return total + m["c"].value, m["a"].value + m["b"].value

    b = m["b"].value
    axes = {nnx.Param: 0, nnx.BatchStat: -1, ...: None}
    total, y = nnx.scan(f, state_axes=axes)(0.0, m)
    assert float(total) == 20.0
    np.testing.assert_allclose(m["b"].value, b + 1)
    np.testing.assert_allclose(y, m["a"].value + (b + 1).T)


def test_module_as_the_carry_itself():
    m = Block(3, rngs=nnx.Rngs(0))
    reference = nnx.clone(m)
    kernel = m.kernel

    def f(m, x):
        return m, m(x)

    carry, y = nnx.scan(f)(m, jnp.ones((5, 2, 3)))
    expected = jnp.stack([reference(jnp.ones((2, 3))) for _ in range(5)])
    assert carry is m
    assert m.kernel is kernel
    assert int(m.calls.value) == 5
    np.testing.assert_allclose(y, expected, atol=1e-6)
    assert_same(nnx.state(m), nnx.state(reference))


def test_carry_of_nodes_and_arrays():
    m = nnx.Dict(w=nnx.Param(jnp.array(1.0)))

    def f(carry, x):
        m, total = carry["m"], carry["total"]
        m["w"].value = m["w"].value * 2
        return {"m": m, "total": total + m["w"].value}, x

    carry, _ = nnx.scan(f)({"m": m, "total": 0.0}, jnp.arange(3))
    assert carry["m"] is m
    assert float(m["w"].value) == 8.0
    assert float(carry["total"]) == 14.0


def test_swapped_values_inside_the_carry():
    m = nnx.Dict(a=nnx.Param(jnp.array(1.0)), b=nnx.Param(jnp.array(2.0)))

    def swap(m):
        m["a"].value, m["b"].value = m["b"].value, m["a"].value
        return m, None

    nnx.scan(swap, length=3)(m)
    assert (float(m["a"].value), float(m["b"].value)) == (2.0, 1.0)


def test_modules_made_inside_are_stacked():
    @functools.partial(nnx.scan, length=3, state_axes={nnx.Param: 1, ...: 0})
    def build(c, rngs):
        c = c + 1
        w = jax.random.normal(rngs(), (2,)) * c
        return c, nnx.Dict(w=nnx.Param(w), s=nnx.BatchStat(c))

    _, m = build(0.0, nnx.Rngs(0))
    keys = jax.random.split(jax.random.key(0), 3)
    expected = [
        jax.random.normal(jax.random.fold_in(k, i), (2,)) * (i + 1) for i, k in enumerate(keys)
    ]
    np.testing.assert_allclose(m["w"].value, jnp.stack(expected, 1), rtol=1e-6)
    np.testing.assert_allclose(m["s"].value, [1, 2, 3])


def test_new_state_in_a_scanned_module_is_stacked():
    m = layers()

    def f(x, layer):
        layer.before = nnx.Intermediate(x)
        return layer(x), None

    nnx.scan(f)(jnp.ones((2, 3)), m)
    assert m.before.shape == (4, 2, 3)
    np.testing.assert_allclose(m.before.value[0], jnp.ones((2, 3)))


def test_as_decorator_on_methods():
    class Stack(nnx.Module):
        @nnx.vmap(axis_size=4)
        def __init__(self, rngs):
            self.block = Block(3, rngs=rngs)

        @nnx.scan(carry_argnum=1, scan_output=False)
        def __call__(self, x):
            return self.block(x)

    stack = Stack(nnx.Rngs(0))
    reference = unstacked(stack, 4)
    x = jnp.ones((2, 3))
    out = stack(x)
    for layer in reference:
        x = layer.block(x)
    np.testing.assert_allclose(out, x, atol=1e-6)


# -- randomness ------------------------------------------------------------------------------------


def draw(c, rngs):
    return c, (jax.random.key_data(rngs.dropout()), jax.random.key_data(rngs.params()))


def test_split_streams_have_the_split_keys_and_go_on_counting():
    rngs = nnx.Rngs(params=0, dropout=1)
    rngs.dropout()
    key = rngs.dropout.key.value
    scanned = nnx.scan(draw, length=3, split_rngs="dropout")
    _, (dropout, params) = scanned(0, rngs)
    keys = jax.random.split(jax.random.key(1), 3)
    expected = [jax.random.key_data(jax.random.fold_in(k, i + 1)) for i, k in enumerate(keys)]
    np.testing.assert_array_equal(dropout, np.stack(expected))
    whole = [jax.random.fold_in(jax.random.key(0), i) for i in range(3)]
    np.testing.assert_array_equal(params, np.stack([jax.random.key_data(k) for k in whole]))
    assert rngs.dropout.key.value is key
    assert int(rngs.dropout.count.value) == 4
    assert int(rngs.params.count.value) == 3


def test_streams_in_the_carry_are_carried():
    rngs = nnx.Rngs(0)
    _, keys = nnx.scan(lambda r: (r, jax.random.key_data(r())), length=3)(rngs)
    expected = [jax.random.key_data(jax.random.fold_in(jax.random.key(0), i)) for i in range(3)]
    np.testing.assert_array_equal(keys, np.stack(expected))
    assert int(rngs.default.count.value) == 3


def test_streams_with_an_axis_already_are_mapped_not_split():
    rngs = nnx.Rngs(0)
    keys = jax.random.split(jax.random.key(7), 3)
    with nnx.split_rngs(rngs, splits=3):
        rngs.default.key.value = keys
        _, drawn = nnx.scan(lambda c, r: (c, jax.random.key_data(r())))(0, rngs)
        assert rngs.default.count.value.tolist() == [1, 1, 1]
    expected = [jax.random.key_data(jax.random.fold_in(k, 0)) for k in keys]
    np.testing.assert_array_equal(drawn, np.stack(expected))


# -- metadata --------------------------------------------------------------------------------------


def test_transform_metadata_names_the_axis_outside_and_not_inside():
    names = {nnx.PARTITION_NAME: "layers"}
    m = nnx.Dict(
        w=nnx.Param(jnp.ones((2, 4, 3)), sharding=("in", "layers", "out")),
        s=nnx.BatchStat(jnp.ones(3), sharding=("in",)),
    )

    def f(c, m):
        assert m["w"].sharding == ("in", "out")
        assert m["s"].sharding == ("in",)
        m["w"].value = m["w"].value + 1
        return c, nnx.Dict(new=nnx.Param(jnp.ones(2), sharding=("new",)))

    scanned = nnx.scan(f, state_axes={nnx.Param: 1}, transform_metadata=names)
    _, made = scanned(0, m)
    assert m["w"].sharding == ("in", "layers", "out")
    assert m["s"].sharding == ("in",)
    assert made["new"].sharding == ("new", "layers")


# -- the later spelling ----------------------------------------------------------------------------


def test_carry_in_in_axes_and_out_axes():
    f = nnx.scan(lambda x, c: (x, c + x), in_axes=(0, nnx.Carry), out_axes=(0, nnx.Carry))
    y, c = f(jnp.arange(4), jnp.array(10))
    assert (int(c), y.tolist()) == (16, [0, 1, 2, 3])
    alone = nnx.scan(lambda c: c * 2, length=3, in_axes=nnx.Carry, out_axes=nnx.Carry)
    assert int(alone(jnp.array(1))) == 8


def test_state_axes_with_carry():
    m = layers()
    m.seen = nnx.BatchStat(jnp.zeros(3))
    m.calls = nnx.Variable(jnp.array(0))
    other = nnx.clone(m)
    axes = nnx.StateAxes({nnx.Param: 0, ...: nnx.Carry})
    x = jnp.ones((2, 3))
    a, _ = nnx.scan(step, in_axes=(nnx.Carry, axes))(x, m)
    b, _ = nnx.scan(step, state_axes={nnx.Param: 0})(x, other)
    np.testing.assert_allclose(a, b)
    assert int(m.calls.value) == 4
    assert_same(nnx.state(m), nnx.state(other))


def test_state_axes_without_any_carry():
    m = layers()
    f = nnx.scan(lambda m, x: m(x), in_axes=(nnx.StateAxes({...: 0}), 0), out_axes=1)
    x = jax.random.normal(jax.random.key(0), (4, 2, 3))
    expected = jnp.stack([s(v) for s, v in zip(unstacked(m, 4), x, strict=True)], 1)
    np.testing.assert_allclose(f(m, x), expected, atol=1e-6)


def test_plain_axes_beside_carry_speak_of_nodes_too():
    shared = Block(3, rngs=nnx.Rngs(0))
    kernel = shared.kernel.value

    def f(x, m, s):
        return s["scale"].value * x, m.kernel.value.sum()

    scales = nnx.Dict(scale=nnx.Param(jnp.arange(1.0, 4.0)))
    out, sums = nnx.scan(f, in_axes=(nnx.Carry, None, 0))(jnp.ones(3), shared, scales)
    np.testing.assert_allclose(out, [6, 6, 6])
    np.testing.assert_allclose(sums, [kernel.sum()] * 3)


class Counted(nnx.Module):
    """Counts in carried state, and sows state that is new each time."""

    def __init__(self):
        self.count = nnx.BatchStat(jnp.array(0.0))

    def __call__(self, x):
        self.count.value = self.count.value + x
        self.sow(nnx.Intermediate, "seen", self.count.value)
        return x


@pytest.mark.parametrize(
    "parameters",
    [
        {"state_axes": {nnx.Intermediate: 0}},
        {"in_axes": (nnx.Carry, 0, nnx.StateAxes({nnx.Intermediate: 0, ...: nnx.Carry}))},
    ],
    ids=["state_axes", "StateAxes"],
)
def test_new_state_in_a_module_whose_other_state_is_all_carried_is_stacked(parameters):
    m = Counted()
    scanned = nnx.scan(lambda c, x, m: (c + m(x), None), **parameters)
    total, _ = scanned(jnp.array(0.0), jnp.arange(4.0), m)
    assert float(total) == float(m.count.value) == 6.0
    assert m.seen.value[0].tolist() == [0, 1, 3, 6]


def test_new_state_in_a_keyword_argument_follows_one_entry_for_all():
    m = Counted()
    axes = nnx.StateAxes({nnx.Intermediate: 0, ...: nnx.Carry})
    nnx.scan(lambda c, *, m: (c, m(1.0)), in_axes_kwargs=axes, length=3)(0.0, m=m)
    assert m.seen.value[0].tolist() == [1, 2, 3]


def test_nodes_are_carried_by_reference_wherever_carry_is_given_for_them():
    m = nnx.Dict(n=nnx.BatchStat(jnp.array(0.0)))

    def f(c, x_m, *, other):
        x, m = x_m
        assert other is m
        m["n"].value = m["n"].value + x
        return c, (m["n"].value, {"m": m})

    scanned = nnx.scan(
        f,
        in_axes=(nnx.Carry, (0, nnx.Carry)),
        in_axes_kwargs={"other": nnx.Carry},
        out_axes=(nnx.Carry, (0, nnx.Carry)),
    )
    _, (sums, same) = scanned(0.0, (jnp.arange(4.0), m), other=m)
    assert sums.tolist() == [0, 1, 3, 6]
    assert same["m"] is m
    assert float(m["n"].value) == 6.0


@pytest.mark.parametrize("argnum", [1, -1])
def test_carry_argnum_may_say_what_in_axes_says(argnum):
    f = nnx.scan(lambda x, c: c + x, in_axes=(0, nnx.Carry), carry_argnum=argnum, scan_output=False)
    assert int(f(jnp.arange(4), jnp.array(10))) == 16
    alone = nnx.scan(
        lambda c: c * 2, length=3, in_axes=nnx.Carry, out_axes=nnx.Carry, scan_output=False
    )
    assert int(alone(jnp.array(1))) == 8


# -- errors ----------------------------------------------------------------------------------------


def changed(m):
    m["w"].value = jnp.ones(3)
    return m, None


def integer(m):
    m["w"].value = m["w"].value.astype(int)
    return m, None


def static(m):
    m.note = 1
    return m, None


def structure(m):
    m["new"] = nnx.Param(jnp.ones(1))
    return m, None


def other(m):
    return nnx.clone(m), None


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (changed, r"m\.w is carried.*changes from float32\[2\] to float32\[3\]"),
        (integer, r"m\.w is carried.*changes from float32\[2\] to int32\[2\]"),
        (static, r"m\.note is carried.*structure must stay the same"),
        (structure, r"m\.new is carried.*structure must stay the same"),
        (other, r"the carry m is Dict; the function must return that same object.*another Dict"),
        (lambda m: (m, m, m), r"must return a pair \(carry, out\), but it returned a tuple of 3"),
        (lambda m: m, r"must return a pair \(carry, out\), but it returned Dict"),
        (lambda m: ((m, 1), None), r"the carry m must come back with the structure"),
        (lambda m: (jnp.ones(2), None), r"the carry m is Dict.*returned float32\[2\]"),
    ],
)
def test_a_carry_that_changes_names_the_path_and_changes_nothing(function, message):
    m = nnx.Dict(w=nnx.Param(jnp.ones(2)))
    before, attributes = values(m), set(vars(m))
    with pytest.raises(TypeError, match=message):
        nnx.scan(function, length=2)(m)
    assert_same(values(m), before)
    assert set(vars(m)) == attributes


class Bag:
    """A node of a registered type, with a static part of its own."""

    def __init__(self, label):
        self.label, self.things = label, {}


nnx.register_graph_node_type(
    Bag,
    flatten=lambda bag: (bag.things.items(), bag.label),
    create=Bag,
    set_key=lambda bag, key, child: bag.things.__setitem__(key, child),
    pop_key=lambda bag, key: bag.things.pop(key),
)


def partly_carried():
    """A node with mapped, carried and static parts, in itself and below."""

    def part():
        return nnx.Dict(w=nnx.Param(jnp.ones(4)), s=nnx.BatchStat(jnp.array(0.0)), rate=0.5)

    m = part()
    m["t"] = nnx.BatchStat(jnp.array(10.0))
    m["v"] = nnx.Param(jnp.zeros(4))
    m["p"], m["q"] = part(), part()
    m["act"] = nnx.Dict(slope=0.1)
    m["listed"] = [nnx.BatchStat(jnp.array(0.0)), nnx.Param(jnp.ones(4)), "name"]
    m["bag"] = bag = Bag("mine")
    bag.things.update(s=nnx.BatchStat(jnp.array(0.0)), w=nnx.Param(jnp.ones(4)))
    m["up"] = nnx.Dict(m=m)
    return m


def over_slices(function):
    scanned = nnx.scan(lambda c, m: (c, function(m)), state_axes={(nnx.Param, nnx.Intermediate): 0})
    return lambda m: scanned(0, m)


def exchange(*keys):
    def f(m):
        *_, a, b = keys
        for key in keys[:-2]:
            m = m[key]
        m[a], m[b] = m[b], m[a]

    return f


def store(key, make):
    return lambda m: m.__setitem__(key, make(m))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (exchange("s", "t"), r"m\.s is carried.*must stay the same object.*puts m\.t in its place"),
        (exchange("p", "q"), r"m\.p is carried.*must stay the same object.*puts m\.q in its place"),
        (exchange("listed", 0, 1), r"m\.listed\[0\] is carried.*from <class.*BatchStat'> to"),
        (store("s", lambda m: m["t"]), r"m\.t is carried.*structure must stay the same"),
        (
            store("s", lambda m: nnx.BatchStat(m["s"].value + 1)),
            r"m\.s is carried.*must stay the same object.*another BatchStat in its place",
        ),
        (store("p", lambda m: m["q"]), r"m\.q is carried.*Dict'> to 'shared node'"),
        (store("p", lambda m: 1), r"m\.p is carried.*changes from <class 'treadle\..*Dict'> to 1"),
        (lambda m: m.pop("s"), r"m\.s is carried.*to '<absent>'"),
        (store("rate", lambda m: m["rate"] / 2), r"m\.rate is carried.*from 0\.5 to 0\.25"),
        (lambda m: store("rate", lambda _: 1)(m["q"]), r"m\.q\.rate is carried.*from 0\.5 to 1"),
        (lambda m: store("slope", lambda _: 1)(m["act"]), r"m\.act\.slope is carried"),
        (lambda m: store(2, lambda _: "new")(m["listed"]), r"m\.listed\[2\] is carried"),
        (lambda m: setattr(m["bag"], "label", "new"), r"m\.bag is carried.*'mine'.*'new'"),
        (lambda m: m["s"].set_metadata(k=1), r"m\.s is carried.*from \{\} to \{'k': 1\}"),
    ],
)
def test_what_is_carried_of_a_partly_carried_node_stays_as_it_is(function, message):
    m = partly_carried()
    before, graphdef = values(m), nnx.graphdef(m)
    with pytest.raises(TypeError, match=message):
        over_slices(function)(m)
    assert_same(values(m), before)
    assert nnx.graphdef(m) == graphdef


def test_what_is_mapped_of_a_partly_carried_node_may_change():
    m = partly_carried()
    w, v = m["w"], m["v"]
    kept = nnx.Intermediate(jnp.zeros(4))
    m["seen"] = kept

    def f(m):
        m["s"].value = m["s"].value + m["w"].value
        m["bag"].things["s"].value = m["s"].value
        exchange("w", "v")(m)
        m["seen"] = nnx.Intermediate(m["s"].value)
        m["made"] = [nnx.Intermediate(m["s"].value)]
        m["act"]["seen"] = nnx.Intermediate(2 * m["s"].value)
        # New statics: the same in each iteration.
        m["note"] = m["act"]["note"] = "new"

    over_slices(f)(m)
    assert m["note"] == m["act"]["note"] == "new"
    assert m["w"] is v
    assert m["v"] is w
    assert m["seen"] is not kept
    assert float(m["s"].value) == float(m["bag"].things["s"].value) == 4.0
    for made in (m["seen"], m["made"][0]):
        assert made.value.tolist() == [1, 2, 3, 4]
    assert m["act"]["seen"].value.tolist() == [2, 4, 6, 8]
    assert m["up"]["m"] is m


def test_an_array_carry_that_changes_names_the_argument():
    with pytest.raises(TypeError, match=r"c\.k is carried.*from float32\[2\] to float32\[\]"):
        nnx.scan(lambda c: ({"k": c["k"].sum()}, None), length=2)({"k": jnp.ones(2)})


def test_a_carried_variable_without_a_value_is_a_clear_error():
    m = nnx.Dict(cache=nnx.Cache(None))

    def f(m, x):
        m["cache"].value = x
        return m, None

    with pytest.raises(TypeError, match=r"m\.cache is carried.*from NoneType to float32\[\]"):
        nnx.scan(f)(m, jnp.ones(3))
    assert m["cache"].value is None


def test_unselected_state_made_inside_is_a_clear_error():
    m = nnx.Dict(w=nnx.Param(jnp.ones((2, 2))))

    def f(c, m):
        m["new"] = nnx.BatchStat(jnp.ones(1))
        return c, None

    with pytest.raises(ValueError, match=r"m\.new is made inside, but is to be carried"):
        nnx.scan(f, state_axes={nnx.Param: 0})(0, m)
    assert set(vars(m)) == set(vars(nnx.Dict(w=1)))
    assert "new" not in m


def test_broadcast_state_that_changes_is_a_clear_error():
    m = nnx.Dict(w=nnx.Param(jnp.ones(2)))

    def f(c, m):
        m["w"].value = m["w"].value + 1
        return c, None

    with pytest.raises(ValueError, match=r"m\.w is broadcast to all iterations.*changes it"):
        nnx.scan(f, length=2, state_axes={...: None})(0, m)


def test_sizes_that_disagree_name_both():
    with pytest.raises(ValueError, match=r"layer\.bias has 4 along axis 0; y has 3 along axis 0"):
        nnx.scan(lambda x, layer, y: (x, y))(jnp.ones(3), layers(), jnp.ones(3))


def test_axis_out_of_bounds_names_the_argument():
    with pytest.raises(ValueError, match=r"axis 1 is out of bounds for x, which is float32\[3\]"):
        nnx.scan(lambda c, x: (c, x), in_axes=(0, 1))(0.0, jnp.ones(3))


def test_shared_variable_carried_and_stacked_is_a_clear_error():
    m = layers()
    with pytest.raises(ValueError, match="reached under two different axes"):
        nnx.scan(lambda c, m: (c, None))(m, nnx.Dict(inner=m))


def test_several_carries_are_a_clear_error():
    with pytest.raises(ValueError, match="more than one Carry"):
        nnx.scan(lambda a, b: (a, b), in_axes=(nnx.Carry, nnx.Carry))(1, 2)
    with pytest.raises(ValueError, match="in_axes=Carry says that the only argument"):
        nnx.scan(lambda a, b: (a, b), in_axes=nnx.Carry)(1, 2)


def test_an_array_outside_the_carry_that_is_to_be_carried_names_its_path():
    in_carry = "Put it in the carry argument.*or give an axis.*or None"
    f = nnx.scan(
        lambda c, x, *, t: (c + t["k"], x),
        in_axes=(nnx.Carry, 0),
        in_axes_kwargs={"t": nnx.Carry},
        out_axes=(nnx.Carry, 0),
    )
    with pytest.raises(ValueError, match=rf"in_axes_kwargs has Carry for t\.k, .*{in_carry}"):
        f(0.0, jnp.ones(3), t={"k": jnp.array(2.0)})
    f = nnx.scan(
        lambda c, xt: (c + xt[1], xt[0]),
        in_axes=(nnx.Carry, (0, nnx.Carry)),
        out_axes=(nnx.Carry, 0),
    )
    with pytest.raises(ValueError, match=rf"in_axes has Carry for xt\[1\], .*{in_carry}"):
        f(0.0, (jnp.ones(3), jnp.array(2.0)))


@pytest.mark.parametrize(
    ("out_axes", "result", "error", "message"),
    [
        (
            (nnx.Carry, nnx.Carry, 0),
            lambda c, x: (c, c, x),
            ValueError,
            r"out_axes has more than one Carry, at \[0, 1\].*as one entry",
        ),
        (
            {"c": nnx.Carry, "x": 0},
            lambda c, x: {"c": c, "x": x},
            TypeError,
            r"has Carry at out_axes\.c, .*returned dict\. Return a tuple such as \(carry, out\)",
        ),
        (
            (nnx.Carry, (0, {"k": nnx.Carry})),
            lambda c, x: (c, (x, {"k": x})),
            ValueError,
            r"has Carry for the result\[1\]\[1\]\.k, an array .*return the array in the carry, or",
        ),
        (
            (nnx.Carry, 0),
            lambda c, x: (c, x, x),
            TypeError,
            r"out_axes has a Carry in a tuple of 2, .*it returned a tuple of 3",
        ),
    ],
)
def test_a_carry_in_out_axes_that_no_result_fits_is_a_clear_error(out_axes, result, error, message):
    with pytest.raises(error, match=message):
        nnx.scan(result, in_axes=(nnx.Carry, 0), out_axes=out_axes)(0.0, jnp.ones(3))


def test_parameters_that_disagree_about_the_carry_are_a_clear_error():
    def f(c, x):
        return c, x

    with pytest.raises(ValueError, match=r"Carry at out_axes\[0\].*scan_output=False says"):
        nnx.scan(f, in_axes=(nnx.Carry, 0), out_axes=(nnx.Carry, 0), scan_output=False)
    for argnum in (0, -2):
        scanned = nnx.scan(f, in_axes=(0, nnx.Carry), carry_argnum=argnum)
        with pytest.raises(ValueError, match=f"its Carry at 1, but carry_argnum={argnum}"):
            scanned(jnp.ones(3), 0.0)
    with pytest.raises(ValueError, match="its Carry at 0, but carry_argnum=1"):
        nnx.scan(lambda c: (c, c), in_axes=nnx.Carry, carry_argnum=1, length=2)(0.0)
    node = nnx.Dict(w=nnx.Param(jnp.ones(3)))
    in_axes = (0, nnx.StateAxes({...: 0}))
    with pytest.raises(ValueError, match=r"carry_argnum=1 says.*has StateAxes\(\{\.\.\.: 0\}\)"):
        nnx.scan(f, in_axes=in_axes, carry_argnum=1)(jnp.ones(3), node)
    with pytest.raises(ValueError, match=r"scan_output=False says.*no argument is the carry"):
        nnx.scan(lambda m: None, in_axes=(in_axes[1],), scan_output=False)(node)


def test_the_body_is_traced_once_for_one_structure():
    traces = []

    def f(x, layer):
        traces.append(1)
        return layer(x), None

    scanned = nnx.scan(f)
    for seed in range(3):
        scanned(jnp.ones((2, 3)), stacked(lambda rngs: Block(3, rngs=rngs), 4, seed))
    assert len(traces) == 1
    scanned(jnp.ones((2, 3)), layers(5))
    assert len(traces) == 1
    scanned(jnp.ones((5, 3)), layers(4))
    assert len(traces) == 2


def test_works_without_jit():
    m, other = layers(), layers()
    with jax.disable_jit():
        a, ys = nnx.scan(step)(jnp.ones((2, 3)), m)
    b, expected = nnx.scan(step)(jnp.ones((2, 3)), other)
    np.testing.assert_allclose(a, b, atol=1e-6)
    np.testing.assert_allclose(ys, expected, atol=1e-6)
    assert_same(nnx.state(m), nnx.state(other))
