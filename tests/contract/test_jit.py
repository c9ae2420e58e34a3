"""nnx.jit, a case per sentence of its documentation."""

from __future__ import annotations

import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import treadle as nnx
from tests.open_points import cases


def net(value=2.0):
    return nnx.Dict(w=nnx.Param(jnp.array(value)))


def mesh():
    return Mesh(np.array(jax.devices()[:1]), ("d",))


def counted(**options):
    traces = []

    def f(x, n=1):
        traces.append(n)
        return x * n

    return nnx.jit(f, **options), traces


# -- fun ---------------------------------------------------------------------------------------


def test_handles_modules_and_graph_nodes_as_arguments():
    np.testing.assert_allclose(nnx.jit(lambda m, x: m["w"].value * x)(net(), 3.0), 6.0)


def test_side_effects_may_be_executed_once():
    f, traces = counted()
    f(1.0), f(2.0)
    assert len(traces) == 1


@pytest.mark.parametrize(
    "value",
    [jnp.ones(2), 2.0, 3, True, (1, 2), [1, (2,)], {"a": 1, "b": [2]}, None],
    ids=str,
)
def test_arguments_and_results_are_arrays_scalars_and_containers(value):
    seen, expected = nnx.jit(lambda x: x)(value), jax.jit(lambda x: x)(value)
    assert jax.tree.structure(seen) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(seen), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def test_fun_is_held_weakly_by_the_cache():
    def f(x):
        return x

    jitted, ref = nnx.jit(f), weakref.ref(f)
    jitted(1.0)
    del f, jitted
    gc.collect()
    assert ref() is None


# -- in_shardings, out_shardings ---------------------------------------------------------------


def test_in_shardings_has_the_structure_of_the_arguments_or_is_a_prefix():
    rows = NamedSharding(mesh(), P("d"))
    for given in (rows, (rows, None), (rows, {"k": rows}), (None, rows)):
        f = nnx.jit(lambda m, t: m["w"].value.sum() + t["k"].sum(), in_shardings=given)
        m = nnx.Dict(w=nnx.Param(jnp.ones(2)))
        np.testing.assert_allclose(f(m, {"k": jnp.ones(2)}), 4.0)


def test_in_shardings_are_optional_and_taken_from_the_arrays():
    rows = NamedSharding(mesh(), P("d"))
    out = nnx.jit(lambda x: x * 1)(jax.device_put(jnp.ones(2), rows))
    assert out.sharding.is_equivalent_to(rows, 1)


def test_sizes_must_be_a_multiple_of_the_resources():
    """With one device all are: `never_different/on_eight_devices.py` has more of them."""
    rows = NamedSharding(mesh(), P("d"))
    assert nnx.jit(lambda x: x, in_shardings=(rows,))(jnp.ones(3)).shape == (3,)


def test_out_shardings_are_a_prefix_of_the_result():
    rows = NamedSharding(mesh(), P("d"))
    a, b = nnx.jit(lambda x: (x, {"k": x}), out_shardings=(None, rows))(jnp.ones(2))
    assert b["k"].sharding.is_equivalent_to(rows, 1)
    assert a.shape == (2,)


# -- static arguments --------------------------------------------------------------------------


ARGNUMS = (1, (1,), [1], -1, np.int64(1), [np.int64(1)], (np.int32(1),), np.array([1]), np.array(1))


@pytest.mark.parametrize("argnums", cases({repr(a): (a,) for a in ARGNUMS}))
def test_static_argnums_is_an_int_or_a_collection_of_ints(argnums):
    f, traces = counted(static_argnums=argnums)
    assert [float(f(1.0, n)) for n in (2, 3, 2)] == [2.0, 3.0, 2.0]
    assert traces == [2, 3]


def test_static_arguments_are_constants_and_may_be_any_python_object():
    assert float(nnx.jit(lambda x, f: f(x), static_argnums=1)(2.0, lambda x: x * 3)) == 6.0


def test_static_arguments_that_are_equal_do_not_recompile():
    f, traces = counted(static_argnums=1)
    f(1.0, 1000), f(1.0, int("1000"))
    assert traces == [1000]


def test_arguments_that_are_no_arrays_must_be_static():
    with pytest.raises(TypeError, match="name"):
        nnx.jit(lambda x, name: x)(1.0, "text")


@pytest.mark.parametrize("names", ["n", ("n",), ["n"]], ids=repr)
def test_static_argnames_is_a_string_or_a_collection(names):
    f, traces = counted(static_argnames=names)
    assert [float(f(1.0, n=n)) for n in (2, 3, 2)] == [2.0, 3.0, 2.0]
    assert traces == [2, 3]


@pytest.mark.parametrize("options", [{"static_argnames": "n"}, {"static_argnums": 1}], ids=str)
def test_either_is_inferred_from_the_other_by_the_signature(options):
    f, traces = counted(**options)
    assert float(f(1.0, 2)) == float(f(1.0, n=2)) == 2.0
    assert set(traces) == {2}


def test_with_both_given_the_signature_is_not_used():
    f, traces = counted(static_argnums=1, static_argnames=())
    f(1.0, 2)
    assert traces == [2]
    with pytest.raises(TypeError):
        nnx.jit(lambda x, n: jnp.ones(n), static_argnums=(), static_argnames="n")(1.0, 2)


# -- donation ----------------------------------------------------------------------------------


DONATE = {
    "argnums": {"donate_argnums": 0},
    "a NumPy integer": {"donate_argnums": np.int64(0)},
    "a NumPy array": {"donate_argnums": np.array([0])},
    "a tuple": {"donate_argnums": (0,)},
    "argnames": {"donate_argnames": "x"},
    "a list of names": {"donate_argnames": ["x"]},
}


@pytest.mark.parametrize("options", cases(DONATE))
def test_donated_buffers_are_not_to_be_used_again(options):
    f = nnx.jit(lambda x, y: x + y, **options)
    pointer = (x := jnp.arange(1024.0) + 1).unsafe_buffer_pointer()
    out = f(x, jnp.ones(1024))
    assert out.unsafe_buffer_pointer() == pointer
    assert x.is_deleted()


def test_nothing_is_donated_by_default():
    x = jnp.arange(4.0)
    nnx.jit(lambda x: x + 1)(x)
    assert not x.is_deleted()


def test_donate_state_donates_the_state_of_nodes():
    m = nnx.Dict(w=nnx.Param(jnp.arange(1024.0)))
    pointer, x = m["w"].value.unsafe_buffer_pointer(), jnp.ones(1024)

    def f(m, x):
        m["w"].value = m["w"].value + x

    nnx.jit(f, donate_state=True)(m, x)
    assert m["w"].value.unsafe_buffer_pointer() == pointer
    assert not x.is_deleted()


# -- the rest ----------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [False, True])
def test_keep_unused(keep):
    f = nnx.jit(lambda x, y: x, keep_unused=keep)
    text = f.lower(jnp.ones(2), jnp.ones(3)).as_text()
    assert ("tensor<3xf32>" in text) is keep


def test_device_and_backend():
    assert nnx.jit(lambda x: x + 1, device=jax.devices()[0])(1.0).devices() == {jax.devices()[0]}
    assert nnx.jit(lambda x: x + 1, backend="cpu")(1.0).devices() == {jax.devices("cpu")[0]}


def test_inline():
    assert "pjit" not in str(jax.make_jaxpr(nnx.jit(lambda x: x + 1, inline=True))(1.0))


def test_abstracted_axes_is_refused_when_used():
    with pytest.raises(ValueError, match="abstracted_axes"):
        nnx.jit(lambda x: x, abstracted_axes={0: "n"})(jnp.ones(3))


def test_constrain_state_follows_the_partition_spec():
    m = nnx.Dict(w=nnx.Param(jnp.ones(2), sharding=("d",), mesh=mesh()))
    nnx.jit(lambda m: m["w"].value.sum(), constrain_state=True)(m)
    assert m["w"].value.sharding.is_equivalent_to(NamedSharding(mesh(), P("d")), 1)
    assert isinstance(m["w"].value.sharding, NamedSharding)


def test_constrain_state_may_be_a_callable():
    seen = []

    def constrain(state):
        seen.append(list(state))
        return state

    nnx.jit(lambda m: m["w"].value, constrain_state=constrain)(net())
    assert seen
    assert all(names == ["w"] for names in seen)


def test_a_constrain_state_callable_must_return_the_state():
    with pytest.raises(
        (TypeError, ValueError), match=r"constrain_state.*None|None.*constrain_state"
    ):
        nnx.jit(lambda m: m["w"].value, constrain_state=lambda state: None)(net())


def test_constrain_state_false_constrains_nothing():
    m = nnx.Dict(w=nnx.Param(jnp.ones(2), sharding=("d",), mesh=mesh()))
    text = str(nnx.jit(lambda m: m["w"].value).trace(m).jaxpr)
    assert "sharding_constraint" not in text


def test_constrain_state_without_any_mesh_says_that_nothing_was_constrained():
    m = nnx.Dict(w=nnx.Param(jnp.ones(2), sharding=("d",)))
    with pytest.warns(Warning, match="mesh"):
        nnx.jit(lambda m: m["w"].value, constrain_state=True)(m)


def test_the_wrapped_function_is_set_up_for_compilation():
    f = nnx.jit(lambda m, x: m["w"].value * x)
    np.testing.assert_allclose(f.lower(net(), 3.0).compile()(net(), 3.0), 6.0)
    assert f.eval_shape(net(), 3.0).shape == ()
