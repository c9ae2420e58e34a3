"""UpdateContext: objects go through a JAX transform by reference."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import treadle as nnx
from treadle import _core


class Model(nnx.Module):
    def __init__(self) -> None:
        self.weight = nnx.Param(jnp.ones(2))
        self.stat = nnx.BatchStat(jnp.zeros(2))
        self.rate = 0.1


def through_jit(change: Any, *objects: Any) -> Any:
    """Run `change(*objects)` under jax.jit, by reference."""

    @functools.partial(jax.jit, static_argnums=0)
    def inner(graphdef: Any, state: Any) -> Any:
        with nnx.UpdateContext() as ctx:
            merged = ctx.merge(graphdef, state)
            return ctx.collect(change(*merged))

    with nnx.UpdateContext() as ctx:
        return ctx.update(inner(*ctx.split(list(objects))))


def test_values_statics_and_attributes_reach_the_callers_objects() -> None:
    model = Model()
    weight = model.weight

    def change(m: Model) -> jax.Array:
        m.weight.value *= 2
        m.rate = 0.5
        m.added = nnx.Cache(jnp.ones(3))
        m.child = nnx.Dict(back=m)
        del m.stat
        return m.weight.value.sum()

    assert float(through_jit(change, model)) == 4.0
    assert model.weight is weight
    np.testing.assert_array_equal(weight.value, [2, 2])
    assert model.rate == 0.5
    assert type(model.added) is nnx.Cache
    assert model.child.back is model
    assert not hasattr(model, "stat")


def test_swapped_children_are_the_same_objects_swapped() -> None:
    a, b = nnx.Dict(x=nnx.Param(1.0)), nnx.Dict(x=nnx.Param(2.0))
    model = nnx.Dict(a=a, b=b)

    def swap(m: Any) -> None:
        m.a, m.b = m.b, m.a

    through_jit(swap, model)
    assert model.a is b
    assert model.b is a


def test_results_that_refer_to_inputs_are_the_inputs() -> None:
    a, b = Model(), Model()
    out = through_jit(lambda x, y: {"second": y, "first": (x, x.weight)}, a, b)
    assert out["second"] is b
    assert out["first"][0] is a
    assert out["first"][1] is a.weight


def test_one_object_given_twice_is_one_object_inside() -> None:
    model = Model()

    def change(x: Model, y: Model) -> None:
        assert x is y
        x.weight.value += 1

    through_jit(change, model, model)
    np.testing.assert_array_equal(model.weight.value, [2, 2])


def test_an_inner_function_at_module_level_is_traced_once() -> None:
    traces = 0

    @functools.partial(jax.jit, static_argnums=0)
    def inner(graphdef: Any, state: Any) -> Any:
        nonlocal traces
        traces += 1
        with nnx.UpdateContext() as ctx:
            model = ctx.merge(graphdef, state)
            model.weight.value += 1
            return ctx.collect()

    for model in (Model(), Model()):
        for count in (2, 3):
            with nnx.UpdateContext() as ctx:
                ctx.update(inner(*ctx.split(model)))
            np.testing.assert_array_equal(model.weight.value, [count, count])
    assert traces == 1


def test_collect_of_all_leaves_outputs_unchanged_ones_too() -> None:
    with nnx.UpdateContext() as ctx:
        model = ctx.merge(*ctx.split(Model()))
        model.stat.value += 1
        assert len(ctx.collect().leaves) == 1
        assert len(ctx.collect(only_changed=False).leaves) == 2


def test_filters_group_the_states() -> None:
    model = Model()

    def loss(params: Any, rest: Any, graphdef: Any) -> Any:
        with nnx.UpdateContext() as inner:
            m = inner.merge(graphdef, params, rest)
            m.stat.value = m.stat.value + 1
            return (m.weight.value**2).sum(), inner.collect()

    with nnx.UpdateContext() as ctx:
        graphdef, params, rest = ctx.split(model, nnx.Param, ...)
        grads, updates = jax.grad(loss, has_aux=True)(params, rest, graphdef)
        ctx.update(updates)
    np.testing.assert_array_equal(grads.weight.value, [2, 2])
    np.testing.assert_array_equal(model.stat.value, [1, 1])


def test_an_error_inside_changes_nothing() -> None:
    model = Model()
    before = nnx.state(model).copy()

    def change(m: Model) -> None:
        m.weight.value += 1
        m.rate = 7
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        through_jit(change, model)
    assert nnx.state(model) == before
    assert model.rate == 0.1


def test_using_a_context_in_the_wrong_order_is_explained() -> None:
    with nnx.UpdateContext() as ctx:
        with pytest.raises(nnx.GraphError, match="call merge on this context first"):
            ctx.collect()
        updates_of = nnx.UpdateContext()
        updates_of.merge(*updates_of.split(Model()))
        with pytest.raises(nnx.GraphError, match="call split on this context first"):
            ctx.update(updates_of.collect())


def test_leaving_the_block_forgets_the_objects() -> None:
    with nnx.UpdateContext() as ctx:
        ctx.merge(*ctx.split(Model()))
        updates = ctx.collect()
    with pytest.raises(nnx.GraphError, match="call split"):
        ctx.update(updates)


def collected(change: Any, *objects: Any, only_changed: bool = True) -> nnx.GraphUpdates:
    """The updates of `change` to objects like these."""
    with nnx.UpdateContext() as ctx:
        merged = ctx.merge(*ctx.split(nnx.clone(list(objects))))
        return ctx.collect(change(*merged), only_changed=only_changed)


def set_first(first: Any, *others: Any) -> None:
    if isinstance(first, nnx.Variable):
        first.value = 5.0
    else:
        first.added = nnx.Param(1.0)


@pytest.mark.parametrize(
    ("other", "place"),
    [
        (
            lambda: [nnx.Module(), nnx.Param(1.0)],
            r"model\[0\] is .*Module.* here and .*Param.* there",
        ),
        (lambda: [nnx.Param(1.0)], "another structure"),
        (lambda: [nnx.Param(1.0), nnx.Module(), nnx.Module()], "another structure"),
        (lambda: [nnx.Cache(1.0), nnx.Module()], r"model\[0\]"),
        (lambda: [nnx.Param(1.0), nnx.Dict(a=nnx.Param(1.0))], r"model\[1\]"),
        (lambda: [nnx.Param(1.0, tag="x"), nnx.Module()], r"model\[0\]"),
    ],
)
@pytest.mark.parametrize("only_changed", [True, False])
def test_updates_of_another_structure_change_nothing(
    other: Any, place: str, only_changed: bool
) -> None:
    updates = collected(set_first, nnx.Param(1.0), nnx.Module(), only_changed=only_changed)
    objects = other()
    before = nnx.graphdef(objects), nnx.state(objects)
    with nnx.UpdateContext() as ctx:
        ctx.split(objects)
        with pytest.raises(nnx.GraphError, match=place):
            ctx.update(updates)
    assert nnx.graphdef(objects) == before[0]
    assert nnx.state(objects) == before[1]


def test_updates_fit_other_objects_of_the_same_structure() -> None:
    updates = collected(set_first, nnx.Param(1.0), nnx.Module())
    objects = [nnx.Param(2.0), nnx.Module()]
    with nnx.UpdateContext() as ctx:
        ctx.split(objects)
        ctx.update(updates)
    assert objects[0].value == 5.0


@pytest.mark.parametrize("change", [set_first, lambda variable, node: set_first(node)])
def test_forged_calls_of_the_core_are_refused_before_anything_changes(change: Any) -> None:
    flat = _core.flatten([nnx.Param(1.0), nnx.Module()])
    root, refs = _core.unflatten(flat.graphdef, flat.leaves)
    change(*root)
    effects, out = _core.trace_effects(refs, flat.graphdef, flat.leaves, None, True)
    variable, node = nnx.Param(1.0), nnx.Module()
    for objects in (
        [node, variable],
        [variable, 3],
        [variable, nnx.Dict()],
        [nnx.Cache(1.0), node],
    ):
        with pytest.raises(nnx.GraphError, match=r"model\[[01]\] is a .* in the structure"):
            _core.apply_effects(effects, objects, [1.0], out)
    for objects, leaves, outputs in (
        ([variable], [1.0], out),
        ([variable, node, node], [1.0], out),
        ([variable, node], [], out),
        ([variable, node], [1.0, 2.0], out),
        ([variable, node], [1.0], [*out, 3.0]),
        ([variable, node], [1.0], out[:-1]),
    ):
        with pytest.raises(ValueError, match="apply_effects"):
            _core.apply_effects(effects, objects, leaves, outputs)
    assert (variable.value, vars(node)) == (1.0, {})
    for inner, leaves in ((refs[:1], [1.0]), ([*refs, nnx.Module()], [1.0]), (refs, [])):
        with pytest.raises(ValueError, match="trace_effects"):
            _core.trace_effects(inner, flat.graphdef, leaves, None, True)


def test_updates_that_nobody_collected_are_refused() -> None:
    with nnx.UpdateContext() as ctx:
        ctx.split(nnx.Param(1.0))
        forged: Any
        for forged in (nnx.GraphUpdates(None, ()), 3, None, "updates"):  # type: ignore[arg-type]
            with pytest.raises(nnx.GraphError, match="what `collect` returned"):
                ctx.update(forged)
