"""The steps with hundreds of outputs once more, in a process whose `malloc` is another one."""

from __future__ import annotations

from collections.abc import Iterator

import models
from harness import allocator
from harness.timing import Effort, Row
from peers import HAND_DONATED, HAS_FLAX, TREADLE_DONATED
from suites.dispatch import train_row
from suites.flax_models import actor_critic_row


def rows(effort: Effort) -> Iterator[Row]:
    """Nothing where the other allocator could not be had."""
    if not allocator.is_in_use():
        return
    yield _named(train_row(models.mlp(50), effort, slow=(HAND_DONATED, TREADLE_DONATED)))
    if HAS_FLAX:
        yield _named(actor_critic_row(effort))


def _named(row: Row) -> Row:
    row.name += f", on {allocator.NAME}"
    return row
