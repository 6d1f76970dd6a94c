"""Monitors a run at each epoch: the kNN check on held-out training images, spread and effective rank.

The kNN check never looks at the test split. Spread and effective rank show whether the encoder has
collapsed, that is, no longer tells images apart: equal outputs have no spread, and features that have
shrunk to a few directions have a low effective rank.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mixco.embeddings.features import extract_features, features_of
from mixco.embeddings.knn import knn_scores, topk_accuracy
from mixco.models.encoder import Encoder
from mixco.runtime.device import Compute
from mixco.runtime.progress import say
from mixco.training.setup import Setup
from mixco.views.augment import evaluation_view

OnUnreadable = Callable[[str, str], None]

MOST, LEAST = 256, 64  # images for spread and effective rank
NEIGHBOURS = 20


def monitor(
    setup: Setup, encoder: Encoder, watched: Tensor, epoch: int, on_unreadable: OnUnreadable
) -> dict[str, float]:
    """The checks after an epoch: spread and effective rank always, kNN as often as the settings say.

    watched: see `watched_views`. Several processes, whose encoders must be equal, divide the kNN check.
    """
    run, last = setup.settings.run, epoch == setup.settings.optimisation.epochs
    found = {}
    if run.knn_every and len(setup.held_out) and (epoch % run.knn_every == 0 or last):
        found["knn"] = knn_check(setup, encoder, on_unreadable)
    return found | collapse_check(encoder, watched, setup.compute)


def knn_check(setup: Setup, encoder: Encoder, on_unreadable: OnUnreadable) -> float:
    """kNN top-1 accuracy of the held-out training images among the others, in percent.

    Leaves out streamed images that cannot be read. Raises ValueError for images without labels.
    """
    images = setup.images
    if images.labels is None:
        raise ValueError("the kNN check needs labels")
    features, index = features_of(
        encoder.backbone,
        images,
        torch.cat([setup.bank, setup.held_out]),
        setup.input,
        compute=setup.compute,
        on_unreadable=on_unreadable,
    )
    labels, asked = images.labels[index], torch.isin(index, setup.held_out)
    scores = knn_scores(
        features[~asked],
        labels[~asked],
        features[asked],
        classes=len(images.classes),
        k=NEIGHBOURS,
    )
    return round(topk_accuracy(scores, labels[asked], 1), 2)


def spread(outputs: Tensor) -> float:
    """How far outputs lie apart: the mean standard deviation of a dimension, times sqrt(C).

    outputs: [N, C], N > 1; only their directions count. Returns 1 for directions that are uniform on the
    sphere, 0 for equal ones. (Chen and He 2021, arXiv 2011.10566, section 4.1.)
    """
    unit = F.normalize(outputs.double(), dim=1)
    return float(unit.std(0, correction=0).mean()) * math.sqrt(unit.shape[1])


def effective_rank(features: Tensor) -> float:
    """The number of directions of features: exp of the entropy of the normalised singular values.

    features: [N, D]. Returns 1 to min(N, D): k for k orthogonal directions of equal weight.
    Features are not centred, so equal ones give 1; zeros give 0. (Roy and Vetterli 2007.)
    """
    values = torch.linalg.svdvals(features.double()).cpu()
    if not values.any():
        return 0.0
    return float(torch.special.entr(values / values.sum()).sum().exp())


def watched_views(setup: Setup) -> Tensor:
    """Evaluation views of n training images, evenly spaced over the list: [n, C, S, S] on the device.

    n is a sixteenth of the images, but 64 to 256: they cost little beside an epoch.
    """
    members, compute = setup.members, setup.compute
    count = min(MOST, max(LEAST, len(members) // 16), len(members))
    index = members[torch.linspace(0, len(members) - 1, count).long()]
    canvases, extents = setup.images.canvases(index, 2 * setup.input.size)
    canvases = canvases.to(compute.device)
    return evaluation_view(canvases, extents, setup.input, *compute.formats)


@torch.no_grad()
def collapse_check(encoder: Encoder, views: Tensor, compute: Compute) -> dict[str, float]:
    """The spread of the encoder's outputs and the effective rank of its features, in evaluation mode."""
    features = extract_features(encoder.backbone, torch.split(views, 64), compute, count=len(views))
    outputs = encoder.head(features.to(views.device)).to(features.device)
    return {
        "spread": round(spread(outputs), 4),
        "effective_rank": round(effective_rank(features), 2),
    }


def collapsed(record: Mapping[str, float]) -> bool:
    """Does the record of an epoch show a collapse? docs/watching.md explains the limits."""
    return record.get("spread", 1.0) < 0.05 or record.get("effective_rank", 9.0) < 1.2


def warn_of_collapse(records: Sequence[Mapping[str, float]], warmup: float) -> None:
    """Warn once, at the first epoch that shows a collapse; a resumed run does not warn again.

    warmup: in epochs. Untrained networks can look collapsed, so epochs before its end do not count.
    """
    *before, last = (record["epoch"] > warmup and collapsed(record) for record in records)
    if last and not any(before):
        numbers = records[-1]
        say(
            "warning: the encoder has collapsed: it no longer tells images apart (spread "
            f"{numbers['spread']:.3f}, effective rank {numbers['effective_rank']:.1f}). Lower --lr, or "
            "see docs/watching.md"
        )
