"""Graph functions outside of jit, and State as a pytree."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax

import models
import peers
import treadle
from harness.timing import Effort, Row, interleave

TREE = "jax.tree, nested dicts"


class Pair(treadle.Module):
    def __init__(self, model: Any, optimizer: Any) -> None:
        self.model = model
        self.optimizer = optimizer


def _setup() -> tuple[Any, Any, Any]:
    """The 602 leaves of a 50-block MLP with Adam: nested dicts, treadle's objects, flax's."""
    model = models.mlp(50)
    tree = peers.as_arrays(model.params())
    nested = {
        "model": tree,
        "mu": jax.tree.map(jnp.zeros_like, tree),
        "nu": tree,
        "step": jnp.zeros(()),
    }
    ours = Pair(*peers.treadle_state(model))
    theirs = None
    if peers.HAS_FLAX:
        from flax import nnx

        module = peers.flax_module()(tree)
        theirs = nnx.Dict(
            model=module, optimizer=nnx.Optimizer(module, optax.adam(1e-3), wrt=nnx.Param)
        )
    return nested, ours, theirs


def rows(effort: Effort) -> Iterator[Row]:
    nested, ours, theirs = _setup()
    leaves = len(jax.tree.leaves(treadle.state(ours)))
    flat, treedef = jax.tree.flatten(nested)
    parts = treadle.split(ours)
    flax = nnx = None
    if theirs is not None:
        from flax import nnx

        flax = nnx.split(theirs)

    def row(
        name: str, base: Callable[[], Any], treadle_case: Callable[[], Any], flax_case: Any
    ) -> Row:
        cases = {TREE: base, "treadle": treadle_case}
        if flax_case is not None and theirs is not None:
            cases["flax"] = flax_case
        return interleave(name, cases, effort, base=TREE, leaves=leaves)

    def round_trip(tree: Any) -> Any:
        found, structure = jax.tree.flatten(tree)
        return jax.tree.unflatten(structure, found)

    yield row(
        "split + merge",
        lambda: round_trip(nested),
        lambda: treadle.merge(*treadle.split(ours)),
        lambda: nnx.merge(*nnx.split(theirs)),
    )
    yield row(
        "split",
        lambda: jax.tree.flatten(nested),
        lambda: treadle.split(ours),
        lambda: nnx.split(theirs),
    )
    yield row(
        "merge",
        lambda: jax.tree.unflatten(treedef, flat),
        lambda: treadle.merge(*parts),
        lambda: nnx.merge(*flax),
    )
    yield row(
        "split by two filters",
        lambda: jax.tree.flatten(nested),
        lambda: treadle.split(ours, treadle.Param, ...),
        lambda: nnx.split(theirs, nnx.Param, ...),
    )
    yield row(
        "update with a whole state",
        lambda: jax.tree.map(lambda old, new: new, nested, nested),
        lambda: treadle.update(ours, parts[1]),
        lambda: nnx.update(theirs, flax[1]),
    )
    yield row(
        "clone", lambda: round_trip(nested), lambda: treadle.clone(ours), lambda: nnx.clone(theirs)
    )
    yield row(
        "state(Param)",
        lambda: jax.tree.flatten(nested),
        lambda: treadle.state(ours, treadle.Param),
        lambda: nnx.state(theirs, nnx.Param),
    )

    def sow_and_pop(module: Any, kind: Any, function: Any) -> Callable[[], Any]:
        blocks = list(module.blocks)

        def run() -> Any:
            for block in blocks:
                block.seen = kind(0)
            return function(module, kind)

        return run

    dicts = [dict(block) for block in nested["model"]["blocks"]]

    def pop_dicts() -> Any:
        for block in dicts:
            block["seen"] = 0
        return [block.pop("seen") for block in dicts]

    yield row(
        "pop of one Intermediate in each of 50 blocks",
        pop_dicts,
        sow_and_pop(ours.model, treadle.Intermediate, treadle.pop),
        sow_and_pop(theirs.model, nnx.Intermediate, nnx.pop) if theirs is not None else None,
    )
    state = parts[1]
    flax_state = flax[1] if flax is not None else None
    yield row(
        "State as a pytree: flatten + unflatten",
        lambda: round_trip(nested),
        lambda: round_trip(state),
        lambda: round_trip(flax_state),
    )
    yield row(
        "State as a pytree: jax.tree.map over two",
        lambda: jax.tree.map(lambda a, b: a, nested, nested),
        lambda: jax.tree.map(lambda a, b: a, state, state),
        lambda: jax.tree.map(lambda a, b: a, flax_state, flax_state),
    )
