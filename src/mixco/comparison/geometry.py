"""How an encoder's features lie, measured without labels, and which images are neighbours in them."""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from mixco.data.images import Images, view_batches
from mixco.embeddings.features import extract_features, features_of
from mixco.embeddings.knn import neighbours
from mixco.encoders.checkpoint import EncoderDescription
from mixco.encoders.loading import LoadedEncoder
from mixco.evaluation.task import warn_unreadable
from mixco.plots.images import draw_neighbours
from mixco.runtime.device import Compute
from mixco.runtime.progress import counting
from mixco.runtime.seeding import generator_for
from mixco.training.monitor import effective_rank
from mixco.views.augmentation import Augmentation
from mixco.views.preview import brightened

BATCH = 256
QUERIES, DRAWN = 6, 8  # images of the picture, and their neighbours


@dataclass(frozen=True)
class Geometry:
    """How the features of an encoder lie."""

    effective_rank: float
    """Number of directions, 1 to `dimensions` (Roy and Vetterli 2007)."""
    dimensions: int
    alignment: float
    """Mean squared distance of the unit features of two views of an image, 0 to 4; see `alignment`."""
    uniformity: float
    """0 or below; see `uniformity`."""


@dataclass(frozen=True)
class Looked:
    """What an encoder makes of n images."""

    geometry: Geometry
    seen: Tensor
    """int64 [n]: the images that could be read."""
    neighbours: Tensor
    """int64 [n, k]: of each the nearest others, as rows of `seen`."""
    similarities: Tensor
    """float32 [n, k]: their cosines."""


def alignment(first: Tensor, second: Tensor) -> float:
    """Mean squared distance of unit features of two views, 0 (equal) to 4 (opposite).

    first, second: [N, D]; only directions count. (Wang and Isola 2020, arXiv 2005.10242, alpha = 2.)
    """
    distance = F.normalize(first.double(), dim=1) - F.normalize(second.double(), dim=1)
    return float(distance.square().sum(1).mean())


def uniformity(features: Tensor) -> float:
    """log of the mean of exp(-2 d^2) over all pairs at distance d: 0 if all are equal, lower if spread.

    features: [N, D], N > 1; only directions count. The least is near -4, of features that are uniform
    on a sphere of many dimensions. (Wang and Isola 2020, arXiv 2005.10242, t = 2.)
    """
    distances = torch.pdist(F.normalize(features.double(), dim=1))
    return float(distances.square().mul(-2).exp().mean().log())


def look(
    encoder: LoadedEncoder,
    images: Images,
    index: Tensor,
    augmentation: Augmentation,
    *,
    k: int,
    seed: int,
    compute: Compute,
) -> Looked:
    """Measure the features of some images, and find the k nearest others of each.

    index: int64 [N], sorted. augmentation: of the two views, for the encoder's input; its draws depend
    on the seed alone.
    """
    with counting(f"features of {images.source.name}") as on_progress:
        features, seen = features_of(
            encoder.backbone,
            images,
            index,
            encoder.description.input,
            compute=compute,
            on_unreadable=warn_unreadable,
            on_progress=on_progress,
        )
    plan = (
        (part, generator_for(seed, "compared views", step=step))
        for step, part in enumerate(torch.split(index, BATCH))
    )
    pairs = view_batches(
        images,
        plan,
        augmentation,
        members=index,
        batch_size=BATCH,
        compute=compute,
        on_unreadable=warn_unreadable,
    )
    views = [
        [extract_features(encoder.backbone, [v], compute).to(features.device) for v in pair]
        for _, pair in pairs
    ]
    encoder.backbone.cpu()
    first, second = (torch.cat(side) for side in zip(*views, strict=True))
    geometry = Geometry(
        round(effective_rank(features), 2),
        features.shape[1],
        round(alignment(first, second), 4),
        round(uniformity(features), 4),
    )
    return Looked(geometry, seen, *nearest_others(features, k))


def nearest_others(features: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k nearest rows of each row but itself: int64 [n, k], and cosines [n, k], on the CPU.

    k is cut to n - 1.
    """
    k = min(k, len(features) - 1)
    similarities, found = (t.cpu() for t in neighbours(features, features, k + 1))
    other = found != torch.arange(len(features))[:, None]
    # Where several images are equal, a row may be missing among its own nearest. Then drop the last one.
    other[other.all(1), -1] = False
    return found[other].view(-1, k), similarities[other].view(-1, k)


def shared(first: Tensor, second: Tensor) -> Tensor:
    """For each row, the share of its neighbours in `first` that `second` has too: float [n], 0 to 1.

    first, second: int64 [n, k].
    """
    return (first[:, :, None] == second[:, None, :]).any(2).float().mean(1)


def draw_changed(
    path: Path,
    images: Images,
    description: EncoderDescription,
    before: Looked,
    after: Looked,
    names: tuple[str, str],
    seed: int,
) -> None:
    """Draw the images whose neighbours changed most: those before, and below them those after.

    before, after: of the same images. description: tells how pixels are shown. names: of the two
    encoders. seed: chooses among images that changed equally.
    """
    order = torch.randperm(len(after.seen), generator=generator_for(seed, "changed neighbours"))
    kept = shared(before.neighbours, after.neighbours)[order]
    changed = order[kept.argsort(stable=True)][:QUERIES]

    def pictures(rows: Tensor) -> Tensor:
        canvases, _ = images.canvases(after.seen[rows.flatten()], 2 * description.size)
        shown_as = brightened(canvases, description.input)
        return shown_as.view(*rows.shape, *shown_as.shape[1:])

    def alternating(of_before: Tensor, of_after: Tensor) -> Tensor:
        pair = [of_before[changed, :DRAWN], of_after[changed, :DRAWN]]
        return torch.stack(pair, 1).flatten(0, 1)

    draw_neighbours(
        path,
        pictures(changed.repeat_interleave(2)),
        pictures(alternating(before.neighbours, after.neighbours)),
        alternating(before.similarities, after.similarities),
        None,
        list(names) * len(changed),
        f"Images whose neighbours changed most, from {names[0]} to {names[1]}",
    )
