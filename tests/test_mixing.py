import pytest
import torch
from mixers import boxes, everyone, quarter

from mixco.mixing import Mixer, Pairs, blend, halves_uniform, mixco, soft_targets


def images(batch: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(batch, 3, 5, 4, generator=torch.Generator().manual_seed(seed))


def halves(lam: torch.Tensor) -> Pairs:
    first = torch.arange(len(lam))
    return Pairs(first, first + len(lam), lam)


def fixed(lam: torch.Tensor) -> Mixer:
    """MixCo with a given lambda for each pair."""
    return Mixer(lambda _batch, _draws: halves(lam), blend)


@pytest.mark.parametrize("batch", [2, 3, 8, 9])
def test_each_mixed_image_is_the_sum_of_its_sources_by_its_targets(batch: int) -> None:
    sources = images(batch)
    mixed = mixco(sources, torch.Generator().manual_seed(1))
    assert mixed.images.shape == (batch // 2, 3, 5, 4)
    assert mixed.targets.shape == (batch // 2, batch)
    torch.testing.assert_close(mixed.targets.sum(1), torch.ones(batch // 2))
    torch.testing.assert_close(mixed.images, torch.einsum("mb,bchw->mchw", mixed.targets, sources))


def test_pairs_are_the_halves_and_each_has_its_own_lambda() -> None:
    lam = torch.tensor([0.9, 0.2, 0.5])
    targets = fixed(lam)(images(6), torch.Generator()).targets
    expected = torch.zeros(3, 6)
    for i, part in enumerate(lam):
        expected[i, i] = part
        expected[i, i + 3] = 1 - part
    torch.testing.assert_close(targets, expected)


def test_lambda_of_one_is_the_first_image() -> None:
    sources = images(4)
    mixed = fixed(torch.ones(2))(sources, torch.Generator())
    assert torch.equal(mixed.images, sources[:2])


def test_lambda_is_uniform() -> None:
    lam = halves_uniform(200_000, torch.Generator().manual_seed(0)).lam.sort().values
    # Kolmogorov-Smirnov: 1.95 / sqrt(n) is passed by chance once in a thousand seeds.
    distance = (lam - torch.linspace(0, 1, len(lam))).abs().max()
    assert distance < 1.95 / len(lam) ** 0.5


def test_bfloat16_images_keep_exact_targets() -> None:
    lam = torch.tensor([0.123456])
    mixed = fixed(lam)(images(2).bfloat16(), torch.Generator())
    assert mixed.images.dtype == torch.bfloat16
    assert mixed.targets[0, 0] == lam[0]


def test_too_few_images_are_refused() -> None:
    with pytest.raises(ValueError, match="at least two"):
        mixco(images(1), torch.Generator())


@pytest.mark.parametrize("mixer", [mixco, quarter, everyone])
def test_any_pairing_blends_by_its_targets(mixer: Mixer) -> None:
    sources = images(12)
    mixed = mixer(sources, torch.Generator().manual_seed(2))
    assert len(mixed.images) == len(mixed.targets) == 12 * mixer.per_image
    torch.testing.assert_close(mixed.images, torch.einsum("mb,bchw->mchw", mixed.targets, sources))


def test_an_image_that_meets_itself_has_a_target_of_one() -> None:
    pairs = Pairs(torch.tensor([1, 0]), torch.tensor([1, 2]), torch.tensor([0.3, 0.25]))
    expected = torch.tensor([[0, 1, 0], [0.25, 0, 0.75]])
    torch.testing.assert_close(soft_targets(pairs, pairs.lam, 3), expected)


def test_a_pasted_region_counts_its_whole_pixels() -> None:
    """The target is what one sees: sources of one colour each, and so many pixels of each."""
    batch = 9
    sources = torch.arange(batch).float().view(-1, 1, 1, 1).expand(-1, 3, 8, 6)
    mixed = boxes(sources, torch.Generator().manual_seed(0))
    for image, target in zip(mixed.images, mixed.targets, strict=True):
        seen = torch.bincount(image[0].long().flatten(), minlength=batch) / (8 * 6)
        torch.testing.assert_close(target, seen)
        assert target.sum() == pytest.approx(1)
    drawn = boxes.draw(batch, torch.Generator().manual_seed(0)).lam
    assert not torch.allclose(mixed.targets.diag(), drawn), "whole pixels are not the drawn lambda"


def test_some_of_the_pairs() -> None:
    pairs = boxes.draw(6, torch.Generator().manual_seed(0))
    some = pairs.rows(torch.tensor([4, 1]))
    assert some.box is not None and pairs.box is not None
    assert some.first.tolist() == [4, 1]
    assert torch.equal(some.box, pairs.box[[4, 1]])
    assert halves(torch.rand(3)).rows(torch.tensor([2])).box is None
