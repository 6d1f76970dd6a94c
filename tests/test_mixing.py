import pytest
import torch

from mixco.mixing import draw_shares, mix_halves, mixco


def images(batch: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(batch, 3, 5, 4, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("batch", [2, 3, 8, 9])
def test_each_mixture_is_the_sum_of_the_sources_by_its_targets(batch: int) -> None:
    sources = images(batch)
    mixed = mixco(sources, torch.Generator().manual_seed(1))
    assert mixed.images.shape == (batch // 2, 3, 5, 4)
    assert mixed.targets.shape == (batch // 2, batch)
    torch.testing.assert_close(mixed.targets.sum(1), torch.ones(batch // 2))
    torch.testing.assert_close(mixed.images, torch.einsum("mb,bchw->mchw", mixed.targets, sources))


def test_pairs_are_the_halves_and_each_has_its_own_share() -> None:
    shares = torch.tensor([0.9, 0.2, 0.5])
    targets = mix_halves(images(6), shares).targets
    expected = torch.zeros(3, 6)
    for i, share in enumerate(shares):
        expected[i, i] = share
        expected[i, i + 3] = 1 - share
    torch.testing.assert_close(targets, expected)


def test_share_of_one_is_the_first_image() -> None:
    sources = images(4)
    mixed = mix_halves(sources, torch.ones(2))
    assert torch.equal(mixed.images, sources[:2])


def test_shares_are_uniform() -> None:
    shares = draw_shares(100_000, torch.Generator().manual_seed(0)).sort().values
    # Kolmogorov-Smirnov: 1.95 / sqrt(n) is passed by chance once in a thousand seeds.
    distance = (shares - torch.linspace(0, 1, len(shares))).abs().max()
    assert distance < 1.95 / len(shares) ** 0.5


def test_bfloat16_images_keep_exact_targets() -> None:
    shares = torch.tensor([0.123456])
    mixed = mix_halves(images(2).bfloat16(), shares)
    assert mixed.images.dtype == torch.bfloat16
    assert mixed.targets[0, 0] == shares[0]


def test_too_few_images_or_shares_are_refused() -> None:
    with pytest.raises(ValueError, match="at least two"):
        mixco(images(1), torch.Generator())
    with pytest.raises(ValueError, match="2 pairs"):
        mix_halves(images(4), torch.rand(3))
