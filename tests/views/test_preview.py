"""The picture of what training sees: its pairs are read from the targets, however they were drawn."""

import torch
from sample_images import sample_images
from torch import Tensor

from mixco.methods.mixers import myol
from mixco.mixing import Mixed, mixco
from mixco.views.augmentation import Augmentation, Input
from mixco.views.preview import preview

EXTENTS = torch.full((4, 2), 64)


def test_mixed_images_are_the_parts_of_their_sources() -> None:
    augmentation = Augmentation(Input(32))
    seen = preview(sample_images(4), EXTENTS, augmentation, mixco, torch.Generator().manual_seed(0))
    assert seen.mixed is not None
    assert [(first, second) for first, second, _ in seen.pairs] == [(0, 2), (1, 3)]
    for mixed, (first, second, lam) in zip(seen.mixed, seen.pairs, strict=True):
        expected = lam * seen.view_q[first] + (1 - lam) * seen.view_q[second]
        torch.testing.assert_close(mixed, expected, atol=1e-5, rtol=0)


def test_any_pairing_is_shown_and_an_unmixed_image_is_its_own_pair() -> None:
    targets = torch.tensor([[0.0, 0.25, 0.0, 0.75], [0.0, 0.0, 1.0, 0.0], [0.5, 0.0, 0.5, 0.0]])

    def mixer(images: Tensor, *_: object) -> Mixed:
        return Mixed(torch.einsum("mb,bchw->mchw", targets, images), targets)

    seen = preview(sample_images(4), EXTENTS, Augmentation(Input(32)), mixer, torch.Generator())
    assert seen.pairs == [(1, 3, 0.25), (2, 2, 1.0)], "half as many as there are images"
    assert seen.mixed is not None and len(seen.mixed) == 2


def test_a_partner_of_the_other_view_is_shown_by_its_image() -> None:
    augmentation, draws = Augmentation(Input(32)), torch.Generator()
    seen = preview(sample_images(4), EXTENTS, augmentation, myol, draws)
    assert seen.mixed is not None and seen.across
    for (first, second, lam), image in zip(seen.pairs, seen.mixed, strict=True):
        expected = lam * seen.view_q[first] + (1 - lam) * seen.view_k[second]
        torch.testing.assert_close(image, expected, rtol=0, atol=1e-5)


def test_a_single_image_is_not_mixed() -> None:
    seen = preview(sample_images(1), EXTENTS[:1], Augmentation(Input(32)), mixco, torch.Generator())
    assert seen.mixed is None
    assert seen.pairs == []
