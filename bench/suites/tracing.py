"""What it takes to trace a training step, without compiling."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax

import models
import peers
import treadle
from harness.timing import Effort, Row, interleave


def rows(effort: Effort) -> Iterator[Row]:
    # Tracing takes time in proportion to the depth, which the short run has little of.
    depth = 50 if effort.full else 20
    model = models.mlp(depth)
    x, y = map(jnp.asarray, model.batch())
    tx = optax.adam(1e-3)
    tree = peers.hand_state(model, tx)
    module, optimizer = peers.treadle_state(model)
    hand_step, treadle_step = peers.hand_step(model, tx), peers.treadle_train_step(model)

    # JAX remembers traces by function: each turn needs a new one.
    def by_hand() -> Any:
        jax.jit(lambda *args: hand_step(*args)).trace(tree, x, y)

    def by_treadle() -> Any:
        treadle.jit(lambda *args: treadle_step(*args)).trace(module, optimizer, x, y)

    cases = {peers.HAND_NESTED: by_hand, peers.TREADLE: by_treadle}
    if peers.HAS_FLAX:
        from flax import nnx

        flax_step = peers.flax_train_step(model)
        flax_module = peers.flax_module()(peers.as_arrays(model.params()))
        flax_optimizer = nnx.Optimizer(flax_module, tx, wrt=nnx.Param)
        for mode, settings in peers.flax_modes().items():
            if mode in (peers.FLAX_CACHED, peers.FLAX_PARTIAL):
                continue

            def by_flax(settings: Any = settings) -> Any:
                with peers.flax_mode(settings):
                    jitted = nnx.jit(lambda *args: flax_step(*args), **settings)
                    jitted.lower(flax_module, flax_optimizer, x, y)

            cases[mode] = by_flax
    row = interleave(
        f"tracing a training step, {model.name}",
        cases,
        effort,
        base=peers.HAND_NESTED,
        leaves=12 * depth + 2,
    )
    row.notes.append("flax offers no trace(): lowering is in its time too")
    yield row
