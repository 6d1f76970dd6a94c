"""The page's sections of images: what the network saw, nearest neighbours, and maps."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from mixco.plots.charts import scatter
from mixco.plots.images import draw_neighbours, draw_views, to_image
from mixco.plots.style import SERIES, save
from mixco.report import embedding as embeddings
from mixco.report.embedding import Embedding, Query
from mixco.report.thumbnails import data_uri, squares
from mixco.views.preview import Preview

SHOWN_AS = 112  # pixels, of images that are looked at one by one


@dataclass(frozen=True)
class Picture:
    """An image of the page."""

    uri: str
    alt: str
    caption: str = ""
    right: bool | None = None
    """Whether a neighbour is of the query's class; None for other pictures."""


# What the network saw


@dataclass(frozen=True)
class Pair:
    """Two sources and their mixed image."""

    first: Picture
    second: Picture
    mixed: Picture
    percent: int
    """Lambda, the part of the first, in percent."""


@dataclass(frozen=True)
class Saw:
    """What went into the network."""

    views: list[tuple[Picture, Picture, Picture]]
    pairs: list[Pair]


def saw(seen: Preview, folder: Path) -> Saw:
    """Views and mixed images in their own size, and a PNG of them."""
    draw_views(folder / "views.png", seen.originals, *seen[2:])  # without the extents

    def pictures(images: Iterable[Image.Image], what: str) -> list[Picture]:
        return [
            Picture(data_uri(image, quality=90), f"{what} {number}")
            for number, image in enumerate(images, 1)
        ]

    views_q = pictures(map(to_image, seen.view_q), "first view of image")
    views_k = pictures(map(to_image, seen.view_k), "second view of image")
    originals = pictures(squares(seen.originals, seen.extents, seen.view_q.shape[-1]), "image")
    partners = views_k if seen.across else views_q
    mixed = pictures(map(to_image, seen.mixed if seen.mixed is not None else ()), "mixed image")
    return Saw(
        list(zip(originals, views_q, views_k, strict=True)),
        [
            Pair(views_q[first], partners[second], image, round(100 * lam))
            for (first, second, lam), image in zip(seen.pairs, mixed, strict=True)
        ],
    )


# Neighbours


def neighbours(
    embedding: Embedding, queries: list[Query], folder: Path, name: str
) -> list[tuple[Picture, list[Picture]]]:
    """Each query and the images that are nearest to it, and a PNG of them."""
    if not queries:
        return []
    rows: list[tuple[Picture, list[Picture]]] = []
    asked, found = [], []
    for query in queries:
        own = None if query.row is None else embedding.class_of(query.row)
        picture = squares(query.canvas[None], query.extent[None], SHOWN_AS)[0]
        pictures = squares(*embedding.pictures(query.nearest), SHOWN_AS)
        near = [
            Picture(
                data_uri(image),
                embedding.title(row),
                f"{similarity:.2f}",
                None if own is None else embedding.class_of(row) == own,
            )
            for row, image, similarity in zip(
                query.nearest.tolist(), pictures, query.similarities.tolist(), strict=True
            )
        ]
        alt = f"{query.name}, {own}" if own else query.name
        rows.append((Picture(data_uri(picture), alt, own or Path(query.name).name), near))
        asked.append(_of_equal_size(picture))
        found.append(torch.stack([_of_equal_size(image) for image in pictures]))
    right = [[p.right for p in near] for _, near in rows]
    draw_neighbours(
        folder / f"{name}.png",
        torch.stack(asked),
        torch.stack(found),
        torch.stack([query.similarities for query in queries]),
        None if any(None in row for row in right) else torch.tensor(right),
        [query.caption for query, _ in rows],
        embedding.encoder.description.training,
    )
    return rows


def _of_equal_size(image: Image.Image) -> Tensor:
    """uint8 [3, 112, 112]; the pixels of very small images stay visible."""
    small = image.width < SHOWN_AS // 2
    how = Image.Resampling.NEAREST if small else Image.Resampling.BICUBIC
    resized = np.array(image.resize((SHOWN_AS, SHOWN_AS), how))
    return torch.from_numpy(resized).permute(2, 0, 1)


# The map


@dataclass(frozen=True)
class Group:
    """Points of one colour."""

    name: str
    colour: int | None
    path: str
    """SVG path data, with a line of no length at each point."""


@dataclass(frozen=True)
class Map:
    """A map of the embedding."""

    title: str
    about: str
    groups: list[Group]
    levels: list[tuple[float, list[tuple[float, float, int | None, Picture]]]]
    """Scales, and the thumbnails that come into view at each: x, y, colour, image."""
    size: tuple[int, int] = (embeddings.WIDTH, embeddings.HEIGHT)
    thumbnail: int = embeddings.THUMBNAIL


def maps(embedding: Embedding, folder: Path, seed: int, thumbnails: int) -> list[Map]:
    """Maps by PCA, and by UMAP where that is installed; thumbnails: the most on each map."""
    found = []
    if len(embedding.index) >= 3:
        points, explained = embeddings.pca(embedding.features)
        about = (
            "The two directions in which the features vary most. They hold "
            f"{100 * explained:.0f} % of the variance; the map does not show the rest."
        )
        found.append(("pca", "By principal components", about, points))
    points_of_umap = embeddings.umap(embedding.features, seed)
    if points_of_umap is not None:
        about = (
            "UMAP keeps neighbours together as far as it can. The sizes of groups and the distances "
            "between them mean little."
        )
        found.append(("umap", "By UMAP", about, points_of_umap))
    return [
        _map(embedding, folder, name, title, about, embeddings.place(points), seed, thumbnails)
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
    chosen = embeddings.spread_thumbnails(places, most, seed)
    rows = [row for level in chosen for row in level]
    images = dict(zip(rows, squares(*embedding.pictures(torch.tensor(rows)), 64), strict=True))
    on_paper = [
        row
        for scale, level in zip(embeddings.SCALES, chosen, strict=True)
        if scale < 1
        for row in level
    ]
    figure = scatter(
        places,
        groups,
        [(row, images[row]) for row in on_paper],
        (embeddings.WIDTH, embeddings.HEIGHT),
        embeddings.THUMBNAIL,
    )
    save(figure, folder / f"map-{name}.png")

    def thumbnail(row: int) -> tuple[float, float, int | None, Picture]:
        x, y = (round(float(v), 1) for v in places[row])
        return (
            x,
            y,
            colour_of[row],
            Picture(data_uri(images[row], quality=72), embedding.title(row)),
        )

    return Map(
        title,
        about,
        [
            Group(name, colour, "".join(f"M{places[r][0]:.1f} {places[r][1]:.1f}h0" for r in those))
            for name, those, colour in groups
        ],
        [
            (scale, [thumbnail(row) for row in level])
            for scale, level in zip(embeddings.SCALES, chosen, strict=True)
            if level
        ],
    )


def coloured(embedding: Embedding) -> list[tuple[str, list[int], int | None]]:
    """The classes as (name, rows, colour): the ten with the most images; the rest together in grey."""
    labels, classes = embedding.labels, embedding.images.classes
    if labels is None:
        return [("images", list(range(len(embedding.index))), 0)]
    counts = labels.bincount(minlength=len(classes))
    largest = sorted(range(len(classes)), key=lambda c: (-int(counts[c]), classes[c]))
    largest = sorted(c for c in largest[: len(SERIES)] if counts[c])
    groups: list[tuple[str, list[int], int | None]] = [
        (classes[c], (labels == c).nonzero().squeeze(1).tolist(), place)
        for place, c in enumerate(largest)
    ]
    rest = (~torch.isin(labels, torch.tensor(largest))).nonzero().squeeze(1).tolist()
    return [*([("other classes", rest, None)] if rest else []), *groups]
