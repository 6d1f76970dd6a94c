"""Pictures of images: the views of a run, neighbours, groups of copies. All are PNG files.

The functions take tensors and plain values and know nothing of runs or settings.
"""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image
from torch import Tensor

from mixco.plots.style import LINE, RIGHT, SMALL, WRONG, save, styled
from mixco.runtime.files import shown


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
