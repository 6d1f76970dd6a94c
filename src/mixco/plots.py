"""The pictures that people look at, as PNG files. They take tensors and records, nothing of mixco."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from mixco.runtime.files import replacing, shown

# Okabe and Ito's colours, told apart by everybody: what was mixed, its base, what was not trained.
MIXED, BASE, UNTRAINED = "#0072B2", "#E69F00", "#999999"
RIGHT, WRONG = "#009E73", "#D55E00"
INK = "#333333"
DPI = 150


def draw_views(
    path: Path,
    originals: Tensor,
    view_q: Tensor,
    view_k: Tensor,
    mixed: Tensor | None,
    shares: Sequence[tuple[int, int, float]],
) -> None:
    """What the network saw: images, two views of each, and mixtures of pairs of the first views.

    originals: uint8 or float in [0, 1], [B, C, H, W]; views: float [B, C, S, S] in [0, 1], not
        normalised. Of four channels and more the first three are shown as red, green and blue.
    mixed: float [M, C, S, S] in [0, 1], and for each its (first, second, share of the first);
        None where nothing is mixed.
    """
    pairs = shares or [(i, i + 1, 1.0) for i in range(0, len(originals) - 1, 2)]
    order = [i for first, second, _ in pairs for i in (first, second)]
    rows = [("image", originals), ("view 1", view_q), ("view 2", view_k)]
    height = len(rows) + (1.6 if mixed is not None else 0)
    figure = Figure(figsize=(1.15 * len(order) + 0.6, 1.15 * height + 0.3), layout="constrained")
    grid = figure.add_gridspec(
        len(rows) + (mixed is not None),
        len(order),
        height_ratios=[1.0] * len(rows) + [1.6] * (mixed is not None),
    )
    for row, (name, images) in enumerate(rows):
        for column, index in enumerate(order):
            axes = figure.add_subplot(grid[row, column])
            _show(axes, images[index])
            if column == 0:
                axes.set_ylabel(name, color=INK, fontsize=10)
    if mixed is not None:
        for number, (_, _, share) in enumerate(pairs):
            axes = figure.add_subplot(grid[len(rows), 2 * number : 2 * number + 2])
            _show(axes, mixed[number])
            left = round(100 * share)
            axes.set_xlabel(f"{left} % left, {100 - left} % right", color=INK, fontsize=9)
            if number == 0:
                axes.set_ylabel("mixture of\ntwo views 1", color=INK, fontsize=10)
    _save(figure, path)


def draw_curves(path: Path, runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Losses and, where there are any, kNN checks over the epochs, a colour a run.

    runs: name -> the records of metrics.jsonl.
    """
    checked = any("knn" in record for records in runs.values() for record in records)
    figure = Figure(figsize=(9.5 if checked else 5, 3.4), layout="constrained")
    axes = figure.subplots(1, 2 if checked else 1, squeeze=False)[0]
    for name, records in runs.items():
        colour = MIXED if "+" in name else BASE
        epochs = [record["epoch"] for record in records]
        axes[0].plot(epochs, [r["clean"] for r in records], color=colour, label=f"{name}: clean")
        if "mixed" in records[-1]:
            mixed = [r["mixed"] for r in records]
            axes[0].plot(epochs, mixed, color=colour, ls="--", label=f"{name}: mixtures")
        points = [(r["epoch"], r["knn"]) for r in records if "knn" in r]
        if points:
            axes[1].plot(*zip(*points, strict=True), color=colour, marker="o", ms=4, label=name)
    axes[0].set_title("Contrastive loss", loc="left", fontsize=11)
    if checked:
        axes[1].set_title("kNN top-1 on held-out training images, %", loc="left", fontsize=11)
    for one in axes:
        one.set_xlabel("epoch")
        one.xaxis.get_major_locator().set_params(integer=True)
        one.legend(frameon=False, fontsize=9)
        _quieten(one)
    _save(figure, path)


def draw_neighbours(
    path: Path,
    queries: Tensor,
    neighbours: Tensor,
    similarities: Tensor,
    correct: Tensor | None,
    names: Sequence[str],
    title: str,
) -> None:
    """Each query, then the images whose features are nearest to its own, nearest first.

    queries: [Q, C, H, W], neighbours: [Q, K, C, H, W], both uint8 or float in [0, 1], shown as by
        `draw_views`; similarities: [Q, K] in [-1, 1].
    correct: bool [Q, K], whether the neighbour is of the query's class: the frame's colour; None where
        there are no classes.
    names: the class of each query, or whatever it is called.
    """
    title = _plain(title)
    frames = "solid green: of the same class; dashed orange: of another; "
    title += f"\n{frames if correct is not None else ''}below: cosine similarity"
    count, k = similarities.shape
    figure = Figure(figsize=(1.0 * (k + 1.9), 1.05 * count + 0.9), layout="constrained")
    figure.suptitle(title, fontsize=11, color=INK)
    grid = figure.add_gridspec(count, k + 2, width_ratios=[1, 0.15] + [1] * k)
    for row in range(count):
        axes = figure.add_subplot(grid[row, 0])
        _show(axes, queries[row])
        axes.set_ylabel(
            _plain(names[row]),
            color=INK,
            fontsize=8,
            rotation=0,
            ha="right",
            va="center",
            labelpad=6,
        )
        for column in range(k):
            axes = figure.add_subplot(grid[row, column + 2])
            right = correct is None or bool(correct[row, column])
            frame = None if correct is None else RIGHT if right else WRONG
            _show(axes, neighbours[row, column], frame=frame, dashed=not right)
            value = float(similarities[row, column])
            text = f"{value:.4f}" if correct is None else f"{value:.2f}"  # among all, many are near
            axes.set_xlabel(text, fontsize=7, color=INK, labelpad=2)
    _save(figure, path)


def draw_comparison(path: Path, results: Mapping[str, Mapping[str, Any]]) -> None:
    """Bars: kNN and linear probe, top-1 in percent, for each encoder of a results.json."""
    figure = Figure(figsize=(8, 0.55 * len(results) + 1.0), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    names = list(results)
    for axes, kind, title in zip(
        panels, ("knn", "linear"), ("kNN top-1, %", "linear probe top-1, %"), strict=True
    ):
        values = [results[name][kind]["top1"] for name in names]
        colours = [UNTRAINED if n == "random" else MIXED if "+" in n else BASE for n in names]
        bars = axes.barh(names, values, color=colours, height=0.65)
        axes.bar_label(bars, fmt="%.1f", padding=3, fontsize=9, color=INK)
        axes.set_xlim(0, 105)
        axes.set_title(title, loc="left", fontsize=11)
        _quieten(axes)
    panels[0].invert_yaxis()
    _save(figure, path)


def _show(axes: Axes, image: Tensor, frame: str | None = None, dashed: bool = False) -> None:
    """image: uint8 or float in [0, 1], [C, H, W]: the first three channels, or the mean of two."""
    if len(image) < 3:
        most = 1 if image.is_floating_point() else 255
        grey = image.float().mean(0).cpu().numpy()
        axes.imshow(grey, cmap="gray", vmin=0, vmax=most, interpolation="nearest")
    else:
        axes.imshow(image[:3].permute(1, 2, 0).cpu().numpy(), interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(visible=frame is not None, color=frame or INK, linewidth=2.5)
        spine.set_linestyle("--" if dashed else "-")


def _quieten(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9)
    axes.grid(color="#EEEEEE")
    axes.set_axisbelow(True)


def _save(figure: Figure, path: Path) -> None:
    with replacing(path) as temporary, warnings.catch_warnings():
        # Of names in letters that the font lacks: they show as boxes.
        warnings.filterwarnings("ignore", "Glyph")
        figure.savefig(temporary, dpi=DPI, facecolor="white")


def _plain(name: str) -> str:
    """A name of the user's: dollars are no formulas, and what is no text is escaped."""
    return shown(name).replace("$", r"\$")
