"""The images of a run by its encoder: features, neighbours, what kNN takes for what, and maps."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mixco.data.decode import UnreadableImage, decode
from mixco.data.image_list import torch_type
from mixco.data.images import Images
from mixco.embeddings.features import extract_features, features_of
from mixco.embeddings.knn import knn_scores, neighbours
from mixco.encoders.checkpoint import LoadedEncoder
from mixco.runtime.device import Compute
from mixco.runtime.errors import UserError
from mixco.runtime.seeding import generator_for
from mixco.views.augment import brightened, evaluation_view

WIDTH, HEIGHT = 1000, 700  # of a map, in units
THUMBNAIL = 44  # pixels of a screen
# Pixels of a screen that a unit is long, from a phone's to a map that is zoomed in on. At each of these
# scales there are thumbnails that do not overlap, and all of the scales before stay.
SCALES = (0.32, 0.5, 0.85, 1.7, 3.4, 6.8)


@dataclass(frozen=True)
class Embedding:
    """Images and their features."""

    images: Images
    index: Tensor
    """int64 [n]: which of the images."""
    features: Tensor
    """float32 [n, D], of unit length."""
    held_out: Tensor
    """bool [n]: those that the kNN check asks about."""
    encoder: LoadedEncoder
    compute: Compute

    @property
    def labels(self) -> Tensor | None:
        """int64 [n]"""
        return None if self.images.labels is None else self.images.labels[self.index]

    def name(self, row: int) -> str:
        return self.images.files[int(self.index[row])]

    def class_of(self, row: int) -> str | None:
        labels = self.images.labels
        return None if labels is None else self.images.classes[int(labels[self.index[row]])]

    def pictures(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Canvases [n, C, S, S], as they are shown, and extents [n, 2] of some of them."""
        found, extents = self.images.canvases(self.index[rows], self.side)
        return brightened(found, self.encoder.description.input), extents

    @property
    def side(self) -> int:
        return 2 * self.encoder.description.size


def embed(
    images: Images,
    encoder: LoadedEncoder,
    bank: Tensor,
    held_out: Tensor,
    *,
    most: int,
    seed: int,
    compute: Compute,
    on_unreadable: Callable[[str, str], None],
    on_progress: Callable[[int, int], None],
) -> Embedding:
    """Features of the images, or of a random part of them.

    bank, held_out: int64, together all images, see `split_holdout`. most: of images; when there are
        more, at most half of these are held out.

    Raises UserError as `features_of` does.
    """
    if len(bank) + len(held_out) > most:
        generator = generator_for(seed, "report")
        asked = min(len(held_out), most // 2)
        held_out = held_out[torch.randperm(len(held_out), generator=generator)[:asked]]
        bank = bank[torch.randperm(len(bank), generator=generator)[: most - asked]]
    features, index = features_of(
        encoder.backbone,
        images,
        torch.cat([bank, held_out]).sort().values,
        encoder.description.input,
        compute=compute,
        on_unreadable=on_unreadable,
        on_progress=on_progress,
    )
    asked_about = torch.isin(index, held_out)
    return Embedding(images, index, F.normalize(features, dim=1), asked_about, encoder, compute)


@dataclass(frozen=True)
class Query:
    """An image, and those that are nearest to it."""

    canvas: Tensor
    extent: Tensor
    name: str
    row: int | None
    """Where it is in the embedding; None when it is not of the run's images."""
    nearest: Tensor
    """int64 [k]: rows of the embedding, without the image itself; the nearest first."""
    similarities: Tensor
    """float32 [k], cosines."""


def random_queries(embedding: Embedding, count: int, k: int, seed: int) -> list[Query]:
    generator = generator_for(seed, "report queries")
    rows = torch.randperm(len(embedding.index), generator=generator)[:count]
    return [_query_of_row(embedding, int(row), k) for row in rows]


def chosen_query(embedding: Embedding, path: Path, k: int) -> Query:
    """path: of an image file, or a file of the run's images by its name below their folder.

    Raises UserError when it is neither, or cannot be read.
    """
    row = _row_of(embedding, path)
    if row is not None:
        return _query_of_row(embedding, row, k)
    input, compute = embedding.encoder.description.input, embedding.compute
    try:
        pixel = embedding.images.source.pixel
        picture = decode(path.expanduser().read_bytes(), embedding.side, pixel)
    except OSError as error:
        raise UserError(
            f"--images {path}: cannot be read ({error.strerror}); give image files, or names below "
            f"{embedding.images.source.root}"
        ) from None
    except UnreadableImage as error:
        raise UserError(f"--images {path}: cannot be read ({error}); leave it out") from None
    height, width = picture.shape[:2]
    side = max(height, width)
    canvas = torch.zeros(pixel.channels, side, side, dtype=torch_type(pixel))
    canvas[:, :height, :width] = torch.tensor(picture).permute(2, 0, 1)
    extent = torch.tensor([height, width])
    view = evaluation_view(canvas[None], extent[None], input).to(compute.device, compute.dtype)
    feature = extract_features(embedding.encoder.backbone, [view], compute)
    similarities, nearest = neighbours(embedding.features, feature, k)
    canvas = brightened(canvas, input)
    return Query(canvas, extent, str(path), None, nearest[0], similarities[0])


def _row_of(embedding: Embedding, path: Path) -> int | None:
    root = embedding.images.source.root
    wanted = {path.as_posix()}
    if path.expanduser().exists() and path.expanduser().resolve().is_relative_to(root.resolve()):
        wanted.add(path.expanduser().resolve().relative_to(root.resolve()).as_posix())
    rows = (
        r for r, i in enumerate(embedding.index.tolist()) if embedding.images.files[i] in wanted
    )
    return next(rows, None)


def _query_of_row(embedding: Embedding, row: int, k: int) -> Query:
    similarities, nearest = neighbours(embedding.features, embedding.features[row, None], k + 1)
    others = nearest[0] != row
    canvas, extent = embedding.pictures(torch.tensor([row]))
    return Query(
        canvas[0],
        extent[0],
        embedding.name(row),
        row,
        nearest[0][others][:k],
        similarities[0][others][:k],
    )


@dataclass(frozen=True)
class Guesses:
    """What kNN takes the held-out images for."""

    rows: Tensor
    """int64 [m]: which rows of the embedding were asked about."""
    truth: Tensor
    """int64 [m]"""
    guess: Tensor
    """int64 [m]"""
    classes: int

    @property
    def counts(self) -> NDArray[np.int64]:
        """[classes, classes]: images of the one that were taken for the other."""
        both = self.truth * self.classes + self.guess
        counts = both.bincount(minlength=self.classes**2).view(self.classes, self.classes)
        return np.asarray(counts.numpy(), np.int64)

    @property
    def top1(self) -> float:
        return 100 * (self.truth == self.guess).float().mean().item()


def guess_held_out(embedding: Embedding) -> Guesses | None:
    """By the 20 nearest images that are not held out, as in the run's own check."""
    labels, asked = embedding.labels, embedding.held_out
    if labels is None or not asked.any() or asked.all():
        return None
    scores = knn_scores(
        embedding.features[~asked],
        labels[~asked],
        embedding.features[asked],
        classes=len(embedding.images.classes),
        k=20,
    )
    rows = asked.nonzero().squeeze(1)
    return Guesses(rows, labels[rows], scores.argmax(1), len(embedding.images.classes))


@dataclass(frozen=True)
class Confusion:
    """Two classes, of which images of the first are taken for the second."""

    truth: int
    guess: int
    images: int
    examples: list[tuple[int, int, float]]
    """(row of the image, row of the nearest of the other class, their similarity)"""


def worst_confusions(
    embedding: Embedding, guesses: Guesses, pairs: int, examples: int
) -> list[Confusion]:
    """The most frequent mistakes first; of each a few images and what misled them."""
    counts = guesses.counts.copy()
    np.fill_diagonal(counts, 0)
    labels = embedding.labels
    assert labels is not None
    found = []
    for place in np.argsort(-counts, axis=None, kind="stable")[:pairs]:
        truth, guess = divmod(int(place), guesses.classes)
        if counts[truth, guess] == 0:
            break
        rows = guesses.rows[(guesses.truth == truth) & (guesses.guess == guess)][:examples]
        others = (~embedding.held_out & (labels == guess)).nonzero().squeeze(1)
        similarities, nearest = neighbours(embedding.features[others], embedding.features[rows], 1)
        those = zip(rows.tolist(), others[nearest[:, 0]].tolist(), similarities[:, 0], strict=True)
        shown = [(row, other, float(similarity)) for row, other, similarity in those]
        found.append(Confusion(truth, guess, int(counts[truth, guess]), shown))
    return found


def pca(features: Tensor) -> tuple[NDArray[np.float32], float]:
    """The two directions in which features [n, D] vary most: [n, 2], and their share of the variance."""
    centred = features - features.mean(0)
    values, vectors = torch.linalg.eigh(centred.T @ centred)
    axes = vectors[:, -2:].flip(1)
    # An axis may point either way; one way is chosen, so that a map stays as it is.
    axes = axes * torch.sign(axes.gather(0, axes.abs().argmax(0, keepdim=True)))
    share = values[-2:].sum() / values.clamp(min=0).sum().clamp(min=1e-12)
    return np.asarray((centred @ axes).numpy()), float(share)


def umap(features: Tensor, seed: int) -> NDArray[np.float32] | None:
    """[n, 2], neighbours by the cosine; None where umap-learn is not installed, or of few images."""
    if len(features) < 50:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of other libraries that it could use
        try:
            from umap import UMAP
        except ImportError:
            return None
        mapping = UMAP(n_neighbors=15, min_dist=0.1, metric="cosine", random_state=seed, n_jobs=1)
        return np.asarray(mapping.fit_transform(features.numpy()), np.float32)


def place(points: NDArray[np.float32], margin: float = 48) -> NDArray[np.float32]:
    """[n, 2] in the units of a map, the first axis to the right, the second upwards."""
    low, high = points.min(0), points.max(0)
    unit = (points - low) / np.maximum(high - low, 1e-12)
    unit[:, 1] = 1 - unit[:, 1]
    inner = np.array([WIDTH - 2 * margin, HEIGHT - 2 * margin], np.float32)
    return np.asarray(margin + unit * inner, np.float32)


def spread_thumbnails(places: NDArray[np.float32], most: int, seed: int) -> list[list[int]]:
    """For each of SCALES the rows that get a thumbnail there, beside those of the scales before.

    At no scale do two that are shown overlap.
    """
    order = torch.randperm(len(places), generator=generator_for(seed, "thumbnails")).tolist()
    kept: list[int] = []
    levels = []
    for scale in SCALES:
        least = 1.06 * THUMBNAIL / scale
        level: list[int] = []
        for row in order:
            if len(kept) == most:
                break
            distances = np.abs(places[kept] - places[row]).max(1) if kept else np.array([np.inf])
            if distances.min() >= least:
                kept.append(row)
                level.append(row)
        taken = set(level)
        order = [row for row in order if row not in taken]
        levels.append(level)
    return levels
