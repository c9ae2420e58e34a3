"""Promises of grad and value_and_grad."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import treadle as nnx
from tests.transforms.models import Block, assert_same, values


def model() -> nnx.Dict:
    return nnx.Dict(
        w=nnx.Param(jnp.array([1.0, 2.0]), tag="decay"),
        s=nnx.BatchStat(jnp.array([3.0, 4.0])),
        bare=jnp.array([5.0, 6.0]),
    )


def loss(m, x=1.0):
    return jnp.sum(m["w"].value * m["s"].value * m["bare"] * x)


def test_gradient_holds_what_wrt_selects_with_type_and_metadata():
    grads = nnx.grad(loss)(model())
    assert list(grads) == ["w"]
    assert grads["w"].type is nnx.Param
    assert grads["w"].tag == "decay"
    np.testing.assert_allclose(grads["w"].value, [15.0, 24.0])


def test_wrt_selects_other_types_and_bare_arrays():
    assert list(nnx.grad(loss, wrt=nnx.BatchStat)(model())) == ["s"]
    everything = nnx.grad(loss, wrt=...)(model())
    assert list(everything) == ["bare", "s", "w"]
    np.testing.assert_allclose(everything["bare"], [3.0, 8.0])
    assert list(nnx.grad(loss, wrt="decay")(model())) == ["w"]


def test_argnums_picks_arguments_as_jax_does():
    m = model()
    assert nnx.grad(loss, argnums=1)(m, 2.0) == pytest.approx(39.0 + 24.0)
    both = nnx.grad(loss, argnums=(0, 1))(m, 2.0)
    assert isinstance(both, tuple)
    assert isinstance(both[0], nnx.State)
    assert isinstance(nnx.grad(loss, argnums=(0,))(m, 2.0), tuple)
    assert nnx.grad(loss, argnums=-1)(m, 2.0) == both[1]


def test_pytree_arguments_with_nodes_keep_their_structure():
    def f(tree):
        return jnp.sum(tree["ms"][0]["w"].value * tree["ms"][1]["w"].value) * tree["x"]

    grads = nnx.grad(f)({"ms": [model(), model()], "x": 2.0})
    assert isinstance(grads["ms"], list)
    np.testing.assert_allclose(grads["ms"][0]["w"].value, [2.0, 4.0])
    assert grads["x"] == pytest.approx(5.0)


def test_state_and_array_arguments_have_the_gradients_jax_gives():
    graphdef, state = nnx.split(model())
    grads = nnx.grad(lambda s: loss(nnx.merge(graphdef, s)))(state)
    assert isinstance(grads, nnx.State)
    assert grads["w"].type is nnx.Param
    expected = jax.grad(lambda s: loss(nnx.merge(graphdef, s)))(state)
    assert_same(grads, expected)


def test_shared_variable_is_counted_once_with_the_summed_gradient():
    shared = nnx.Param(jnp.array(3.0))
    a, b = nnx.Dict(v=shared), nnx.Dict(v=shared)
    grads = nnx.grad(lambda a, b: a["v"].value * b["v"].value, argnums=(0, 1))(a, b)
    assert float(grads[0]["v"].value) == 6.0
    assert float(grads[1]["v"].value) == 6.0
    tied = nnx.Dict(a=a, b=b)
    grads = nnx.grad(lambda m: m["a"]["v"].value * m["b"]["v"].value)(tied)
    assert list(grads) == ["a"]
    assert float(grads["a"]["v"].value) == 6.0


def test_variable_as_argument_gives_a_variable_state():
    grad = nnx.grad(lambda v: v.value**2)(nnx.Param(jnp.array(3.0)))
    assert isinstance(grad, nnx.VariableState)
    assert float(grad.value) == 6.0


def test_shared_bare_arrays_reached_first_by_another_argument():
    inner = nnx.Dict(x=jnp.array(2.0), y=jnp.array(3.0))
    a, b = nnx.Dict(z=inner), nnx.Dict(first=jnp.array(5.0), inner=inner)

    def f(a, b):
        return a["z"]["x"] * b["inner"]["y"] ** 2 * b["first"]

    grads = nnx.grad(f, argnums=1, wrt=...)(a, b)
    assert float(grads["first"]) == 18.0
    assert float(grads["inner"]["x"]) == 45.0
    assert float(grads["inner"]["y"]) == 60.0


def test_updates_of_other_and_of_differentiated_state_reach_the_caller():
    m = Block(2, rngs=nnx.Rngs(0))
    before = np.asarray(m.kernel.value)

    def f(m, x):
        out = m(x).sum()
        m.kernel.value = m.kernel.value * 2
        m.extra = nnx.Intermediate(out)
        m.note = "changed"
        return out

    kernel, seen = m.kernel, m.seen
    nnx.grad(f)(m, jnp.ones((1, 2)))
    assert m.kernel is kernel
    assert m.seen is seen
    assert int(m.calls.value) == 1
    assert float(m.seen.value[0]) == pytest.approx(0.1)
    np.testing.assert_allclose(m.kernel.value, before * 2)
    assert m.extra.type is nnx.Intermediate
    assert not isinstance(m.extra.value, jax.core.Tracer)
    assert m.note == "changed"


def test_random_counts_advance():
    rngs = nnx.Rngs(0)
    nnx.grad(lambda x, r: x * jax.random.uniform(r()))(1.0, rngs)
    assert int(rngs.default.count.value) == 1


def test_has_aux_returns_what_the_function_gave():
    m = model()
    grads, (returned, text) = nnx.grad(lambda m: (loss(m), (m, "aux")), has_aux=True)(m)
    assert returned is m
    assert text == "aux"
    assert list(grads) == ["w"]
    (value, aux), grads = nnx.value_and_grad(lambda m: (loss(m), m["w"]), has_aux=True)(m)
    assert aux is m["w"]
    assert float(value) == 63.0
    assert list(grads) == ["w"]


def test_holomorphic_differentiates_complex_functions():
    m = nnx.Dict(w=nnx.Param(jnp.array(1.0 + 2.0j)))
    grads = nnx.grad(lambda m: m["w"].value ** 2, holomorphic=True)(m)
    np.testing.assert_allclose(grads["w"].value, 2.0 + 4.0j)
    with pytest.raises(TypeError, match="complex"):
        nnx.grad(lambda m: m["w"].value ** 2)(m)
    with pytest.raises(TypeError, match=r"holomorphic=True needs complex inputs, m\.w is float32"):
        nnx.grad(lambda m: m["w"].value.sum(), holomorphic=True)(model())


def test_allow_int_gives_float0():
    m = nnx.Dict(n=nnx.Param(jnp.array(2)))
    grads = nnx.grad(lambda m: m["n"].value * 1.0, allow_int=True)(m)
    assert grads["n"].value.dtype == jax.dtypes.float0
    with pytest.raises(TypeError, match=r"m\.n, which is int32\[\].*allow_int=True"):
        nnx.grad(lambda m: m["n"].value * 1.0)(m)


def test_reduce_axes_is_empty_or_an_error():
    assert list(nnx.grad(loss, reduce_axes=())(model())) == ["w"]
    with pytest.raises(ValueError, match="psum"):
        nnx.grad(loss, reduce_axes=("batch",))


def test_diff_state_selects_by_its_own_filter():
    m = model()
    only = nnx.grad(loss, argnums=nnx.DiffState(0, nnx.BatchStat))(m)
    assert list(only) == ["s"]
    grads = nnx.grad(loss, argnums=(nnx.DiffState(0, [nnx.BatchStat, nnx.Param]), 1))(m, 2.0)
    assert list(grads[0]) == ["s", "w"]


def test_leaves_outside_argnums_are_not_traced():
    def f(m, flag, text):
        assert flag is True
        assert text == "plain"
        return loss(m)

    nnx.grad(f)(model(), True, "plain")


def test_value_and_grad_agrees_with_grad():
    m = model()
    value, grads = nnx.value_and_grad(loss)(m)
    assert float(value) == 63.0
    assert_same(grads, nnx.grad(loss)(m))


def test_variables_without_a_value_have_a_gradient_without_one():
    m = nnx.Dict(w=nnx.Param(jnp.array(2.0)), bias=nnx.Param(None))
    grads = nnx.grad(lambda m: m["w"].value ** 2)(m)
    assert grads["bias"].value is None
    assert jax.tree.structure(grads) == jax.tree.structure(nnx.state(m))


def test_decorator_forms_and_wrapping():
    @nnx.value_and_grad(argnums=1)
    def f(m, x):
        """Doc."""
        return loss(m, x)

    assert f.__name__ == "f"
    assert f.__doc__ == "Doc."
    assert float(f(model(), 2.0)[1]) == 63.0


def test_higher_derivatives():
    m = nnx.Dict(w=nnx.Param(jnp.array(2.0)))
    second = nnx.grad(lambda m: nnx.grad(lambda m: m["w"].value ** 3)(m)["w"].value)(m)
    assert float(second["w"].value) == 12.0


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda m: m["w"].value, r"scalar loss, got float32\[2\].*jnp\.mean"),
        (lambda m: (loss(m), 1), r"got a tuple of 2.*has_aux=True"),
        (lambda m: None, r"scalar loss, got a value of type NoneType"),
        (lambda m: m, r"scalar loss, got a value of type Dict"),
    ],
)
def test_a_loss_that_is_no_scalar_is_a_clear_error_and_changes_nothing(function, message):
    m = model()

    def f(m):
        m["w"].value = m["w"].value + 1
        m.extra = 1
        return function(m)

    before, attributes = values(m), set(vars(m))
    with pytest.raises(TypeError, match=message):
        nnx.grad(f)(m)
    assert_same(values(m), before)
    assert set(vars(m)) == attributes


def test_has_aux_without_a_pair_is_a_clear_error():
    with pytest.raises(TypeError, match="must return a pair"):
        nnx.grad(loss, has_aux=True)(model())


@pytest.mark.parametrize("argnums", [2, -3, (0, 5)])
def test_argnums_out_of_range_is_a_clear_error(argnums):
    with pytest.raises(
        ValueError, match=r"argnums=-?\d is out of range, the call has 2 positional"
    ):
        nnx.grad(loss, argnums=argnums)(model(), 1.0)


def test_argnums_of_the_wrong_type_is_a_clear_error():
    with pytest.raises(TypeError, match="argnums takes positions"):
        nnx.grad(loss, argnums="m")


def test_wrt_that_is_no_filter_is_a_clear_error():
    with pytest.raises(nnx.FilterError, match="not a filter"):
        nnx.grad(loss, wrt=3)(model())
