"""The report says what was measured for each target, and for a missed one what the rest is made of."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

import suites
from page.markdown import report
from tests.bench.results import case, results, row, training


def target(text: str, start: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(f"| {start}"))


BARE = row(
    "bare",
    "602 in, 1 out",
    {"602 in, 1 out": case(1.0), "602 in, 602 out": case(25.0)},
    leaves=602,
    us_per_output=4.0,
)


def test_a_target_that_is_met_needs_no_explanation() -> None:
    text = report(results(training=[training(treadle=1.03, flax=11.0)]))
    assert target(text, "training step, 602 leaves").endswith("| yes |")
    assert target(text, "600-leaf step").endswith("| 10.7 | 10.5 to 10.9 | yes |")
    assert "By `treadle.profile`" not in text


def test_a_missed_target_is_explained_by_the_profile_of_its_row() -> None:
    text = report(results(training=[training(treadle=1.20, flax=15.0)]))
    assert target(text, "training step, 602 leaves, against hand-written on a flat").endswith(
        "**no** |"
    )
    said = next(line for line in text.splitlines() if "By `treadle.profile`" in line)
    assert "20 µs more than jax.jit, flat" in said
    assert "46.0 µs of a call are Treadle's own (verify 11.0, gather 2.0, scatter 33.0" in said
    assert "444.0 µs JAX's call of the compiled step with 602 arrays in and 603 out" in said


def test_where_jax_itself_bounds_the_ratio_the_report_says_so() -> None:
    text = report(results(training=[training(treadle=1.0, flax=5.0)], breakdown=[BARE]))
    assert target(text, "600-leaf step").endswith("**no** |")
    said = next(line for line in text.splitlines() if line.startswith("600-leaf step"))
    assert "hand-written step itself takes 100 µs" in said
    assert "flax adds 400 µs and Treadle 0 µs" in said
    assert "added nothing at all would be 5.0 times faster" in said
    assert "4.0 µs for each array that comes out" in said
    assert "| 400 µs against 0 µs |" in target(text, "cost added to a 602-leaf step")


def one_leaf(added: float) -> dict[str, Any]:
    cases = {
        "jax.jit": case(1.0, 0.0, base_us=10),
        "treadle.jit, an array": case(1 + added / 20, base_us=10),
        "treadle.jit, a module": case(1 + added / 10, base_us=10),
    }
    for found in cases.values():
        found["added_us_best"] = found["us_best"] - 10
    return row("one leaf in, one out", "jax.jit", cases, leaves=1)


@pytest.mark.parametrize(("added", "met"), [(0.5, "yes"), (0.8, "**no**")])
def test_the_fixed_cost_is_the_median_difference(added: float, met: str) -> None:
    text = report(results(one_leaf=[one_leaf(added)]))
    line = target(text, "one-leaf call")
    assert f"{added:.2f} µs (best batches:" in line
    assert line.endswith(f"| {met} |")


def test_early_suites_may_use_what_is_to_spare_and_not_what_later_ones_need() -> None:
    names = list(suites.SUITES)
    needed = {name: suites.limit(0, [name]) + suites.limit(1, [name]) for name in names}
    assert set(needed) == set(names)
    plenty = suites.limit(10_000, names)
    rest = sum(suites._SECONDS[name] for name in names[1:])
    assert plenty == pytest.approx(10_000 - rest)
    # Too little for all: each gets its share, and none is left out.
    left = 60.0
    for place in range(len(names)):
        allowed = suites.limit(left, names[place:])
        assert allowed > 0
        left -= allowed
    assert left == pytest.approx(0, abs=1e-6)


def test_the_short_run_is_planned_to_end_within_nine_minutes() -> None:
    assert sum(suites._SECONDS.values()) <= 9 * 60
    assert set(suites._SECONDS) == set(suites.SUITES) == set(suites.TITLES)


def test_the_page_has_the_plots_and_needs_no_other_file() -> None:
    pytest.importorskip("matplotlib", reason="the page's plots need the benchmarks' own packages")
    from page.html import page

    text = page(results(training=[training(treadle=1.0, flax=5.0)], breakdown=[BARE]))
    pictures = re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)
    assert len(pictures) == 1
    assert ElementTree.fromstring(pictures[0]).get("viewBox")
    assert "<metadata>" not in text
    assert "src=" not in text
    assert "treadle.jit</text>" in text


def test_growth_with_size_is_drawn_in_files_of_their_own(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="plots need the benchmarks' environment")
    from page.write import write_report

    def grown(shape: str, size: int) -> dict[str, Any]:
        cases = {
            name: {"us": size / 10, "each_ns": 100.0, "each_bytes": 50.0, "ratio": 1.0}
            for name in ("split", "merge", "update")
        }
        return row(f"{shape} {size}", "split", cases, shape=shape, size=size)

    sizes = [grown(shape, 10**n) for shape in ("wide", "deep") for n in (3, 4, 5)]
    write_report(results(scaling=sizes), tmp_path)
    for name, unit in {"time": "ms", "memory": "MiB"}.items():
        drawn = ElementTree.parse(tmp_path / f"{name}.svg").getroot()
        said = "".join(drawn.itertext())
        assert unit in said
        assert "split, variables in a list" in said
        assert "merge, modules nested in each other" in said
        assert "linear" in said
