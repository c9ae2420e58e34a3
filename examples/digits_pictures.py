"""The pictures that `digits.py` draws."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np

mpl.use("Agg")

import matplotlib.pyplot as plt

if TYPE_CHECKING:
    from pathlib import Path

LEARNED, TESTED, QUIET = "#1f77b4", "#d95f02", "#888888"


def draw_curves(path: Path, history: dict[str, list[float]]) -> Path:
    """Loss and error by epoch, to the file `path`."""
    epochs = np.arange(1, len(history["loss"]) + 1)
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    left.plot(epochs, history["loss"], "o-", color=LEARNED, markersize=4)
    left.set_yscale("log")
    left.set_title("Training loss", loc="left")
    left.set_ylabel("cross-entropy, mean over the epoch")
    for name, label, color in (("train", "training", LEARNED), ("test", "test", TESTED)):
        errors = 100 * (1 - np.asarray(history[name]))
        right.plot(epochs, errors, "o-", color=color, markersize=4, label=label)
    right.set_title("Misread digits", loc="left")
    right.set_ylabel("% of scans")
    right.set_ylim(bottom=0)
    right.legend(frameon=False)
    for axes in (left, right):
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path


def draw_confusion(path: Path, data: Any, predicted: np.ndarray[Any, Any]) -> Path:
    """Which digits were taken for which, and scans that were misread, to the file `path`."""
    images, labels = data
    counts = np.zeros((10, 10), int)
    np.add.at(counts, (labels, predicted), 1)
    wrong = np.flatnonzero(labels != predicted)[:8]

    figure = plt.figure(figsize=(10, 6.4), layout="constrained")
    grid = figure.add_gridspec(4, 4, width_ratios=[1.4, 1.4, 0.8, 0.8])
    axes = figure.add_subplot(grid[:, :2])
    # The square root makes single mistakes visible beside dozens of right answers.
    axes.imshow(np.sqrt(counts), cmap="Blues")
    for row, column in np.ndindex(counts.shape):
        count = counts[row, column]
        if count:
            dark = count > counts.max() / 3
            axes.text(column, row, str(count), ha="center", va="center", color="w" if dark else "k")
    axes.set_xticks(range(10))
    axes.set_yticks(range(10))
    axes.set_xlabel("read as")
    axes.set_ylabel("written")
    right = int(np.trace(counts))
    axes.set_title(f"{right} of {len(labels)} test scans read correctly", loc="left")
    for place in range(8):
        axes = figure.add_subplot(grid[place // 2, 2 + place % 2])
        axes.set_axis_off()
        if place < len(wrong):
            index = wrong[place]
            axes.imshow(images[index, ..., 0], cmap="gray_r", vmin=0, vmax=1)
            axes.set_title(f"{labels[index]} read as {predicted[index]}", fontsize=9)
        elif place == 0:
            axes.text(0, 0.5, "no scan was misread", color=QUIET)
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path
