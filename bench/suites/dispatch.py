"""Jitted calls, hot: training steps, models with state, and cost against the number of leaves."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import jax

import models
import peers
import stateful
from harness.timing import Effort, Row
from suites.compare_cases import agreement_notes, compare_cases

# In the short run these would take minutes at thousands of leaves.
_SLOW_AT_SCALE = (
    peers.FLAX_TREE,
    peers.FLAX_CACHED,
    peers.FLAX_PARTIAL,
    peers.EQUINOX,
)


def train_rows(effort: Effort) -> Iterator[Row]:
    small = models.mlp(5)
    row = train_row(small, effort)
    row.notes += agreement_of(row, makers_for(small))
    yield row
    yield train_row(models.mlp(50), effort)
    slow = (peers.FLAX_TREE, peers.FLAX_CACHED, peers.HAND_DONATED, peers.TREADLE_DONATED)
    yield train_row(models.transformer(8 if effort.full else 2), effort, slow)


def agreement_of(row: Row, makers: dict[str, Callable[[], peers.Case]]) -> list[str]:
    """Among the peers that could take part; a note names the others already."""
    return agreement_notes({name: make for name, make in makers.items() if name in row.cases})


def large_train_rows(effort: Effort) -> Iterator[Row]:
    slow = (*_SLOW_AT_SCALE, peers.FLAX_GRAPH, peers.HAND_DONATED, peers.TREADLE_DONATED)
    yield train_row(models.mlp(250), effort, slow)


def makers_for(model: models.TrainModel) -> dict[str, Callable[[], peers.Case]]:
    return {name: lambda make=make: make(model) for name, make in peers.makers().items()}


def train_row(model: models.TrainModel, effort: Effort, slow: tuple[str, ...] = ()) -> Row:
    # Parameters, their two moments, and the step counts of Adam and of the optimizer.
    leaves = 3 * len(jax.tree.leaves(model.params())) + 2
    return compare_cases(
        f"training step, {model.name}",
        makers_for(model),
        effort,
        base=peers.HAND_FLAT,
        leaves=leaves,
        slow=slow,
    )


def state_rows(effort: Effort) -> Iterator[Row]:
    for model in (
        stateful.agent(40),
        stateful.deep_containers(8),
        stateful.dropouts(40 if effort.full else 12),
        stateful.decoder(250 if effort.full else 20),
    ):
        yield stateful_row(model, effort)


def sweep_rows(effort: Effort) -> Iterator[Row]:
    for leaves in (1, 10, 100, 1000, 5000):
        yield stateful_row(
            stateful.counters(leaves), effort, slow=_SLOW_AT_SCALE if leaves > 1000 else ()
        )


def stateful_row(model: stateful.StatefulModel, effort: Effort, slow: tuple[str, ...] = ()) -> Row:
    makers = {
        name: lambda make=make: make(model)
        for name, make in stateful.makers().items()
        if model.pure or name != peers.EQUINOX
    }
    leaves = stateful.count_leaves(model)
    row = compare_cases(model.name, makers, effort, base=peers.HAND_FLAT, leaves=leaves, slow=slow)
    if not model.pure:
        row.notes.append("equinox has no mutable state: left out")
    if leaves <= (200 if effort.full else 50):
        row.notes += agreement_of(row, makers)
    return row
