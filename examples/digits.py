"""Train a convolutional network on scans of handwritten digits, through `treadle.jit`.

The data is scikit-learn's `load_digits`: 1797 real scans of 8x8 pixels, shipped inside the package.

    python examples/digits.py            # about a minute on two cores
    python examples/digits.py --short    # a quick check

Writes a loss curve and a confusion picture as PNG, and prints what a step costs through `treadle.jit`,
through a hand-written `jax.jit` and, where flax is installed, through flax's `nnx.jit`. The exit status
is 1 if the network did not learn enough.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import tqdm

import treadle as nnx
from digits_pictures import draw_confusion, draw_curves
from digits_timing import compare_steps

if TYPE_CHECKING:
    from collections.abc import Iterator

BATCH = 64


class CNN(nnx.Module):
    """Two convolutions with batch normalization, pooling, and two dense layers with dropout."""

    def __init__(self, *, rngs: nnx.Rngs) -> None:
        self.conv1 = nnx.Conv(1, 32, kernel_size=(3, 3), rngs=rngs)
        self.norm1 = nnx.BatchNorm(32, momentum=0.9, rngs=rngs)
        self.conv2 = nnx.Conv(32, 64, kernel_size=(3, 3), rngs=rngs)
        self.norm2 = nnx.BatchNorm(64, momentum=0.9, rngs=rngs)
        self.dense1 = nnx.Linear(4 * 4 * 64, 128, rngs=rngs)
        self.dropout = nnx.Dropout(0.4)
        self.dense2 = nnx.Linear(128, 10, rngs=rngs)

    def __call__(self, images: jax.Array, rngs: nnx.Rngs | None = None) -> jax.Array:
        x = nnx.relu(self.norm1(self.conv1(images)))
        x = nnx.relu(self.norm2(self.conv2(x)))
        x = nnx.max_pool(x, window_shape=(2, 2), strides=(2, 2))
        x = nnx.relu(self.dense1(x.reshape(x.shape[0], -1)))
        return self.dense2(self.dropout(x, rngs=rngs))


def loss_fn(
    model: CNN, rngs: nnx.Rngs | None, images: jax.Array, labels: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Mean cross-entropy, and the logits."""
    logits = model(images, rngs)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return losses.mean(), logits


def plain_train_step(
    model: CNN,
    optimizer: nnx.Optimizer,
    metrics: nnx.MultiMetric,
    rngs: nnx.Rngs,
    images: jax.Array,
    labels: jax.Array,
) -> None:
    """One step of training. Every object is passed by reference and changed in place."""
    (loss, logits), grads = nnx.value_and_grad(loss_fn, has_aux=True)(model, rngs, images, labels)
    optimizer.update(model, grads)
    metrics.update(loss=loss, logits=logits, labels=labels)


train_step = nnx.jit(plain_train_step)


@nnx.jit
def eval_step(
    model: CNN, metrics: nnx.MultiMetric, images: jax.Array, labels: jax.Array
) -> jax.Array:
    """Take a batch into the metrics; the predicted digits."""
    loss, logits = loss_fn(model, None, images, labels)
    metrics.update(loss=loss, logits=logits, labels=labels)
    return logits.argmax(axis=-1)


class Data(NamedTuple):
    """Images `(n, 8, 8, 1)` with values from 0 to 1, and their digits `(n,)`."""

    images: np.ndarray[Any, Any]
    labels: np.ndarray[Any, Any]

    def batches(self, rng: np.random.Generator) -> Iterator[Data]:
        """Shuffled batches of equal size; what is left over waits for another epoch."""
        order = rng.permutation(len(self.labels))
        for start in range(0, len(order) - BATCH + 1, BATCH):
            chosen = order[start : start + BATCH]
            yield Data(self.images[chosen], self.labels[chosen])


def load() -> tuple[Data, Data]:
    """Training data and test data, 80 to 20, each digit in both in equal shares."""
    images, labels = load_digits(return_X_y=True)
    images = (images / 16.0).astype(np.float32).reshape(-1, 8, 8, 1)
    train_x, test_x, train_y, test_y = train_test_split(
        images, labels.astype(np.int32), test_size=0.2, random_state=0, stratify=labels
    )
    return Data(train_x, train_y), Data(test_x, test_y)


class Trained(NamedTuple):
    """What came of the training."""

    accuracy: float
    predicted: np.ndarray[Any, Any]
    history: dict[str, list[float]]
    steps: int
    seconds: float


def make_metrics() -> nnx.MultiMetric:
    """Accuracy and mean loss."""
    return nnx.MultiMetric(accuracy=nnx.metrics.Accuracy(), loss=nnx.metrics.Average("loss"))


def make_transformation(steps: int) -> optax.GradientTransformation:
    """Adam with weight decay, the rate falling to zero over `steps`."""
    return optax.adamw(optax.cosine_decay_schedule(3e-3, steps), weight_decay=1e-4)


def train(train_data: Data, test_data: Data, epochs: int, seed: int) -> Trained:
    """Train a network from scratch and test it after each epoch."""
    rngs = nnx.Rngs(params=seed, dropout=seed + 1)
    shuffle = np.random.default_rng(seed)
    steps = epochs * (len(train_data.labels) // BATCH)
    model = CNN(rngs=rngs)
    optimizer = nnx.Optimizer(model, make_transformation(steps), wrt=nnx.Param)
    train_metrics, test_metrics = make_metrics(), make_metrics()
    history: dict[str, list[float]] = {name: [] for name in ("loss", "train", "test")}
    predicted = np.zeros_like(test_data.labels)

    started = time.perf_counter()
    with tqdm(total=steps, unit="step", mininterval=0.5) as bar:
        for epoch in range(1, epochs + 1):
            train_metrics.reset()
            model.train()
            for images, labels in train_data.batches(shuffle):
                train_step(model, optimizer, train_metrics, rngs, images, labels)
                bar.update()
            test_metrics.reset()
            model.eval()
            predicted = np.asarray(eval_step(model, test_metrics, *test_data))
            seen, tested = train_metrics.compute(), test_metrics.compute()
            history["loss"].append(float(seen["loss"]))
            history["train"].append(float(seen["accuracy"]))
            history["test"].append(float(tested["accuracy"]))
            bar.set_description(f"epoch {epoch}/{epochs}")
            bar.set_postfix(
                loss=f"{history['loss'][-1]:.4f}", test_accuracy=f"{history['test'][-1]:.2%}"
            )
    seconds = time.perf_counter() - started
    return Trained(history["test"][-1], predicted, history, steps, seconds)


def hand_written_step(images: jax.Array, labels: jax.Array) -> Any:
    """The same computation by hand: `jax.jit` on a tuple of arrays that the caller carries around."""
    objects = fresh_objects()
    graphdef, keys, rest = nnx.split(objects, nnx.RngKey, ...)
    key_leaves, key_tree = jax.tree.flatten(keys)
    leaves, tree = jax.tree.flatten(rest)

    @jax.jit
    def step(key_leaves: Any, leaves: Any, images: jax.Array, labels: jax.Array) -> Any:
        merged = nnx.merge(
            graphdef, jax.tree.unflatten(key_tree, key_leaves), jax.tree.unflatten(tree, leaves)
        )
        plain_train_step(*merged, images, labels)
        return tuple(jax.tree.leaves(nnx.split(merged, nnx.RngKey, ...)[2]))

    carried = tuple(leaves)

    def run() -> Any:
        nonlocal carried
        carried = step(tuple(key_leaves), carried, images, labels)
        return carried

    return run


def treadle_step(images: jax.Array, labels: jax.Array) -> Any:
    """A step through `treadle.jit`."""
    model, optimizer, metrics, rngs = fresh_objects()

    def run() -> Any:
        train_step(model, optimizer, metrics, rngs, images, labels)
        return metrics.loss.total.value

    return run


def fresh_objects() -> tuple[CNN, nnx.Optimizer, nnx.MultiMetric, nnx.Rngs]:
    """What a training step takes, ready to be trained."""
    rngs = nnx.Rngs(params=0, dropout=1)
    model = CNN(rngs=rngs)
    optimizer = nnx.Optimizer(model, make_transformation(1000), wrt=nnx.Param)
    return model, optimizer, make_metrics(), rngs


def main() -> int:
    """Train, draw and time; the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("demo-output"), help="for the pictures")
    parser.add_argument("--epochs", type=int, help="passes over the training data")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--short", action="store_true", help="train and time less, expect less")
    options = parser.parse_args()
    epochs = options.epochs or (4 if options.short else 15)
    bar = 0.90 if options.short else 0.97

    train_data, test_data = load()
    print(f"{len(train_data.labels)} scans to learn from, {len(test_data.labels)} to test on")
    trained = train(train_data, test_data, epochs, options.seed)
    print(f"{trained.steps} steps in {trained.seconds:.1f} s, compilation included")

    options.output.mkdir(parents=True, exist_ok=True)
    for path in (
        draw_curves(options.output / "digits-curves.png", trained.history),
        draw_confusion(options.output / "digits-confusion.png", test_data, trained.predicted),
    ):
        print(f"wrote {path}")

    batch = next(train_data.batches(np.random.default_rng(0)))
    images, labels = jnp.asarray(batch.images), jnp.asarray(batch.labels)
    steps = {"treadle.jit": treadle_step, "hand-written jax.jit": hand_written_step}
    print()
    print(compare_steps(steps, images, labels, rounds=40 if options.short else 100))

    print()
    enough = trained.accuracy >= bar
    verdict = "which is enough" if enough else "which is NOT enough"
    print(f"test accuracy {trained.accuracy:.2%}, {verdict} ({bar:.0%} expected)")
    return 0 if enough else 1


if __name__ == "__main__":
    sys.exit(main())
