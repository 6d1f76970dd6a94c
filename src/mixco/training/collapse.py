"""Has the encoder collapsed, that is, does it tell its images apart no more?

Two numbers say it, each in its own way: outputs that all lie in one place have no spread, and features
that have shrunk to a few directions have a low effective rank.
"""

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mixco.data.images import Images
from mixco.embeddings.features import extract_features
from mixco.models.encoder import Encoder
from mixco.runtime.device import Compute
from mixco.runtime.progress import say
from mixco.views.augment import Input, evaluation_view

MOST, LEAST = 256, 64  # images that are looked at


def spread(outputs: Tensor) -> float:
    """How far the outputs lie apart: the mean standard deviation of a dimension, times sqrt(C).

    outputs: [N, C], N > 1; taken to unit length. 1 where they are uniform on the sphere, 0 where all are
    one. (Chen and He 2021, arXiv 2011.10566, section 4.1.)
    """
    unit = F.normalize(outputs.double(), dim=1)
    return float(unit.std(0, correction=0).mean()) * math.sqrt(unit.shape[1])


def effective_rank(features: Tensor) -> float:
    """In how many directions the features extend: exp of the entropy of the singular values' shares.

    features: [N, D]. From 1 to min(N, D); of k orthogonal directions, equally filled, k. Not centred:
    features that are all one count 1. Zeros count 0. (Roy and Vetterli 2007.)
    """
    values = torch.linalg.svdvals(features.double())
    if not values.any():
        return 0.0
    shares = values / values.sum()
    return float(torch.special.entr(shares).sum().exp())


def watched_views(
    images: Images,
    members: Tensor,
    input: Input,
    compute: Compute,
) -> Tensor:
    """Some of the images, evenly spaced, as evaluation sees them: [n, C, S, S] of `dtype` on the device.

    256 of them, or of a small set a sixteenth, at least 64: little beside an epoch.
    """
    count = min(MOST, max(LEAST, len(members) // 16), len(members))
    index = members[torch.linspace(0, len(members) - 1, count).long()]
    seen, extents = images.canvases(index, 2 * input.size)
    return evaluation_view(seen.to(compute.device), extents, input, compute.dtype)


@torch.no_grad()
def collapse_check(encoder: Encoder, views: Tensor, compute: Compute) -> dict[str, float]:
    """The spread of the encoder's outputs and the effective rank of its features, in evaluation mode."""
    parts = torch.split(views, 64)
    features = extract_features(encoder.backbone, parts, compute)
    outputs = encoder.head(features.to(views.device)).cpu()
    return {
        "spread": round(spread(outputs), 4),
        "effective_rank": round(effective_rank(features), 2),
    }


def warn_of_collapse(records: Sequence[Mapping[str, float]]) -> None:
    """Say it once, at the first epoch whose numbers tell of a collapse.

    Stateless, so that a run that goes on does not say it again.
    """
    *before, last = map(collapsed, records)
    if last and not any(before):
        numbers = records[-1]
        say(
            f"warning: the encoder has collapsed: it tells images apart no more (spread "
            f"{numbers['spread']:.3f}, effective rank {numbers['effective_rank']:.1f}). Lower --lr, or "
            "see docs/watching.md"
        )


def collapsed(record: Mapping[str, float]) -> bool:
    """See docs/watching.md for the runs that these limits lie between."""
    return record.get("spread", 1.0) < 0.05 or record.get("effective_rank", 9.0) < 1.2
