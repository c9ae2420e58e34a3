"""Training steps whose state lies in a few buffers, written by hand with XLA's own slices and concatenations.

No library's way: what packed state could gain on a device, before anything is built for it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from models import TrainModel
from peers import Case, hand_state, hand_step, identity, view

PACKED = "packed"
PACKED_DONATED = "packed, donated"
PACKED_BARRIERS = "packed, not fused with the step"
PACKED_BYTES = "packed, one buffer of bytes"
IN_TURN = "packed, two buffers in turn"
IN_TURN_TWICE = "packed, two buffers in turn, a program for each"
VECTORS = "packed, Adam on vectors"
VECTORS_DONATED = "packed, Adam on vectors, donated"


@dataclass(frozen=True)
class Layout:
    """Where leaves lie: for each its buffer, its offset in elements there, its shape and type."""

    slots: tuple[tuple[int, int, tuple[int, ...], Any], ...]
    dtypes: tuple[Any, ...]

    @classmethod
    def of(cls, leaves: Sequence[Any]) -> Layout:
        dtypes = tuple(dict.fromkeys(leaf.dtype for leaf in leaves))
        ends = dict.fromkeys(dtypes, 0)
        slots = []
        for leaf in leaves:
            slots.append((dtypes.index(leaf.dtype), ends[leaf.dtype], leaf.shape, leaf.dtype))
            ends[leaf.dtype] += leaf.size
        return cls(tuple(slots), dtypes)

    def pack(self, leaves: Sequence[Any]) -> tuple[Any, ...]:
        """One vector for each type."""
        parts: list[list[Any]] = [[] for _ in self.dtypes]
        for leaf, (buffer, *_) in zip(leaves, self.slots, strict=True):
            parts[buffer].append(jnp.ravel(leaf))
        return tuple(map(jnp.concatenate, parts))

    def unpack(self, buffers: Sequence[Any]) -> list[Any]:
        return [
            jax.lax.slice(buffers[buffer], (start,), (start + size(shape),)).reshape(shape)
            for buffer, start, shape, _ in self.slots
        ]


class ByteLayout(Layout):
    """One buffer of bytes for all types, each of which takes four bytes here."""

    def pack(self, leaves: Sequence[Any]) -> tuple[Any, ...]:
        as_bytes = [jax.lax.bitcast_convert_type(jnp.ravel(leaf), jnp.uint8) for leaf in leaves]
        return (jnp.concatenate(as_bytes).ravel(),)

    def unpack(self, buffers: Sequence[Any]) -> list[Any]:
        leaves, start = [], 0
        for _, _, shape, dtype in self.slots:
            end = start + size(shape) * dtype.itemsize
            part = jax.lax.slice(buffers[0], (start,), (end,)).reshape(-1, dtype.itemsize)
            leaves.append(jax.lax.bitcast_convert_type(part, dtype).reshape(shape))
            start = end
        return leaves


def size(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape))


def packed(
    model: TrainModel,
    name: str,
    layout_type: type[Layout] = Layout,
    *,
    donate: bool = False,
    barriers: bool = False,
) -> Case:
    """The state packed between steps. With `barriers` XLA may not fuse packing and unpacking with the step."""
    step, start, params = _packed_step(model, layout_type, barriers=barriers)
    return _case(name, model, jax.jit(step, donate_argnums=0 if donate else None), start, params)


def in_turn(model: TrainModel, name: str, programs: int) -> Case:
    """The step writes into the buffers of the step before, so that those it reads stay alive.

    With two programs each of them always reads from, and writes to, the same addresses.
    """
    step, start, params = _packed_step(model, Layout)

    def program() -> Any:
        # A function of its own, as JAX compiles one function once.
        return jax.jit(
            lambda buffers, spare, x, y: step(buffers, x, y), donate_argnums=1, keep_unused=True
        )

    turns = itertools.cycle([program() for _ in range(programs)])

    def run(state: Any, x: Any, y: Any) -> Any:
        buffers, spare = state
        new, loss = next(turns)(buffers, spare, x, y)
        return (new, buffers), loss

    state = start, tuple(map(jnp.copy, start))
    return _case(name, model, run, state, lambda state: params(state[0]))


def _packed_step(
    model: TrainModel, layout_type: type[Layout], *, barriers: bool = False
) -> tuple[Any, Any, Any]:
    """The step on buffers, the first buffers, and what reads the parameters in them."""
    tx = optax.adam(1e-3)
    start = hand_state(model, tx)
    leaves, treedef = jax.tree.flatten(start)
    layout = layout_type.of(leaves)
    n_params = len(jax.tree.leaves(start[0]))
    nested = hand_step(model, tx)
    barrier = jax.lax.optimization_barrier if barriers else identity

    def step(buffers: Any, x: Any, y: Any) -> Any:
        state, loss = nested(jax.tree.unflatten(treedef, barrier(layout.unpack(buffers))), x, y)
        return layout.pack(barrier(jax.tree.leaves(state))), loss

    return step, layout.pack(leaves), lambda buffers: layout.unpack(buffers)[:n_params]


def vectors(model: TrainModel, name: str, *, donate: bool = False) -> Case:
    """The parameters in one vector, which Adam takes for one parameter."""
    tx = optax.adam(1e-3)
    params, treedef = jax.tree.flatten(jax.tree.map(jnp.asarray, model.params()))
    layout = Layout.of(params)

    def step(state: Any, x: Any, y: Any) -> Any:
        buffers, opt_state, count = state
        # Not differentiated through the slices: the sum of their gradients would be quadratic in the leaves.
        loss, grads = jax.value_and_grad(
            lambda leaves: model.loss(view(jax.tree.unflatten(treedef, leaves)), identity, x, y)
        )(layout.unpack(buffers))
        updates, opt_state = tx.update(layout.pack(grads), opt_state, buffers)
        return (optax.apply_updates(buffers, updates), opt_state, count + 1), loss

    buffers = layout.pack(params)
    return _case(
        name,
        model,
        jax.jit(step, donate_argnums=0 if donate else None),
        (buffers, tx.init(buffers), jnp.array(0, jnp.uint32)),
        lambda state: layout.unpack(state[0]),
    )


def _case(
    name: str, model: TrainModel, step: Any, state: Any, params: Callable[[Any], list[Any]]
) -> Case:
    x, y = map(jnp.asarray, model.batch())

    def run() -> Any:
        nonlocal state
        state, loss = step(state, x, y)
        return loss

    return Case(name, run, lambda: params(state))


def pieces(model: TrainModel) -> dict[str, Callable[[], Any]]:
    """What packing is made of, each as a program of its own; the first does next to nothing."""
    leaves = jax.tree.leaves(hand_state(model, optax.adam(1e-3)))
    layout = Layout.of(leaves)
    buffers = layout.pack(leaves)
    nothing = jax.jit(lambda x: x + 1)
    pack, unpack = jax.jit(layout.pack), jax.jit(layout.unpack)
    take = jax.jit(lambda vector, start: jax.lax.dynamic_slice(vector, (start,), (1,)))
    one, offset = jnp.zeros(1), jnp.array(5)
    return {
        "a program of one element": lambda: nothing(one),
        "packing all leaves": lambda: pack(leaves),
        "unpacking all leaves": lambda: unpack(buffers),
        "taking one element": lambda: take(buffers[0], offset),
        "the first, read on the host": lambda: np.asarray(nothing(one)),
        "taking one element, read on the host": lambda: np.asarray(take(buffers[0], offset)),
        "adding one to a whole buffer, read on the host": lambda: np.asarray(nothing(buffers[0])),
    }


MAKERS: dict[str, Callable[[TrainModel], Case]] = {
    PACKED: lambda model: packed(model, PACKED),
    PACKED_DONATED: lambda model: packed(model, PACKED_DONATED, donate=True),
    IN_TURN: lambda model: in_turn(model, IN_TURN, 1),
    IN_TURN_TWICE: lambda model: in_turn(model, IN_TURN_TWICE, 2),
    PACKED_BARRIERS: lambda model: packed(model, PACKED_BARRIERS, barriers=True),
    PACKED_BYTES: lambda model: packed(model, PACKED_BYTES, ByteLayout),
    VECTORS: lambda model: vectors(model, VECTORS),
    VECTORS_DONATED: lambda model: vectors(model, VECTORS_DONATED, donate=True),
}
