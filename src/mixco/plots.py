"""All figures, drawn with matplotlib in one style: PNG files of a run, and the figures of its page.

Functions that begin with `draw_` write a PNG file; the others return a Figure, which `save` writes. They
take tensors and plain values and know nothing of runs or settings.
"""

import itertools
import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from mixco.runtime.files import replacing, shown

# The first five are told apart with any kind of colour vision, and all of them are legible on white.
SERIES = (
    *("#0072b2", "#c85200", "#00805c", "#a8508c", "#8c6d00"),
    *("#2f8fcb", "#7a4a2b", "#5b5bd6", "#c2255c", "#5f6b74"),
)
MIXED, BASE, UNTRAINED = SERIES[0], SERIES[1], SERIES[9]  # trained with mixing, without, not at all
RIGHT, WRONG = SERIES[2], SERIES[1]
INK, QUIET, LINE = "#1c1c1e", "#5c6068", "#dcdee2"  # text, secondary text, rules
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a class may be called "$"
    "font.family": "DejaVu Sans",
    "font.size": 8,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.titlecolor"), INK),
    **dict.fromkeys(("xtick.color", "ytick.color", "axes.edgecolor"), QUIET),
}
SMALL = 7  # points
DPI = 200


@contextmanager
def styled() -> Iterator[None]:
    """Apply STYLE, and do not warn of letters that the font lacks: they show as boxes."""
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")
        yield


def save(figure: Figure, path: Path) -> None:
    """Write a PNG file on white, atomically."""
    with styled(), replacing(path) as temporary:
        figure.savefig(temporary, dpi=DPI, facecolor="white")


def to_image(picture: Tensor) -> Image.Image:
    """An RGB image of a picture with any number of channels.

    picture: [C, H, W], uint8 or float in [0, 1]. The first three channels are red, green and blue; of
        fewer, the mean is shown in grey.
    """
    if picture.is_floating_point():
        picture = (255 * picture.float()).round().clamp(0, 255).byte()
    if len(picture) < 3:
        picture = picture.float().mean(0, keepdim=True).round().byte().expand(3, -1, -1)
    return Image.fromarray(np.ascontiguousarray(picture[:3].permute(1, 2, 0).cpu().numpy()))


# Images


@styled()
def draw_views(
    path: Path,
    originals: Tensor,
    view_q: Tensor,
    view_k: Tensor,
    mixed: Tensor | None,
    pairs: Sequence[tuple[int, int, float]],
    across: bool = False,
) -> None:
    """Draw what the network saw: images, two views of each, and mixed images of the first views.

    originals: [B, C, H, W]; views: [B, C, S, S], not normalised; see `to_image`.
    mixed: [M, C, S, S], or None where nothing is mixed. pairs: for each mixed image the indices of its
        first and second source, and lambda, the part of the first in [0, 1]. across: are the second
        sources of the second views?
    """
    pairs = pairs or [(i, i + 1, 1.0) for i in range(0, len(originals) - 1, 2)]
    order = [i for first, second, _ in pairs for i in (first, second)]
    rows = [("image", originals), ("view 1", view_q), ("view 2", view_k)]
    left, cell, side = 0.22, 0.89, 0.8  # inches
    large = 1.28
    height = cell * len(rows) + (large + 0.22 if mixed is not None else 0)
    figure, axes = _sheet(left + cell * len(order), height)
    beside: dict[str, Any] = {"rotation": 90, "ha": "center", "va": "center"}
    for row, (name, images) in enumerate(rows):
        axes.text(left / 2, cell * row + side / 2, name, **beside)
        for column, index in enumerate(order):
            _place(axes, images[index], left + cell * column, cell * row, side)
    if mixed is not None:
        top = cell * len(rows)
        name = "views 1 and 2, mixed" if across else "view 1, mixed"
        axes.text(left / 2, top + large / 2, name, **beside)
        for number, (_, _, lam) in enumerate(pairs):
            middle = left + cell * (2 * number + 1) - (cell - side) / 2
            _place(axes, mixed[number], middle - large / 2, top, large)
            first = round(100 * lam)
            text = f"{first} % left, {100 - first} % right"
            axes.text(middle, top + large + 0.06, text, ha="center", va="top", fontsize=SMALL)
    save(figure, path)


@styled()
def draw_neighbours(
    path: Path,
    queries: Tensor,
    neighbours: Tensor,
    similarities: Tensor,
    correct: Tensor | None,
    names: Sequence[str],
    title: str,
) -> None:
    """Draw each query beside the images whose features are nearest to its own, the nearest first.

    queries: [Q, C, H, W], neighbours: [Q, K, C, H, W], see `to_image`; similarities: [Q, K], cosines.
    correct: bool [Q, K], whether the neighbour is of the query's class, which the frame shows; None
        where there are no classes.
    names: of the queries' classes, or of the queries.
    """
    frames = "solid green: of the same class; dashed orange: of another; "
    count, k = similarities.shape
    lines = textwrap.wrap(shown(title), 11 * (k + 2))
    lines.append(f"{frames if correct is not None else ''}below: cosine similarity")
    beside = [textwrap.fill(shown(n), 24, max_lines=5, placeholder=" ...") for n in names]
    left = 0.16 + 0.047 * max(len(line) for text in beside for line in text.splitlines() or [""])
    top, cell, row_height, side = 0.1 + 0.15 * len(lines), 0.75, 0.84, 0.66  # inches
    width = max(left + cell * (k + 1) + 0.15, 0.067 * max(map(len, lines)))
    figure, axes = _sheet(width, top + row_height * count)
    axes.text(width / 2, 0.04, "\n".join(lines), ha="center", va="top", fontsize=8.5)
    for row in range(count):
        above = top + row_height * row
        axes.text(left - 0.07, above + side / 2, beside[row], ha="right", va="center", fontsize=6)
        _place(axes, queries[row], left, above, side)
        for column in range(k):
            start = left + cell * (column + 1) + 0.1
            _place(axes, neighbours[row, column], start, above, side)
            if correct is not None:
                right = bool(correct[row, column])
                edge: dict[str, Any] = (
                    {"color": RIGHT, "ls": "-"} if right else {"color": WRONG, "ls": "--"}
                )
                axes.add_patch(Rectangle((start, above), side, side, fill=False, lw=1.9, **edge))
            # Without classes the neighbours come from any number of images, and many are near.
            text = f"{similarities[row, column]:.{4 if correct is None else 2}f}"
            under = (start + side / 2, above + side + 0.035)
            axes.text(*under, text, ha="center", va="top", fontsize=5.3)
    save(figure, path)


@styled()
def draw_groups(
    path: Path,
    groups: Sequence[Sequence[Tensor]],
    captions: Sequence[Sequence[tuple[str, str]]],
    title: str,
) -> None:
    """Draw groups of images, each group side by side on a ground of its own, as many in a line as fit.

    groups: [C, H, W] each, see `to_image`. captions: of each image two short lines, such as its name
        and its similarity; the end of a long one is shown.
    """
    side, pad, gap, widest = 0.92, 0.07, 0.14, 8.7  # inches
    height = side + 0.36
    places: list[tuple[float, float, float]] = []
    left, top = 0.0, 0.32
    for group in groups:
        width = len(group) * (side + pad) + pad
        if left and left + width > widest:
            left, top = 0.0, top + height + gap
        places.append((left, top, width))
        left += width + gap
    right = max(x + width for x, _, width in places)
    figure, axes = _sheet(max(right, 0.067 * len(title)), top + height)
    axes.text(0, 0.12, shown(title), va="center", fontsize=8.5)
    for group, texts, (left, top, width) in zip(groups, captions, places, strict=True):
        ground: dict[str, Any] = {"color": LINE, "alpha": 0.45, "lw": 0, "zorder": -1}
        axes.add_patch(Rectangle((left, top), width, height, **ground))
        for number, (image, (name, note)) in enumerate(zip(group, texts, strict=True)):
            start = left + pad + number * (side + pad)
            _place(axes, image, start, top + pad, side)
            for line, text in enumerate((_end_of(name, 22), note)):
                under = (start + side / 2, top + pad + side + 0.04 + 0.11 * line)
                axes.text(*under, text, ha="center", va="top", fontsize=5)
    save(figure, path)


def _end_of(name: str, most: int) -> str:
    """The last letters of a name; those of its beginning are often the same."""
    name = shown(name)
    return name if len(name) <= most else f"...{name[3 - most :]}"


def _sheet(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure, and axes that fill it, measured in inches from its top left, with a margin around them.

    One for all images of a picture: axes for each of them take ten times as long.
    """
    margin = 0.05
    figure = Figure(figsize=(width + 2 * margin, height + 2 * margin))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(-margin, width + margin), ylim=(height + margin, -margin), autoscale_on=False)
    axes.set_axis_off()
    return figure, axes


def _place(axes: Axes, image: Tensor, left: float, top: float, side: float) -> None:
    """Draw an image into a square of a sheet, in inches."""
    extent = (left, left + side, top + side, top)
    axes.imshow(to_image(image), interpolation="nearest", aspect="auto", extent=extent)


# Curves


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


# Results


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
