"""What a training step of `digits.py` costs by the road it takes."""

from __future__ import annotations

import importlib.util
import statistics
import time
from typing import TYPE_CHECKING, Any

import jax
import optax

if TYPE_CHECKING:
    from collections.abc import Callable

    Step = Callable[[], Any]

BASE = "hand-written jax.jit"


def compare_steps(
    makers: dict[str, Callable[[jax.Array, jax.Array], Step]],
    images: jax.Array,
    labels: jax.Array,
    rounds: int,
) -> str:
    """A table of the time per step of each way, measured in turn.

    Ratios are taken round by round, between steps that ran next to each other, so that a machine that
    is busy for a while does not favour anyone.
    """
    makers = dict(makers)
    if importlib.util.find_spec("flax") is not None:
        makers["flax nnx.jit"] = flax_step
    steps = {name: make(images, labels) for name, make in makers.items()}
    for step in steps.values():
        for _ in range(3):
            jax.block_until_ready(step())

    seconds: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    for turn in range(rounds):
        # Each goes first equally often: the first finds the others' data in the caches.
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            started = time.perf_counter()
            jax.block_until_ready(steps[name]())
            seconds[name].append(time.perf_counter() - started)

    lines = [
        f"{'one training step, batch of ' + str(len(labels)):32} {'median ms':>10} {'ratio':>8}"
    ]
    for name in names:
        ratios = [a / b for a, b in zip(seconds[name], seconds[BASE], strict=True)]
        median = statistics.median(seconds[name]) * 1e3
        lines.append(f"{name:32} {median:10.3f} {statistics.median(ratios):8.3f}")
    if "flax nnx.jit" not in names:
        lines.append("flax is not installed: its nnx.jit was not timed")
    lines.append(f"median of {rounds} rounds, interleaved; ratio to {BASE}, round by round")
    return "\n".join(lines)


def flax_step(images: jax.Array, labels: jax.Array) -> Step:
    """The step of `digits.py`, written for flax."""
    from flax import nnx

    class CNN(nnx.Module):
        def __init__(self, *, rngs: nnx.Rngs) -> None:
            self.conv1 = nnx.Conv(1, 32, kernel_size=(3, 3), rngs=rngs)
            self.norm1 = nnx.BatchNorm(32, momentum=0.9, rngs=rngs)
            self.conv2 = nnx.Conv(32, 64, kernel_size=(3, 3), rngs=rngs)
            self.norm2 = nnx.BatchNorm(64, momentum=0.9, rngs=rngs)
            self.dense1 = nnx.Linear(4 * 4 * 64, 128, rngs=rngs)
            self.dropout = nnx.Dropout(0.4)
            self.dense2 = nnx.Linear(128, 10, rngs=rngs)

        def __call__(self, images: jax.Array, rngs: nnx.Rngs) -> jax.Array:
            x = nnx.relu(self.norm1(self.conv1(images)))
            x = nnx.relu(self.norm2(self.conv2(x)))
            x = nnx.max_pool(x, window_shape=(2, 2), strides=(2, 2))
            x = nnx.relu(self.dense1(x.reshape(x.shape[0], -1)))
            return self.dense2(self.dropout(x, rngs=rngs))

    def loss_fn(
        model: CNN, rngs: nnx.Rngs, images: jax.Array, labels: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        logits = model(images, rngs)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), logits

    @nnx.jit
    def train_step(
        model: CNN,
        optimizer: nnx.Optimizer,
        metrics: nnx.MultiMetric,
        rngs: nnx.Rngs,
        images: jax.Array,
        labels: jax.Array,
    ) -> None:
        grad_fn = nnx.value_and_grad(loss_fn, has_aux=True)
        (loss, logits), grads = grad_fn(model, rngs, images, labels)
        optimizer.update(model, grads)
        metrics.update(loss=loss, logits=logits, labels=labels)

    rngs = nnx.Rngs(params=0, dropout=1)
    model = CNN(rngs=rngs)
    tx = optax.adamw(optax.cosine_decay_schedule(3e-3, 1000), weight_decay=1e-4)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    metrics = nnx.MultiMetric(accuracy=nnx.metrics.Accuracy(), loss=nnx.metrics.Average("loss"))

    def run() -> Any:
        train_step(model, optimizer, metrics, rngs, images, labels)
        return metrics.loss.total[...]

    return run
