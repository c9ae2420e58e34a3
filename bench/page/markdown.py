"""The report as Markdown."""

from __future__ import annotations

from typing import Any

from page.remaining import parts, remaining_costs
from page.targets import targets
from suites import SUITES, TITLES

_MARK = {True: "yes", False: "**no**", None: "?"}


def report(results: dict[str, Any]) -> str:
    machine = results["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    lines = [
        "# Treadle benchmarks",
        "",
        f"{results['date']}, commit {machine['commit']}, {results['size']} run.",
        f"{machine['cpu']}, {machine['cores']} cores, load {machine['load']} at the start; "
        f"{machine['system']}, {machine['platform']} ({', '.join(machine['devices'])}).",
        f"Python {machine['python']}; {versions}.",
        f"Extension: {machine['build']}.",
        "",
        "Cases of one row run in turn in one process. A ratio is taken round by round between cases that ran next "
        "to each other; shown are its median and, in brackets, its quartiles. Added is the time over the row's "
        "first case (the one whose ratio is 1), as a difference round by round.",
        "",
        "## Targets",
        "",
        "| what | target | measured | quartiles | met |",
        "| --- | --- | --- | --- | --- |",
    ]
    for line in targets(results):
        lines.append(
            f"| {line.what} | {line.target} | {line.value} | {line.spread} | {_MARK[line.met]} |"
        )
    lines.append("")
    for title, text in remaining_costs(results):
        lines += [f"{title}: {text}", ""]
    for suite in SUITES:
        if suite in results["suites"]:
            lines += section(suite, results["suites"][suite])
    return "\n".join(lines).rstrip() + "\n"


def section(name: str, suite: dict[str, Any]) -> list[str]:
    lines = [f"## {TITLES[name]}", ""]
    if suite["error"]:
        lines += [f"This suite did not finish: {suite['error']}", ""]
    for row in suite["rows"]:
        lines += [f"### {row['name']}", ""]
        about = [f"{row['leaves']} leaves"] if row["leaves"] else []
        about += [f"{row['rounds']} rounds"] if row["rounds"] else []
        if about:
            lines += [", ".join(about) + ".", ""]
        header, body = table(row)
        if not body:
            lines += [f"- {note}" for note in row["notes"]] + [""]
            continue
        lines += ["| " + " | ".join(header) + " |", "| " + " | ".join(["---"] * len(header)) + " |"]
        lines += ["| " + " | ".join(cells) + " |" for cells in body]
        lines.append("")
        notes = list(row["notes"])
        if "profile" in row["extra"]:
            notes.append(f"`treadle.profile`: {parts(row['extra']['profile'])}")
        lines += [f"- {note}" for note in notes]
        if notes:
            lines.append("")
    return lines


def table(row: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and cells of a row, by what its cases hold."""
    first = next(iter(row["cases"].values()), {})
    for key, layout in _LAYOUTS.items():
        if key in first:
            header, cells = layout
            break
    else:
        header, cells = _TIMES
    return header, [[name, *cells(case)] for name, case in row["cases"].items()]


def _ratio(case: dict[str, Any]) -> str:
    if "ratio_low" not in case:
        return f"{case['ratio']:.2f}"
    return f"{case['ratio']:.3f} [{case['ratio_low']:.3f}, {case['ratio_high']:.3f}]"


def number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.2f}"


def _times(case: dict[str, Any]) -> list[str]:
    spread = f"[{number(case['us_low'])}, {number(case['us_high'])}]"
    return [number(case["us"]), spread, _ratio(case), _added(case)]


def _added(case: dict[str, Any]) -> str:
    if "added_us" not in case:
        return ""
    low, middle, high = (case[key] for key in ("added_us_low", "added_us", "added_us_high"))
    return f"{_signed(middle)} [{_signed(low)}, {_signed(high)}]"


def _signed(value: float) -> str:
    return f"{value:+.0f}" if abs(value) >= 100 else f"{value:+.2f}"


def _tail(case: dict[str, Any]) -> list[str]:
    collections = ", ".join(f"{c:.1f}" for c in case["collections_per_1000_steps"])
    points = [number(case[f"p{p}"]) for p in ("50", "90", "99", "99.9")]
    return [*points, f"{case['tail']:.2f}", str(case["steps"]), collections]


def _phases(case: dict[str, Any]) -> list[str]:
    parts = [case[phase] for phase in ("verify", "gather", "dispatch", "scatter")]
    ours = (sum(parts) - case["dispatch"]) / max(sum(parts), 1e-9)
    return [*map(number, parts), f"{100 * ours:.0f} %"]


_TIMES = (["case", "µs", "quartiles", "ratio", "added µs"], _times)
# The first key that a case has decides how the row is shown.
_LAYOUTS: dict[str, tuple[list[str], Any]] = {
    "dispatch": (["call", "verify", "gather", "dispatch", "scatter", "share of treadle"], _phases),
    "tail": (
        [
            "case",
            "p50",
            "p90",
            "p99",
            "p99.9",
            "p99.9 / p50",
            "steps",
            "collections per 1000 steps",
        ],
        _tail,
    ),
    "each_ns": (
        ["call", "ms", "ns for each", "bytes for each", "times split"],
        lambda case: [
            f"{case['us'] / 1e3:.2f}",
            number(case["each_ns"]),
            number(case["each_bytes"]),
            f"{case['ratio']:.2f}",
        ],
    ),
    "bytes": (["case", "bytes", "ratio"], lambda case: [f"{case['bytes']:.0f}", _ratio(case)]),
    "added_us_best": (
        ["case", "µs", "quartiles", "ratio", "added µs", "added µs, best batches"],
        lambda case: [*_times(case), _signed(case["added_us_best"])],
    ),
}
