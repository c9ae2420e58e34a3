"""A model of 602 leaves with its optimizer, and ways to watch a call from outside."""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax

import treadle as nnx

WIDTH = 2
LEAVES = 602


class Block(nnx.Module):
    def __init__(self, seed: int) -> None:
        self.kernel = nnx.Param(jax.random.normal(jax.random.key(seed), (WIDTH, WIDTH)))
        self.bias = nnx.Param(jnp.zeros(WIDTH))
        self.scale = nnx.Param(jnp.ones(WIDTH))
        self.shift = nnx.Param(jnp.zeros(WIDTH))

    def __call__(self, x: jax.Array) -> jax.Array:
        return x @ self.kernel.value * self.scale.value + self.bias.value + self.shift.value


class Tower(nnx.Module):
    def __init__(self, depth: int = 50) -> None:
        self.blocks = [Block(seed) for seed in range(depth)]

    def __call__(self, x: jax.Array) -> jax.Array:
        for block in self.blocks:
            x = block(x)
        return x


def training(depth: int = 50) -> tuple[Tower, nnx.Optimizer]:
    """Twelve leaves a block, and two counts."""
    model = Tower(depth)
    return model, nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)


def train(model: Tower, optimizer: nnx.Optimizer, x: jax.Array) -> jax.Array:
    """One training step; to be jitted."""
    loss, grads = nnx.value_and_grad(lambda m: jnp.mean(m(x) ** 2))(model)
    optimizer.update(model, grads)
    return loss


def touch(model: Tower, x: jax.Array) -> jax.Array:
    """A step that changes every leaf of a model, and compiles in no time; to be jitted."""
    for variable in jax.tree.leaves(model.blocks, is_leaf=lambda b: isinstance(b, Block)):
        for name in ("kernel", "bias", "scale", "shift"):
            cell = getattr(variable, name)
            cell.value = -cell.value
    return x + 1


def touched_tower() -> Tower:
    """A model of 600 leaves."""
    return Tower(150)


@contextlib.contextmanager
def python_frames() -> Iterator[list[str]]:
    """Every Python function entered inside, as ``file:function``."""
    entered: list[str] = []

    def note(frame: Any, event: str, _: Any) -> None:
        if event == "call":
            entered.append(f"{frame.f_code.co_filename}:{frame.f_code.co_name}")

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        yield entered
    finally:
        sys.setprofile(before)


def frames_of(call: Callable[[], Any]) -> list[str]:
    """Python functions entered by a call; the call itself, if it is one, left out."""
    with python_frames() as entered:
        call()
    # The call, and leaving the context manager.
    return [name for name in entered if not name.startswith((__file__, contextlib.__file__))]


def collects(call: Callable[[], Any], threshold: int) -> bool:
    """Whether a call sets off a garbage collection when `threshold` more tracked objects do."""
    ran = []

    def note(phase: str, info: Any) -> None:
        ran.append(phase)

    thresholds = gc.get_threshold()
    gc.collect()
    gc.callbacks.append(note)
    gc.set_threshold(threshold, 1000, 1000)
    try:
        call()
        # Since Python 3.12 a collection that is due waits for the next bytecode.
        for _ in range(10):
            pass
    finally:
        gc.set_threshold(*thresholds)
        gc.callbacks.remove(note)
    return bool(ran)


def peak_of_tracked_objects(call: Callable[[], Any], most: int = 5000) -> int:
    """How many tracked objects more than before a call there are while it runs, at most."""
    low, high = 1, most
    assert not collects(call, most)
    while low < high:
        middle = (low + high) // 2
        if collects(call, middle):
            low = middle + 1
        else:
            high = middle
    return low
