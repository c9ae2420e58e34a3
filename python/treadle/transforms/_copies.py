"""Arrays that a call was to give away, and that somebody else holds."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import jax

from treadle import _core
from treadle.errors import DonationWarning, listed
from treadle.transforms._call import Call
from treadle.transforms._warnings import warn

__all__ = ["SHOWN", "copied", "separated", "warn_of_copies"]

SHOWN = 8
"""How many leaves a warning names."""


def copied(leaf: Any) -> Any:
    """A copy of a leaf, whose buffers may be given away."""
    return jax.tree_util.tree_map(
        lambda part: part.copy() if isinstance(part, jax.Array) else part, leaf
    )


def warn_of_copies(where: str, names: str, values: Iterable[Any]) -> None:
    """Say what is copied instead of given away.

    Args:
        where: the transform and the function.
        names: the leaves.
        values: their values.
    """
    size = sum(part.nbytes for part in jax.tree_util.tree_leaves([*values]))
    warn(
        f"{where} copies {names} ({size} bytes) "
        "instead of donating: other objects hold the same arrays, such as a clone, a State or a "
        "variable of yours. Give them arrays of their own, for example with "
        "nnx.clone(model, arrays=True), or let go of them before the call.",
        DonationWarning,
    )


def separated(call: Call, donated: Collection[int]) -> list[Any]:
    """The leaves of a call, with copies of those to be donated that others hold, and a warning."""
    shared, needed = _core.separate(call.flat, donated)
    leaves = list(call.leaves)
    if shared:
        warn_of_copies(
            call.where, listed(shared, SHOWN, call.label), [leaves[leaf] for leaf in shared]
        )
    for leaf in needed:
        leaves[leaf] = copied(leaves[leaf])
    return leaves
