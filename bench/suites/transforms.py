"""Each transform called eagerly on a small model, against the JAX transform on a nested dict."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

import models
import peers
import treadle
from harness.timing import Effort, Row, interleave

_STEPS = 4


def rows(effort: Effort) -> Iterator[Row]:
    model = models.mlp(5)
    x, y = map(jnp.asarray, model.batch())
    params = peers.as_arrays(model.params())
    ours = peers.TreadleModule(params)
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf] * _STEPS), params)
    stacked_ours = peers.TreadleModule(stacked)
    xs = jnp.stack([x] * _STEPS)

    def hand_loss(p: Any, x: Any) -> Any:
        return model.loss(peers.view(p), peers.identity, x, y)

    def our_loss(m: Any, x: Any) -> Any:
        return model.loss(m, peers.treadle_get, x, y)

    def hand_body(x: Any, p: Any) -> Any:
        return x + hand_loss(p, x), None

    def our_body(m: Any, x: Any) -> Any:
        return x + our_loss(m, x), None

    cases: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
        "grad": (lambda: hand_grad(params, x), lambda: our_grad(ours, x)),
        "value_and_grad": (lambda: hand_value(params, x), lambda: our_value(ours, x)),
        "vmap over stacked models": (
            lambda: hand_vmap(stacked, xs),
            lambda: our_vmap(stacked_ours, xs),
        ),
        "scan over stacked layers": (
            lambda: jax.lax.scan(hand_body, x, stacked),
            lambda: our_scan(stacked_ours, x),
        ),
        "remat": (lambda: hand_remat(params, x), lambda: our_remat(ours, x)),
        "jit of value_and_grad": (lambda: hand_jit(params, x), lambda: our_jit(ours, x)),
        "cond": (
            lambda: jax.lax.cond(True, hand_loss, hand_loss, params, x),
            lambda: treadle.cond(True, our_loss, our_loss, ours, x),
        ),
        "eval_shape": (
            lambda: jax.eval_shape(hand_loss, params, x).shape,
            lambda: treadle.eval_shape(our_loss, ours, x).shape,
        ),
    }
    hand_grad, our_grad = jax.grad(hand_loss), treadle.grad(our_loss)
    hand_value, our_value = jax.value_and_grad(hand_loss), treadle.value_and_grad(our_loss)
    hand_vmap, our_vmap = jax.vmap(hand_loss), treadle.vmap(our_loss)
    hand_remat, our_remat = jax.checkpoint(hand_loss), treadle.remat(our_loss)
    hand_jit, our_jit = (
        jax.jit(jax.value_and_grad(hand_loss)),
        treadle.jit(treadle.value_and_grad(our_loss)),
    )
    our_scan = treadle.scan(our_body, carry_argnum=1)

    for name, (hand, treadle_case) in cases.items():
        row = interleave(
            f"eager {name}", {"jax": hand, "treadle": treadle_case}, effort, base="jax", leaves=20
        )
        row.notes.append("most of an eager call is JAX running or tracing one operation at a time")
        yield row
