"""Gradients: what is differentiated, what is an error, and optimizers of changed models (point 14)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import treadle as nnx


def net():
    return nnx.Dict(a=nnx.Param(jnp.array(3.0)), s=nnx.BatchStat(jnp.array(2.0)))


def test_a_bare_variable_of_another_type_is_differentiated():
    g = nnx.grad(lambda v: v.value**2)(nnx.Variable(jnp.array(3.0)))
    np.testing.assert_allclose(g.value, 6.0)


@pytest.mark.parametrize("kind", [nnx.Variable, nnx.BatchStat, nnx.Cache, nnx.Param])
def test_bare_variables_of_every_type(kind):
    value, g = nnx.value_and_grad(lambda v, x: v.value**2 * x)(kind(jnp.array(3.0)), 2.0)
    np.testing.assert_allclose(value, 18.0)
    np.testing.assert_allclose(g.value, 12.0)


def test_a_wrt_that_excludes_the_bare_variable_wins():
    with pytest.raises(ValueError, match=r"v \(BatchStat\)"):
        nnx.grad(lambda v: v.value**2, wrt=nnx.Param)(nnx.BatchStat(jnp.array(3.0)))
    with pytest.raises(ValueError, match=r"v \(BatchStat\)"):
        nnx.grad(lambda v: v.value**2, argnums=nnx.DiffState(0, nnx.Param))(
            nnx.BatchStat(jnp.array(3.0))
        )


def test_bare_variables_in_the_other_differentiating_transforms():
    v = nnx.BatchStat(jnp.array(3.0))
    _, pull = nnx.vjp(lambda v: v.value**2, v)
    np.testing.assert_allclose(pull(jnp.array(1.0))[0].value, 6.0)
    np.testing.assert_allclose(nnx.jacrev(lambda v: v.value**2)(v).value, 6.0)
    np.testing.assert_allclose(nnx.jacfwd(lambda v: v.value**2)(v).value, 6.0)


ELSEWHERE = {
    "vjp": lambda f, m: nnx.vjp(f, m, wrt=nnx.Cache),
    "jacrev": lambda f, m: nnx.jacrev(f, wrt=nnx.Cache)(m),
    "jacfwd": lambda f, m: nnx.jacfwd(f, wrt=nnx.Cache)(m),
}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_wrt_that_selects_nothing_elsewhere(name):
    with pytest.raises(ValueError, match=r"wrt=Cache .*m\.a \(Param\), m\.s \(BatchStat\)"):
        ELSEWHERE[name](lambda m: m["a"].value, net())


def test_a_bare_variable_beside_a_node():
    v = nnx.Variable(jnp.array(3.0))
    of_v, of_m = nnx.grad(lambda v, m: v.value * m["a"].value, argnums=(0, 1))(v, net())
    np.testing.assert_allclose(of_v.value, 3.0)
    np.testing.assert_allclose(of_m["a"].value, 3.0)
    assert list(of_m) == ["a"]


@pytest.mark.parametrize(
    "transform", [nnx.grad, nnx.value_and_grad], ids=["grad", "value_and_grad"]
)
def test_wrt_that_selects_nothing_says_what_there_is(transform):
    with pytest.raises(ValueError, match=r"(?s)(?=.*Cache)(?=.*Param)(?=.*BatchStat)"):
        transform(lambda m: m["a"].value, wrt=nnx.Cache)(net())


def test_wrt_that_selects_nothing_in_one_of_two_arguments_is_fine():
    m, other = net(), nnx.Dict(s=nnx.BatchStat(jnp.array(2.0)))
    f = nnx.grad(lambda m, o: m["a"].value * o["s"].value, argnums=(0, 1))
    of_m, of_other = f(m, other)
    np.testing.assert_allclose(of_m["a"].value, 2.0)
    assert not list(of_other)


def test_a_module_without_parameters_beside_an_array():
    f = nnx.grad(lambda m, x: m["s"].value * x, argnums=(0, 1))
    of_m, of_x = f(nnx.Dict(s=nnx.BatchStat(jnp.array(2.0))), 3.0)
    assert not list(of_m)
    np.testing.assert_allclose(of_x, 2.0)


def test_diff_state_that_selects_nothing_is_an_error():
    with pytest.raises(ValueError, match=r"(?s)(?=.*Cache)(?=.*Param)"):
        nnx.grad(lambda m: m["a"].value, argnums=nnx.DiffState(0, nnx.Cache))(net())


# -- optimizers --------------------------------------------------------------------------------


def optimized():
    model = net()
    return model, nnx.Optimizer(model, optax.adam(0.1), wrt=nnx.Param)


def gradients(model):
    return nnx.grad(lambda m: sum(v.value**2 for v in m.values() if isinstance(v, nnx.Param)))(
        model
    )


CHANGES = {
    "added": (lambda m: m.__setitem__("b", nnx.Param(jnp.array(1.0))), r"\bb\b"),
    "removed": (
        lambda m: (m.__setitem__("c", nnx.Param(jnp.array(1.0))), m.__delitem__("a")),
        r"\ba\b",
    ),
    "retyped": (
        lambda m: (
            m.__setitem__("c", nnx.Param(jnp.array(1.0))),
            m.__setitem__("a", nnx.BatchStat(m["a"].value)),
        ),
        r"\ba\b",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("jitted", [False, True], ids=["eager", "jit"])
def test_an_optimizer_names_what_changed_and_what_to_do(change, jitted):
    model, optimizer = optimized()
    change, name = CHANGES[change]
    change(model)
    before = {k: v.value for k, v in model.items()}

    def step(model, optimizer):
        optimizer.update(model, gradients(model))

    with pytest.raises(
        (ValueError, nnx.errors.GraphError), match=rf"(?s)(?=.*{name})(?=.*Optimizer)"
    ):
        (nnx.jit(step) if jitted else step)(model, optimizer)
    assert {k: v.value for k, v in model.items()} == before


def test_an_unchanged_model_is_optimized_as_by_optax():
    model, optimizer = optimized()
    optimizer.update(model, gradients(model))
    tx = optax.adam(0.1)
    updates, _ = tx.update(jnp.array(6.0), tx.init(jnp.array(3.0)))
    np.testing.assert_allclose(model["a"].value, 3.0 + updates, rtol=1e-6)


# -- custom_vjp --------------------------------------------------------------------------------


def test_custom_vjp_that_returns_a_new_node():
    @nnx.custom_vjp
    def scaled(m, x):
        return nnx.Dict(y=nnx.Variable(m["a"].value * x))

    def fwd(m, x):
        return scaled(m, x), (m["a"].value, x)

    def bwd(residual, g):
        (a, x), ((of_m, _), of_out) = residual, g
        y = of_out["y"].value
        of_m["a"].value = y * x
        return of_m, y * a

    scaled.defvjp(fwd, bwd)
    m = nnx.Dict(a=nnx.Param(jnp.array(3.0)))
    grads, of_x = nnx.grad(lambda m, x: scaled(m, x)["y"].value * 2, argnums=(0, 1))(m, 5.0)
    np.testing.assert_allclose(grads["a"].value, 10.0)
    np.testing.assert_allclose(of_x, 6.0)


def test_custom_vjp_that_returns_its_argument():
    @nnx.custom_vjp
    def touched(m, x):
        return m, m["a"].value * x

    def fwd(m, x):
        return touched(m, x), (m["a"].value, x)

    def bwd(residual, g):
        (a, x), ((of_m, _), (_, y)) = residual, g
        of_m["a"].value = of_m["a"].value + y * x
        return of_m, y * a

    touched.defvjp(fwd, bwd)
    m = nnx.Dict(a=nnx.Param(jnp.array(3.0)))

    def loss(m, x):
        out, y = touched(m, x)
        assert out is m
        return y + out["a"].value

    np.testing.assert_allclose(nnx.grad(loss)(m, 5.0)["a"].value, 6.0)


def test_cotangents_of_unselected_state_say_so_or_are_used():
    """A rule for `a` alone: what else the function changes has no gradient through it."""

    def make(wrt):
        @nnx.custom_vjp
        def f(m, x):
            return m["a"].value * m["s"].value * x

        def full(m, x):
            return m["a"].value * m["s"].value * x

        def fwd(m, x):
            return full(m, x), (m["a"].value, m["s"].value, x)

        def bwd(residual, g):
            (a, s, x), ((of_m, _), y) = residual, g
            of_m["a"].value = y * s * x
            if "s" in of_m:
                of_m["s"].value = y * a * x
            return of_m, y * a * s

        lifted = nnx.custom_vjp(full, wrt=wrt)
        lifted.defvjp(fwd, bwd)
        return lifted

    m = net()
    everything = nnx.grad(lambda m: make(...)(m, 5.0), wrt=...)(m)
    np.testing.assert_allclose(everything["s"].value, 15.0)
    np.testing.assert_allclose(everything["a"].value, 10.0)
    selected = make(nnx.Param)
    np.testing.assert_allclose(nnx.grad(lambda m: selected(m, 5.0))(m)["a"].value, 10.0)
    # Differentiating what the rule leaves out would be a silent zero.
    with pytest.raises(ValueError, match=r"\bs\b"):
        nnx.grad(lambda m: selected(m, 5.0), wrt=nnx.BatchStat)(m)


def test_cotangents_of_new_state_and_of_unselected_updates_reach_the_rule():
    seen = {}

    @nnx.custom_vjp(wrt=nnx.Param)
    def f(m, x):
        y = m["a"].value * x
        m["s"].value = 2.0 * y
        m["made"] = nnx.Dict(v=nnx.Variable(3.0 * y))
        return y

    def bwd(residual, g):
        (a, x), ((of_m, _), of_y) = residual, g
        seen.update({path: float(entry.value) for path, entry in of_m.flat_state().items()})
        total = of_y + 2.0 * of_m["s"].value + 3.0 * of_m["made"]["v"].value
        of_m["a"].value = total * x
        return of_m, total * a

    f.defvjp(lambda m, x: (f(m, x), (m["a"].value, x)), bwd)

    def loss(m, x):
        y = f(m, x)
        return y + 10.0 * m["s"].value + 100.0 * m["made"]["v"].value

    m = net()
    grads = nnx.grad(loss)(m, 5.0)
    # y + 20 y + 300 y, of y = a x
    np.testing.assert_allclose(grads["a"].value, 321.0 * 5.0)
    assert seen == {("a",): 0.0, ("s",): 10.0, ("made", "v"): 100.0}


def test_cotangents_of_what_nobody_differentiates_are_zero_arrays():
    """JAX says of them only that they are zero; a rule may compute with them."""

    @nnx.custom_vjp
    def f(m, x):
        m["s"].value = m["a"].value + x
        return nnx.Dict(unused=nnx.Variable(x), count=nnx.Variable(jnp.array(1))), x * 2

    kinds = []

    def bwd(residual, g):
        (of_m, _), (of_node, of_out) = g
        kinds.append((of_node["unused"].value + 0.0, of_node["count"].value.dtype))
        return of_m, of_out * 2 + of_node["unused"].value

    f.defvjp(lambda m, x: (f(m, x), None), bwd)
    assert float(nnx.grad(lambda m, x: f(m, x)[1], argnums=1)(net(), 3.0)) == 2.0
    ((zero, dtype),) = kinds
    assert (float(zero), dtype) == (0.0, jax.dtypes.float0)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda m: m, set()),
        (lambda m: {"again": m, "new": nnx.Dict(m=m, v=nnx.Param(m["a"].value))}, {("v",)}),
        (lambda m: [nnx.Param(m["a"].value * 2)], {()}),
    ],
)
def test_nodes_in_results_of_custom_vjp_show_what_is_new(make, expected):
    shown = []

    @nnx.custom_vjp
    def f(m):
        return make(m)

    def bwd(residual, g):
        (of_m,), of_out = g
        for part in jax.tree.leaves(
            of_out, is_leaf=lambda x: isinstance(x, (nnx.State, nnx.VariableState))
        ):
            shown.extend([()] if isinstance(part, nnx.VariableState) else part.flat_state())
        return (of_m,)

    f.defvjp(lambda m: (f(m), None), bwd)

    def loss(m):
        f(m)
        return m["a"].value

    assert float(nnx.grad(loss)(net())["a"].value) == 1.0
    assert {path if isinstance(path, tuple) else path[0] for path in shown} <= expected


def test_fwd_that_returns_another_object_is_refused():
    @nnx.custom_vjp
    def f(m):
        return m["part"], m["a"].value

    f.defvjp(lambda m: ((m, m["a"].value), None), lambda residual, g: (g[0][0],))
    m = net()
    m["part"] = nnx.Dict(w=nnx.Param(1.0))
    with pytest.raises(
        ValueError, match="fwd must return and update what the function itself does"
    ):
        nnx.grad(lambda m: nnx.jit(f)(m)[1])(m)


@pytest.mark.parametrize("outer", ["jit", "remat", "vmap", "scan"])
def test_what_a_rule_leaves_out_is_refused_under_other_transforms(outer):
    @nnx.custom_vjp(wrt=nnx.Param)
    def f(m, x):
        return m["a"].value * m["s"].value * x

    f.defvjp(
        lambda m, x: (f(m, x), (m["a"].value, m["s"].value, x)),
        lambda residual, g: (
            {"a": g[1] * residual[1] * residual[2]},
            g[1] * residual[0] * residual[1],
        ),
    )
    lift = {
        "jit": nnx.jit,
        "remat": nnx.remat,
        "vmap": lambda f: lambda m, x: nnx.vmap(f, in_axes=(None, 0))(m, x[None])[0],
        "scan": lambda f: (
            lambda m, x: nnx.scan(lambda c, m: (c, f(m, c)), in_axes=(nnx.Carry, None), length=1)(
                x, m
            )[1][0]
        ),
    }[outer]
    loss = lift(f)
    x = jnp.array(5.0)
    np.testing.assert_allclose(nnx.grad(loss)(net(), x)["a"].value, 10.0)
    with pytest.raises(ValueError, match=r"\bs\b.* is differentiated, but the rule leaves"):
        nnx.grad(loss, wrt=...)(net(), x)


def test_gradients_agree_with_jax():
    m = nnx.Dict(w=nnx.Param(jnp.arange(3.0)))
    x = jnp.arange(3.0) + 1
    ours = nnx.grad(lambda m: jnp.sin(m["w"].value * x).sum())(m)["w"].value
    np.testing.assert_allclose(ours, jax.grad(lambda w: jnp.sin(w * x).sum())(m["w"].value))
