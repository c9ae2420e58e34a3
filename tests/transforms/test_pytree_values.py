"""Variables whose value is a pytree of arrays, as those of `sow` and `perturb` are, in every transform."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import weft as nnx
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
