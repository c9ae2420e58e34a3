"""The models that every peer runs: nested dicts of arrays, and functions over anything with those attributes.

A function takes `model`, whose attributes and list items follow the nested dict, and `get`, which reads the
array out of a leaf: each peer passes its own objects, so that all of them run one and the same computation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Tree = dict[str, Any]
Get = Callable[[Any], Any]


@dataclass(frozen=True)
class TrainModel:
    """A model trained with Adam: parameters and a loss."""

    name: str
    params: Callable[[], Tree]
    loss: Callable[[Any, Get, Any, Any], Any]
    batch: Callable[[], tuple[np.ndarray, np.ndarray]]


def _random(seed: int) -> Callable[..., np.ndarray]:
    rng = np.random.default_rng(seed)
    return lambda *shape: (rng.standard_normal(shape) * 0.3).astype(np.float32)


def _norm(block: Any, get: Get, x: Any) -> Any:
    x = (x - x.mean(-1, keepdims=True)) * jax.lax.rsqrt(x.var(-1, keepdims=True) + 1e-6)
    return x * get(block.scale) + get(block.bias)


def _dense(block: Any, get: Get, x: Any) -> Any:
    return x @ get(block.kernel) + get(block.bias)


# -- narrow MLP: four parameters a block, twelve leaves with Adam --------------------------------------


def mlp(depth: int, width: int = 8, batch: int = 8) -> TrainModel:
    def params() -> Tree:
        random = _random(0)
        return {
            "blocks": [
                {
                    "dense": {"kernel": random(width, width), "bias": random(width)},
                    "norm": {"scale": random(width) + 1, "bias": random(width)},
                }
                for _ in range(depth)
            ]
        }

    def loss(model: Any, get: Get, x: Any, y: Any) -> Any:
        for block in model.blocks:
            # No residual: XLA would fuse the whole sum into every block, and take minutes to compile.
            x = jnp.tanh(_dense(block.dense, get, _norm(block.norm, get, x)))
        return jnp.mean((x - y) ** 2)

    def data() -> tuple[np.ndarray, np.ndarray]:
        random = _random(1)
        return random(batch, width), random(batch, width)

    return TrainModel(f"MLP of {depth} blocks", params, loss, data)


# -- transformer ---------------------------------------------------------------------------------------


def transformer(depth: int, width: int = 16, length: int = 8, heads: int = 2) -> TrainModel:
    def dense(random: Any, n_in: int, n_out: int) -> Tree:
        return {"kernel": random(n_in, n_out), "bias": random(n_out)}

    def params() -> Tree:
        random = _random(2)
        return {
            "embed": {"kernel": random(width, width), "bias": random(width)},
            "layers": [
                {
                    "attention": {name: dense(random, width, width) for name in "qkvo"},
                    "norm1": {"scale": random(width) + 1, "bias": random(width)},
                    "norm2": {"scale": random(width) + 1, "bias": random(width)},
                    "mlp": {
                        "up": dense(random, width, 2 * width),
                        "down": dense(random, 2 * width, width),
                    },
                }
                for _ in range(depth)
            ],
        }

    def attention(block: Any, get: Get, x: Any) -> Any:
        def split(h: Any) -> Any:
            return h.reshape(*h.shape[:-1], heads, -1)

        q, k, v = (split(_dense(getattr(block, name), get, x)) for name in "qkv")
        weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k) / (width / heads) ** 0.5)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(x.shape)
        return _dense(block.o, get, mixed)

    def loss(model: Any, get: Get, x: Any, y: Any) -> Any:
        x = _dense(model.embed, get, x)
        for layer in model.layers:
            x = x + attention(layer.attention, get, _norm(layer.norm1, get, x))
            hidden = jax.nn.gelu(_dense(layer.mlp.up, get, _norm(layer.norm2, get, x)))
            x = x + _dense(layer.mlp.down, get, hidden)
        return jnp.mean((x - y) ** 2)

    def data() -> tuple[np.ndarray, np.ndarray]:
        random = _random(3)
        return random(2, length, width), random(2, length, width)

    return TrainModel(f"transformer of {depth} layers", params, loss, data)
