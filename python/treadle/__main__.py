"""`python -m treadle`: versions, how the extension was built, what jax runs on, and a self-check."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

import treadle
from treadle import _core

COMPANIONS = ("numpy", "optax", "flax")


def facts() -> Iterator[tuple[str, str]]:
    """What a bug report should say about this installation, as (name, value)."""
    yield "treadle", f"{treadle.__version__} in {Path(treadle.__file__).parent}"
    yield "extension", f"{Path(_core.__file__).name}, {_core.build_info()}"
    yield "python", f"{platform.python_implementation()} {platform.python_version()}"
    yield "platform", platform.platform()
    for name in ("jax", "jaxlib", *COMPANIONS):
        yield name, _installed(name)
    yield "devices", ", ".join(f"{d.platform}:{d.id} ({d.device_kind})" for d in jax.devices())


def _installed(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


class _Model(treadle.Module):
    def __init__(self) -> None:
        self.kernel = treadle.Param(jax.numpy.asarray([[1.0, 2.0], [3.0, 4.0]]))
        self.calls = treadle.Variable(jax.numpy.asarray(0))

    def __call__(self, x: jax.Array) -> jax.Array:
        self.calls.value = self.calls.value + 1
        return x @ self.kernel.value


@treadle.jit
def _step(model: _Model, x: jax.Array) -> jax.Array:
    def loss_fn(model: _Model) -> jax.Array:
        return (model(x) ** 2).sum() / 2

    loss, grads = treadle.value_and_grad(loss_fn)(model)
    model.kernel.value = model.kernel.value - 0.1 * grads["kernel"].value
    return loss


def self_check() -> None:
    """Train a tiny model for two steps by reference, and compare with numpy.

    Raises:
        RuntimeError: if anything differs.
    """
    model, x = _Model(), np.asarray([[1.0, -1.0]], dtype=np.float32)
    kernel, cell = np.asarray(model.kernel.value), model.kernel
    for calls in (1, 2):
        loss = _step(model, jax.numpy.asarray(x))
        y = x @ kernel
        kernel = kernel - 0.1 * x.T @ y
        found = {
            "loss": np.allclose(loss, (y**2).sum() / 2),
            "parameter": np.allclose(model.kernel.value, kernel),
            "state": int(model.calls.value) == calls,
            "identity": model.kernel is cell,
        }
        wrong = [name for name, right in found.items() if not right]
        if wrong:
            raise RuntimeError(f"self-check, step {calls}: wrong {', '.join(wrong)}")


def main() -> int:
    """Print the facts, run the self-check, and return the exit status."""
    for name, value in facts():
        print(f"{name:<10} {value}")
    try:
        self_check()
    except Exception as error:
        print(f"self-check failed: {type(error).__name__}: {error}")
        return 1
    print("self-check passed: two jitted training steps, by reference, agree with numpy")
    return 0


if __name__ == "__main__":
    sys.exit(main())
