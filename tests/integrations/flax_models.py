"""Models as users of flax.nnx write them, from flax's own layers. Widths are small, so that they compile quickly."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

# flax 0.11 walks plain lists; from 0.12 on a list of modules is an nnx.List.
listed = getattr(nnx, "List", list)


@dataclass(frozen=True)
class Training:
    """Objects to train, and how.

    Attributes:
        make: fresh objects, the same each time.
        step: one training step; takes the objects and a batch, changes the objects and returns the loss.
        batch: arguments after the objects, the same each time.
    """

    make: Callable[[], tuple[Any, ...]]
    step: Callable[..., Any]
    batch: Callable[[], tuple[Any, ...]]


def _numbers(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def _train(optimizer: Any, loss: Callable[..., Any], model: Any, *others: Any) -> Any:
    value, grads = nnx.value_and_grad(loss)(model, *others)
    optimizer.update(model, grads)
    return value


def _adam(model: Any, rate: float = 1e-3) -> Any:
    return nnx.Optimizer(model, optax.adam(rate), wrt=nnx.Param)


# -- images --------------------------------------------------------------------------------------------


class ResidualBlock(nnx.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, rngs: nnx.Rngs) -> None:
        self.conv1 = nnx.Conv(inputs, outputs, (3, 3), strides=stride, use_bias=False, rngs=rngs)
        self.norm1 = nnx.BatchNorm(outputs, rngs=rngs)
        self.conv2 = nnx.Conv(outputs, outputs, (3, 3), use_bias=False, rngs=rngs)
        self.norm2 = nnx.BatchNorm(outputs, rngs=rngs)
        changes = stride != 1 or inputs != outputs
        self.shortcut = (
            nnx.Conv(inputs, outputs, (1, 1), strides=stride, use_bias=False, rngs=rngs)
            if changes
            else None
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        y = nnx.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return nnx.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class ResNet18(nnx.Module):
    def __init__(self, width: int, classes: int, rngs: nnx.Rngs) -> None:
        self.stem = nnx.Conv(3, width, (3, 3), use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(width, rngs=rngs)
        widths = [width, width, 2 * width, 2 * width, 4 * width, 4 * width, 8 * width, 8 * width]
        blocks = []
        for before, after in zip([width, *widths], widths, strict=False):
            blocks.append(ResidualBlock(before, after, 1 if before == after else 2, rngs))
        self.blocks = listed(blocks)
        self.head = nnx.Linear(8 * width, classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.relu(self.norm(self.stem(x)))
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((1, 2)))


def resnet(width: int = 2, size: int = 8) -> Training:
    def make() -> tuple[Any, ...]:
        model = ResNet18(width, 5, nnx.Rngs(0))
        return model, _adam(model)

    def step(model: Any, optimizer: Any, images: jax.Array, labels: jax.Array) -> Any:
        def loss(model: Any) -> Any:
            logits = model(images)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        return _train(optimizer, loss, model)

    return Training(make, step, lambda: (_numbers(0, 4, size, size, 3), jnp.array([0, 1, 2, 3])))


# -- text ----------------------------------------------------------------------------------------------


class Block(nnx.Module):
    def __init__(self, width: int, heads: int, rngs: nnx.Rngs) -> None:
        self.norm1 = nnx.LayerNorm(width, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(
            heads, width, dropout_rate=0.1, decode=False, rngs=rngs
        )
        self.norm2 = nnx.LayerNorm(width, rngs=rngs)
        self.up = nnx.Linear(width, 2 * width, rngs=rngs)
        self.down = nnx.Linear(2 * width, width, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)

    def __call__(self, x: jax.Array, mask: Any) -> jax.Array:
        x = x + self.attention(self.norm1(x), mask=mask)
        return x + self.dropout(self.down(nnx.gelu(self.up(self.norm2(x)))))


class Decoder(nnx.Module):
    """A decoder-only transformer whose output projection is its embedding table."""

    def __init__(self, vocabulary: int, width: int, depth: int, rngs: nnx.Rngs) -> None:
        self.embed = nnx.Embed(vocabulary, width, rngs=rngs)
        self.output = self.embed
        self.blocks = listed([Block(width, 2, rngs) for _ in range(depth)])
        self.norm = nnx.LayerNorm(width, rngs=rngs)

    def __call__(self, tokens: jax.Array, mask: Any = None) -> jax.Array:
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x, mask)
        return self.output.attend(self.norm(x))


def transformer(width: int = 8, depth: int = 2, vocabulary: int = 11, length: int = 6) -> Training:
    def make() -> tuple[Any, ...]:
        model = Decoder(vocabulary, width, depth, nnx.Rngs(0, dropout=1))
        model.train()
        return model, _adam(model)

    def step(model: Any, optimizer: Any, tokens: jax.Array) -> Any:
        def loss(model: Any) -> Any:
            logits = model(tokens[:, :-1], nnx.make_causal_mask(tokens[:, :-1]))
            wanted = tokens[:, 1:]
            return optax.softmax_cross_entropy_with_integer_labels(logits, wanted).mean()

        return _train(optimizer, loss, model)

    def batch() -> tuple[Any, ...]:
        tokens = np.random.default_rng(0).integers(0, vocabulary, (3, length))
        return (jnp.asarray(tokens, jnp.int32),)

    return Training(make, step, batch)


def decode(model: Any, jit: Callable[[Any], Any], first: int, count: int) -> list[int]:
    """Tokens by greedy decoding, each step through `jit` with a cache of keys and values."""
    model.eval(decode=True)
    for block in model.blocks:
        block.attention.init_cache((1, count, model.embed.features))

    def step(model: Any, token: jax.Array) -> Any:
        return model(token).argmax(-1).astype(jnp.int32)

    compiled = jit(step)
    token, tokens = jnp.array([[first]], jnp.int32), []
    for _ in range(count):
        token = compiled(model, token)
        tokens.append(int(token[0, 0]))
    return tokens


# -- two networks, two optimizers ----------------------------------------------------------------------


class Perceptron(nnx.Module):
    def __init__(self, sizes: list[int], rngs: nnx.Rngs) -> None:
        self.layers = listed([nnx.Linear(a, b, rngs=rngs) for a, b in itertools.pairwise(sizes)])
        self.norm = nnx.BatchNorm(sizes[1], rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.leaky_relu(self.norm(self.layers[0](x)))
        for layer in self.layers[1:-1]:
            x = nnx.leaky_relu(layer(x))
        return self.layers[-1](x)


def gan(width: int = 8) -> Training:
    def make() -> tuple[Any, ...]:
        rngs = nnx.Rngs(0, noise=1)
        generator, critic = Perceptron([4, width, width, 2], rngs), Perceptron([2, width, 1], rngs)
        return generator, critic, _adam(generator), _adam(critic), nnx.Rngs(noise=2)

    def step(generator: Any, critic: Any, tune_g: Any, tune_c: Any, rngs: Any, real: Any) -> Any:
        noise = jax.random.normal(rngs.noise(), (real.shape[0], 4))

        def critic_loss(critic: Any, generator: Any) -> Any:
            fake = jax.lax.stop_gradient(generator(noise))
            return nnx.softplus(-critic(real)).mean() + nnx.softplus(critic(fake)).mean()

        def generator_loss(generator: Any, critic: Any) -> Any:
            return nnx.softplus(-critic(generator(noise))).mean()

        first = _train(tune_c, critic_loss, critic, generator)
        return first, _train(tune_g, generator_loss, generator, critic)

    return Training(make, step, lambda: (_numbers(0, 16, 2),))


# -- recurrence ----------------------------------------------------------------------------------------


class Recurrent(nnx.Module):
    def __init__(self, width: int, rngs: nnx.Rngs) -> None:
        self.cells = nnx.RNN(nnx.LSTMCell(3, width, rngs=rngs), rngs=rngs)
        self.head = nnx.Linear(width, 1, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(self.cells(x))


def recurrent(width: int = 8) -> Training:
    def make() -> tuple[Any, ...]:
        model = Recurrent(width, nnx.Rngs(0))
        return model, _adam(model)

    def step(model: Any, optimizer: Any, x: jax.Array) -> Any:
        return _train(optimizer, lambda model: ((model(x) - x[..., :1]) ** 2).mean(), model)

    return Training(make, step, lambda: (_numbers(0, 4, 7, 3),))


# -- many small modules --------------------------------------------------------------------------------


class Sense(nnx.Module):
    def __init__(self, width: int, rngs: nnx.Rngs) -> None:
        self.linear = nnx.Linear(width, width, rngs=rngs)
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.seen = nnx.BatchStat(jnp.zeros(()))

    def __call__(self, x: jax.Array) -> jax.Array:
        add(self.seen, 1.0)
        return nnx.tanh(self.norm(self.linear(x)))


class Agent(nnx.Module):
    """An actor-critic over many observations, each with an encoder of its own."""

    def __init__(self, senses: int, width: int, actions: int, rngs: nnx.Rngs) -> None:
        self.senses = listed([Sense(width, rngs) for _ in range(senses)])
        self.actor = nnx.Linear(width, actions, rngs=rngs)
        self.critic = nnx.Linear(width, 1, rngs=rngs)

    def __call__(self, observations: jax.Array) -> tuple[jax.Array, jax.Array]:
        found = [sense(observations[:, i]) for i, sense in enumerate(self.senses)]
        mixed = sum(found) / len(found)
        return self.actor(mixed), self.critic(mixed)[:, 0]


def actor_critic(senses: int = 12, width: int = 3) -> Training:
    def make() -> tuple[Any, ...]:
        agent = Agent(senses, width, 4, nnx.Rngs(0))
        return agent, _adam(agent, 1e-2)

    def step(agent: Any, optimizer: Any, seen: Any, actions: Any, returns: Any) -> Any:
        def loss(agent: Any) -> Any:
            logits, value = agent(seen)
            advantage = jax.lax.stop_gradient(returns - value)
            chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), actions[:, None], 1)[:, 0]
            return ((returns - value) ** 2).mean() - (chosen * advantage).mean()

        return _train(optimizer, loss, agent)

    def batch() -> tuple[Any, ...]:
        return _numbers(0, 5, senses, width), jnp.array([0, 1, 2, 3, 0]), _numbers(1, 5)

    return Training(make, step, batch)


def add(variable: Any, amount: Any) -> None:
    """Add to a Variable's value, in the way of every flax that is supported."""
    if hasattr(variable, "set_value"):
        variable.set_value(variable.get_value() + amount)
    else:
        variable.value = variable.value + amount


TRAININGS: dict[str, Callable[[], Training]] = {
    "ResNet-18": resnet,
    "transformer": transformer,
    "GAN": gan,
    "recurrent": recurrent,
    "actor-critic": actor_critic,
}
