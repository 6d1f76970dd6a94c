"""Charts: curves, comparisons, a confusion matrix, a map of features.

Functions that begin with `draw_` write a PNG file; the others return a Figure, which style.save writes.
They take tensors and plain values and know nothing of runs or settings.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from PIL import Image

from mixco.plots.style import BASE, INK, LINE, MIXED, QUIET, SERIES, SMALL, UNTRAINED, save, styled
from mixco.runtime.files import shown


@dataclass(frozen=True)
class Line:
    """A curve of one run, or the mean of several."""

    label: str
    points: Sequence[tuple[float, float]]
    """(epoch, value)"""
    colour: str
    dashed: bool = False
    faint: bool = False
    ending: str = ""
    """Written where the line ends."""


@styled()
def panel(lines: Sequence[Line], title: str, unit: str, epochs: Sequence[int]) -> Figure:
    """One quantity over the epochs. epochs: all that the axis has room for."""
    figure = Figure(figsize=(3.3, 2.0), layout="constrained")
    _plot_lines(figure.subplots(), lines, title, unit, epochs)
    return figure


@styled()
def draw_curves(path: Path, runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Draw the losses over the epochs and, where there are any, the kNN checks.

    runs: name -> the records of metrics.jsonl. A name with a "+" is of a run with mixing.
    The first run with mixing and the first without have their usual colours, each further one its own.
    """
    losses: list[Line] = []
    checks: list[Line] = []
    others = itertools.cycle(SERIES[2:])
    for name, records in runs.items():
        colour = MIXED if "+" in name else BASE
        if any(line.colour == colour for line in losses):
            colour = next(others)
        for key, what in (("clean", "clean"), ("mixed", "mixed images")):
            if points := [(r["epoch"], r[key]) for r in records if key in r]:
                losses.append(Line(f"{name}: {what}", points, colour, dashed=key == "mixed"))
        if points := [(r["epoch"], r["knn"]) for r in records if "knn" in r]:
            checks.append(Line(name, points, colour))
    panels = [(losses, "Loss", "")]
    if checks:
        panels.append((checks, "kNN top-1, held-out training images", "%"))
    epochs = [record["epoch"] for records in runs.values() for record in records]
    names = max(len(lines) for lines, *_ in panels)
    legend = 0.15 * names if names > 1 else 0  # below the axes, where it hides no curve
    width, height = 3.6 * len(panels), 2.5 + legend  # inches
    figure = Figure(figsize=(width, height))
    # Given, since a layout that is found from the labels takes most of the time.
    figure.subplots_adjust(
        0.55 / width, (0.35 + legend) / height, 1 - 0.1 / width, 1 - 0.4 / height, 0.2
    )
    for axes, (lines, title, unit) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
    ):
        _plot_lines(axes, lines, title, unit, epochs, below=True)
    save(figure, path)


def _plot_lines(
    axes: Axes,
    lines: Sequence[Line],
    title: str,
    unit: str,
    epochs: Sequence[int],
    below: bool = False,
) -> None:
    """below: is the legend below the axes?"""
    labelled: set[str] = set()
    for line in lines:
        when, values = zip(*line.points, strict=True)
        axes.plot(
            when,
            values,
            color=line.colour,
            linestyle="--" if line.dashed else "-",
            linewidth=0.8 if line.faint else 1.6,
            alpha=0.45 if line.faint else 1,
            marker="o" if len(when) <= 12 and not line.faint else None,
            markersize=3,
            label="_" if line.faint or line.label in labelled else shown(line.label),
        )
        if not line.faint:
            labelled.add(line.label)
        if line.ending:
            axes.annotate(
                line.ending,
                (when[-1], values[-1]),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=SMALL,
                annotation_clip=False,
            )
    _finish_axes(axes, title, unit)
    axes.set_xlabel("epoch", fontsize=SMALL, color=QUIET, loc="right", labelpad=1)
    axes.locator_params(axis="x", nbins=5, integer=True)
    axes.locator_params(axis="y", nbins=5)
    pad = max(0.5, 0.04 * (max(epochs) - min(epochs)))
    axes.set_xlim(min(epochs) - pad, max(epochs) + pad)
    if len(labelled) > 1:
        place: dict[str, Any] = (
            {"loc": "upper left", "bbox_to_anchor": (-0.02, -0.13)} if below else {}
        )
        axes.legend(frameon=False, fontsize=6.5, handlelength=1.4, **place)


def _finish_axes(axes: Axes, title: str, unit: str) -> None:
    """Give axes their title and unit, a quiet grid and two spines."""
    axes.set_title(title, loc="left", fontsize=8.5, fontweight="bold")
    axes.set_title(unit, loc="right", fontsize=SMALL, color=QUIET)
    axes.tick_params(labelsize=SMALL, length=0)
    axes.grid(color=LINE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(LINE)


@styled()
def draw_comparison(path: Path, results: Mapping[str, Mapping[str, Any]]) -> None:
    """Draw bars of the top-1 of kNN and linear probe, in percent, for each encoder of a results.json."""
    figure = Figure(figsize=(6, 0.41 * len(results) + 0.75), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    names = list(results)
    colours = [UNTRAINED if n == "random" else MIXED if "+" in n else BASE for n in names]
    kinds = {"knn": "kNN top-1", "linear": "linear probe top-1"}
    for axes, (kind, title) in zip(panels, kinds.items(), strict=True):
        values = [results[name][kind]["top1"] for name in names]
        bars = axes.barh(names, values, color=colours, height=0.65)
        axes.bar_label(bars, fmt="%.1f", padding=3, fontsize=SMALL)
        axes.set_xlim(0, 109)
        _finish_axes(axes, title, "%")
    panels[0].tick_params(axis="y", labelcolor=INK, labelsize=8)
    panels[0].invert_yaxis()
    save(figure, path)


@styled()
def dots(rows: Sequence[tuple[str, Sequence[float]]], title: str) -> Figure:
    """A row a setting, with a dot for each run and a bar at their mean; values in percent."""
    figure = Figure(figsize=(3.3, 0.55 + 0.3 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for place, (_, values) in enumerate(rows):
        colour = SERIES[place % len(SERIES)]
        axes.plot(values, [place] * len(values), "o", ms=6, color=colour, alpha=0.7, mew=0)
        if len(values) > 1:
            axes.plot([np.mean(values)] * 2, [place - 0.32, place + 0.32], color=colour, lw=2)
    axes.set_yticks(range(len(rows)), [shown(name) for name, _ in rows], color=INK)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.margins(x=0.15)
    axes.locator_params(axis="x", nbins=5)
    _finish_axes(axes, title, "%")
    return figure


@styled()
def confusion_matrix(counts: NDArray[np.int64], classes: Sequence[str]) -> Figure:
    """counts: [true class, predicted class]; the more of a row a cell has, the darker it is."""
    size, classes = len(classes), list(map(shown, classes))
    side = 0.8 + 0.3 * size + 0.08 * min(40, max(map(len, classes)))  # with room for the names
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    totals = np.maximum(counts.sum(1, keepdims=True), 1)
    for row, column in np.argwhere(counts):
        alpha = 0.06 + 0.5 * counts[row, column] / totals[row, 0]
        axes.add_patch(Rectangle((column, row), 1, 1, color=SERIES[0], alpha=alpha, lw=0))
        number = str(counts[row, column])
        axes.text(column + 0.5, row + 0.5, number, ha="center", va="center", fontsize=SMALL)
    axes.set(xlim=(0, size), ylim=(size, 0), aspect="equal")
    middles = np.arange(size) + 0.5
    axes.set_yticks(middles, classes, color=INK)
    axes.set_xticks(middles, classes, color=INK, rotation=90)
    axes.xaxis.tick_top()
    axes.set_ylabel("class", color=QUIET)
    axes.set_xlabel("taken for", color=QUIET)
    axes.xaxis.set_label_position("top")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure


@styled()
def scatter(
    places: NDArray[np.float32],
    groups: Sequence[tuple[str, Sequence[int], int | None]],
    thumbnails: Sequence[tuple[int, Image.Image]],
    size: tuple[int, int],
    thumbnail: float,
) -> Figure:
    """A map of the embedding, as on the page before anybody zooms in.

    places: [n, 2], in units of the map, from the top left. size: of the map, in units.
    groups: (name, rows of `places`, index into SERIES or None for grey).
    thumbnails: (row of `places`, square image), drawn `thumbnail` units wide.
    """
    figure = Figure(figsize=(size[0] / 100, size[1] / 100), layout="constrained")
    axes = figure.subplots()
    for name, rows, colour in groups:
        x, y = places[list(rows)].T
        fill = LINE if colour is None else SERIES[colour]
        axes.scatter(x, y, s=14, lw=0, label=shown(name), color=fill)
    half = thumbnail / 2
    for row, image in thumbnails:
        x, y = places[row]
        axes.imshow(image, extent=(x - half, x + half, y + half, y - half), zorder=3)
    axes.set(xlim=(0, size[0]), ylim=(size[1], 0), aspect="equal")
    axes.set_axis_off()
    if len(groups) > 1:
        figure.legend(loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    return figure
