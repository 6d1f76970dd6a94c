"""The page's figures: drawn once, for the page as SVG in its colours, beside it as PNG on white."""

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from PIL import Image

from mixco.runtime.files import replacing

# Each colour of a figure is a variable of style.css, which has another value for it in the dark.
INK, QUIET, LINE = "#1c1c1e", "#5c6068", "#dcdee2"
SERIES = (
    *("#0072b2", "#c85200", "#00805c", "#a8508c", "#8c6d00"),
    *("#2f8fcb", "#7a4a2b", "#5b5bd6", "#c2255c", "#5f6b74"),
)
ACCENT = SERIES[0]
VARIABLES = {
    INK: "currentColor",
    QUIET: "var(--quiet)",
    LINE: "var(--line)",
    **{colour: f"var(--c{i})" for i, colour in enumerate(SERIES)},
}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a class may be called "$"
    "font.family": "DejaVu Sans",
    "font.size": 8,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.titlecolor"), INK),
    **dict.fromkeys(("xtick.color", "ytick.color", "axes.edgecolor"), QUIET),
}
DPI = 200


@dataclass(frozen=True)
class Line:
    """A line of a panel: of one run, or the mean of a setting's runs."""

    label: str
    points: Sequence[tuple[float, float]]
    colour: int
    """Of SERIES."""
    dashed: bool = False
    faint: bool = False
    ending: str = ""
    """Written where it ends."""


@dataclass(frozen=True)
class Drawing:
    """A figure, ready for the page."""

    svg: Markup
    alt: str
    file: str
    """Of its PNG."""
    caption: str = ""


@contextmanager
def styled() -> Iterator[None]:
    """Matplotlib as the figures want it, and no word of letters that its font lacks."""
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def panel(lines: Sequence[Line], title: str, unit: str, epochs: Sequence[int]) -> Figure:
    """One quantity over the epochs, all of which have their place, with a value or without."""
    with styled():
        figure = Figure(figsize=(3.3, 2.0), layout="constrained")
        axes = figure.subplots()
        labelled: set[str] = set()
        for line in lines:
            when, values = zip(*line.points, strict=True)
            few = len(when) <= 12
            axes.plot(
                when,
                values,
                color=SERIES[line.colour % len(SERIES)],
                linestyle="--" if line.dashed else "-",
                linewidth=0.8 if line.faint else 1.6,
                alpha=0.45 if line.faint else 1,
                marker="o" if few and not line.faint else None,
                markersize=3,
                label="_" if line.faint or line.label in labelled else line.label,
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
                    fontsize=7,
                    annotation_clip=False,
                )
        axes.set_title(title, loc="left", fontsize=8.5, fontweight="bold")
        axes.set_title(unit, loc="right", fontsize=7, color=QUIET)
        axes.set_xlabel("epoch", fontsize=7, color=QUIET, loc="right", labelpad=1)
        axes.locator_params(axis="x", nbins=5, integer=True)
        axes.locator_params(axis="y", nbins=5)
        pad = max(0.5, 0.04 * (max(epochs) - min(epochs)))
        axes.set_xlim(min(epochs) - pad, max(epochs) + pad)
        quieten(axes)
        if len(labelled) > 1:
            axes.legend(frameon=False, fontsize=6.5, handlelength=1.4)
        return figure


def dots(rows: Sequence[tuple[str, Sequence[float]]], title: str) -> Figure:
    """A setting a row: a dot a run, and a bar at their mean. Percentages."""
    with styled():
        figure = Figure(figsize=(3.3, 0.55 + 0.3 * len(rows)), layout="constrained")
        axes = figure.subplots()
        for place, (_, values) in enumerate(rows):
            colour = SERIES[place % len(SERIES)]
            axes.plot(values, [place] * len(values), "o", ms=6, color=colour, alpha=0.7, mew=0)
            if len(values) > 1:
                axes.plot([np.mean(values)] * 2, [place - 0.32, place + 0.32], color=colour, lw=2)
        axes.set_yticks(range(len(rows)), [name for name, _ in rows], color=INK)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.margins(x=0.15)
        axes.locator_params(axis="x", nbins=5)
        axes.set_title(title, loc="left", fontsize=8.5, fontweight="bold")
        axes.set_title("%", loc="right", fontsize=7, color=QUIET)
        quieten(axes)
        return figure


def confusion_matrix(counts: NDArray[np.int64], classes: Sequence[str]) -> Figure:
    """Rows are what the images show, columns what they were taken for; darker: a larger share."""
    with styled():
        size = len(classes)
        side = 1.5 + 0.3 * size
        figure = Figure(figsize=(side, side), layout="constrained")
        axes = figure.subplots()
        totals = np.maximum(counts.sum(1, keepdims=True), 1)
        for row, column in np.argwhere(counts):
            share = counts[row, column] / totals[row, 0]
            axes.add_patch(
                Rectangle((column, row), 1, 1, color=ACCENT, alpha=0.06 + 0.5 * share, lw=0)
            )
            number = str(counts[row, column])
            axes.text(column + 0.5, row + 0.5, number, ha="center", va="center", fontsize=7)
        axes.set(xlim=(0, size), ylim=(size, 0), aspect="equal")
        middles = np.arange(size) + 0.5
        axes.set_yticks(middles, classes, color=INK)
        axes.set_xticks(middles, classes, color=INK, rotation=90)
        axes.xaxis.tick_top()
        axes.set_ylabel("shown", color=QUIET)
        axes.set_xlabel("taken for", color=QUIET)
        axes.xaxis.set_label_position("top")
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        return figure


def scatter(
    places: NDArray[np.float32],
    groups: Sequence[tuple[str, Sequence[int], int | None]],
    thumbnails: Sequence[tuple[int, Image.Image]],
    size: tuple[int, int],
    thumbnail: float,
) -> Figure:
    """A map as it stands on the page, for the PNG.

    groups: (name, rows, which of SERIES); thumbnails: (row, image), `thumbnail` units wide.
    """
    with styled():
        figure = Figure(figsize=(size[0] / 100, size[1] / 100), layout="constrained")
        axes = figure.subplots()
        for name, rows, colour in groups:
            axes.scatter(
                places[list(rows), 0],
                places[list(rows), 1],
                s=14,
                lw=0,
                label=name,
                color=LINE if colour is None else SERIES[colour],
            )
        for row, image in thumbnails:
            x, y = places[row]
            half = thumbnail / 2
            axes.imshow(image, extent=(x - half, x + half, y + half, y - half), zorder=3)
        axes.set(xlim=(0, size[0]), ylim=(size[1], 0), aspect="equal")
        axes.set_axis_off()
        if len(groups) > 1:
            figure.legend(loc="outside lower center", ncols=5, frameon=False, fontsize=9)
        return figure


def quieten(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=7, length=0)
    axes.grid(color=LINE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["left", "bottom"]].set_color(LINE)


def finish(figure: Figure, folder: Path, name: str, alt: str, caption: str = "") -> Drawing:
    """Write the PNG into the folder, and make of the figure what the page shows."""
    file = f"{slug(name)}.png"
    save_png(figure, folder / file)
    for axes in figure.axes:
        if legend := axes.get_legend():
            legend.set_visible(False)  # the page has one for all
    return Drawing(to_svg(figure, name), alt, file, caption)


def save_png(figure: Figure, path: Path) -> None:
    with styled(), replacing(path) as temporary:
        figure.savefig(temporary, dpi=DPI, facecolor="white")


def slug(name: str) -> str:
    """A file's name of any words."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "figure"


def to_svg(figure: Figure, name: str) -> Markup:
    """An <svg> for within HTML, in the page's colours; without a size, a style sheet, or addresses.

    name: of the figure; what refers to itself within the figure has an id made from it.
    Matplotlib has escaped what is text in it.
    """
    file = io.StringIO()
    with styled(), matplotlib.rc_context({"svg.hashsalt": name}):
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' (xmlns(:xlink)?|version)="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = re.sub(r' id="[a-zA-Z.\d]+_\d+"', "", svg)  # counted anew in each figure
    width, height = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg).groups()  # type: ignore[union-attr]
    svg = f'<svg viewBox="0 0 {width} {height}" aria-hidden="true"{svg[svg.index(">") :]}'
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, variable)
    svg = re.sub(r"'DejaVu Sans'(, 'DejaVu Sans')*", "var(--plain)", svg)
    return Markup(re.sub(r"\n\s*", "\n", svg))
