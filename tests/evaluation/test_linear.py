import pytest
import torch
from torch import Tensor

from mixco.embeddings.knn import topk_accuracy
from mixco.evaluation.linear_probe import LEARNING_RATES, WEIGHT_DECAYS, fit_linear_probe
from mixco.runtime.errors import UserError


def separable(n: int, seed: int, noise: float = 1.0) -> tuple[Tensor, Tensor]:
    """Six classes in 24 dimensions of very different scales, far from the origin."""
    generator = torch.Generator().manual_seed(seed)
    fixed = torch.Generator().manual_seed(99)
    centres = 3 * torch.randn(6, 24, generator=fixed)
    scales = torch.logspace(-3, 2, 24)
    labels = torch.arange(n) % 6
    features = centres[labels] + noise * torch.randn(n, 24, generator=generator)
    return features * scales + 50, labels


def test_it_finds_what_is_linearly_there() -> None:
    features, labels = separable(600, 0)
    probe = fit_linear_probe(features, labels, classes=6)
    test, test_labels = separable(600, 1)
    assert topk_accuracy(probe.scores(test), test_labels, 1) > 97


def test_settings_are_the_best_on_held_out_images() -> None:
    features, labels = separable(300, 0, noise=4.0)
    probe = fit_linear_probe(features, labels, classes=6, epochs=20)
    assert len(probe.selection) == len(LEARNING_RATES) * len(WEIGHT_DECAYS)
    best = max(accuracy for *_, accuracy in probe.selection)
    chosen = (probe.learning_rate, probe.weight_decay)
    assert {(lr, wd): a for lr, wd, a in probe.selection}[chosen] == best


def test_a_sweep_fits_each_setting_as_if_alone() -> None:
    """Each setting of the batched sweep has the accuracy that it has when fitted alone."""
    features, labels = separable(300, 0, noise=4.0)
    swept = fit_linear_probe(features, labels, classes=6, epochs=10).selection
    for rate, decay, accuracy in swept[::5]:
        alone = fit_linear_probe(
            features,
            labels,
            classes=6,
            epochs=10,
            learning_rates=(rate,),
            weight_decays=(decay,),
        )
        assert alone.selection == ((rate, decay, pytest.approx(accuracy, abs=2.0)),)


def test_shuffled_labels_are_not_learned() -> None:
    """A guard against a leak of the test labels or of the held-out part into the fit."""
    features, labels = separable(600, 0)
    shuffled = labels[torch.randperm(600, generator=torch.Generator().manual_seed(0))]
    probe = fit_linear_probe(features, shuffled, classes=6)
    assert max(accuracy for *_, accuracy in probe.selection) < 35
    test, test_labels = separable(600, 1)
    assert topk_accuracy(probe.scores(test), test_labels, 1) < 40


def test_one_seed_gives_one_probe() -> None:
    features, labels = separable(200, 0)
    a, b = (fit_linear_probe(features, labels, classes=6, seed=3, epochs=5) for _ in range(2))
    assert torch.equal(a.weight, b.weight)
    assert torch.equal(a.bias, b.bias)


def test_a_class_with_one_image_is_refused() -> None:
    features, labels = separable(20, 0)
    with pytest.raises(UserError, match="class 6 has 1; add"):
        fit_linear_probe(features, torch.cat([labels[:-1], torch.tensor([6])]), classes=7)
