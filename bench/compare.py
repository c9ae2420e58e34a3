"""Compare two results of run.py: what got slower, or faster, beyond noise.

Ratios to the row's base are compared, which a faster or busier machine changes little. A change counts if the
quartiles of the two do not overlap and the medians are further apart than the threshold.

The exit status is 0 where none of Treadle's cases got slower, 1 where one did, 2 where the results have no case in
common.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass
class Change:
    row: str
    case: str
    old: float
    new: float
    beyond_noise: bool

    @property
    def factor(self) -> float:
        return self.new / self.old


def changes(old: dict[str, Any], new: dict[str, Any], threshold: float) -> Iterator[Change]:
    """Every case that both have and that is not the row's base."""
    before = {(suite, row["name"]): row for suite, row in _rows(old)}
    for suite, row in _rows(new):
        earlier = before.get((suite, row["name"]))
        if earlier is None:
            continue
        for name, case in row["cases"].items():
            known = earlier["cases"].get(name)
            if known is None or name == row["base"] or "ratio" not in case:
                continue
            apart = _low(case) > _high(known) or _high(case) < _low(known)
            factor = case["ratio"] / known["ratio"]
            far = max(factor, 1 / factor) > 1 + threshold
            yield Change(row["name"], name, known["ratio"], case["ratio"], apart and far)


def _rows(results: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for suite, found in results["suites"].items():
        for row in found["rows"]:
            yield suite, row


# What was measured once has no quartiles; so much of it passes for noise.
_UNKNOWN_SPREAD = 0.15


def _low(case: dict[str, Any]) -> float:
    return case.get("ratio_low", case["ratio"] * (1 - _UNKNOWN_SPREAD))


def _high(case: dict[str, Any]) -> float:
    return case.get("ratio_high", case["ratio"] * (1 + _UNKNOWN_SPREAD))


def missing(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Rows that were measured before and are not there any more."""
    there = {(suite, row["name"]) for suite, row in _rows(new)}
    return [row["name"] for suite, row in _rows(old) if (suite, row["name"]) not in there]


def describe(found: list[Change]) -> str:
    lines = []
    for title, chosen in (
        ("slower", [c for c in found if c.beyond_noise and c.factor > 1]),
        ("faster", [c for c in found if c.beyond_noise and c.factor < 1]),
    ):
        lines.append(f"{title} beyond noise: {len(chosen)}")
        lines += [
            f"  {c.factor:6.2f}x  {c.old:8.3f} -> {c.new:8.3f}  {c.case}: {c.row}"
            for c in sorted(chosen, key=lambda c: -abs(c.factor - 1))
        ]
    lines.append(f"compared: {len(found)} cases, ratios to the base of their row")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument(
        "--threshold", type=float, default=0.05, help="least relative change (0.05)"
    )
    options = parser.parse_args()
    old, new = (json.loads(path.read_text()) for path in (options.old, options.new))
    for title, results in (("old", old), ("new", new)):
        machine = results["machine"]
        print(
            f"{title}: {results['date']}, commit {machine['commit']}, {machine['cpu']}, {results['size']} run"
        )
    found = list(changes(old, new, options.threshold))
    print(describe(found))
    if gone := missing(old, new):
        print(f"only in the old results: {'; '.join(gone)}")
    if not found:
        return 2
    # Only Treadle's own cases fail the comparison: peers may get slower as they please.
    slower = [c for c in found if c.beyond_noise and c.factor > 1 and c.case.startswith("treadle")]
    return 1 if slower else 0


if __name__ == "__main__":
    sys.exit(main())
