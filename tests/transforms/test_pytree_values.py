"""Variables whose value is a pytree of arrays, as those of `sow` and `perturb` are, in every transform."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import treadle as nnx
from tests.transforms.models import assert_same


class Sower(nnx.Module):
    def __init__(self):
        self.w = nnx.Param(jnp.ones(2))

    def __call__(self, x):
        self.sow(nnx.Intermediate, "seen", x)
        self.sow(nnx.Intermediate, "seen", x.sum())
        return self.w * x


# -- remat and checkify: the value comes back as it would without them ------------------------------


def with_checkify(f):
    def checked(*args):
        _, result = nnx.checkify(f)(*args)
        return result

    return checked


@pytest.mark.parametrize("lift", [nnx.remat, with_checkify])
def test_a_sown_tuple_stays_a_tuple(lift):
    m, plain = Sower(), Sower()
    call = lift(lambda m, x: m(x))
    for _ in range(2):
        call(m, jnp.ones(2))
        plain(jnp.ones(2))
    assert type(m.seen.value) is tuple
    assert_same(m.seen.value, plain.seen.value)


@pytest.mark.parametrize("lift", [nnx.remat, with_checkify])
def test_a_dict_and_none_come_back(lift):
    m = nnx.Dict(w=nnx.Param({"a": jnp.ones(2)}), n=nnx.Variable(jnp.ones(2)))

    def change(m):
        m["w"].value = {"a": m["w"].value["a"] + 1, "b": 1.0}
        m["n"].value = None

    lift(change)(m)
    assert_same(m["w"].value, {"a": 2 * jnp.ones(2), "b": jnp.array(1.0)})
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(m["w"].value))
    assert m["n"].value is None


def test_sown_tuples_under_jit_and_grad_of_remat():
    m = Sower()
    nnx.jit(nnx.grad(nnx.remat(lambda m, x: m(x).sum())))(m, jnp.ones(2))
    assert_same(m.seen.value, (jnp.ones(2), jnp.array(2.0)))


def test_sown_tuples_in_remat_and_scan_of_remat():
    m = nnx.Remat(Sower)()
    m(jnp.ones(2))
    assert_same(m.remat_module.seen.value, (jnp.ones(2), jnp.array(2.0)))

    class Layer(nnx.Module):
        def __init__(self):
            self.inner = Sower()

        def __call__(self, x):
            return self.inner(x), None

    stack = nnx.Scan(nnx.Remat(Layer), length=3)()
    stack(jnp.ones(2))
    seen = stack.scan_module.remat_module.inner.seen.value
    assert jax.tree.map(jnp.shape, seen) == ((3, 2), (3,))


# -- mapped ------------------------------------------------------------------------------------------


def mapped_by_vmap(f):
    return nnx.vmap(f)


def mapped_by_scan(f):
    return lambda m, x: nnx.scan(lambda m, x: f(m, x), carry_argnum=None)(m, x)


@pytest.mark.parametrize("lift", [mapped_by_vmap, mapped_by_scan])
def test_sowing_twice_in_a_mapped_module(lift):
    m = nnx.vmap(lambda: Sower(), axis_size=3)()
    x = jnp.arange(6.0).reshape(3, 2)
    call = lift(lambda m, x: m(x))
    for _ in range(2):
        call(m, x)
    assert_same(m.seen.value, (x, x.sum(1)) * 2)


def test_sowing_twice_in_lifted_classes():
    class Step(Sower):
        def __call__(self, x):
            return super().__call__(x), None

    stack = nnx.Scan(Step, length=3)()
    for _ in range(2):
        nnx.grad(lambda m, x: m(x)[0].sum())(stack, jnp.ones(2))
    assert jax.tree.map(jnp.shape, stack.scan_module.seen.value) == ((3, 2), (3,)) * 2
    seen = nnx.pop(stack, nnx.Intermediate)
    assert len(jax.tree.leaves(seen)) == 4

    slices = nnx.Vmap(Sower, axis_size=3)()
    for _ in range(2):
        slices(jnp.ones((3, 2)))
    assert jax.tree.map(jnp.shape, slices.vmap_module.seen.value) == ((3, 2), (3,)) * 2


# Arrays of different rank, with the mapped axis, of size 4, first or last.
FIRST = {"a": jnp.arange(4.0), "b": (jnp.arange(12.0).reshape(4, 3),)}
LAST = jax.tree.map(jnp.transpose, FIRST)


@pytest.mark.parametrize("lift", [nnx.vmap, lambda f, **k: nnx.scan(f, carry_argnum=None, **k)])
@pytest.mark.parametrize(("axis", "value"), [(0, FIRST), (-1, LAST)])
def test_each_array_is_mapped_over_its_own_axis(lift, axis, value):
    m = nnx.Dict(w=nnx.Param(value))

    def double(m):
        inside = m["w"].value
        assert jax.tree.map(jnp.shape, inside) == {"a": (), "b": ((3,),)}
        m["w"].value = {**jax.tree.map(lambda x: 2 * x, inside), "new": inside["b"][0]}
        m["made"] = nnx.Param((inside["a"], inside["b"][0]))
        return inside["a"] + inside["b"][0].sum()

    out = lift(double, state_axes={...: axis})(m)
    assert_same(out, FIRST["a"] + FIRST["b"][0].sum(1))
    assert_same(m["w"].value, {**jax.tree.map(lambda x: 2 * x, value), "new": value["b"][0]})
    assert_same(m["made"].value, (value["a"], value["b"][0]))


@pytest.mark.parametrize("axis", [0, -1])
def test_pmap_maps_each_array(axis):
    value = {"a": jnp.ones(1), "b": jnp.ones((1, 3) if axis == 0 else (3, 1))}
    m = nnx.Dict(w=nnx.Param(value))

    def double(m):
        assert jax.tree.map(jnp.shape, m["w"].value) == {"a": (), "b": (3,)}
        m["w"].value = jax.tree.map(lambda x: 2 * x, m["w"].value)

    nnx.pmap(double, state_axes={...: axis})(m)
    assert_same(m["w"].value, jax.tree.map(lambda x: 2 * x, value))


@pytest.mark.parametrize("axis", [0, -1])
def test_axis_names_of_new_and_mapped_pytrees(axis):
    metadata = {nnx.PARTITION_NAME: "layers"}
    names = ("layers", "model") if axis == 0 else ("model", "layers")

    @nnx.vmap(axis_size=2, state_axes={...: axis}, transform_metadata=metadata)
    def make():
        return nnx.Dict(w=nnx.Param((jnp.ones(3), jnp.ones(3)), sharding=("model",)))

    m = make()
    assert m["w"].sharding == names
    inside = []
    nnx.vmap(
        lambda m: inside.append(m["w"].sharding),
        state_axes={...: axis},
        transform_metadata=metadata,
    )(m)
    assert inside == [("model",)]
    assert m["w"].sharding == names


def test_nothing_in_a_pytree_maps_to_nothing():
    m = nnx.Dict(w=nnx.Param(()), n=nnx.Param(None))
    for axis in (0, -1):
        assert nnx.vmap(lambda m: m["w"].value, axis_size=2, state_axes={...: axis})(m) == ()
        nnx.scan(lambda m: None, carry_argnum=None, length=2, state_axes={...: axis})(m)


@pytest.mark.parametrize("lift", [nnx.vmap, lambda f: nnx.scan(f, carry_argnum=None)])
def test_errors_of_mapping_name_the_array(lift):
    def call(*values):
        return lift(lambda m: None)(nnx.Dict(w=nnx.Param({"a": values})))

    with pytest.raises(
        ValueError, match=r"axis 0 is out of bounds for m\.w\['a'\]\[1\], which is float32\[\]\."
    ):
        call(jnp.ones(3), jnp.array(1.0))
    with pytest.raises(
        ValueError,
        match=r"m\.w\['a'\]\[0\] has 3 along axis 0; m\.w\['a'\]\[1\] has 2 along axis 0",
    ):
        call(jnp.ones(3), jnp.ones(2))


def test_a_broadcast_pytree_that_differs_between_slices_is_named():
    m = nnx.Dict(w=nnx.Param((jnp.array(1.0), jnp.array(1.0))))

    def change(m, x):
        m["w"].value = (m["w"].value[0], x)

    with pytest.raises(ValueError, match=r"m\.w is broadcast, but comes back with a value that"):
        nnx.vmap(change, state_axes={})(m, jnp.ones(3))
    assert_same(m["w"].value, (jnp.array(1.0), jnp.array(1.0)))


# -- carried -----------------------------------------------------------------------------------------


def by_fori(step, m):
    return nnx.fori_loop(0, 3, lambda i, m: step(m), m)


def by_while(step, m):
    return nnx.while_loop(lambda m: m["n"].value < 3, step, m)


def by_scan(step, m):
    return nnx.scan(lambda m, _: (step(m), None))(m, jnp.arange(3))[0]


def by_scan_state(step, m):
    nnx.scan(lambda c, m: (c, step(m) and None), length=3, state_axes={})(0, m)


LOOPS = [by_fori, by_while, by_scan, by_scan_state]


def counted(value):
    return nnx.Dict(w=nnx.Param(value), n=nnx.Variable(jnp.array(0)))


@pytest.mark.parametrize("loop", LOOPS)
def test_a_pytree_is_carried(loop):
    m = counted({"a": jnp.ones(2), "b": (jnp.array(1), None)})

    def step(m):
        m["w"].value = jax.tree.map(lambda x: 2 * x, m["w"].value)
        m["n"].value += 1
        return m

    loop(step, m)
    assert_same(m["w"].value, {"a": 8 * jnp.ones(2), "b": (jnp.array(8), None)})


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda value: (*value, value[0]),
            r"m\.w is carried .* its structure must stay the same, but it changes from "
            r"\(float32\[2\], int32\[\]\) to \(float32\[2\], int32\[\], float32\[2\]\)\.",
        ),
        (
            lambda value: (value[0], value[1] * 1.5),
            r"m\.w\[1\] is carried .* its shape and dtype .* from int32\[\] to float32\[\]\.",
        ),
        (
            lambda value: (value[0].sum(), value[1]),
            r"m\.w\[0\] is carried .* its shape and dtype .* from float32\[2\] to float32\[\]\.",
        ),
    ],
)
def test_a_carried_pytree_that_changes_is_named(loop, change, message):
    value = jnp.ones(2), jnp.array(1, jnp.int32)
    m = counted(value)

    def step(m):
        m["w"].value = change(m["w"].value)
        m["n"].value += 1
        return m

    with pytest.raises(TypeError, match=message):
        loop(step, m)
    assert m["w"].value is value
    assert int(m["n"].value) == 0


# -- differentiated ----------------------------------------------------------------------------------

VALUE = {"a": jnp.array([1.0, 2.0]), "b": (jnp.array(3.0),)}


def of_pytree(m):
    return (m["w"].value["a"] ** 2).sum() * m["w"].value["b"][0]


EXPECTED = jax.grad(lambda w: of_pytree({"w": nnx.VariableState(nnx.Param, w)}))(VALUE)


def test_grad_of_a_pytree():
    loss, grads = nnx.value_and_grad(of_pytree)(nnx.Dict(w=nnx.Param(VALUE)))
    assert float(loss) == 15.0
    assert_same(grads["w"].value, EXPECTED)


def test_grad_of_perturbed_pytrees():
    m = nnx.Module()

    def f(m, x):
        h = m.perturb("h", {"a": x, "b": (2 * x,)})
        return (h["a"] * h["b"][0]).sum()

    x = jnp.array([1.0, 2.0])
    f(m, x)
    grads = nnx.grad(f, wrt=nnx.Perturbation)(m, x)
    assert_same(grads["h"].value, {"a": 2 * x, "b": (x,)})


def test_vjp_of_a_pytree():
    out, pull_back = nnx.vjp(of_pytree, nnx.Dict(w=nnx.Param(VALUE)))
    (grads,) = pull_back(jnp.array(2.0))
    assert float(out) == 15.0
    assert_same(grads["w"].value, jax.tree.map(lambda x: 2 * x, EXPECTED))


@pytest.mark.parametrize("spelling", ["dict", "state"])
def test_jvp_of_a_pytree(spelling):
    m = nnx.Dict(w=nnx.Param(VALUE), v=nnx.Param(jnp.array(1.0)))
    # What is None is zero, in a pytree too.
    tangents = {"w": {"a": jnp.array([1.0, 0.0]), "b": (None,)}}
    if spelling == "state":
        tangents = nnx.State({"w": nnx.VariableState(nnx.Param, tangents["w"])})
    out, tangent = nnx.jvp(of_pytree, (m,), (tangents,))
    assert (float(out), float(tangent)) == (15.0, 6.0)
    _, tangent = nnx.jvp(of_pytree, (m,), ({},))
    assert float(tangent) == 0.0


def test_integers_in_a_pytree_are_named():
    m = nnx.Dict(w=nnx.Param((jnp.array(2.0), jnp.array(3))))

    def f(m):
        return m["w"].value[0] * m["w"].value[1]

    with pytest.raises(TypeError, match=r"grad of f differentiates m\.w\[1\], which is int32\[\]"):
        nnx.grad(f)(m)
    first, second = nnx.grad(f, allow_int=True)(m)["w"].value
    assert (float(first), second.dtype) == (3.0, jax.dtypes.float0)
    _, tangent = nnx.jvp(f, (m,), ({"w": (jnp.array(1.0), None)},))
    assert float(tangent) == 3.0
    with pytest.raises(TypeError, match=r"m\.w\['a'\] is a 'str'"):
        nnx.grad(lambda m: 1.0)(nnx.Dict(w=nnx.Param({"a": "text"})))


def test_tangents_of_another_structure_are_named():
    m = nnx.Dict(w=nnx.Param(VALUE))
    with pytest.raises(
        ValueError,
        match=r"tangents must have the structure of m\.w, which is "
        r"\{'a': float32\[2\], 'b': \(float32\[\],\)\}\.",
    ):
        nnx.jvp(of_pytree, (m,), ({"w": {"a": jnp.ones(2)}},))


def custom(calls):
    @nnx.custom_vjp
    def f(a, b):
        a["seen"].value = (*a["seen"].value, a["w"].value["a"])
        return of_pytree(a) + of_pytree(b)

    def fwd(a, b):
        return f(a, b), (a, b)

    def bwd(residual, g):
        calls.append(jax.tree.map(jnp.shape, [updates.to_pure_dict() for updates in g[0]]))
        a, b = (jax.tree.map(lambda x: 10 * x, m["w"].value) for m in residual)
        return {"w": a}, {"w": {"a": b["a"], "b": (None,)}}

    f.defvjp(fwd, bwd)
    return f


def node():
    return nnx.Dict(w=nnx.Param(VALUE), seen=nnx.Intermediate((jnp.ones(2),)))


def test_custom_vjp_over_pytrees():
    calls = []
    a, b = node(), node()
    ga, gb = nnx.grad(custom(calls), argnums=(0, 1))(a, b)
    assert_same(ga["w"].value, jax.tree.map(lambda x: 10 * x, VALUE))
    assert_same(gb["w"].value, {"a": 10 * VALUE["a"], "b": (jnp.array(0.0),)})
    assert_same(a["seen"].value, (jnp.ones(2), VALUE["a"]))
    shapes = {"a": (2,), "b": ((),)}
    assert calls == [[{"seen": ((2,), (2,)), "w": shapes}, {"seen": ((2,),), "w": shapes}]]


def test_custom_vjp_adds_up_gradients_of_a_shared_pytree():
    m = node()
    grads = nnx.grad(custom([]))(m, m)
    assert_same(grads["w"].value, {"a": 20 * VALUE["a"], "b": (10 * VALUE["b"][0],)})


def test_custom_vjp_under_jit():
    m = node()
    grads = nnx.jit(nnx.grad(custom([])))(m, node())
    np.testing.assert_allclose(grads["w"].value["a"], 10 * VALUE["a"])
    assert len(m["seen"].value) == 2


def test_a_named_tuple_registered_with_jax_is_taken_apart_as_registered() -> None:
    class Sized(NamedTuple):
        x: Any
        n: int

    class Named(NamedTuple):
        x: Any
        name: str

    for kind in (Sized, Named):
        jax.tree_util.register_pytree_node(
            kind, lambda t: ((t[0],), t[1]), lambda aux, xs, kind=kind: kind(xs[0], aux)
        )

    repeat = nnx.jit(lambda sized: Sized(jnp.zeros(sized.n) + sized.x, sized.n))
    for n in (3, 2, 3):
        result = repeat(Sized(jnp.ones(()), n))
        assert type(result) is Sized
        assert result.x.shape == (n,)
        assert result.n == n
    assert repeat.num_traces == 2
    model = nnx.Dict(pair=Named(nnx.Param(jnp.ones(())), "a"))
    double = nnx.jit(lambda model: model.pair.x.value * (2 if model.pair.name == "a" else 3))
    assert float(double(model)) == 2
    model.pair = model.pair._replace(name="b")
    assert float(double(model)) == 3
    assert nnx.merge(*nnx.split(model)).pair.name == "b"
