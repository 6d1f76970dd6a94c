"""Training images that are held out, to check a run by the labels of the rest."""

import torch
from torch import Tensor

from mixco.data.images import Images
from mixco.runtime.seeding import generator_for


def split_holdout(images: Images, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of the training images, int64: (bank, held out) for the kNN check, class by class.

    Without at least two classes nothing is held out. The draw depends on the seed alone, so runs with
    the same seed hold out the same images.
    """
    everything = torch.arange(len(images))
    if images.labels is None or len(images.classes) < 2:
        return everything, everything[:0]
    generator = generator_for(seed, "holdout")
    mask = torch.zeros(len(everything), dtype=torch.bool)
    for label in torch.unique(images.labels):
        members = everything[images.labels == label]
        chosen = torch.randperm(len(members), generator=generator)[: int(len(members) * share)]
        mask[members[chosen]] = True
    return everything[~mask], everything[mask]
