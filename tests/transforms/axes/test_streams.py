"""Random streams: what each entry, split_rngs and each spelling do to keys and counts."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

import treadle as nnx

from .libraries import data, draw, fold, quiet, same

pytestmark = quiet
KEY = jax.random.key(0)


def stacked_keys(key, n, count=0):
    return fold_each(jax.random.split(key, n), count)


def fold_each(keys, count=0):
    return data(*(jax.random.fold_in(key, count) for key in keys))


def test_none_in_vmap_draws_once():
    rngs = nnx.Rngs(noise=KEY)
    out = nnx.vmap(lambda r, x: draw(r.noise), in_axes=(None, 0))(rngs, jnp.ones(3))
    same(out, np.repeat(fold(KEY, 0), 3, 0))
    assert int(rngs.noise.count.value) == 1
    same(draw(rngs.noise), fold(KEY, 1)[0])


def test_none_in_vmap_with_dropout_gives_one_mask():
    layer = nnx.Dropout(0.5, rngs=nnx.Rngs(dropout=KEY))
    x = jnp.ones((3, 16))
    out = nnx.vmap(lambda m, x: m(x), in_axes=(None, 0))(layer, x)
    same(out, np.tile(out[0], (3, 1)))
    assert int(layer.rngs.dropout.count.value) == 1
    eager = nnx.Dropout(0.5, rngs=nnx.Rngs(dropout=KEY))
    same(out[0], eager(x[0]))


def test_none_with_split_rngs_given_splits_what_it_selects():
    rngs = nnx.Rngs(noise=KEY, other=1)
    f = nnx.vmap(lambda r, x: (draw(r.noise), draw(r.other)), in_axes=(None, 0), split_rngs="noise")
    noise, other = f(rngs, jnp.ones(3))
    same(noise, stacked_keys(KEY, 3))
    same(other, np.repeat(fold(jax.random.key(1), 0), 3, 0))
    assert int(rngs.noise.count.value) == 1
    same(jax.random.key_data(rngs.noise.key.value), jax.random.key_data(KEY))


def test_an_int_splits_a_scalar_key():
    rngs = nnx.Rngs(noise=KEY)
    out = nnx.vmap(lambda r, x: draw(r.noise), in_axes=(0, 0))(rngs, jnp.ones(3))
    same(out, stacked_keys(KEY, 3))
    assert int(rngs.noise.count.value) == 1
    assert rngs.noise.key.shape == ()


def test_an_int_with_split_rngs_that_does_not_select():
    rngs = nnx.Rngs(noise=KEY)
    f = nnx.vmap(lambda r, x: draw(r.noise), in_axes=(0, 0), split_rngs=False)
    same(f(rngs, jnp.ones(3)), np.repeat(fold(KEY, 0), 3, 0))


def test_keys_with_one_axis_are_mapped_over_it_under_any_int():
    keys = jax.random.split(KEY, 3)
    for entry in (0, 1, -1):
        rngs = nnx.Rngs(params=keys)
        m = nnx.Dict(rngs=rngs, w=nnx.Param(jnp.ones((3, 3))))
        out = nnx.vmap(lambda m: draw(m["rngs"].params), in_axes=entry)(m)
        same(out, fold_each(keys))


def test_keys_with_more_axes_are_mapped_over_the_entry():
    keys = jax.random.split(KEY, (2, 3))
    rngs = nnx.Rngs(params=keys)

    def f(r, x):
        return jax.random.key_data(r.params.key.value)

    out = nnx.vmap(f, in_axes=(1, 0))(rngs, jnp.ones(3))
    same(out, np.swapaxes(np.asarray(jax.random.key_data(keys)), 0, 1))
    out = nnx.vmap(f, in_axes=(0, 0))(rngs, jnp.ones(2))
    same(out, jax.random.key_data(keys))


def test_streams_over_arrays_of_keys_mapped_by_name():
    keys = jax.random.split(KEY, 10)
    rngs = nnx.Rngs(params=keys)
    axes = nnx.StateAxes({"params": 0, ...: None})
    out = nnx.vmap(lambda r: draw(r.params), in_axes=(axes,))(rngs)
    same(out, fold_each(keys))
    assert rngs.params.count.value.tolist() == [1] * 10
    out = nnx.vmap(lambda r: draw(r.params), in_axes=(axes,))(rngs)
    same(out, fold_each(keys, 1))


def test_arrays_of_keys_by_name_beside_a_stream_that_is_the_same():
    keys = jax.random.split(KEY, 4)
    rngs = nnx.Rngs(params=keys, dropout=1)
    axes = nnx.StateAxes({"params": 0, "dropout": None})
    out, dropout = nnx.vmap(lambda r: (draw(r.params), draw(r.dropout)), in_axes=(axes,))(rngs)
    same(out, fold_each(keys))
    same(dropout, np.repeat(fold(jax.random.key(1), 0), 4, 0))
    assert (rngs.params.count.value.tolist(), int(rngs.dropout.count.value)) == ([1] * 4, 1)


def test_arrays_of_keys_make_a_stack_of_layers():
    keys = jax.random.split(KEY, 4)
    make = nnx.vmap(lambda r: nnx.Linear(2, 3, rngs=r), in_axes=(nnx.StateAxes({"params": 0}),))
    stack = make(nnx.Rngs(params=keys))
    alone = [nnx.Linear(2, 3, rngs=nnx.Rngs(params=key)) for key in keys]
    same(stack.kernel.value, np.stack([layer.kernel.value for layer in alone]))


def test_a_stream_made_inside_has_axis_0():
    made = nnx.vmap(lambda r, x: nnx.Dict(r=r.fork()), in_axes=(0, 0), out_axes=0)(
        nnx.Rngs(noise=KEY), jnp.ones(3)
    )
    same(jax.random.key_data(made["r"].noise.key.value), stacked_keys(KEY, 3))
    made = nnx.vmap(lambda r, x: nnx.Dict(r=r.fork(), w=nnx.Param(x)), in_axes=(0, 0), out_axes=1)(
        nnx.Rngs(noise=KEY), jnp.ones((3, 2))
    )
    assert made["r"].noise.key.shape == (3,)
    assert made["w"].shape == (2, 3)


def test_contract_split_rngs_alone_decides():
    for selects, expected in ((..., stacked_keys(KEY, 3)), (False, np.repeat(fold(KEY, 0), 3, 0))):
        rngs = nnx.Rngs(noise=KEY)
        f = nnx.vmap(
            lambda r, x: draw(r.noise), in_axes=(None, 0), state_axes={...: 0}, split_rngs=selects
        )
        same(f(rngs, jnp.ones(3)), expected)
        assert int(rngs.noise.count.value) == 1


# -- scan: counts are carried --------------------------------------------------------------------


def test_scan_without_splitting_goes_on_counting():
    rngs = nnx.Rngs(noise=KEY)
    _, out = nnx.scan(lambda c, r: (c, draw(r.noise)), length=3, split_rngs=False)(0.0, rngs)
    same(out, fold(KEY, 0, 1, 2))
    assert int(rngs.noise.count.value) == 3


def test_scan_with_splitting_goes_on_counting_too():
    rngs = nnx.Rngs(noise=KEY)
    _, out = nnx.scan(lambda c, r: (c, draw(r.noise)), length=3)(0.0, rngs)
    same(out, data(*(jax.random.fold_in(k, i) for i, k in enumerate(jax.random.split(KEY, 3)))))
    assert int(rngs.noise.count.value) == 3
    same(jax.random.key_data(rngs.noise.key.value), jax.random.key_data(KEY))


def test_scan_starts_from_the_callers_count():
    rngs = nnx.Rngs(noise=KEY)
    rngs.noise(), rngs.noise()
    _, out = nnx.scan(lambda c, r: (c, draw(r.noise)), length=2, split_rngs=False)(0.0, rngs)
    same(out, fold(KEY, 2, 3))


def test_scan_with_two_draws_in_each_iteration():
    rngs = nnx.Rngs(noise=KEY)
    f = nnx.scan(
        lambda c, r: (c, jnp.stack([draw(r.noise), draw(r.noise)])), length=2, split_rngs=None
    )
    _, out = f(0.0, rngs)
    same(out.reshape(4, -1), fold(KEY, 0, 1, 2, 3))
    assert int(rngs.noise.count.value) == 4


def test_scan_todays_spelling_under_none():
    rngs = nnx.Rngs(noise=KEY)
    f = nnx.scan(
        lambda c, x, r: (c, draw(r.noise)),
        in_axes=(nnx.Carry, 0, None),
        out_axes=(nnx.Carry, 0),
    )
    _, out = f(0.0, jnp.ones(3), rngs)
    same(out, fold(KEY, 0, 1, 2))
    assert int(rngs.noise.count.value) == 3


def test_scan_todays_spelling_under_an_int():
    rngs = nnx.Rngs(noise=KEY)
    f = nnx.scan(
        lambda c, r: (c, draw(r.noise)),
        in_axes=(nnx.Carry, 0),
        out_axes=(nnx.Carry, 0),
        length=3,
    )
    _, out = f(0.0, rngs)
    same(out, data(*(jax.random.fold_in(k, i) for i, k in enumerate(jax.random.split(KEY, 3)))))
    assert int(rngs.noise.count.value) == 3


def test_scan_todays_spelling_state_axes_by_name():
    keys = jax.random.split(KEY, 3)
    rngs = nnx.Rngs(params=keys, dropout=1)
    axes = nnx.StateAxes({"params": 0, "dropout": None})
    f = nnx.scan(
        lambda c, r: (c, (draw(r.params), draw(r.dropout))),
        in_axes=(nnx.Carry, axes),
        out_axes=(nnx.Carry, 0),
    )
    _, (params, dropout) = f(0.0, rngs)
    # A stream over an array of keys has a count for each of them, as flax's has.
    same(params, data(*(jax.random.fold_in(k, 0) for k in keys)))
    same(dropout, fold(jax.random.key(1), 0, 1, 2))
    assert (rngs.params.count.value.tolist(), int(rngs.dropout.count.value)) == ([1] * 3, 3)


def test_scan_dropout_in_every_layer_differs():
    layer = nnx.Dropout(0.5, rngs=nnx.Rngs(dropout=KEY))
    _, out = nnx.scan(lambda c, m: (c, m(jnp.ones(32))), length=3, split_rngs=False)(0.0, layer)
    eager = nnx.Dropout(0.5, rngs=nnx.Rngs(dropout=KEY))
    same(out, np.stack([eager(jnp.ones(32)) for _ in range(3)]))


def test_class_scan_goes_on_counting():
    class Block(nnx.Module):
        def __init__(self, rngs):
            self.rngs = rngs

        def __call__(self, x):
            return x, draw(self.rngs.noise)

    stack = nnx.Scan(Block, length=3, split_rngs=False)(nnx.Rngs(noise=KEY))
    _, out = stack(jnp.zeros(()))
    same(out, fold(KEY, 0, 1, 2))
    assert int(stack.scan_module.rngs.noise.count.value) == 3


def test_scan_reverse_counts_in_the_order_of_the_iterations():
    rngs = nnx.Rngs(noise=KEY)
    f = nnx.scan(lambda c, r: (c, draw(r.noise)), length=3, split_rngs=False, reverse=True)
    _, out = f(0.0, rngs)
    same(out, fold(KEY, 2, 1, 0))
