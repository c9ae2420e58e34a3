from __future__ import annotations

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import treadle as nnx
from tests.nn.peers import assert_close, assert_same_call, assert_same_gradients, make, normal


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({}, (5, 3)),
        ({}, (3,)),
        ({"use_bias": False}, (2, 4, 3)),
        ({"dtype": jnp.bfloat16}, (5, 3)),
        ({"param_dtype": jnp.bfloat16}, (5, 3)),
        ({"param_dtype": jnp.float16, "dtype": jnp.float32}, (5, 3)),
        ({"precision": jax.lax.Precision.HIGHEST}, (5, 3)),
        ({"preferred_element_type": jnp.float32, "dtype": jnp.bfloat16}, (5, 3)),
    ],
)
def test_linear_computes_what_flax_does(options, shape):
    ours, theirs = make("Linear", 3, 4, **options)
    assert_same_call(ours, theirs, normal(*shape))


def test_linear_has_the_gradients_of_flax():
    ours, theirs = make("Linear", 3, 4)
    x = normal(5, 3)
    assert_same_gradients(ours, theirs, lambda m: m(x))


def test_linear_starts_from_the_keys_flax_draws():
    ours = nnx.Linear(3, 4, rngs=nnx.Rngs(0), bias_init=nnx.initializers.normal())
    key = jax.random.key(0)
    kernel = nnx.initializers.lecun_normal()(jax.random.fold_in(key, 0), (3, 4), jnp.float32)
    bias = nnx.initializers.normal()(jax.random.fold_in(key, 1), (4,), jnp.float32)
    np.testing.assert_array_equal(ours.kernel.value, kernel)
    np.testing.assert_array_equal(ours.bias.value, bias)


def test_linear_uses_the_product_and_the_cast_it_is_given():
    seen = []

    def product(*args, **kwargs):
        seen.append(sorted(kwargs))
        return jax.lax.dot_general(*args, **kwargs)

    def cast(args, *, dtype):
        seen.append(dtype)
        return args

    layer = nnx.Linear(3, 4, dot_general=product, promote_dtype=cast, rngs=nnx.Rngs(0))
    layer(normal(2, 3))
    assert seen == [None, ["precision"]]


def test_linear_names_the_shape_it_expects():
    layer = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"shape \(\.\.\., 3\), got \(2, 5\)"):
        layer(normal(2, 5))


def test_metadata_reaches_the_params():
    layer = nnx.Linear(
        3,
        4,
        kernel_init=nnx.with_metadata(nnx.initializers.ones, sharding=("a", None)),
        kernel_metadata={"tag": "k"},
        bias_metadata={"tag": "b"},
        rngs=nnx.Rngs(0),
    )
    assert layer.kernel.get_metadata() == {"sharding": ("a", None), "tag": "k"}
    assert layer.bias.tag == "b"


@pytest.mark.parametrize(
    ("args", "options", "shape"),
    [
        ((3, (4, 5)), {}, (2, 4, 3)),
        (((4, 5), 2), {"axis": (1, -1)}, (2, 4, 7, 5)),
        (((4, 5), 2), {"axis": (-1, 1)}, (2, 4, 7, 5)),
        ((3, (4,)), {"batch_axis": {0: 2}}, (2, 4, 3)),
        ((3, (4, 2)), {"batch_axis": {0: 2, 1: 5}, "use_bias": False}, (2, 5, 3)),
        ((3, 4), {"axis": 0, "dtype": jnp.bfloat16}, (3, 5)),
    ],
)
def test_linear_general_computes_what_flax_does(args, options, shape):
    ours, theirs = make("LinearGeneral", *args, **options)
    assert_same_call(ours, theirs, normal(*shape))


def test_linear_general_initializes_the_kernel_as_a_matrix():
    shapes = []

    def init(key, shape, dtype):
        shapes.append(shape)
        return jnp.zeros(shape, dtype)

    layer = nnx.LinearGeneral(
        (2, 3), (4, 5), axis=(0, 1), kernel_init=init, bias_init=init, rngs=nnx.Rngs(0)
    )
    assert shapes == [(6, 20), (20,)]
    assert layer.kernel.value.shape == (2, 3, 4, 5)


def test_linear_general_keeps_the_metadata_of_its_initializer():
    init = nnx.with_metadata(nnx.initializers.ones, sharding=("a", "b", "c"))
    layer = nnx.LinearGeneral(2, (4, 5), kernel_init=init, rngs=nnx.Rngs(0))
    assert layer.kernel.value.shape == (2, 4, 5)
    assert layer.kernel.sharding == ("a", "b", "c")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: nnx.LinearGeneral((2, 3), 4, rngs=nnx.Rngs(0)), "names 1 axes"),
        (lambda: nnx.LinearGeneral(2, 4, batch_axis={1: 3}, rngs=nnx.Rngs(0)), "leading axes"),
        (lambda: nnx.LinearGeneral(2, 4, rngs=nnx.Rngs(0))(normal(2, 3)), r"sizes \(2,\)"),
        (lambda: nnx.LinearGeneral(2, 4, axis=3, rngs=nnx.Rngs(0))(normal(2, 2)), "rank 2"),
    ],
)
def test_linear_general_explains_wrong_sizes(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("args", "shape"),
    [
        (("nta,hab->nthb", (8, 2, 4), (8, 4)), (3, 5, 2)),
        (("...x,xyz->...yz", (3, 4, 5), (4, 5)), (2, 6, 3)),
        (("...x,xyz->...zy", (3, 4, 5), (5, 4)), (2, 6, 3)),
        (("ab, bc -> ac", (3, 4), None), (2, 3)),
        (("bij,ijk->bik", (2, 3, 4), (2, 4)), (5, 2, 3)),
        (("d...ab,bc...->ad...c", (4, 5, 6, 7), (6, 7, 5)), (2, 6, 7, 3, 4)),
        (("d...ab,bc...->ad...c", (4, 5, 6, 7), (6, 7, 5)), (2, 3, 4)),
        (("d...ab,bc...->ad...c", (4, 5, 7), (7, 5)), (2, 6, 7, 3, 4)),
        (("...a,...ab->b...", (6, 3, 4), (4, 6)), (5, 6, 3)),
    ],
)
def test_einsum_computes_what_flax_does(args, shape):
    ours, theirs = make("Einsum", *args)
    assert_same_call(ours, theirs, normal(*shape))


def test_einsum_takes_another_summation_at_the_call():
    ours, theirs = make("Einsum", "ab,bc->ac", (3, 4), (4,))
    assert_same_call(ours, theirs, normal(2, 5, 3), "xab,bc->xac")


@pytest.mark.parametrize("text", ["ab,bc", "ab->ba", "a,b,c->abc"])
def test_einsum_refuses_other_than_two_operands(text):
    with pytest.raises(ValueError, match="two operands and an output"):
        nnx.Einsum(text, (2, 3), rngs=nnx.Rngs(0))


def test_einsum_explains_a_bias_that_does_not_fit():
    layer = nnx.Einsum("ab,bc->ac", (3, 4), (3,), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"bias_shape=\(3,\) does not fit"):
        layer(normal(2, 3))


def test_shapes_are_those_of_the_kernel():
    layer = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
    layer.kernel.value = normal(2, 5)
    with pytest.raises(ValueError, match=r"kernel of shape \(2, 5\).* bias has shape \(4,\)"):
        layer(normal(7, 2))
    with pytest.raises(
        ValueError, match=r"\(\.\.\., 2\), got \(7, 3\); its kernel has shape \(2, 5\)"
    ):
        layer(normal(7, 3))
    layer.bias.value = normal(5)
    assert_close(layer(normal(7, 2)), normal(7, 2) @ normal(2, 5) + normal(5))


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda r: nnx.Linear(3, 3, rngs=r), (2, 3)),
        (lambda r: nnx.LinearGeneral(3, (3, 3), rngs=r), (2, 3)),
        (lambda r: nnx.Conv(3, 3, (3,), rngs=r), (2, 5, 3)),
        (lambda r: nnx.ConvTranspose(3, 3, (3,), rngs=r), (2, 5, 3)),
    ],
)
def test_a_stack_of_layers_is_not_a_layer(make, shape):
    stack = nnx.vmap(make)(nnx.Rngs(0).fork(split=3))
    with pytest.raises(ValueError, match="call a stack of layers through vmap or scan"):
        stack(normal(*shape))
    out = nnx.vmap(lambda layer, x: layer(x), in_axes=(0, None))(stack, normal(*shape))
    assert out.shape[:2] == (3, 2)


def test_an_array_in_the_place_of_a_param_is_used_as_it_is():
    x = normal(2, 3)
    layer = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
    del layer.kernel
    layer.kernel = normal(3, 4)
    assert_close(layer(x), x @ normal(3, 4))
    assert set(nnx.state(layer, nnx.Param)) == {"bias"}
    norm = nnx.BatchNorm(3, momentum=0.0, rngs=nnx.Rngs(0))
    del norm.mean, norm.scale
    norm.mean = jnp.zeros(3)
    norm.scale = jnp.full(3, 2.0)
    expected = nnx.BatchNorm(3, rngs=nnx.Rngs(0))(x) * 2
    assert_close(norm(x), expected)
    np.testing.assert_allclose(norm.mean, x.mean(0), rtol=1e-5)


@pytest.mark.parametrize("rngs", [jax.random.key(0), jax.random.PRNGKey(0), 0, np.int32(0)])
@pytest.mark.parametrize(
    "make",
    [
        lambda r: nnx.Linear(2, 3, rngs=r),
        lambda r: nnx.LinearGeneral(2, 3, rngs=r),
        lambda r: nnx.Einsum("ab,bc->ac", (2, 3), rngs=r),
        lambda r: nnx.Conv(2, 3, (1,), rngs=r),
        lambda r: nnx.Embed(2, 3, rngs=r),
        lambda r: nnx.LayerNorm(2, rngs=r),
        lambda r: nnx.Dropout(0.5, rngs=r),
        lambda r: nnx.MultiHeadAttention(1, 2, rngs=r),
    ],
)
def test_a_key_where_an_rngs_belongs_is_explained(make, rngs):
    with pytest.raises(TypeError, match=r"rngs of \w+ is a single .*pass rngs=Rngs\("):
        make(rngs)


def test_layers_draw_from_a_stream_too():
    layer = nnx.Linear(2, 3, rngs=nnx.RngStream("any", 0))
    assert_close(layer.kernel.value, nnx.Linear(2, 3, rngs=nnx.Rngs(0)).kernel.value)


@pytest.mark.parametrize(
    "layer",
    [
        lambda: nnx.Linear(2, 3, rngs=nnx.Rngs(0)),
        lambda: nnx.LinearGeneral(2, (3, 4), rngs=nnx.Rngs(0)),
        lambda: nnx.Einsum("ab,bc->ac", (2, 3), rngs=nnx.Rngs(0)),
        lambda: nnx.Conv(2, 3, (3,), rngs=nnx.Rngs(0)),
        lambda: nnx.Embed(2, 3, rngs=nnx.Rngs(0)),
        lambda: nnx.BatchNorm(2, rngs=nnx.Rngs(0)),
        lambda: nnx.GroupNorm(4, 2, rngs=nnx.Rngs(0)),
        lambda: nnx.Dropout(0.5, rngs=nnx.Rngs(0)),
        lambda: nnx.MultiHeadAttention(2, 4, rngs=nnx.Rngs(0)),
    ],
)
def test_layers_can_be_pickled_and_have_equal_structure_when_made_again(layer):
    made = layer()
    restored = pickle.loads(pickle.dumps(made))
    assert nnx.graphdef(restored) == nnx.graphdef(made)
    assert nnx.graphdef(layer()) == nnx.graphdef(made)
    assert hash(nnx.graphdef(layer())) == hash(nnx.graphdef(made))
    assert nnx.state(restored) == nnx.state(made)
