"""A run's images in the features of its encoder: neighbours, confusions of kNN, and maps."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mixco.data.decode import decode
from mixco.data.image_list import torch_type
from mixco.data.images import Images
from mixco.data.opening import UnreadableImage
from mixco.embeddings.features import extract_features, features_of
from mixco.embeddings.knn import knn_scores, neighbours
from mixco.encoders.loading import LoadedEncoder
from mixco.runtime.device import Compute
from mixco.runtime.errors import UserError
from mixco.runtime.seeding import generator_for
from mixco.views.augment import evaluation_view
from mixco.views.preview import brightened

WIDTH, HEIGHT = 1000, 700  # of a map, in units
THUMBNAIL = 44  # pixels of a screen
# Pixels of a screen for each unit of a map, from a phone to a map that is zoomed in. Each scale adds
# thumbnails to those of the scales before, without overlaps.
SCALES = (0.32, 0.5, 0.85, 1.7, 3.4, 6.8)


@dataclass(frozen=True)
class Embedding:
    """Images and their features."""

    images: Images
    index: Tensor
    """int64 [n]: which images, by their place in `images`."""
    features: Tensor
    """float32 [n, D] on the CPU, of unit length."""
    held_out: Tensor
    """bool [n]: whether the kNN check asks about the image."""
    encoder: LoadedEncoder
    compute: Compute

    @property
    def labels(self) -> Tensor | None:
        """int64 [n]"""
        return None if self.images.labels is None else self.images.labels[self.index]

    def name(self, row: int) -> str:
        return self.images.files[int(self.index[row])]

    def title(self, row: int) -> str:
        """Its name, and its class if it has one."""
        return ", ".join(filter(None, (self.name(row), self.class_of(row))))

    def class_of(self, row: int) -> str | None:
        labels = self.images.labels
        return None if labels is None else self.images.classes[int(labels[self.index[row]])]

    def pictures(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Some of the images, to be shown: canvases [n, C, S, S] and their extents, int64 [n, 2]."""
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
    """Compute the features of the images, or of a random part of them.

    bank, held_out: int64, together all images, see `split_holdout`.
    most: how many images at most; when there are more, at most half of those taken are held out.

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
    features = F.normalize(features.cpu(), dim=1)
    return Embedding(images, index, features, asked_about, encoder, compute)


@dataclass(frozen=True)
class Query:
    """An image, and the images that are nearest to it."""

    canvas: Tensor
    extent: Tensor
    name: str
    row: int | None
    """Its row in the embedding; None when it is not one of the run's images."""
    nearest: Tensor
    """int64 [k]: rows of the embedding, the nearest first, without the image itself."""
    similarities: Tensor
    """float32 [k], cosines."""


def random_queries(embedding: Embedding, count: int, k: int, seed: int) -> list[Query]:
    generator = generator_for(seed, "report queries")
    rows = torch.randperm(len(embedding.index), generator=generator)[:count]
    return [_query_of_row(embedding, int(row), k) for row in rows]


def chosen_query(embedding: Embedding, path: Path, k: int) -> Query:
    """path: an image file, or the name of one of the run's images below their folder.

    Raises UserError when it is neither, or cannot be read.
    """
    row = _row_of(embedding, path)
    if row is not None:
        return _query_of_row(embedding, row, k)
    input, compute = embedding.encoder.description.input, embedding.compute
    try:
        pixel = embedding.images.source.pixel
        picture = decode(path.read_bytes(), embedding.side, pixel)
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
    feature = extract_features(embedding.encoder.backbone, [view], compute).cpu()
    similarities, nearest = neighbours(embedding.features, feature, k)
    canvas = brightened(canvas, input)
    return Query(canvas, extent, str(path), None, nearest[0], similarities[0])


def _row_of(embedding: Embedding, path: Path) -> int | None:
    root = embedding.images.source.root
    wanted = {path.as_posix()}
    if path.exists() and path.resolve().is_relative_to(root.resolve()):
        wanted.add(path.resolve().relative_to(root.resolve()).as_posix())
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
    """The classes that kNN predicts for the held-out images."""

    rows: Tensor
    """int64 [m]: rows of the embedding."""
    truth: Tensor
    """int64 [m]"""
    guess: Tensor
    """int64 [m]"""
    classes: int

    @property
    def counts(self) -> NDArray[np.int64]:
        """The confusion matrix: [true class, predicted class], in images."""
        both = self.truth * self.classes + self.guess
        counts = both.bincount(minlength=self.classes**2).view(self.classes, self.classes)
        return np.asarray(counts.numpy(), np.int64)


def guess_held_out(embedding: Embedding) -> Guesses | None:
    """Predict by the 20 nearest images that are not held out, as the run's own check does.

    None without labels, or where no image or every image is held out.
    """
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
    """A class whose images are taken for another class."""

    truth: int
    guess: int
    images: int
    examples: list[tuple[int, int, float]]
    """(row of the image, row of the nearest image of the other class, their similarity)"""


def worst_confusions(
    embedding: Embedding, guesses: Guesses, pairs: int, examples: int
) -> list[Confusion]:
    """The most frequent mistakes, each with a few images and what misled them."""
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
    """features [n, D] -> [n, 2], the two directions of most variance, and the part of it they hold."""
    centred = (features - features.mean(0)).double()
    # Of more features than images, the product of features has many eigenvalues of zero, and its
    # decomposition may fail. That of images has the same others.
    few = len(centred) < centred.shape[1]
    values, vectors = torch.linalg.eigh(centred @ centred.T if few else centred.T @ centred)
    axes = vectors[:, -2:].flip(1)
    if few:
        axes = F.normalize(centred.T @ axes, dim=0)
    # Either sign is right; one is chosen, so that a map is always the same.
    axes = axes * torch.sign(axes.gather(0, axes.abs().argmax(0, keepdim=True)))
    explained = values[-2:].sum() / values.clamp(min=0).sum().clamp(min=1e-12)
    return np.asarray((centred @ axes).float().numpy()), float(explained)


def umap(features: Tensor, seed: int) -> NDArray[np.float32] | None:
    """features [n, D] -> [n, 2], by cosines; None without umap-learn, or for less than 50 images."""
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
    """points [n, 2], the second axis upwards -> [n, 2] in units of a map, from its top left."""
    low, high = points.min(0), points.max(0)
    unit = (points - low) / np.maximum(high - low, 1e-12)
    unit[:, 1] = 1 - unit[:, 1]
    inner = np.array([WIDTH - 2 * margin, HEIGHT - 2 * margin], np.float32)
    return np.asarray(margin + unit * inner, np.float32)


def spread_thumbnails(places: NDArray[np.float32], most: int, seed: int) -> list[list[int]]:
    """For each of SCALES the rows that get a thumbnail from that scale on; none overlap.

    places: [n, 2], see `place`. most: thumbnails in all.
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
