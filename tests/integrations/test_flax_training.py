"""Real models of flax train through treadle.jit exactly as through nnx.jit."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

import treadle

pytest.importorskip("flax.nnx", reason="flax has no release for this Python")
from flax import nnx

from tests.integrations import flax_models as models

STEPS = 50


def arrays(*objects: Any) -> list[Any]:
    """All leaves of the objects, keys as numbers."""
    return [
        np.asarray(
            jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x
        )
        for x in jax.tree.leaves(nnx.state(list(objects)))
    ]


@pytest.mark.parametrize("name", models.TRAININGS)
def test_fifty_steps_are_those_of_nnx_jit(name: str) -> None:
    training = models.TRAININGS[name]()
    batch = training.batch()
    ours, theirs = training.make(), training.make()
    step, peer = treadle.jit(training.step), nnx.jit(training.step)
    losses = [step(*ours, *batch) for _ in range(STEPS)]
    expected = [peer(*theirs, *batch) for _ in range(STEPS)]
    np.testing.assert_allclose(np.asarray(losses), np.asarray(expected), rtol=1e-4, atol=1e-5)
    for a, b in zip(arrays(*ours), arrays(*theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
    assert step.num_traces == 1
    counts = step._counts
    assert counts == {"hot": STEPS - 1, "warm": 0, "cold": 1, "plans": 1}


def test_decoding_gives_the_same_tokens() -> None:
    training = models.transformer()
    ours, theirs = training.make()[0], training.make()[0]
    tokens = models.decode(ours, treadle.jit, 3, 12)
    assert tokens == models.decode(theirs, nnx.jit, 3, 12)
    for a, b in zip(arrays(ours), arrays(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_tied_embeddings_stay_one_table() -> None:
    training = models.transformer()
    model, optimizer = training.make()
    treadle.jit(training.step)(model, optimizer, *training.batch())
    assert model.output is model.embed
    tables = [path for path in treadle.state(model).flat_state() if path[-1] == "embedding"]
    assert tables == [("embed", "embedding")]
