"""Batches and rounds: near cases get long batches, far ones few, and all pairs come from the same rounds."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from pathlib import Path

import pytest

from harness import timing
from tests.bench.conftest import BENCH

EFFORT = timing.Effort(row_seconds=2, batch_seconds=0.02, min_rounds=9, max_rounds=60, far_rounds=4)


def test_a_step_of_milliseconds_runs_ten_times_a_batch_and_a_slow_peer_once() -> None:
    costs = {"hand": 0.006, "treadle": 0.0062, "flax": 0.042}
    turns, rounds = timing.share_out(costs, "hand", EFFORT)
    assert [turns[case].count for case in costs] == [10, 10, 1]
    assert turns["hand"].rounds == turns["treadle"].rounds == rounds >= EFFORT.min_rounds
    assert EFFORT.far_rounds <= turns["flax"].rounds <= rounds


def test_what_traces_each_time_gets_no_steps_to_warm_up() -> None:
    turns, rounds = timing.share_out({"hand": 0.5, "treadle": 0.6, "flax": 1.2}, "hand", EFFORT)
    assert [(turn.count, turn.lead) for turn in turns.values()] == [(1, 0)] * 3
    assert (rounds, turns["flax"].rounds) == (EFFORT.min_rounds, EFFORT.far_rounds)


@pytest.mark.parametrize(("part", "rounds"), [(9, 9), (4, 9), (1, 7), (25, 100)])
def test_a_case_takes_part_in_as_many_rounds_as_it_was_given(part: int, rounds: int) -> None:
    taken = [turn for turn in range(rounds) if timing.takes_part(turn, part, rounds)]
    assert len(taken) == part
    # Spread over the whole row, not all at its start.
    assert taken[-1] == rounds - 1


def test_ratios_and_differences_are_taken_round_by_round() -> None:
    # The machine is twice as slow in the second half; the case always adds a tenth.
    base = [100e-6] * 5 + [200e-6] * 5
    found = timing.summary([1.1 * b for b in base], base)
    assert found["ratio"] == pytest.approx(1.1)
    assert found["ratio_low"] == pytest.approx(found["ratio_high"])
    assert (found["added_us_low"], found["added_us_high"]) == pytest.approx((10, 20))


@pytest.mark.parametrize("collect", [True, False])
def test_each_case_is_timed_and_the_collector_is_left_as_it_was(collect: bool) -> None:
    done = {"hand": 0, "treadle": 0}

    def step(name: str) -> None:
        done[name] += 1

    effort = timing.Effort(row_seconds=0.01, batch_seconds=1e-5, min_rounds=3, max_rounds=5)
    row = timing.interleave(
        "nothing",
        {name: lambda name=name: step(name) for name in done},
        effort,
        base="hand",
        collect=collect,
    )
    assert set(row.cases) == set(done)
    assert all(count > 0 for count in done.values())
    assert row.cases["hand"]["ratio"] == 1
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0


def test_a_failing_step_leaves_the_collector_on() -> None:
    calls = iter(range(100))

    def step() -> None:
        if next(calls) > 60:
            raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        timing.interleave(
            "fails",
            {"hand": step},
            timing.Effort(row_seconds=1, batch_seconds=1e-4),
            base="hand",
            collect=False,
        )
    assert gc.isenabled()


@pytest.mark.slow
def test_a_suite_runs_in_a_process_of_its_own(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    command = [sys.executable, str(BENCH / "run.py"), "--smoke", "--one", "one-leaf"]
    subprocess.run([*command, "--rows", str(rows)], check=True, capture_output=True, timeout=300)
    found = [json.loads(line) for line in rows.read_text().splitlines()]
    assert [row["name"] for row in found] == ["one leaf in, one out", "one leaf, written back"]
    for row in found:
        assert row["cases"]["jax.jit"]["ratio"] == 1
        assert all(case["us"] > 0 for case in row["cases"].values())
