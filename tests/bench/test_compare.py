"""`make bench-compare` names what got slower beyond noise, and fails only for Treadle's own cases."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.bench.conftest import BENCH
from tests.bench.results import case, results, row, training


def compare(folder: Path, old: dict[str, Any], new: dict[str, Any]) -> tuple[int, str]:
    paths = []
    for name, found in (("old", old), ("new", new)):
        paths.append(folder / f"{name}.json")
        paths[-1].write_text(json.dumps(found))
    done = subprocess.run(
        [sys.executable, str(BENCH / "compare.py"), *map(str, paths)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.stderr
    return done.returncode, done.stdout


OLD = results(training=[training(treadle=1.02, flax=5.0)])


def test_equal_results_differ_in_nothing(tmp_path: Path) -> None:
    status, said = compare(tmp_path, OLD, OLD)
    assert status == 0
    assert "slower beyond noise: 0" in said
    assert "faster beyond noise: 0" in said
    assert "compared: 2 cases" in said


def test_a_slower_case_of_treadle_is_named_and_fails(tmp_path: Path) -> None:
    status, said = compare(tmp_path, OLD, results(training=[training(treadle=1.30, flax=5.0)]))
    assert status == 1
    assert "slower beyond noise: 1" in said
    assert "1.27x     1.020 ->    1.300  treadle.jit: a training step" in said


@pytest.mark.parametrize("flax", [4.0, 6.5])
def test_a_peer_that_changed_is_named_and_does_not_fail(tmp_path: Path, flax: float) -> None:
    status, said = compare(tmp_path, OLD, results(training=[training(treadle=1.02, flax=flax)]))
    assert status == 0
    assert f"{'slower' if flax > 5 else 'faster'} beyond noise: 1" in said
    assert "flax nnx.jit, graph updates: a training step" in said


@pytest.mark.parametrize(
    ("before", "after"),
    [
        # Quartiles that overlap; medians too close for the threshold.
        (case(1.02, spread=0.2), case(1.30, spread=0.2)),
        (case(1.02, spread=0.0), case(1.05, spread=0.0)),
        # Measured once: no quartiles at all.
        ({"ratio": 1.0, "us": 1.0}, {"ratio": 1.2, "us": 1.0}),
    ],
)
def test_noise_is_no_change(tmp_path: Path, before: dict[str, Any], after: dict[str, Any]) -> None:
    old, new = (
        results(training=[row("a row", "base", {"base": case(1.0), "treadle.jit": treadle})])
        for treadle in (before, after)
    )
    status, said = compare(tmp_path, old, new)
    assert status == 0
    assert "slower beyond noise: 0" in said


def test_rows_that_are_gone_are_named(tmp_path: Path) -> None:
    old = results(training=[training(1.0, 5.0)], tail=[row("a tail", "base", {"base": case(1.0)})])
    status, said = compare(tmp_path, old, OLD)
    assert status == 0
    assert "only in the old results: a tail" in said


def test_results_with_nothing_in_common_are_no_success(tmp_path: Path) -> None:
    status, said = compare(tmp_path, OLD, results(tail=[]))
    assert status == 2
    assert "compared: 0 cases" in said
