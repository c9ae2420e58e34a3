"""Train a small transformer on the sources of Python's standard library, and let it write.

    python examples/text_transformer.py            # a few minutes on two cores
    python examples/text_transformer.py --short    # a quick check

The model reads characters. It is trained through `treadle.jit` with the whole window at once, and then
writes one character a call, also through `treadle.jit`, with the keys and values of what it has read so far
kept in `Cache` Variables of the model. The exit status is 1 if it did not learn enough.
"""

from __future__ import annotations

import argparse
import sys
import sysconfig
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

import treadle as nnx

BATCH = 32
WINDOW = 64
SOURCES = (
    "argparse",
    "ast",
    "dataclasses",
    "inspect",
    "optparse",
    "statistics",
    "subprocess",
    "typing",
)
UNSEEN = ("textwrap", "shutil", "heapq")

# Character codes: newline and the printable part of ASCII.
ALPHABET = "\n" + "".join(map(chr, range(32, 127)))
CODES = {character: code for code, character in enumerate(ALPHABET)}


class Block(nnx.Module):
    """Attention and a dense network, each added to what came in."""

    def __init__(self, width: int, heads: int, rate: float, *, rngs: nnx.Rngs) -> None:
        self.norm1 = nnx.RMSNorm(width, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(
            heads, width, decode=False, use_bias=False, rngs=rngs
        )
        self.norm2 = nnx.RMSNorm(width, rngs=rngs)
        self.up = nnx.Linear(width, 4 * width, rngs=rngs)
        self.down = nnx.Linear(4 * width, width, rngs=rngs)
        self.dropout = nnx.Dropout(rate, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.dropout(self.attention(self.norm1(x), is_causal=True))
        return x + self.dropout(self.down(nnx.gelu(self.up(self.norm2(x)))))


class Transformer(nnx.Module):
    """A decoder whose embedding of characters is also its output layer."""

    def __init__(
        self,
        width: int = 128,
        heads: int = 4,
        depth: int = 3,
        rate: float = 0.1,
        *,
        rngs: nnx.Rngs,
    ) -> None:
        small = nnx.initializers.normal(0.02)
        self.characters = nnx.Embed(len(ALPHABET), width, embedding_init=small, rngs=rngs)
        self.positions = nnx.Embed(WINDOW, width, embedding_init=small, rngs=rngs)
        self.blocks = nnx.List([Block(width, heads, rate, rngs=rngs) for _ in range(depth)])
        self.norm = nnx.RMSNorm(width, rngs=rngs)
        self.width = width

    def __call__(self, codes: jax.Array, start: jax.Array | int = 0) -> jax.Array:
        """Logits of the next character at each position; `start` is the position of the first."""
        x = self.characters(codes) + self.positions(start + jnp.arange(codes.shape[-1]))
        for block in self.blocks:
            x = block(x)
        return self.characters.attend(self.norm(x))

    def start_writing(self) -> None:
        """Read one character a call from now on, starting with nothing."""
        self.eval(decode=True)
        for block in self.blocks:
            block.attention.init_cache((1, WINDOW, self.width))


def loss_fn(model: Transformer, codes: jax.Array) -> jax.Array:
    """Mean cross-entropy of predicting each character from those before it, in nats."""
    logits = model(codes[:, :-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits, codes[:, 1:]).mean()


@nnx.jit
def train_step(
    model: Transformer, optimizer: nnx.Optimizer, metrics: nnx.MultiMetric, codes: jax.Array
) -> None:
    """One step of training. Every object is passed by reference and changed in place."""
    loss, grads = nnx.value_and_grad(loss_fn)(model, codes)
    optimizer.update(model, grads)
    metrics.update(loss=loss)


@nnx.jit
def eval_step(model: Transformer, codes: jax.Array) -> jax.Array:
    """The loss on a batch."""
    return loss_fn(model, codes)


@nnx.jit
def read_step(
    model: Transformer, rngs: nnx.Rngs, code: jax.Array, position: jax.Array, heat: jax.Array
) -> jax.Array:
    """Read one character and draw the next; the caches of the model are updated in place."""
    logits = model(code[None, None], position)[0, 0]
    return jax.random.categorical(rngs.draw(), logits / heat)


def read_sources(names: tuple[str, ...]) -> np.ndarray[Any, Any]:
    """The sources of standard modules as character codes, one after the other."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    text = []
    for name in names:
        # Some modules are files in one version of Python and packages in another.
        for path in (folder / f"{name}.py", folder / name / "__init__.py"):
            if path.is_file():
                text.append(path.read_text(encoding="utf-8"))
    codes = [CODES[character] for character in "\n\n".join(text) if character in CODES]
    return np.asarray(codes, np.int32)


def draw_windows(
    codes: np.ndarray[Any, Any], rng: np.random.Generator, count: int
) -> np.ndarray[Any, Any]:
    """Random stretches of text, `(count, WINDOW + 1)`."""
    starts = rng.integers(0, len(codes) - WINDOW - 1, count)
    return codes[starts[:, None] + np.arange(WINDOW + 1)]


def make_transformation(steps: int) -> optax.GradientTransformation:
    """Adam with clipped gradients, warm-up and decay."""
    schedule = optax.warmup_cosine_decay_schedule(0.0, 3e-3, min(50, steps // 4), steps, 1e-4)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=0.01))


def train(model: Transformer, steps: int, seed: int) -> float:
    """Train the model; the loss on modules it has not seen."""
    seen, unseen = read_sources(SOURCES), read_sources(UNSEEN)
    print(f"{len(seen):,} characters to learn from, {len(unseen):,} to test on")
    rng = np.random.default_rng(seed)
    test = draw_windows(unseen, rng, 4 * BATCH)
    optimizer = nnx.Optimizer(model, make_transformation(steps), wrt=nnx.Param)
    metrics = nnx.MultiMetric(loss=nnx.metrics.Average("loss"))
    every = max(1, steps // 10)
    with tqdm(total=steps, unit="step", mininterval=0.5) as bar:
        for step in range(1, steps + 1):
            model.train()
            train_step(model, optimizer, metrics, draw_windows(seen, rng, BATCH))
            bar.update()
            if step % every == 0:
                model.eval()
                test_loss = float(eval_step(model, test))
                bar.set_postfix(
                    loss=f"{float(metrics.compute()['loss']):.3f}", test_loss=f"{test_loss:.3f}"
                )
                metrics.reset()
    model.eval()
    return float(eval_step(model, test))


def write(model: Transformer, prompt: str, length: int, heat: float, seed: int) -> str:
    """Continue `prompt` by `length` characters."""
    rngs = nnx.Rngs(draw=seed)
    text = [CODES[character] for character in prompt]
    goal = len(text) + length
    unread, position = text, 0
    model.start_writing()
    while len(text) < goal:
        if position + len(unread) > WINDOW:
            # The window is full: begin anew with the later half of it.
            model.start_writing()
            unread, position = text[-WINDOW // 2 :], 0
        drawn: Any = None
        for code in unread:
            drawn = read_step(model, rngs, jnp.int32(code), jnp.int32(position), jnp.float32(heat))
            position += 1
        text.append(int(drawn))
        unread = text[-1:]
    return "".join(ALPHABET[code] for code in text)


def main() -> int:
    """Train and write; the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, help="training steps")
    parser.add_argument("--length", type=int, default=400, help="characters to write")
    parser.add_argument("--prompt", default="def ", help="what to continue")
    parser.add_argument("--heat", type=float, default=0.7, help="temperature of the draws")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--short", action="store_true", help="a smaller model, less training")
    options = parser.parse_args()
    steps = options.steps or (120 if options.short else 500)
    # What guessing by the frequency of characters alone gets is about 3.2.
    bar = 3.0 if options.short else 2.3

    unknown = sorted(set(options.prompt) - set(ALPHABET))
    if unknown or not options.prompt:
        parser.error(f"the prompt must be printable ASCII, and not empty; it has {unknown}")
    size: dict[str, Any] = {"width": 64, "heads": 2, "depth": 2} if options.short else {}
    model = Transformer(**size, rngs=nnx.Rngs(options.seed))
    count = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    print(f"{count:,} parameters")
    loss = train(model, steps, options.seed)

    length = 60 if options.short else options.length
    started = time.perf_counter()
    text = write(model, options.prompt, length, options.heat, options.seed)
    seconds = time.perf_counter() - started
    print(f"\n{text}\n")
    print(f"{length / seconds:,.0f} characters a second, compilation included")
    enough = loss < bar
    verdict = "which is enough" if enough else "which is NOT enough"
    print(f"test loss {loss:.3f} nats per character, {verdict} (below {bar} expected)")
    return 0 if enough else 1


if __name__ == "__main__":
    sys.exit(main())
