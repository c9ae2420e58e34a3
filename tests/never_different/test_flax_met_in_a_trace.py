"""A flax object met first inside a trace does flax no harm (point 22); each in a process of its own."""

from __future__ import annotations

import pytest

from tests.on_devices import run_script
from tests.open_points import cases

pytest.importorskip("flax.nnx", reason="flax has no release for this Python")

FIRST = {
    "jit": "treadle.jit(lambda: nnx.Linear(2, 2, rngs=nnx.Rngs(0)))()",
    "eval_shape": "treadle.eval_shape(lambda: nnx.Linear(2, 2, rngs=nnx.Rngs(0)))",
    "vmap": "treadle.vmap(lambda x: nnx.Linear(2, 2, rngs=nnx.Rngs(0)), axis_size=2)(jnp.ones(2))",
    "grad": "treadle.grad(lambda x: (nnx.Param(x)[...] ** 2).sum())(jnp.ones(2))",
    "remat": "treadle.remat(lambda x: nnx.Linear(2, 2, rngs=nnx.Rngs(0)))(1.0)",
    "Rngs under jit": "treadle.jit(lambda: treadle.clone(nnx.Rngs(0)))()",
}
SCRIPT = """
import jax, jax.numpy as jnp, treadle
from flax import nnx
{first}
model = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
model(jnp.ones(2))
nnx.jit(lambda m, x: m(x))(model, jnp.ones(2))
nnx.grad(lambda m: m(jnp.ones(2)).sum())(model)
graphdef, state = nnx.split(model)
nnx.merge(graphdef, state)
nnx.vmap(lambda r: nnx.Linear(2, 2, rngs=r))(nnx.Rngs(0).fork(split=2))
treadle.jit(lambda m, x: m(x))(model, jnp.ones(2))
print("fine")
"""


SHORT = ["jit", "eval_shape"]


@pytest.mark.parametrize("first", cases({name: FIRST[name] for name in SHORT}))
def test_flax_goes_on_as_before_after(first):
    done = run_script(SCRIPT.format(first=first))
    assert done.stdout.split() == ["fine"], done.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("first", cases(FIRST))
def test_flax_goes_on_as_before(first):
    done = run_script(SCRIPT.format(first=first))
    assert done.stdout.split() == ["fine"], done.stderr[-3000:]
