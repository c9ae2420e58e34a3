"""Every parameter of jit does what it says."""

from __future__ import annotations

import functools
import gc
import weakref
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

import treadle as nnx


class Model(nnx.Module):
    def __init__(self) -> None:
        self.w = nnx.Param(jnp.ones((4, 2)), sharding=("x", None))
        self.b = nnx.BatchStat(jnp.zeros(2))
        self.rate = 0.5

    @nnx.jit
    def scaled(self, x: jax.Array, *, by: float = 1.0) -> jax.Array:
        self.b.value = self.b.value + 1
        return x @ self.w.value * by


@pytest.fixture
def mesh() -> jax.sharding.Mesh:
    return jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))


def test_static_argnums_are_compile_time_constants() -> None:
    @nnx.jit(static_argnums=1)
    def power(m: Model, n: int) -> jax.Array:
        assert isinstance(n, int)
        return m.w.value**n

    model = Model()
    power(model, 2), power(model, 2), power(model, 3)
    assert power.num_traces == 2
    assert power(model, -1).shape == (4, 2)


def test_negative_static_argnums_count_from_the_end() -> None:
    jitted = nnx.jit(lambda x, n: [x] * n, static_argnums=-1)
    assert len(jitted(jnp.ones(1), 3)) == 3


def test_static_argnames_also_hold_for_positional_use() -> None:
    @functools.partial(nnx.jit, static_argnames="n")
    def repeat(x: jax.Array, n: int) -> list[jax.Array]:
        return [x] * n

    assert len(repeat(jnp.ones(1), 2)) == len(repeat(jnp.ones(1), n=2)) == 2


def test_equal_static_arguments_do_not_retrace() -> None:
    jitted = nnx.jit(lambda x, names: x, static_argnums=1)
    for _ in range(3):
        jitted(1.0, tuple("ab"))
    assert jitted.num_traces == 1


def test_unhashable_static_arguments_name_the_argument() -> None:
    jitted = nnx.jit(lambda x, names: x, static_argnames="names")
    with pytest.raises(nnx.StaticError, match=r"names .*not hashable"):
        jitted(1.0, names=["a"])


def test_static_and_donated_together_is_an_error() -> None:
    with pytest.raises(ValueError, match="both static and donated"):
        nnx.jit(lambda x: x, static_argnums=0, donate_argnums=0)


@pytest.mark.parametrize("what", ["static", "donate"])
@pytest.mark.parametrize(
    ("which", "message"),
    [
        ({"argnums": 5}, r"_argnums=5 is out of range, scaled has 2 positional parameters"),
        ({"argnums": (0, -3)}, r"_argnums=-3 is out of range"),
        ({"argnums": 5, "argnames": "n"}, r"_argnums=5 is out of range"),
        ({"argnames": "m"}, r"_argnames='m' is no parameter of scaled; .* are x, n\."),
        ({"argnums": 0, "argnames": ["n", "m"]}, r"_argnames='m' is no parameter"),
        ({"argnames": "a"}, r"_argnames='a' is a positional-only parameter of scaled"),
    ],
)
def test_arguments_that_are_not_there_are_refused(
    what: str, which: dict[str, Any], message: str
) -> None:
    def scaled(x: Any, n: int) -> Any:
        return x * n

    if "positional-only" in message:

        def scaled(a: Any, /, n: int) -> Any:
            return a * n

    options = {f"{what}_{name}": value for name, value in which.items()}
    with pytest.raises(ValueError, match=f"jit: {what}{message}"):
        nnx.jit(scaled, **options)
    with pytest.raises(ValueError, match=what):  # as jax does
        jax.jit(scaled, **options)


@pytest.mark.parametrize("name", ["static_argnames", "donate_argnames"])
def test_names_of_arguments_are_strings(name: str) -> None:
    with pytest.raises(TypeError, match=f"{name} must be strings, got 1"):
        nnx.jit(lambda **kwargs: None, **{name: [1]})


def test_any_argument_may_be_meant_where_the_signature_does_not_tell() -> None:
    def scaled(x: Any, *rest: Any, **named: Any) -> Any:
        return [x] * (sum(rest) + named.get("n", 0))

    jitted = nnx.jit(scaled, static_argnums=2, static_argnames="n")
    assert len(jitted(1.0, n=2)) == 2
    with pytest.raises(ValueError, match="static_argnums=-1 counts from the end, but scaled may"):
        nnx.jit(scaled, static_argnums=-1)

    class Unreadable:
        __signature__ = "none"

        def __call__(self, x: Any, n: int) -> Any:
            return [x] * n

    assert len(nnx.jit(Unreadable(), static_argnums=1)(1.0, 3)) == 3
    nnx.jit(Unreadable(), static_argnames="n", donate_argnums=7)


@pytest.mark.parametrize("options", [{"donate_argnums": 0}, {"donate_argnames": "m"}])
def test_donated_nodes_hold_new_arrays(options: dict[str, Any]) -> None:
    @nnx.jit(**options)
    def advance(m: Model, x: jax.Array) -> None:
        m.b.value = m.b.value + x

    model, x = Model(), jnp.ones(2)
    # By weak references: what is held otherwise is copied instead.
    before = weakref.ref(model.w.value), weakref.ref(model.b.value)
    advance(model, x)
    assert all(array() is None for array in before)
    assert not x.is_deleted()
    np.testing.assert_array_equal(model.w.value, np.ones((4, 2)))
    np.testing.assert_array_equal(model.b.value, np.ones(2))


def test_donate_state_donates_nodes_only() -> None:
    advance = nnx.jit(lambda m, x: m.w.value.sum() + x.sum(), donate_state=True)
    model, x = Model(), jnp.ones(2)
    pointer = model.w.value.unsafe_buffer_pointer()
    assert float(advance(model, x)) == 10
    assert model.w.value.unsafe_buffer_pointer() == pointer
    assert not x.is_deleted()
    assert not model.w.value.is_deleted()


def test_an_array_held_twice_is_donated_once() -> None:
    shared = jnp.ones(2)
    pair = nnx.Dict(a=nnx.Param(shared), b=nnx.Param(shared))

    @nnx.jit(donate_state=True)
    def advance(pair: Any, also: jax.Array) -> jax.Array:
        pair.a.value = pair.a.value + 1
        return also * 2

    np.testing.assert_array_equal(advance(pair, shared), [2, 2])
    assert not shared.is_deleted()
    np.testing.assert_array_equal(pair.a.value, [2, 2])
    np.testing.assert_array_equal(pair.b.value, [1, 1])


def test_keep_unused_keeps_unused_arguments() -> None:
    def used(keep: bool) -> int:
        jitted = nnx.jit(lambda x, unused: x + 1, keep_unused=keep)
        compiled = jitted.lower(jnp.ones(2), jnp.ones(2)).compile()
        return compiled.as_text().count(" parameter(")

    assert used(True) == used(False) + 1


def test_inline_reaches_jax() -> None:
    def call(inline: bool) -> str:
        jitted = nnx.jit(lambda x: jnp.negative(x), inline=inline)
        (equation,) = jax.make_jaxpr(jitted)(1.0).eqns
        # Some jax versions inline at once, others keep the call and remember the wish.
        return f"{equation.primitive} {equation.params.get('inline')}"

    assert call(True) != call(False)


@pytest.mark.parametrize(
    "options", [{"device": jax.devices("cpu")[0]}, {"backend": "cpu"}], ids=["device", "backend"]
)
def test_device_and_backend_choose_where_to_run(options: dict[str, Any]) -> None:
    assert nnx.jit(lambda x: x, **options)(jnp.ones(1)).devices() == {jax.devices("cpu")[0]}


def test_an_unknown_backend_is_refused_when_used() -> None:
    with pytest.raises(RuntimeError, match="nowhere"):
        nnx.jit(lambda x: x, backend="nowhere")(jnp.ones(1))


def test_abstracted_axes_is_refused_by_treadle_or_by_a_jax_that_still_has_it() -> None:
    with pytest.raises(ValueError, match="abstracted_axes"):
        nnx.jit(lambda x: x, abstracted_axes={0: "n"})(jnp.ones(3))


def test_in_shardings_hold_for_all_leaves_of_a_node(mesh: jax.sharding.Mesh) -> None:
    replicated = NamedSharding(mesh, PartitionSpec())

    @nnx.jit(in_shardings=(replicated, None))
    def advance(m: Model, x: jax.Array) -> None:
        m.w.value = m.w.value + x

    model = Model()
    advance(model, 1.0)
    assert model.w.value.sharding.is_equivalent_to(replicated, 2)
    assert not isinstance(model.w.value.sharding, SingleDeviceSharding)


def test_state_sharding_tells_leaves_apart(mesh: jax.sharding.Mesh) -> None:
    rows = NamedSharding(mesh, PartitionSpec("x"))
    shardings = nnx.StateSharding({nnx.Param: rows, ...: None})

    @nnx.jit(in_shardings=(shardings,))
    def advance(m: Model) -> None:
        m.w.value, m.b.value = m.w.value + 1, m.b.value + 1

    # One device has one way to lie; that the programs ask for the sharding is what can be seen
    # (`on_eight_devices.py` looks at the arrays).
    text = str(advance.trace(Model()).jaxpr)
    assert text.count("sharding_constraint") == 1
    assert "'x'" in text


def test_out_shardings_hold_for_results_and_new_nodes(mesh: jax.sharding.Mesh) -> None:
    rows = NamedSharding(mesh, PartitionSpec("x"))
    shardings = (rows, nnx.StateSharding({nnx.Param: rows, ...: None}))
    jitted = nnx.jit(lambda: (jnp.ones(4), Model()), out_shardings=shardings)
    assert str(jitted.trace().jaxpr).count("sharding_constraint") == 2
    y, model = jitted()
    assert y.shape == (4,)
    assert model.w.value.shape == (4, 2)


def test_in_shardings_are_for_arguments_that_are_not_static(mesh: jax.sharding.Mesh) -> None:
    rows = NamedSharding(mesh, PartitionSpec("x"))

    def scaled(n: int, x: jax.Array, m: Model) -> jax.Array:
        return x * n * m.b.value

    for entries in [(rows, None), rows]:
        jitted = nnx.jit(scaled, static_argnums=0, in_shardings=entries)
        assert jitted(3, jnp.ones(2), Model()).sharding.is_equivalent_to(rows, 1)
    with pytest.raises(ValueError, match=r"in_shardings \(for the arguments that are not static\)"):
        nnx.jit(scaled, static_argnums=0, in_shardings=(None, rows, None))(3, jnp.ones(2), Model())


def test_in_shardings_and_keyword_arguments_are_refused(mesh: jax.sharding.Mesh) -> None:
    rows = NamedSharding(mesh, PartitionSpec("x"))
    jitted = nnx.jit(lambda m, x, y: x * y, in_shardings=(rows,))
    with pytest.raises(ValueError, match=r"nothing about the keyword arguments x, y\."):
        jitted(Model(), y=jnp.ones(2), x=jnp.ones(2))
    assert float(nnx.jit(lambda x: x, in_shardings=None)(x=2.0)) == 2


def test_in_shardings_that_do_not_fit_are_refused(mesh: jax.sharding.Mesh) -> None:
    rows = NamedSharding(mesh, PartitionSpec("x"))
    with pytest.raises(ValueError, match="in_shardings"):
        nnx.jit(lambda x: x, in_shardings=(rows, rows))(jnp.ones(2))


def test_constrain_state_follows_the_metadata(mesh: jax.sharding.Mesh) -> None:
    jitted = nnx.jit(lambda m: setattr(m.w, "value", m.w.value + 1), constrain_state=True)
    with jax.set_mesh(mesh):
        text = str(jitted.trace(Model()).jaxpr)
    assert text.count("sharding_constraint") >= 2  # on the way in and out
    assert "sharding_constraint" not in str(nnx.jit(lambda m: None).trace(Model()).jaxpr)


def test_constrain_state_may_be_a_function() -> None:
    seen = []

    def doubled(state: nnx.State) -> nnx.State:
        seen.append(sorted(state))
        return jax.tree.map(lambda x: x * 2, state)

    model = Model()
    assert float(nnx.jit(lambda m: m.w.value.sum(), constrain_state=doubled)(model)) == 16
    assert seen[0] == ["b", "w"]
    np.testing.assert_array_equal(model.w.value, np.ones((4, 2)))


def test_constrain_state_may_be_about_a_part_of_the_state() -> None:
    def doubled(state: nnx.State) -> nnx.State:
        return jax.tree.map(lambda x: x * 2, state.filter(nnx.Param))

    @nnx.jit(constrain_state=doubled)
    def advance(m: Model) -> None:
        m.w.value, m.b.value = m.w.value + 1, m.b.value + 1

    model = Model()
    advance(model)
    np.testing.assert_array_equal(model.w.value, np.full((4, 2), 6.0))
    np.testing.assert_array_equal(model.b.value, [1, 1])


def test_lower_trace_and_eval_shape_change_nothing() -> None:
    model = Model()

    @nnx.jit
    def advance(m: Model) -> tuple[Model, jax.Array]:
        m.b.value = m.b.value + 1
        return m, m.b.value * 2

    assert "add" in advance.lower(model).as_text()
    assert "add" in str(advance.trace(model).jaxpr)
    result, y = advance.eval_shape(model)
    assert y == jax.ShapeDtypeStruct((2,), jnp.float32)
    assert result is not model
    # No array, neither where the function changed something nor where it did not.
    assert result.b.value == jax.ShapeDtypeStruct((2,), jnp.float32)
    assert result.w.value == jax.ShapeDtypeStruct((4, 2), jnp.float32)
    np.testing.assert_array_equal(model.b.value, [0, 0])
    assert advance.num_traces == 1


def test_a_method_changes_its_instance() -> None:
    model = Model()
    np.testing.assert_array_equal(model.scaled(jnp.ones((1, 4)), by=2.0), [[8, 8]])
    np.testing.assert_array_equal(Model.scaled(model, jnp.ones((1, 4))), [[4, 4]])
    np.testing.assert_array_equal(model.b.value, [2, 2])


def test_the_wrapper_looks_like_the_function() -> None:
    def step(m: Model) -> None:
        """One step."""

    jitted = nnx.jit(step)
    assert (jitted.__name__, jitted.__doc__, jitted.__wrapped__) == ("step", "One step.", step)


def test_shapes_may_change_what_a_call_does() -> None:
    @nnx.jit
    def by_shape(m: Any, x: jax.Array) -> Any:
        if x.ndim:
            m.seen = nnx.Variable(x)
            return x, m
        m.w.value = m.w.value * x
        return None

    model = Model()
    assert by_shape(model, 2.0) is None
    x, same = by_shape(model, jnp.ones(3))
    assert same is model
    assert x.shape == (3,)
    del model.seen
    assert by_shape(model, 3.0) is None
    np.testing.assert_array_equal(model.w.value, np.full((4, 2), 6.0))
    assert by_shape(model, jnp.ones(3))[1] is model
    assert by_shape.num_traces == 2


def test_no_strong_reference_to_the_last_objects() -> None:
    jitted = nnx.jit(lambda m: m.w.value.sum())
    model = Model()
    array = weakref.ref(model.w.value)
    jitted(model)
    del model
    gc.collect()
    assert array() is None


def test_clear_cache_forgets_programs() -> None:
    jitted = nnx.jit(lambda x: x + 1)
    jitted(1.0)
    jitted.clear_cache()
    jitted(1.0)
    assert jitted.num_traces == 2


def test_disable_jit_runs_the_function_itself() -> None:
    model = Model()
    with jax.disable_jit():
        model.scaled(jnp.ones((1, 4)))
    np.testing.assert_array_equal(model.b.value, [1, 1])


@pytest.mark.parametrize("value", ["text", object(), np.array(["text"])], ids=type)
def test_what_jax_cannot_take_is_named(value: Any) -> None:
    model = Model()
    model.w.raw_value = value
    with pytest.raises(TypeError, match=r"^m\.w is a"):
        nnx.jit(lambda m: m.b.value)(model)
    with pytest.raises(TypeError, match=r"^x\.k is a"):
        nnx.jit(lambda x: x)({"k": value})


def test_a_deleted_array_is_named() -> None:
    model = Model()
    jitted = nnx.jit(lambda m: m.w.value + m.b.value)
    jitted(model)
    model.w.value.delete()
    with pytest.raises(RuntimeError, match=r"m\.w holds an array that has been deleted"):
        jitted(model)
