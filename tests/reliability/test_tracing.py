"""No tracer leaves a transform, and no object is changed across trace levels."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import pytest

import treadle as nnx

from .faults import Fault
from .record import Record, assert_no_tracers

if TYPE_CHECKING:
    from collections.abc import Callable


class Model(nnx.Module):
    """Some state, and an RNG stream."""

    def __init__(self) -> None:
        self.w = nnx.Param(jnp.ones(3))
        self.stat = nnx.BatchStat(jnp.zeros(3))
        self.sub = nnx.Dict(a=nnx.Param(jnp.ones(3)))
        self.items = nnx.List([nnx.Param(jnp.ones(3))])
        self.rngs = nnx.Rngs(0)
        self.mean = nnx.metrics.Average()


def change_everything(model: Model, x: Any = 1.0) -> None:
    model.stat.value = model.stat.value + x
    model.w.value = model.w.value * x
    model.sub.new = nnx.Param(model.w.value)
    model.items.append(nnx.Param(model.stat.value))
    model.bare = model.stat.value
    model.plain = [model.w.value, {"k": nnx.Variable(x * model.w.value)}]
    model.w.note = "changed"
    model.rngs.default()


def loss(model: Model, *rest: Any) -> Any:
    change_everything(model)
    return jnp.sum(model.w.value)


def fail(model: Model, *rest: Any) -> Any:
    change_everything(model)
    raise Fault


def carry_fail(carry: Any, model: Model) -> Any:
    fail(model)


STATE_AXES = {...: None}
TRANSFORMS: dict[str, Callable[[Callable[..., Any]], Callable[[Model], Any]]] = {
    "jit": nnx.jit,
    "grad": nnx.grad,
    "value_and_grad": nnx.value_and_grad,
    "remat": nnx.remat,
    "eval_shape": lambda f: lambda model: nnx.eval_shape(f, model),
    "vmap": lambda f: (
        lambda model: nnx.vmap(f, state_axes=STATE_AXES, split_rngs=False)(model, jnp.ones(2))
    ),
    "scan": lambda f: (
        lambda model: nnx.scan(
            lambda carry, model, x: (carry, f(model)), state_axes={}, split_rngs=False
        )(0.0, model, jnp.ones(2))
    ),
    "cond": lambda f: lambda model: nnx.cond(jnp.array(True), f, f, model),
    "jit of grad": lambda f: nnx.jit(nnx.grad(f)),
    "grad of jit": lambda f: nnx.grad(nnx.jit(f)),
    "jit of remat of grad": lambda f: nnx.jit(nnx.remat(nnx.grad(f))),
    "grad of remat": lambda f: nnx.grad(nnx.remat(f)),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_after_an_exception_no_tracer_is_reachable(name: str) -> None:
    model = Model()
    before = Record(model)
    with pytest.raises(Fault):
        TRANSFORMS[name](fail)(model)
    before.assert_unchanged()


FREE = [name for name in TRANSFORMS if name not in ("vmap", "scan", "cond", "eval_shape")]


@pytest.mark.parametrize("name", FREE)
def test_after_success_no_tracer_is_reachable(name: str) -> None:
    model = Model()
    result = TRANSFORMS[name](loss)(model)
    assert_no_tracers((model, result))


@pytest.mark.parametrize("name", FREE)
def test_nothing_leaks_under_jaxs_own_leak_checker(name: str) -> None:
    with jax.checking_leaks():
        model = Model()
        TRANSFORMS[name](loss)(model)
        assert_no_tracers(model)


def touch(model: Model) -> Any:
    """Changes values only, as a loop's body and a branch must."""
    model.stat.value = model.stat.value + 1
    model.w.value, model.sub.a.value = model.sub.a.value, model.w.value
    model.note = "static"
    return jnp.sum(model.w.value)


@pytest.mark.parametrize("name", ["vmap", "scan", "cond", "eval_shape"])
def test_nothing_leaks_from_maps_loops_and_branches(name: str) -> None:
    function = touch if name != "vmap" else lambda model, x: x * touch(model)
    with jax.checking_leaks():
        model = Model()
        result = TRANSFORMS[name](function)(model)
    assert_no_tracers((model, result))
    assert hasattr(model, "note") == (name != "eval_shape")  # which only looks


def test_a_jitted_function_does_not_keep_tracers_through_its_cache() -> None:
    """Statics of the structure that a trace leaves are remembered: none of them may be a tracer."""
    step = nnx.jit(loss)
    for _ in range(3):
        step(Model())
    assert_no_tracers(step)


def test_a_custom_rule_keeps_no_tracers_in_the_compiled_program() -> None:
    """The program keeps the rule for differentiating it again, not what one call was given."""

    @nnx.custom_vjp
    def scaled(model: Model, x: Any) -> Any:
        return jnp.sum(model.w.value) * x

    scaled.defvjp(
        lambda model, x: (scaled(model, x), (jnp.sum(model.w.value), x)),
        lambda residual, g: (g[0][0], g[1] * residual[0]),
    )
    with jax.checking_leaks():
        nnx.jit(nnx.grad(scaled, argnums=1))(Model(), 3.0)
        nnx.grad(nnx.jit(scaled), argnums=1)(Model(), 3.0)


# --- TraceContextError ---------------------------------------------------------------------------


def _set_attribute(model: Model) -> None:
    model.new = 1


def _delete_attribute(model: Model) -> None:
    del model.stat


def _set_value(model: Model) -> None:
    model.w.value = jnp.zeros(3)


def _set_raw_value(model: Model) -> None:
    model.w.raw_value = jnp.zeros(3)


def _add_in_place(model: Model) -> None:
    model.w += 1


def _set_metadata(model: Model) -> None:
    model.w.note = 1


def _replace_metadata(model: Model) -> None:
    model.w._metadata = {}


def _set_item(model: Model) -> None:
    model.sub["b"] = 1


def _set_dict_attribute(model: Model) -> None:
    model.sub.b = 1


def _delete_item(model: Model) -> None:
    del model.sub["a"]


def _append(model: Model) -> None:
    model.items.append(1)


def _set_list_item(model: Model) -> None:
    model.items[0] = 1


def _delete_list_item(model: Model) -> None:
    del model.items[0]


def _pop(model: Model) -> None:
    model.items.pop()


def _update(model: Model) -> None:
    nnx.update(model, nnx.state(model))


def _sow(model: Model) -> None:
    model.sow(nnx.Intermediate, "x", 1.0)


def _train(model: Model) -> None:
    model.deterministic = False
    model.eval()


def _call_stream(model: Model) -> None:
    model.rngs.default()


def _delete_metadata(model: Model) -> None:
    del model.w.note


def _extend(model: Model) -> None:
    model.items.extend([1])


def _insert(model: Model) -> None:
    model.items.insert(0, 1)


def _remove(model: Model) -> None:
    model.items.remove(model.items[0])


def _clear_list(model: Model) -> None:
    model.items.clear()


def _update_dict(model: Model) -> None:
    model.sub.update(b=1)


def _set_default(model: Model) -> None:
    model.sub.setdefault("b", 1)


def _pop_key(model: Model) -> None:
    model.sub.pop("a")


def _clear_dict(model: Model) -> None:
    model.sub.clear()


def _pop_variables(model: Model) -> None:
    nnx.pop(model, nnx.BatchStat)


def _add_an_axis(model: Model) -> None:
    model.w.add_axis(0, "layers")
    model.w.note = "added"


def _add_metric(model: Model) -> None:
    model.mean.update(values=jnp.ones(2))


def _reset_metric(model: Model) -> None:
    model.mean.reset()


def _set_through_vars(model: Model) -> None:
    model.set_attributes(extra=1, raise_if_not_found=False)
    model.other = 1


@nnx.jit
def _hot(model: Model) -> None:
    model.w.value = model.w.value + 1


def _call_jitted(model: Model) -> None:
    _hot(model)


WAYS = [
    _set_attribute,
    _call_jitted,
    _delete_attribute,
    _set_value,
    _set_raw_value,
    _add_in_place,
    _set_metadata,
    _replace_metadata,
    _set_item,
    _set_dict_attribute,
    _delete_item,
    _append,
    _set_list_item,
    _delete_list_item,
    _pop,
    _update,
    _sow,
    _train,
    _call_stream,
    _set_through_vars,
    _delete_metadata,
    _extend,
    _insert,
    _remove,
    _clear_list,
    _update_dict,
    _set_default,
    _pop_key,
    _clear_dict,
    _pop_variables,
    _add_an_axis,
    _add_metric,
    _reset_metric,
]

LEVELS: dict[str, Callable[[Callable[[], Any]], Any]] = {
    "jax.jit": lambda f: jax.jit(f)(),
    "jax.grad": lambda f: jax.grad(lambda x: (f(), x)[1])(1.0),
    "jax.vmap": lambda f: jax.vmap(lambda x: (f(), x)[1])(jnp.ones(2)),
    "treadle.jit": lambda f: nnx.jit(f)(),
    "treadle.grad": lambda f: nnx.grad(lambda x: (f(), x)[1])(1.0),
    "treadle.remat": lambda f: nnx.remat(lambda x: (f(), x)[1])(1.0),
    "jax.lax.scan": lambda f: jax.lax.scan(lambda c, x: (f(), (c, x))[1], 0.0, jnp.ones(2)),
    "jax.lax.cond": lambda f: jax.lax.cond(jnp.array(True), lambda: (f(), 1)[1], lambda: 2),
    "jax.lax.while_loop": lambda f: jax.lax.while_loop(
        lambda i: i < 2, lambda i: (f(), i + 1)[1], 0
    ),
    "jax.checkpoint": lambda f: jax.checkpoint(lambda x: (f(), x)[1])(1.0),
    "jax.eval_shape": lambda f: jax.eval_shape(lambda: (f(), 1.0)[1]),
    "jax.make_jaxpr": lambda f: jax.make_jaxpr(lambda: (f(), 1.0)[1])(),
    "treadle.vmap": lambda f: nnx.vmap(lambda x: (f(), x)[1])(jnp.ones(2)),
    "treadle.scan": lambda f: nnx.scan(lambda c, x: (f(), (c, x))[1])(0.0, jnp.ones(2)),
    "treadle.cond": lambda f: nnx.cond(jnp.array(True), lambda: (f(), 1)[1], lambda: 2),
    "treadle.eval_shape": lambda f: nnx.eval_shape(lambda: (f(), 1.0)[1]),
}


def _name(way: Callable[[Model], None]) -> str:
    return way.__name__.strip("_")


@pytest.mark.others_keep(
    "array", reason="jax keeps the constants of a trace that an exception ends"
)
@pytest.mark.parametrize("level", ["jax.jit", "treadle.grad"])
@pytest.mark.parametrize("way", WAYS, ids=_name)
def test_every_way_to_change_captured_objects_is_refused(
    way: Callable[[Model], None], level: str
) -> None:
    assert_refused(way, level)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("way", [_set_attribute, _set_value, _append, _call_stream], ids=_name)
def test_captured_objects_are_protected_at_every_level(
    way: Callable[[Model], None], level: str
) -> None:
    assert_refused(way, level)


def assert_refused(way: Callable[[Model], None], level: str) -> None:
    model = Model()
    model.w.note = "set at its own level"
    before = Record(model)
    with pytest.raises(nnx.TraceContextError, match=r"Cannot (mutate|call)"):
        LEVELS[level](lambda: way(model))
    before.assert_unchanged()
    way(model)  # at its own level all of it is allowed


@pytest.mark.keeps_tracers
def test_objects_made_inside_must_not_be_changed_outside() -> None:
    kept: list[Any] = []

    @nnx.jit
    def make() -> None:
        kept.append(Model())

    make()
    for way in (_set_attribute, _set_value, _append):
        with pytest.raises(nnx.TraceContextError):
            way(kept[0])


@pytest.mark.keeps_tracers
def test_the_inner_objects_of_a_call_must_not_be_changed_afterwards() -> None:
    kept: list[Any] = []

    @nnx.jit
    def keep(model: Model) -> None:
        kept.append(model)

    keep(Model())
    with pytest.raises(nnx.TraceContextError):
        _set_value(kept[0])


def test_a_captured_object_can_still_be_read() -> None:
    model = Model()
    assert jnp.array_equal(nnx.jit(lambda: model.w.value + model.sub.a.value)(), jnp.full(3, 2.0))


def test_an_outer_levels_object_is_refused_in_the_inner_level() -> None:
    model = Model()

    @nnx.jit
    def outer(model: Model) -> Any:
        def inner(x: Any) -> Any:
            model.stat.value = x * model.stat.value
            return x

        return nnx.grad(inner)(1.0)

    before = Record(model)
    with pytest.raises(nnx.TraceContextError):
        outer(model)
    before.assert_unchanged()


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: [1, (x,)], lambda x: {"k": x}])
def test_traced_arrays_in_metadata_are_refused_by_path(wrap: Any) -> None:
    model = nnx.Dict(inner=nnx.Dict(w=nnx.Param(jnp.ones(()), note="before")))

    @nnx.jit
    def change(model: Any, x: Any) -> None:
        model.inner.w.value = x
        model.inner.w.note = wrap(jnp.sin(x))

    with pytest.raises(
        nnx.GraphError, match=r"inner\.w holds a traced array in its metadata 'note'"
    ):
        change(model, jnp.zeros(()))
    assert model.inner.w.note == "before"
    assert float(model.inner.w.value) == 1

    @nnx.jit
    def make(x: Any) -> Any:
        return nnx.Param(x, note=wrap(jnp.sin(x)))

    with pytest.raises(nnx.GraphError, match="holds a traced array in its metadata 'note'"):
        make(jnp.zeros(()))


def test_arrays_of_an_outer_trace_may_stand_in_metadata_while_it_lasts() -> None:
    @jax.jit
    def outer(x: Any) -> Any:
        model = nnx.Dict(w=nnx.Param(x))

        @nnx.jit
        def inner(model: Any) -> None:
            model.w.note = x

        inner(model)
        return model.w.note + 1

    assert float(outer(1.0)) == 2


def test_metadata_that_hold_themselves_are_searched_once() -> None:
    itself: list[Any] = [1]
    itself.append(itself)
    model = nnx.Dict(w=nnx.Param(jnp.ones(())))

    @nnx.jit
    def note(model: Any) -> None:
        model.w.note = itself

    with contextlib.suppress(nnx.GraphError):
        note(model)
        assert model.w.note is itself
