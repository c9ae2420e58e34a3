"""The GPU benchmark, where it runs without a GPU too: every case trains alike, and what is too slow is left out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
import packed
import peers
from tests.bench.conftest import BENCH


@pytest.mark.parametrize("name", packed.MAKERS)
def test_packed_steps_train_as_the_flat_one(name: str) -> None:
    model = models.mlp(1, width=4)
    flat, case = peers.hand_flat(model), packed.MAKERS[name](model)
    start = [np.asarray(value) for value in case.values()]
    for _ in range(4):
        np.testing.assert_allclose(case.step(), flat.step(), rtol=1e-5)
    for before, value, expected in zip(start, case.values(), flat.values(), strict=True):
        assert np.max(np.abs(value - before)) > 1e-3
        np.testing.assert_allclose(value, expected, atol=1e-5)


@pytest.mark.parametrize("layout_type", [packed.Layout, packed.ByteLayout])
def test_what_is_packed_is_unpacked_as_it_was(layout_type: type[packed.Layout]) -> None:
    leaves = [
        jnp.arange(6, dtype=jnp.float32).reshape(2, 3),
        jnp.array(7, jnp.uint32),
        jnp.array([1.5, -2.5], jnp.float32),
        jnp.array([[-1]], jnp.int32),
    ]
    layout = layout_type.of(leaves)
    found = layout.unpack(layout.pack(leaves))
    assert [leaf.dtype for leaf in found] == [leaf.dtype for leaf in leaves]
    jax.tree.map(np.testing.assert_array_equal, found, leaves)


def run(tmp_path: Path, *arguments: str) -> tuple[int, list[dict[str, Any]], str]:
    command = [sys.executable, str(BENCH / "gpu.py"), "--leaves", "14", "--seconds", "0.1"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path), *arguments],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        timeout=300,
    )
    results = json.loads((tmp_path / "results.json").read_text())
    return done.returncode, results["rows"], (tmp_path / "report.md").read_text()


@pytest.mark.slow
def test_rows_have_every_case_and_the_report_names_them(tmp_path: Path) -> None:
    code, (row, pieces), report = run(tmp_path, "--cases", "treadle", "vectors")
    assert code == 0
    assert list(row["cases"]) == [
        peers.HAND_FLAT,
        peers.TREADLE,
        peers.TREADLE_DONATED,
        packed.VECTORS,
        packed.VECTORS_DONATED,
    ]
    for case in [*row["cases"].values(), *pieces["cases"].values()]:
        assert 0 < case["host"]["us"] <= case["waited"]["us"]
        assert case["loop"]["us"] > 0
    for name, case in row["cases"].items():
        assert case["first_call_s"] > 0
        assert case["difference"] < 1e-5
        assert f"| {name} |" in report


@pytest.mark.slow
def test_a_base_that_takes_too_long_is_reported(tmp_path: Path) -> None:
    code, (row,), report = run(tmp_path, "--limit", "0.001", "--cases", "treadle")
    assert code == 1
    assert row["error"] == "jax.jit, flat took more than 0.001 s"
    assert row["error"] in report
