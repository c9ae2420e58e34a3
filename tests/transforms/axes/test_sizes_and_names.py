"""Sizes come from all mapped leaves; names of axes go in and out where the leaf's axis is."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import treadle as nnx
from tests.open_points import cases

from .libraries import both, quiet, same, weights

pytestmark = quiet
LAYERS = {nnx.PARTITION_NAME: "layers"}
NAMELESS = {nnx.PARTITION_NAME: None}


@both
def test_a_node_alone_gives_the_size(lib):
    m = weights(2, 3, lib=lib)
    out = nnx.vmap(lambda m, x: m["w"].value + x, in_axes=(1, None))(m, 1.0)
    assert out.shape == (3, 2)


@both
def test_sizes_that_disagree_name_leaves(lib):
    m = weights(2, 3, lib=lib)
    with pytest.raises(ValueError, match=r"m(\.w|\['w'\]) has 3 along axis 1.*x has 2"):
        nnx.vmap(lambda m, x: x, in_axes=(1, 0))(m, jnp.ones(2))


@both
def test_nothing_to_take_the_size_from_names_a_leaf(lib):
    m = weights(3, lib=lib)
    with pytest.raises(ValueError, match=r"axis_size.*m(\.w|\['w'\])|m(\.w|\['w'\]).*axis_size"):
        nnx.vmap(lambda m: m["w"].value, in_axes=None)(m)


@both
def test_axis_size_that_disagrees_names_the_leaf(lib):
    m = weights(2, 3, lib=lib)
    with pytest.raises(ValueError, match=r"axis_size=2, but m(\.w|\['w'\]) has 3 along axis 1"):
        nnx.vmap(lambda m: 0.0, in_axes=1, axis_size=2)(m)


@both
def test_scan_takes_its_length_from_nodes(lib):
    m = weights(2, 3, lib=lib)
    f = nnx.scan(
        lambda c, m: (c + m["w"].value, None), in_axes=(nnx.Carry, 1), out_axes=(nnx.Carry, 0)
    )
    same(f(jnp.zeros(2), m)[0], np.arange(6.0).reshape(2, 3).sum(1))


# -- names ---------------------------------------------------------------------------------------


def named(*names, shape):
    return nnx.Dict(w=nnx.Param(jnp.zeros(shape), sharding=names))


@pytest.mark.parametrize(
    ("axis", "outside"),
    cases({"first": (0, ("layers", "m")), "second": (1, ("m", "layers"))}),
)
def test_names_are_where_the_entry_is(axis, outside):
    m = named(*outside, shape=(3, 3))

    def f(m):
        assert m["w"].sharding == ("m",)
        m["w"].value = m["w"].value + 1

    nnx.vmap(f, in_axes=axis, transform_metadata=LAYERS)(m)
    assert m["w"].sharding == outside


def test_under_none_names_stay():
    m = named("m", shape=(3,))

    def f(m, x):
        assert m["w"].sharding == ("m",)

    nnx.vmap(f, in_axes=(None, 0), transform_metadata=LAYERS)(m, jnp.ones(2))
    assert m["w"].sharding == ("m",)


def test_new_nodes_get_the_name_where_out_axes_puts_the_axis():
    for axis, outside in ((0, ("layers", "m")), (1, ("m", "layers")), (-1, ("m", "layers"))):
        f = nnx.vmap(
            lambda x: nnx.Param(x, sharding=("m",)), out_axes=axis, transform_metadata=LAYERS
        )
        assert f(jnp.ones((3, 2))).sharding == outside


def test_a_name_that_is_none_is_a_name():
    """ "No name given" and "the name is None" are two things (point 25)."""
    f = nnx.vmap(
        lambda r: nnx.Param(jnp.ones(2), sharding=("m",)), axis_size=3, transform_metadata=NAMELESS
    )
    assert f(nnx.Rngs(0)).sharding == (None, "m")


def test_without_a_name_the_sharding_stays():
    f = nnx.vmap(lambda r: nnx.Param(jnp.ones(2), sharding=("m",)), axis_size=3)
    assert f(nnx.Rngs(0)).sharding == ("m",)


@pytest.mark.parametrize(
    ("axis", "outside"), [(0, (None, "m")), (1, ("m", None))], ids=["first", "second"]
)
def test_a_name_that_is_none_is_taken_off_inside(axis, outside):
    m = named(*outside, shape=(3, 3))
    seen = []

    def f(m):
        seen.append(m["w"].sharding)

    nnx.vmap(f, state_axes={...: axis}, transform_metadata=NAMELESS)(m)
    assert seen == [("m",)]
    assert m["w"].sharding == outside


def test_scan_takes_a_name_that_is_none_off_inside():
    m = named(None, "m", shape=(3, 2))
    seen = []

    def f(c, m):
        seen.append(m["w"].sharding)
        return c, None

    nnx.scan(f, transform_metadata=NAMELESS)(0.0, m)
    assert set(seen) == {("m",)}
    assert m["w"].sharding == (None, "m")


@pytest.mark.parametrize("kind", ["Vmap", "Scan"])
def test_classes_stack_under_a_name_that_is_none(kind):
    class Block(nnx.Module):
        def __init__(self, rngs):
            self.w = nnx.Param(jnp.ones(2), sharding=("m",))

        def __call__(self, x):
            assert self.w.sharding == ("m",)
            return (x, None) if kind == "Scan" else x

    size = {"Vmap": "axis_size", "Scan": "length"}[kind]
    stack = getattr(nnx, kind)(Block, transform_metadata=NAMELESS, **{size: 3})(nnx.Rngs(0))
    module = getattr(stack, f"{kind.lower()}_module")
    assert module.w.sharding == (None, "m")
    stack(jnp.ones(3))
    assert module.w.sharding == (None, "m")


def test_the_specs_under_a_name_that_is_none_have_both_axes():
    f = nnx.vmap(
        lambda r: nnx.Dict(w=nnx.Param(jnp.ones(2), sharding=("m",))),
        axis_size=3,
        transform_metadata=NAMELESS,
    )
    specs = nnx.get_partition_spec(nnx.state(f(nnx.Rngs(0))))
    assert specs["w"].value == jax.sharding.PartitionSpec(None, "m")


def test_hooks_see_a_name_that_is_none():
    seen = []

    class Watched(nnx.Param):
        def on_add_axis(self, index, name):
            seen.append((index, name))

    nnx.vmap(lambda r: Watched(jnp.ones(2)), axis_size=3, transform_metadata=NAMELESS)(nnx.Rngs(0))
    assert seen == [(0, None)]


def test_other_keys_are_for_metadata_of_that_name():
    """As in flax: each further key names metadata that has an entry per axis."""
    make = nnx.vmap(
        lambda r: nnx.Param(jnp.ones(2), sharding=("m",), units=("kg",)),
        axis_size=3,
        transform_metadata={**LAYERS, "units": "layer"},
    )
    v = make(nnx.Rngs(0))
    assert v.sharding == ("layers", "m")
    assert v.units == ("layer", "kg")
    inside = []

    def look(v):
        inside.append((v.sharding, v.units))

    nnx.vmap(look, transform_metadata={**LAYERS, "units": "layer"})(v)
    assert inside == [(("m",), ("kg",))]
