"""Training steps of models written with flax.nnx, through Treadle, flax and hand-written `jax.jit`."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

import treadle
from harness.timing import Effort, Row
from peers import (
    FLAX_CACHED,
    FLAX_PARTIAL,
    FLAX_TREE,
    HAND_FLAT,
    HAS_FLAX,
    TREADLE,
    Case,
    flax_mode,
    flax_modes,
)
from suites.compare_cases import compare_cases

# The models are those whose training the tests compare step by step.
sys.path.append(str(Path(__file__).resolve().parents[2]))


def rows(effort: Effort) -> Iterator[Row]:
    if not HAS_FLAX:
        return
    from tests.integrations import flax_models as models

    yield actor_critic_row(effort)
    for name, training in {
        "transformer": models.transformer(width=4, depth=2),
        "GAN": models.gan(width=4),
        "recurrent": models.recurrent(width=2),
        "ResNet-18": models.resnet(width=1, size=4),
    }.items():
        yield _row(name, training, effort)


def actor_critic_row(effort: Effort) -> Row:
    """The one with more than 500 leaves. Needs flax."""
    from tests.integrations import flax_models as models

    return _row("actor-critic of 44 modules", models.actor_critic(senses=44, width=2), effort)


def _row(name: str, training: Any, effort: Effort) -> Row:
    leaves = len(jax.tree.leaves(treadle.state(list(training.make()))))
    return compare_cases(
        f"flax model, {name}",
        makers(training),
        effort,
        base=HAND_FLAT,
        leaves=leaves,
        # Each mode of flax takes up to ten seconds to trace and compile one of these; the short run leaves out those
        # that are never the quickest.
        slow=(FLAX_TREE, FLAX_CACHED) if leaves > 150 else (FLAX_TREE,),
        # All of them run flax's code while they are traced.
        threads=1,
    )


def makers(training: Any) -> dict[str, Callable[[], Case]]:
    made: dict[str, Callable[[], Case]] = {
        HAND_FLAT: lambda: hand_flat(training),
        TREADLE: lambda: through_treadle(training),
    }
    for mode in flax_modes():
        made[mode] = lambda mode=mode: through_flax(training, mode)
    return made


def hand_flat(training: Any) -> Case:
    """The state as a flat tuple. Keys of random streams never change, so they only go in."""
    from flax import nnx

    objects, batch = training.make(), training.batch()
    graphdef, keys, state = nnx.split(objects, nnx.RngKey, ...)
    leaves, treedef = jax.tree.flatten(state)
    key_leaves, key_tree = jax.tree.flatten(keys)

    def step(leaves: Any, key_leaves: Any, *batch: Any) -> Any:
        given = jax.tree.unflatten(treedef, leaves)
        model = nnx.merge(graphdef, jax.tree.unflatten(key_tree, key_leaves), given)
        loss = training.step(*model, *batch)
        _, _, after = nnx.split(model, nnx.RngKey, ...)
        return tuple(jax.tree.leaves(after)), loss

    compiled = jax.jit(step)
    leaves, key_leaves = tuple(leaves), tuple(key_leaves)

    def run() -> Any:
        nonlocal leaves
        leaves, loss = compiled(leaves, key_leaves, *batch)
        return loss

    return Case(
        HAND_FLAT, run, lambda: list(leaves), lambda: compiled.lower(leaves, key_leaves, *batch)
    )


def through_treadle(training: Any) -> Case:
    objects, batch = training.make(), training.batch()
    step = treadle.jit(training.step)
    return Case(
        TREADLE,
        lambda: step(*objects, *batch),
        lambda: jax.tree.leaves(treadle.state(list(objects))),
        lambda: step.lower(*objects, *batch),
        lambda: treadle.profile(step, *objects, *batch),
    )


def through_flax(training: Any, mode: str) -> Case:
    from flax import nnx

    settings = flax_modes()[mode]
    objects, batch = training.make(), training.batch()
    bound: tuple[Any, ...] = objects
    if mode == FLAX_PARTIAL:
        step, bound = nnx.jit_partial(training.step, *objects, **settings), ()
    else:
        step = nnx.jit(training.step, **settings)
        if mode == FLAX_CACHED:
            with flax_mode(settings):
                step, bound = nnx.cached_partial(step, *objects), ()
    # Nested transforms read the mode when they are traced, which is in the first call.
    with flax_mode(settings), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        step(*bound, *batch)
    return Case(
        mode, lambda: step(*bound, *batch), lambda: jax.tree.leaves(nnx.state(list(objects)))
    )
