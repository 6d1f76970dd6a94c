"""The page's sections, as plain values for page.html: what is in them, not how it looks."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mixco.plots import draw_neighbours, draw_views
from mixco.report import embedding as of
from mixco.report.embedding import Embedding, Query
from mixco.report.figures import (
    Drawing,
    Line,
    dots,
    finish,
    panel,
    save_png,
    scatter,
)
from mixco.report.run import Run
from mixco.report.table import COLUMNS, IGNORED, Row, Table, difference, tabulate
from mixco.report.thumbnails import data_uri, squares, to_image
from mixco.views.preview import Preview

# Of metrics.jsonl: title, unit, factor. Other columns are drawn under their own names.
PANELS = {
    "knn": ("Nearest neighbours, held-out images", "% right", 1.0),
    "lr": ("Learning rate", "", 1.0),
    "images_per_second": ("Speed", "images/s", 1.0),
    "waiting_share": ("Waiting for images", "% of the time", 100.0),
}
LAST = ("lr", "images_per_second", "waiting_share")
LOSSES = ("loss", "clean", "mixed")

SHOWN_AS = 112  # pixels, of images that are looked at one by one
COLOURS = 10


@dataclass(frozen=True)
class Picture:
    """An image of the page."""

    uri: str
    alt: str
    caption: str = ""
    right: bool | None = None
    """Of a neighbour: whether it is of the query's class."""


# Curves, and several runs beside each other


def settings(runs: Sequence[Run]) -> list[tuple[str, list[Run]]]:
    """Runs that differ by nothing but their seed, together, with a name that tells them apart."""
    shown = {"data.data", "data.size", "model.arch", "optimisation.epochs"}
    groups: dict[Any, list[Run]] = {}
    for run in runs:
        learned = {k: str(v) for k, v in run.config.items() if k not in IGNORED - shown}
        key = (run.trained, tuple(sorted(learned.items())))
        groups.setdefault(key, []).append(run)
    names = [g[0].method if g[0].trained else "random weights" for g in groups.values()]
    return [
        (name if names.count(name) == 1 else f"{name}, {group[0].name}", group)
        for name, group in zip(names, groups.values(), strict=True)
    ]


def curves(groups: list[tuple[str, list[Run]]], folder: Path) -> list[Drawing]:
    """A panel for each number that the runs wrote down at their epochs."""
    runs = [run for _, group in groups for run in group]
    names = list(dict.fromkeys(name for run in runs for record in run.records for name in record))
    names = [name for name in names if name not in ("epoch", *LOSSES) and any_of(runs, name)]
    names.sort(key=lambda name: (name in LAST, name != "knn"))
    epochs = [int(record["epoch"]) for run in runs for record in run.records]
    drawings = []
    if any(any_of(runs, name) for name in LOSSES):
        drawings.append(_loss_panel(groups, epochs, folder))
    for name in names:
        words = name.replace("_", " ").strip()
        title, unit, factor = PANELS.get(name, (words[:1].upper() + words[1:], "", 1.0))
        lines = _lines(groups, name, factor)
        figure = panel(lines, title, unit, epochs)
        drawings.append(finish(figure, folder, name, _told(f"{title}, {unit}".strip(", "), lines)))
    return drawings


def any_of(runs: Sequence[Run], name: str) -> bool:
    return any(run.column(name) for run in runs)


def _loss_panel(groups: list[tuple[str, list[Run]]], epochs: list[int], folder: Path) -> Drawing:
    lines = []
    for place, (label, group) in enumerate(groups):
        kinds = [n for n in ("clean", "mixed") if any_of(group, n)] or ["loss"]
        for kind in kinds:
            words = {"clean": "clean", "mixed": "mixtures"}.get(kind, "")
            lines += _lines(
                [(label, group)], kind, 1.0, place, words if len(kinds) > 1 else "", kind == "mixed"
            )
    title = "Contrastive loss"
    return finish(panel(lines, title, "", epochs), folder, "loss", _told(title, lines))


def _lines(
    groups: list[tuple[str, list[Run]]],
    name: str,
    factor: float,
    first: int = 0,
    ending: str = "",
    dashed: bool = False,
) -> list[Line]:
    """Of each setting its runs, and where there are several, their mean in the epochs that all have."""
    lines = []
    for place, (label, group) in enumerate(groups, first):
        columns = [{e: factor * v for e, v in run.column(name)} for run in group]
        columns = [column for column in columns if column]
        if not columns:
            continue
        several = len(columns) > 1
        for column in columns if several else []:
            lines.append(Line(label, list(column.items()), place, dashed, faint=True))
        common = [e for e in columns[0] if all(e in column for column in columns)]
        mean = [(e, float(np.mean([column[e] for column in columns]))) for e in common]
        if mean:
            lines.append(Line(label, mean, place, dashed, ending=ending))
    return lines


def _told(title: str, lines: Sequence[Line]) -> str:
    """A figure in words."""
    told = []
    for line in lines:
        if line.faint:
            continue
        (first, before), (last, after) = line.points[0], line.points[-1]
        name = f"{line.label} {line.ending}".strip()
        told.append(
            f"{name} goes from {before:.4g} in epoch {first:g} to {after:.4g} in epoch {last:g}"
            if last != first
            else f"{name} is {after:.4g} in epoch {last:g}"
        )
    return f"{title}: {'; '.join(told)}."


@dataclass(frozen=True)
class Comparison:
    """Several runs side by side."""

    table: Table
    drawings: list[Drawing]


def comparison(rows: list[Row], folder: Path) -> Comparison | None:
    """Mean and spread over seeds; None where there is nothing to compare."""
    if sum(len(row.runs) for row in rows) < 2:
        return None
    shown = tabulate(rows)
    kinds = dict.fromkeys(k for row in rows for run in row.runs for k in run)
    drawings = []
    for kind in kinds:
        values = [
            (
                ", ".join(filter(None, (row.shown[0], difference(row, rows)))),
                [run[kind]["top1"] for run in row.runs if "top1" in run.get(kind, {})],
            )
            for row in rows
        ]
        values = [(name, numbers) for name, numbers in values if numbers]
        if not values or kind in ("config", "pretrain"):
            continue
        title = f"{COLUMNS.get(kind, (kind,))[0]}, top-1"
        told = "; ".join(f"{n}: {', '.join(f'{v:.1f}' for v in vs)}" for n, vs in values)
        figure = dots(values, title)
        drawings.append(
            finish(figure, folder, f"comparison {kind}", f"{title} in percent. {told}.")
        )
    cells = [[text.replace("+-", "±") for text in line] for line in shown.lines]
    notes = [note.replace("`", "").replace("+-", "±") for note in shown.notes]
    return Comparison(Table(shown.head, cells, notes), drawings)


# What the network saw


@dataclass(frozen=True)
class Pair:
    """Two sources and their mixture."""

    first: Picture
    second: Picture
    mixture: Picture
    percent: int
    """The first one's share."""


@dataclass(frozen=True)
class Saw:
    """What went into the network."""

    views: list[tuple[Picture, Picture, Picture]]
    pairs: list[Pair]


def saw(seen: Preview, folder: Path) -> Saw:
    """Views and mixtures, as large as they are, and a PNG of them."""
    draw_views(
        folder / "views.png",
        *(seen.originals, seen.view_q, seen.view_k, seen.mixed, seen.pairs),
    )

    def shown(images: Tensor, words: str) -> list[Picture]:
        uris = [data_uri(to_image(image), quality=90) for image in images]
        return [Picture(uri, f"{words} {number}") for number, uri in enumerate(uris, 1)]

    views_q = shown(seen.view_q, "first view of image")
    views_k = shown(seen.view_k, "second view of image")
    originals = [
        Picture(data_uri(image, quality=90), f"image {number}")
        for number, image in enumerate(
            squares(seen.originals, seen.extents, seen.view_q.shape[-1]), 1
        )
    ]
    mixtures = shown(seen.mixed, "mixture") if seen.mixed is not None else []
    return Saw(
        list(zip(originals, views_q, views_k, strict=True)),
        [
            Pair(views_q[first], views_q[second], mixture, round(100 * share))
            for (first, second, share), mixture in zip(seen.pairs, mixtures, strict=False)
        ],
    )


# Neighbours


def neighbours(
    embedding: Embedding, queries: list[Query], folder: Path, name: str
) -> list[tuple[Picture, list[Picture]]]:
    """Each query and the images that are nearest to it, and a PNG of them."""
    if not queries:
        return []
    rows, asked, found, right = [], [], [], []
    for query in queries:
        own = None if query.row is None else embedding.class_of(query.row)
        picture = squares(query.canvas[None], query.extent[None], SHOWN_AS)[0]
        pictures = squares(*embedding.pictures(query.nearest), SHOWN_AS)
        near = []
        for row, image, similarity in zip(
            query.nearest.tolist(), pictures, query.similarities.tolist(), strict=True
        ):
            of_class = embedding.class_of(row)
            told = f"{embedding.name(row)}" + (f", {of_class}" if of_class else "")
            same = None if own is None else of_class == own
            near.append(Picture(data_uri(image), told, f"{similarity:.2f}", same))
        caption = own or Path(query.name).name
        alt = f"{query.name}, {own}" if own else query.name
        rows.append((Picture(data_uri(picture), alt, caption), near))
        asked.append(_equal(picture))
        found.append(torch.stack([_equal(image) for image in pictures]))
        right.append([bool(p.right) for p in near])
    judged = all(p.right is not None for _, near in rows for p in near)
    draw_neighbours(
        folder / f"{name}.png",
        torch.stack(asked),
        torch.stack(found),
        torch.stack([query.similarities for query in queries]),
        torch.tensor(right) if judged else None,
        [query.caption for query, _ in rows],
        embedding.encoder.description.training,
    )
    return rows


def _equal(image: Any) -> Tensor:
    """uint8 [3, 112, 112]"""
    resized = np.array(image.resize((SHOWN_AS, SHOWN_AS), 0 if image.width < SHOWN_AS // 2 else 3))
    return torch.from_numpy(resized).permute(2, 0, 1)


# The map


@dataclass(frozen=True)
class Group:
    """Points of one colour."""

    name: str
    colour: int | None
    path: str
    """Of SVG: a dot of no length at each."""


@dataclass(frozen=True)
class Map:
    """A map of the embedding."""

    title: str
    about: str
    groups: list[Group]
    levels: list[tuple[float, list[tuple[float, float, int | None, Picture]]]]
    """Scale, and what comes into view at it: x, y, colour, image."""
    size: tuple[int, int] = (of.WIDTH, of.HEIGHT)
    thumbnail: int = of.THUMBNAIL


def maps(embedding: Embedding, folder: Path, seed: int, thumbnails: int) -> list[Map]:
    """By PCA, and by UMAP where that is installed."""
    found = []
    if len(embedding.index) >= 3:
        points, share = of.pca(embedding.features)
        about = (
            "The two directions in which the features vary most. Distances are true as far as these "
            f"two show them, which is {100 * share:.0f} % of the variance."
        )
        found.append(("pca", "By principal components", about, points))
    points_of_umap = of.umap(embedding.features, seed)
    if points_of_umap is not None:
        about = (
            "Neighbours stay neighbours as far as possible. How far groups lie apart, and how large "
            "they are, means little."
        )
        found.append(("umap", "By UMAP", about, points_of_umap))
    return [
        _map(embedding, folder, name, title, about, of.place(points), seed, thumbnails)
        for name, title, about, points in found
    ]


def _map(
    embedding: Embedding,
    folder: Path,
    name: str,
    title: str,
    about: str,
    places: NDArray[np.float32],
    seed: int,
    most: int,
) -> Map:
    groups = coloured(embedding)
    colour_of = {row: colour for _, rows, colour in groups for row in rows}
    chosen = of.spread_thumbnails(places, most, seed)
    rows = [row for level in chosen for row in level]
    images = dict(zip(rows, squares(*embedding.pictures(torch.tensor(rows)), 64), strict=True))
    on_paper = [
        row for scale, level in zip(of.SCALES, chosen, strict=True) if scale < 1 for row in level
    ]
    figure = scatter(
        places,
        groups,
        [(row, images[row]) for row in on_paper],
        (of.WIDTH, of.HEIGHT),
        of.THUMBNAIL,
    )
    save_png(figure, folder / f"map-{name}.png")

    def thumbnail(row: int) -> tuple[float, float, int | None, Picture]:
        label = embedding.class_of(row)
        told = embedding.name(row) + (f", {label}" if label else "")
        x, y = (round(float(v), 1) for v in places[row])
        return x, y, colour_of[row], Picture(data_uri(images[row], quality=72), told)

    return Map(
        title,
        about,
        [
            Group(name, colour, "".join(f"M{places[r][0]:.1f} {places[r][1]:.1f}h0" for r in those))
            for name, those, colour in groups
        ],
        [
            (scale, [thumbnail(row) for row in level])
            for scale, level in zip(of.SCALES, chosen, strict=True)
            if level
        ],
    )


def coloured(embedding: Embedding) -> list[tuple[str, list[int], int | None]]:
    """(name, rows, colour): the classes; of many the ten with the most images, the rest in grey."""
    labels, classes = embedding.labels, embedding.images.classes
    if labels is None:
        return [("images", list(range(len(embedding.index))), 0)]
    counts = labels.bincount(minlength=len(classes))
    largest = sorted(range(len(classes)), key=lambda c: (-int(counts[c]), classes[c]))
    largest = sorted(c for c in largest[:COLOURS] if counts[c])
    groups: list[tuple[str, list[int], int | None]] = [
        (classes[c], (labels == c).nonzero().squeeze(1).tolist(), place)
        for place, c in enumerate(largest)
    ]
    rest = (~torch.isin(labels, torch.tensor(largest))).nonzero().squeeze(1).tolist()
    return [*([("other classes", rest, None)] if rest else []), *groups]
