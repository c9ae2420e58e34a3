"""Promises of remat."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name

import treadle as nnx
from tests.transforms.models import Block, assert_same, stacked, values


def loss(m, x):
    return jnp.sin(jnp.sin(m(x))).sum()


def test_same_gradients_and_updates_as_without():
    m, other = Block(3, rngs=nnx.Rngs(0)), Block(3, rngs=nnx.Rngs(0))
    x = jnp.ones((2, 3))
    grads = nnx.grad(nnx.remat(loss))(m, x)
    assert_same(grads, nnx.grad(loss)(other, x))
    assert_same(nnx.state(m), nnx.state(other))
    assert int(m.calls.value) == 1


def graph_function(f):
    graphdef, state = nnx.split(Block(3, rngs=nnx.Rngs(0)))
    return (lambda state, x: f(nnx.merge(graphdef, state), x)), state


def jaxpr_of(f, *args):
    return str(jax.make_jaxpr(f)(*args))


def test_prevent_cse_reaches_jax():
    f, state = graph_function(nnx.remat(loss))
    assert "prevent_cse=True" in jaxpr_of(f, state, jnp.ones((2, 3)))
    f, state = graph_function(nnx.remat(loss, prevent_cse=False))
    assert "prevent_cse=False" in jaxpr_of(f, state, jnp.ones((2, 3)))


POLICIES = {
    "everything_saveable": 0,
    "nothing_saveable": 1,
    "dots_saveable": 0,
    "dots_with_no_batch_dims_saveable": 0,
    "checkpoint_dots": 0,
    "checkpoint_dots_with_no_batch_dims": 0,
}


def dots_again(**parameters):
    """Matrix products with the weight that the gradient computes in all, recomputed ones included."""

    def f(m, x):
        return jnp.sin(jnp.sin(x @ m["a"].value) @ m["b"].value).sum()

    m = nnx.Dict(a=nnx.Param(jnp.ones((3, 3))), b=nnx.Param(jnp.ones((3, 3))))
    graphdef, state = nnx.split(m)
    lifted = nnx.remat(f, **parameters)

    def step(state, x):
        return nnx.grad(lifted)(nnx.merge(graphdef, state), x)

    return jaxpr_of(step, state, jnp.ones((2, 3))).count("dot_general[")


@pytest.mark.parametrize("name", [n for n in POLICIES if hasattr(jax.checkpoint_policies, n)])
def test_policy_decides_what_is_computed_again(name):
    policy = getattr(jax.checkpoint_policies, name)
    saving = dots_again(policy=jax.checkpoint_policies.everything_saveable)
    nothing = dots_again(policy=jax.checkpoint_policies.nothing_saveable)
    assert nothing > saving
    assert dots_again(policy=policy) == (nothing if POLICIES[name] else saving)
    assert dots_again() == nothing


def names_saved(policy):
    def f(m, x):
        y = checkpoint_name(x @ m["a"].value, "y")
        z = checkpoint_name(jnp.sin(y) @ m["b"].value, "z")
        return jnp.sin(z).sum()

    m = nnx.Dict(a=nnx.Param(jnp.ones((3, 3))), b=nnx.Param(jnp.ones((3, 3))))
    graphdef, state = nnx.split(m)
    step = nnx.grad(nnx.remat(f, policy=policy))
    text = jaxpr_of(lambda s, x: step(nnx.merge(graphdef, s), x), state, jnp.ones((2, 3)))
    return text.count("dot_general[")


def test_policies_that_save_by_name():
    policies = jax.checkpoint_policies
    none = names_saved(policies.nothing_saveable)
    both = names_saved(policies.save_only_these_names("y", "z"))
    assert names_saved(policies.save_any_names_but_these("y", "z")) == none
    assert names_saved(policies.save_anything_except_these_names("y", "z")) < none
    assert both < names_saved(policies.save_only_these_names("z")) <= none
    joined = policies.save_from_both_policies(
        policies.save_only_these_names("y"), policies.save_only_these_names("z")
    )
    assert names_saved(joined) == both


FACTORIES = {
    "save_only_these_names": ("y",),
    "save_any_names_but_these": ("y",),
    "save_anything_except_these_names": ("y",),
    "save_from_both_policies": (jax.checkpoint_policies.dots_saveable,) * 2,
}


@pytest.mark.parametrize("name", sorted(vars(jax.checkpoint_policies)))
def test_every_policy_is_passed_through(name):
    policy = getattr(jax.checkpoint_policies, name)
    if name in FACTORIES:
        policy = policy(*FACTORIES[name])
    elif name == "offload_dot_with_no_batch_dims":
        policy = policy("device", "pinned_host")
    elif name == "save_and_offload_only_these_names":
        policy = policy(
            names_which_can_be_saved=["y"],
            names_which_can_be_offloaded=[],
            offload_src="device",
            offload_dst="pinned_host",
        )
    f, state = graph_function(nnx.remat(loss, policy=policy))
    jaxpr = jax.make_jaxpr(f)(state, jnp.ones((2, 3)))
    (used,) = [e.params["policy"] for e in jaxpr.eqns if "policy" in e.params]
    assert used is policy


@pytest.mark.parametrize("numbers", [2, (2,), -1, [-1]])
def test_static_argnums_as_the_user_counts_them(numbers):
    class Gated(nnx.Module):
        def __init__(self):
            self.w = nnx.Param(jnp.array(2.0))

        @nnx.remat(static_argnums=numbers)
        def __call__(self, x, train):
            assert isinstance(train, bool)
            return self.w.value * x if train else x

    m = Gated()
    assert float(m(3.0, True)) == 6.0
    assert float(m(3.0, False)) == 3.0


def test_without_static_argnums_flags_are_traced():
    with pytest.raises(jax.errors.TracerBoolConversionError):
        nnx.remat(lambda x, flag: x if flag else -x)(1.0, True)


def test_static_argnums_out_of_range_is_a_clear_error():
    with pytest.raises(ValueError, match="static_argnums=5 is out of range"):
        nnx.remat(lambda x: x, static_argnums=5)(1.0)


def test_on_init():
    class Made(nnx.Module):
        @nnx.remat(static_argnums=1)
        def __init__(self, width, rngs):
            self.linear = nnx.Linear(width, width, rngs=rngs)

    rngs = nnx.Rngs(0)
    made = Made(3, rngs)
    assert made.linear.kernel.shape == (3, 3)
    assert int(rngs.default.count.value) > 0
    expected = nnx.Linear(3, 3, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(made.linear.kernel.value, expected.kernel.value)


def test_inside_scan_and_grad():
    m = stacked(lambda rngs: Block(3, rngs=rngs), 4)
    other = nnx.clone(m)
    x = jnp.ones((2, 3))

    def total(block):
        def f(m, x):
            return nnx.scan(lambda x, m: (block(m, x), None))(x, m)[0].sum()

        return nnx.grad(f)

    assert_same(total(nnx.remat(lambda m, x: m(x)))(m, x), total(lambda m, x: m(x))(other, x))
    assert_same(nnx.state(m), nnx.state(other))
    assert m.calls.value.tolist() == [1] * 4


def test_the_function_is_traced_once_for_one_structure():
    traces = []

    @nnx.remat
    def f(m, x):
        traces.append(1)
        return m(x)

    @jax.jit
    def step(states):
        return [f(nnx.merge(graphdef, s), jnp.ones((2, 3))).sum() for s in states]

    graphdef, state = nnx.split(Block(3, rngs=nnx.Rngs(0)))
    step([state, state, state])
    assert len(traces) == 1


def test_an_exception_changes_nothing():
    m = Block(2, rngs=nnx.Rngs(0))
    before = values(m)

    def f(m):
        m(jnp.ones((1, 2)))
        m.extra = 1
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        nnx.remat(f)(m)
    assert_same(values(m), before)
    assert not hasattr(m, "extra")
