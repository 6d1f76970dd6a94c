"""The kNN check on held-out training images: how a run does, without a look at the test split."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mixco.data.images import Images
from mixco.embeddings.features import features_of
from mixco.embeddings.knn import knn_scores, topk_accuracy
from mixco.runtime.device import Compute
from mixco.runtime.seeding import generator_for
from mixco.views.augment import Input


def split_holdout(images: Images, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of the training images into (bank, held out) for the kNN check, class by class.

    Without labels nothing is held out. The draw depends on the seed alone, so that the runs of a
    comparison with one seed hold out the same images.
    """
    everything = torch.arange(len(images))
    if images.labels is None:
        return everything, everything[:0]
    generator = generator_for(seed, "holdout")
    mask = torch.zeros(len(everything), dtype=torch.bool)
    for label in torch.unique(images.labels):
        members = everything[images.labels == label]
        chosen = torch.randperm(len(members), generator=generator)[: int(len(members) * share)]
        mask[members[chosen]] = True
    return everything[~mask], everything[mask]


def knn_check(
    backbone: nn.Module,
    images: Images,
    bank: Tensor,
    held_out: Tensor,
    input: Input,
    *,
    compute: Compute,
    on_unreadable: Callable[[str, str], None],
) -> float:
    """kNN top-1 in percent of the held-out training images among the other training images.

    Streamed images that cannot be read are left out.
    """
    assert images.labels is not None
    features, index = features_of(
        backbone,
        images,
        torch.cat([bank, held_out]),
        input,
        compute=compute,
        on_unreadable=on_unreadable,
    )
    labels = images.labels[index]
    asked = torch.isin(index, held_out)
    scores = knn_scores(
        features[~asked],
        labels[~asked],
        features[asked],
        classes=len(images.classes),
        k=20,
    )
    return round(topk_accuracy(scores, labels[asked], 1), 2)
