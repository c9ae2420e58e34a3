"""Plots as SVG, to stand in a page or alone."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

_COLOURS = {
    "jax.jit, flat": "#333333",
    "jax.jit, nested dicts": "#888888",
    "treadle.jit": "#d1495b",
    "flax nnx.jit, graph updates": "#30638e",
    "flax nnx.jit, tree mode": "#5b9bd5",
    "flax nnx.cached_partial": "#66a182",
    "flax nnx.jit_partial": "#a2c5ac",
    "equinox filter_jit": "#edae49",
}


def _svg(draw: Callable[[Any], None], height: float = 4.0) -> str:
    # Text as text keeps the page small and searchable; a fixed salt keeps ids the same from run to run.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "treadle", "font.size": 9}):
        figure, axes = plt.subplots(figsize=(8, height))
        draw(axes)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        figure.tight_layout()
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None})
        plt.close(figure)
    return _smaller(out.getvalue())


def _smaller(text: str) -> str:
    """The picture without what no reader of the page sees: half of what matplotlib writes."""
    for pattern, replacement in _UNSEEN:
        text = re.sub(pattern, replacement, text, flags=re.DOTALL)
    return text


_UNSEEN = (
    (r"^.*?(?=<svg)", ""),
    (r"<metadata>.*?</metadata>|<!--.*?-->", ""),
    (r">\s+<", "><"),
    (r"\s*\n\s*", " "),
    # Hundredths of a point are enough.
    (r"(\d\.\d\d)\d+", r"\1"),
    (
        r' id="(?:figure|axes|patch|line2d|text|[xy]tick|legend|matplotlib\.axis|FillBetween\w*)_\d+"',
        "",
    ),
)


def leaf_counts(rows: list[dict[str, Any]]) -> str:
    """Cost of a call against the number of leaves, on logarithmic axes."""

    def draw(axes: Any) -> None:
        peers = list(dict.fromkeys(name for row in rows for name in row["cases"]))
        for peer in peers:
            points = [(row["leaves"], row["cases"][peer]) for row in rows if peer in row["cases"]]
            points.sort(key=lambda point: point[0])
            xs = [leaves for leaves, _ in points]
            axes.plot(
                xs,
                [case["us"] for _, case in points],
                marker="o",
                markersize=3,
                label=peer,
                color=_COLOURS.get(peer),
            )
            axes.fill_between(
                xs,
                [case["us_low"] for _, case in points],
                [case["us_high"] for _, case in points],
                alpha=0.15,
                color=_COLOURS.get(peer),
            )
        axes.set(xscale="log", yscale="log", xlabel="leaves", ylabel="µs per call")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)

    return _svg(draw, 4.5)


def scaling(rows: list[dict[str, Any]]) -> dict[str, str]:
    """Time and memory against the size of the graph."""
    return {
        "time": _growth(rows, lambda case, _: case["us"] / 1e3, "ms"),
        "memory": _growth(rows, lambda case, size: case["each_bytes"] * size / 2**20, "MiB"),
    }


def _growth(
    rows: list[dict[str, Any]], measure: Callable[[dict[str, Any], int], float], unit: str
) -> str:
    """A quantity against the size of wide and of deep graphs, with the slope of linear growth."""
    styles = {"wide": "-", "deep": "--"}
    colours = {"split": "#d1495b", "merge": "#30638e", "update": "#edae49"}
    called = {"wide": "variables in a list", "deep": "modules nested in each other"}

    def draw(axes: Any) -> None:
        top: tuple[int, float] = (1, 0.0)
        for shape, style in styles.items():
            found = [row for row in rows if row["extra"].get("shape") == shape]
            for case, colour in colours.items():
                points = [(row["extra"]["size"], row["cases"][case]) for row in found]
                curve = [(size, measure(values, size)) for size, values in points]
                # Less than a page cannot be seen on a logarithmic axis, and says nothing.
                curve = [(size, value) for size, value in curve if value > 0.01]
                if not curve:
                    continue
                top = max(top, curve[-1], key=lambda point: point[1])
                xs, ys = zip(*curve, strict=True)
                label = f"{case}, {called[shape]}"
                axes.plot(xs, ys, style, color=colour, marker="o", markersize=3, label=label)
        size, value = top
        ends = (1_000, size)
        axes.plot(ends, [value * x / size for x in ends], ":", color="#888888", label="linear")
        axes.set(xscale="log", yscale="log", xlabel="size", ylabel=unit)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)

    return _svg(draw, 4.0)


def phases(row: dict[str, Any]) -> str:
    """Stacked bars: the share of each phase of a hot call."""
    colours = {
        "verify": "#d1495b",
        "gather": "#edae49",
        "dispatch": "#cccccc",
        "scatter": "#30638e",
    }

    def draw(axes: Any) -> None:
        names = list(row["cases"])[::-1]
        left = [0.0] * len(names)
        for phase, colour in colours.items():
            shares = [
                100 * row["cases"][name][phase] / max(row["cases"][name]["us"], 1e-9)
                for name in names
            ]
            axes.barh(names, shares, left=left, color=colour, label=phase)
            left = [a + b for a, b in zip(left, shares, strict=True)]
        for i, name in enumerate(names):
            axes.text(101, i, f"{row['cases'][name]['us']:.0f} µs", va="center", fontsize=8)
        axes.set(xlabel="% of the call", xlim=(0, 115))
        axes.legend(fontsize=7, ncols=4, loc="lower center", bbox_to_anchor=(0.45, 1.0))

    return _svg(draw, 3.0)


def latencies(row: dict[str, Any]) -> str:
    """Latency by percentile, the tail spread out."""

    def draw(axes: Any) -> None:
        for peer, case in row["cases"].items():
            curve = [(q, value) for q, value in case["curve"] if q < 100]
            axes.plot(
                [1 / (1 - q / 100) for q, _ in curve],
                [value for _, value in curve],
                label=peer,
                color=_COLOURS.get(peer),
            )
        axes.set(xscale="log", yscale="log", xlabel="percentile", ylabel="µs per step")
        ticks = (0, 50, 90, 99, 99.9)
        axes.set_xticks([1 / (1 - q / 100) for q in ticks], [f"{q:g}" for q in ticks])
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)

    return _svg(draw, 4.5)


def bars(row: dict[str, Any]) -> str:
    """Ratios of one row's cases, on a logarithmic axis."""

    def draw(axes: Any) -> None:
        names = list(row["cases"])[::-1]
        ratios = [row["cases"][name]["ratio"] for name in names]
        axes.barh(names, ratios, color=[_COLOURS.get(name, "#bbbbbb") for name in names])
        for i, ratio in enumerate(ratios):
            axes.text(ratio * 1.03, i, f"{ratio:.2f}", va="center", fontsize=8)
        axes.axvline(1, color="black", linewidth=0.8)
        axes.set(
            xscale="log", xlabel=f"times the cost of {row['base']}", xlim=(0.5, max(ratios) * 1.6)
        )

    return _svg(draw, 0.7 + 0.3 * len(row["cases"]))
