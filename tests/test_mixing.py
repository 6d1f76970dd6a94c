import pytest
import torch
from mixers import quarter
from scipy.stats import beta

from mixco.methods import MIXERS, mixer_of
from mixco.methods.mixers import cutmix, icutmix, imix, paste, unmix, unmix_blend, unmix_box
from mixco.mixing import Mixer, Pairs, blend, draw_lambda, mixco, soft_targets


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


@pytest.mark.parametrize("alpha", [1.0, 0.5, 2.0, 100.0])
def test_the_law_of_lambda(alpha: float) -> None:
    lam = draw_lambda(100_000, alpha, torch.Generator().manual_seed(0)).sort().values
    assert lam.dtype == torch.float32
    assert lam.min() >= 0
    assert lam.max() <= 1
    # Kolmogorov-Smirnov: 1.95 / sqrt(n) is passed by chance once in a thousand seeds.
    law = torch.from_numpy(beta.cdf(lam.double().numpy(), alpha, alpha))
    distance = (law - torch.linspace(0, 1, len(lam))).abs().max()
    assert distance < 1.95 / len(lam) ** 0.5


def test_the_least_alpha_gives_numbers() -> None:
    lam = draw_lambda(100_000, 0.01, torch.Generator().manual_seed(0))
    assert lam.isfinite().all()
    assert ((lam < 1e-3) | (lam > 1 - 1e-3)).float().mean() > 0.9


def test_the_draws_of_each_mixer() -> None:
    """Who meets whom, and what is one for the batch."""
    draws = torch.Generator().manual_seed(0)
    everyone = torch.arange(12)
    for mixer in (imix, icutmix):
        pairs = mixer.draw(12, draws)
        assert torch.equal(pairs.first, everyone)
        assert torch.equal(pairs.second.sort().values, everyone)
        assert (pairs.lam >= 0.5).all()
    assert len(imix.draw(12, draws).lam.unique()) == 12
    assert len(icutmix.draw(12, draws).lam.unique()) == 1
    coins = []
    for _ in range(60):
        pairs = unmix.draw(12, draws)
        assert torch.equal(pairs.second, everyone.flip(0))
        assert pairs.centre is not None and pairs.pasted is not None
        coins += pairs.pasted.unique().tolist()
        assert len(pairs.lam.unique()) == len(pairs.centre.unique(dim=0)) == 1
    assert len(coins) == 60 and 15 < sum(coins) < 45
    pairs = cutmix.draw(12, draws)
    assert torch.equal(pairs.second, everyone[6:])
    assert pairs.centre is not None and len(pairs.centre.unique(dim=0)) == 6


@pytest.mark.parametrize("name", MIXERS)
def test_another_law_and_another_loss(name: str) -> None:
    entry, mixer = MIXERS[name], mixer_of(name)
    assert mixer is not None
    assert mixer.alone == (entry.loss == "alone"), "what the two tables say"
    draw = [made.draw for a in (None, entry.alpha, 50.0) if (made := mixer_of(name, a))]
    drawn = [each(400, torch.Generator().manual_seed(0)) for each in draw]
    assert torch.equal(drawn[0].lam, drawn[1].lam)
    assert drawn[2].lam.sub(0.5).abs().max() < 0.2
    for loss in ("added", "alone"):
        found = mixer_of(name, 50.0, loss)
        assert found is not None
        assert found.alone == (loss == "alone")


def test_bfloat16_images_keep_exact_targets() -> None:
    lam = torch.tensor([0.123456])
    mixed = fixed(lam)(images(2).bfloat16(), torch.Generator())
    assert mixed.images.dtype == torch.bfloat16
    assert mixed.targets[0, 0] == lam[0]


def test_too_few_images_are_refused() -> None:
    with pytest.raises(ValueError, match="at least two"):
        mixco(images(1), torch.Generator())


@pytest.mark.parametrize("mixer", [mixco, quarter, imix, unmix_blend])
def test_any_pairing_blends_by_its_targets(mixer: Mixer) -> None:
    sources = images(12)
    mixed = mixer(sources, torch.Generator().manual_seed(2))
    assert len(mixed.images) == len(mixed.targets) == 12 * mixer.per_image
    torch.testing.assert_close(mixed.images, torch.einsum("mb,bchw->mchw", mixed.targets, sources))


def test_an_image_that_meets_itself_has_a_target_of_one() -> None:
    pairs = Pairs(torch.tensor([1, 0]), torch.tensor([1, 2]), torch.tensor([0.3, 0.25]))
    expected = torch.tensor([[0, 1, 0], [0.25, 0, 0.75]])
    torch.testing.assert_close(soft_targets(pairs, pairs.lam, 3), expected)


@pytest.mark.parametrize("mixer", [cutmix, icutmix, unmix_box])
def test_a_pasted_region_counts_its_whole_pixels(mixer: Mixer) -> None:
    """The target is what one sees: sources of one colour each, and so many pixels of each."""
    batch = 9
    sources = torch.arange(batch).float().view(-1, 1, 1, 1).expand(-1, 3, 8, 6)
    mixed = mixer(sources, torch.Generator().manual_seed(3))
    for image, target in zip(mixed.images, mixed.targets, strict=True):
        seen = torch.bincount(image[0].long().flatten(), minlength=batch) / (8 * 6)
        torch.testing.assert_close(target, seen)
        assert target.sum() == pytest.approx(1)
    drawn = mixer.draw(batch, torch.Generator().manual_seed(3)).lam
    found = mixed.targets.gather(
        1, mixer.draw(batch, torch.Generator().manual_seed(3)).first[:, None]
    )
    assert not torch.allclose(found[:, 0], drawn), "whole pixels are not the drawn lambda"


def test_a_coin_for_the_whole_batch() -> None:
    sources, kinds = images(8), set()
    for seed in range(20):
        mixed, other = (
            each(sources, torch.Generator().manual_seed(seed)) for each in (unmix, unmix_blend)
        )
        drawn = unmix.draw(8, torch.Generator().manual_seed(seed))
        assert drawn.pasted is not None
        boxed = bool(drawn.pasted[0])
        kinds.add(boxed)
        expected = unmix_box(sources, torch.Generator().manual_seed(seed)) if boxed else other
        assert torch.equal(mixed.images, expected.images)
        assert torch.equal(mixed.targets, expected.targets)
    assert kinds == {True, False}


def test_boxes_need_a_centre() -> None:
    with pytest.raises(ValueError, match="centre"):
        Mixer(mixco.draw, paste)(images(4), torch.Generator())


def test_some_of_the_pairs() -> None:
    pairs = cutmix.draw(12, torch.Generator().manual_seed(0))
    some = pairs.rows(torch.tensor([4, 1]))
    assert some.centre is not None and pairs.centre is not None
    assert some.first.tolist() == [4, 1]
    assert torch.equal(some.centre, pairs.centre[[4, 1]])
    assert halves(torch.rand(3)).rows(torch.tensor([2])).centre is None
