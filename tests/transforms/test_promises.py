"""What every transform keeps, one test a promise, for each transform.

`THROUGH` calls ``f(m, x)`` once through each transform. Arrays have a leading axis of size 1, which the
mapping transforms take away, and the functions under test work elementwise.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

import treadle as nnx
from tests.transforms.models import assert_same, values


def mesh():
    return Mesh(np.array(jax.devices()[:1]), ("data",))


def through_grad(f):
    g = nnx.grad(lambda m, x: (jnp.sum(x), f(m, x)), argnums=1, has_aux=True)
    return lambda m, x: g(m, x)[1]


def through_value_and_grad(f):
    g = nnx.value_and_grad(lambda m, x: (jnp.sum(x), f(m, x)), argnums=1, has_aux=True)
    return lambda m, x: g(m, x)[0][1]


def through_scan(f):
    g = nnx.scan(lambda c, m, x: (c, f(m, x)))
    return lambda m, x: g(0, m, x)[1]


def through_checkify(f):
    g = nnx.checkify(f)
    return lambda m, x: g(m, x)[1]


def through_shard_map(f):
    spec = PartitionSpec()
    return nnx.shard_map(f, mesh=mesh(), in_specs=(spec, spec), out_specs=spec)


def through_vjp(f):
    return lambda m, x: nnx.vjp(lambda m, x: (x, f(m, x)), m, x, has_aux=True)[2]


def through_jvp(f):
    def run(m, x):
        return nnx.jvp(lambda m, x: (x, f(m, x)), (m, x), (None, None), has_aux=True)[2]

    return run


THROUGH: dict[str, Any] = {
    "jit": nnx.jit,
    "grad": through_grad,
    "value_and_grad": through_value_and_grad,
    "vjp": through_vjp,
    "jvp": through_jvp,
    "vmap": nnx.vmap,
    "scan": through_scan,
    "remat": nnx.remat,
    "cond": lambda f: lambda m, x: nnx.cond(True, f, f, m, x),
    "switch": lambda f: lambda m, x: nnx.switch(0, [f, f], m, x),
    "checkify": through_checkify,
    "shard_map": through_shard_map,
    "pmap": nnx.pmap,
}
every_transform = pytest.mark.parametrize("through", list(THROUGH.values()), ids=list(THROUGH))
X = jnp.ones(1)


def make():
    return nnx.Dict(
        a=nnx.Dict(w=nnx.Param(jnp.array([1.0]))),
        b=nnx.Dict(w=nnx.Param(jnp.array([2.0]))),
        bare=jnp.array([3.0]),
        stat=nnx.BatchStat(jnp.array([4.0])),
        note="start",
    )


def scalar(value):
    return float(jnp.squeeze(value))


@every_transform
def test_1_one_object_in_two_places_is_one_object(through):
    m = make()
    m["self"] = m
    shared = m["a"]

    def f(arguments, x):
        first, (second, inner) = arguments["first"], arguments["rest"]
        assert first is second
        assert first["self"] is first
        assert inner is first["a"]
        first["a"]["w"].value = first["a"]["w"].value + x
        return {"again": [first, inner], "x": inner["w"].value}

    out = through(f)({"first": m, "rest": (m, shared)}, X)
    assert out["again"][0] is m
    assert out["again"][1] is shared
    assert m["self"] is m
    assert scalar(out["x"]) == scalar(shared["w"].value) == 2.0


@every_transform
def test_2_every_change_reaches_the_callers_objects(through):
    m = make()
    a, b, stat = m["a"], m["b"], m["stat"]

    def f(m, x):
        m["stat"].value = m["stat"].value + x
        m["bare"] = m["bare"] * 2
        m["note"] = "changed"
        m["new"] = nnx.Param(x * 5)
        m["sub"] = nnx.Dict(v=nnx.BatchStat(x * 6), shared=m["stat"])
        m["a"], m["b"] = m["b"], m["a"]
        m["a"]["w"].value, m["b"]["w"].value = m["b"]["w"].value * 10, m["a"]["w"].value
        del m["a"]["w"]
        return m["stat"]

    returned = through(f)(m, X)
    assert returned is stat
    assert m["a"] is b
    assert m["b"] is a
    assert m["stat"] is stat
    assert m["sub"]["shared"] is stat
    assert scalar(stat.value) == 5.0
    assert scalar(m["bare"]) == 6.0
    assert m["note"] == "changed"
    assert scalar(m["new"].value) == 5.0
    assert m["new"].type is nnx.Param
    assert scalar(m["sub"]["v"].value) == 6.0
    assert "w" not in b
    assert scalar(a["w"].value) == 2.0


@pytest.mark.parametrize("name", ["jit", "scan", "remat", "pmap"])
def test_3_traced_again_only_for_another_structure_shape_or_dtype(name):
    traces = []

    def f(m, x):
        traces.append(1)
        return m["a"]["w"].value * x

    run = THROUGH[name](f)
    run(make(), X)
    other = nnx.Dict(a=nnx.Dict(w=nnx.Param(jnp.array([6.0]))))
    other["b"] = nnx.Dict(w=nnx.Param(jnp.array([7.0])))
    other["bare"] = jnp.array([8.0])
    other["stat"] = nnx.BatchStat(jnp.array([9.0]))
    other["note"] = "".join(["st", "art"])
    assert scalar(run(other, X)) == 6.0
    assert len(traces) == 1
    other["note"] = "other"
    run(other, X)
    assert len(traces) == 2
    other["stat"].value = jnp.ones((1, 2))
    run(other, X)
    assert len(traces) == 3


@pytest.mark.others_keep(
    "array", reason="jax keeps the constants of a trace that an exception ends"
)
@every_transform
def test_4_an_exception_leaves_everything_as_it_was(through):
    m = make()
    inner = m["a"]
    before, keys = values(m), set(m)

    def f(m, x):
        m["stat"].value = m["stat"].value + x
        m["bare"] = m["bare"] * 2
        m["note"] = "changed"
        m["new"] = nnx.Param(x)
        m["a"]["w"].value = x
        m["a"], m["b"] = m["b"], m["a"]
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        through(f)(m, X)
    assert_same(values(m), before)
    assert set(m) == keys
    assert m["a"] is inner
    assert m["note"] == "start"
    assert not any(isinstance(v, jax.core.Tracer) for v in before.values())


@pytest.mark.parametrize(
    "through",
    [THROUGH[n] for n in ("jit", "remat", "scan", "vmap")],
    ids=["jit", "remat", "scan", "vmap"],
)
def test_5_scalars_are_dynamic_outside_nodes_and_static_inside(through):
    def f(m, x):
        assert isinstance(m["count"], int)
        assert isinstance(x["k"], jax.core.Tracer)
        return x["k"] * m["count"]

    m = nnx.Dict(w=nnx.Param(jnp.ones(1)), count=3)
    k = 2.0 if through in (nnx.jit, nnx.remat) else jnp.array([2.0])
    assert scalar(through(f)(m, {"k": k})) == 6.0


@every_transform
def test_6_what_is_captured_from_outside_cannot_be_changed(through):
    outer, rngs = make(), nnx.Rngs(0)

    def change(m, x):
        outer["note"] = "changed"

    def change_variable(m, x):
        outer["stat"].value = x

    def draw(m, x):
        rngs()

    message = "Cannot mutate 'Dict' from different trace level"
    with pytest.raises(nnx.TraceContextError, match=message):
        through(change)(make(), X)
    with pytest.raises(nnx.TraceContextError, match="Cannot mutate 'BatchStat'"):
        through(change_variable)(make(), X)
    message = "Cannot call RngStream from a different trace level"
    with pytest.raises(nnx.TraceContextError, match=message):
        through(draw)(make(), X)
    assert outer["note"] == "start"
    assert int(rngs.default.count.value) == 0


def bump(m, x):
    m["stat"].value = m["stat"].value + x
    return m["stat"].value * 1.0


@every_transform
def test_7_nests_in_jax_transforms_and_takes_partials(through):
    run = through(functools.partial(bump))
    graphdef, state = nnx.split(make())

    def pure(state, x):
        m = nnx.merge(graphdef, state)
        out = run(m, x)
        return jnp.sum(out), nnx.state(m)

    out, after = jax.jit(pure)(state, X)
    assert scalar(out) == 5.0
    assert scalar(after["stat"].value) == 5.0
    (_, after), grads = jax.value_and_grad(pure, has_aux=True)(state, X)
    assert scalar(grads["stat"].value) == 1.0
    assert scalar(after["stat"].value) == 5.0
    batched = jax.tree.map(lambda v: jnp.stack([v, v]), state)
    out, _ = jax.vmap(pure)(batched, jnp.stack([X, X]))
    np.testing.assert_allclose(out, [5.0, 5.0])


@pytest.mark.parametrize("outer", list(THROUGH))
@pytest.mark.parametrize("inner", ["jit", "grad", "vmap", "scan", "remat", "cond"])
def test_7_nests_in_every_order(outer, inner):
    mapped = {"vmap", "scan", "pmap"}
    # One leading axis for each of the two that takes one away.
    shape = (1,) * ((outer in mapped) + (inner in mapped))
    stat = nnx.BatchStat(jnp.full(shape, 4.0))
    m = nnx.Dict(stat=stat)
    out = THROUGH[outer](THROUGH[inner](bump))(m, jnp.ones(shape))
    assert m["stat"] is stat
    assert scalar(out) == scalar(stat.value) == 5.0


def constants(m):
    m.cell.value, m.array, m.number = jnp.asarray(100.0), jnp.float32(7), 2.5
    return jnp.asarray(3), np.ones(2, np.int8), True


@pytest.mark.parametrize("outer", ["remat", "checkify"])
def test_constants_come_back_as_the_arrays_that_jit_returns(outer):
    def run(lift):
        m = nnx.Dict(cell=nnx.Variable(jnp.ones(())), array=jnp.ones(()), number=0.0)
        out = lift(lambda m, x: constants(m))(m, X)
        return (*out, m["cell"].value, m["array"], m["number"])

    for ours, theirs in zip(run(THROUGH[outer]), run(nnx.jit), strict=True):
        assert type(ours) is type(theirs)
        if isinstance(theirs, jax.Array):
            assert (ours.aval, ours.weak_type) == (theirs.aval, theirs.weak_type)
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("transform", "parameter"),
    [
        (nnx.jit, "fun"),
        (nnx.grad, "f"),
        (nnx.value_and_grad, "f"),
        (nnx.remat, "f"),
        (nnx.scan, "f"),
        (nnx.vmap, "f"),
        (nnx.pmap, "f"),
        (nnx.shard_map, "f"),
        (nnx.checkify, "f"),
        (nnx.custom_vjp, "fun"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_the_function_can_be_passed_by_its_parameters_name(transform, parameter):
    def function(x, y):
        return x * y

    options = {"mesh": jax.make_mesh((1,), ("x",)), "in_specs": None, "out_specs": None}
    given = options if transform is nnx.shard_map else {}
    made = transform(**{parameter: function}, **given)
    assert made.__wrapped__ is function
    assert type(made) is type(transform(function, **given))
    with pytest.raises(TypeError, match=f"{transform.__name__} expects a function .* got 3"):
        transform(**{parameter: 3}, **given)


def test_a_misspelt_option_of_a_decorator_is_found_at_once():
    with pytest.raises(TypeError, match="static_argnum"):
        nnx.jit(static_argnum=1)
    with pytest.raises(TypeError, match="fun"):
        nnx.vmap(fun=lambda x: x)
