"""The loop that trains a classifier, on real images and a small network."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sample_images import unpack_sample
from torch import Tensor, nn

from mixco.data.datasets import list_images
from mixco.data.loading import epoch_batches
from mixco.data.packed import PackedImages
from mixco.data.packing import pack
from mixco.encoders.checkpoint import fingerprint
from mixco.evaluation.classifier import Classifier, load_classifier, save_classifier
from mixco.evaluation.task import Labelled
from mixco.evaluation.train_classifier import Epoch, train_classifier
from mixco.models.encoder import build_backbone
from mixco.runtime.device import Compute
from mixco.runtime.errors import UserError
from mixco.runtime.seeding import generator_for
from mixco.views.augment import apply_view, sample_view
from mixco.views.augmentation import Input, crop_and_flip

CLASSES = 3
ARCH, FEATURES = "test_resnet", 96  # timm's smallest ResNet


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Labelled:
    """12 images of each of three classes."""
    folder = tmp_path_factory.mktemp("photos")
    unpack_sample(folder, train=12, test=1, classes=CLASSES)
    packed = pack(list_images(str(folder), None, "train"), size=32, cache=folder / "cache")
    assert packed.labels is not None
    return Labelled(packed, packed.labels)


def network(seed: int = 0, backbone: nn.Module | None = None) -> Classifier:
    backbone = backbone or build_backbone(ARCH, 32, "standard", seed)
    return Classifier(backbone, FEATURES, CLASSES, seed)


def train(
    model: Classifier,
    images: Labelled,
    test: Callable[[], tuple[float, float]] = lambda: (0.0, 0.0),
    **options: Any,
) -> list[Epoch]:
    settings: dict[str, Any] = {
        "frozen": True,
        "augmentation": crop_and_flip(Input(32)),
        "optimizer": "sgd",
        "lr": 0.0,
        "head_lr": 0.05,
        "weight_decay": 0.0,
        "schedule": "steps",
        "milestones": (0.6, 0.8),
        "batch_size": 16,
        "epochs": 2,
        "seed": 0,
        "compute": Compute(torch.device("cpu"), torch.float32),
        "name": "test",
    }
    return train_classifier(model, images, test, **{**settings, **options})


def state(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def test_the_layer_begins_as_published_and_draws_nothing_global() -> None:
    before = torch.random.get_rng_state()
    model = Classifier(nn.Identity(), 512, 200, seed=3)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert model.head.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert model.head.weight.mean().item() == pytest.approx(0.0, abs=1e-4)
    assert not model.head.bias.any()
    assert torch.equal(model.head.weight, Classifier(nn.Identity(), 512, 200, 3).head.weight)


def test_a_frozen_encoder_stays_and_the_layer_learns(images: Labelled) -> None:
    model = network()
    before = state(model)
    records = train(model, images, head_lr=1.0, epochs=12)
    moved = {
        key for key, value in model.state_dict().items() if not torch.equal(before[key], value)
    }
    assert moved == {"head.weight", "head.bias"}
    assert records[-1].loss < 0.8 * records[0].loss
    assert not model.backbone.training


def test_it_is_softmax_regression_with_momentum_on_the_features_of_the_views(
    images: Labelled,
) -> None:
    """Linear evaluation written out: gradient, heavy ball of 0.9, the rate divided by ten, no decay."""
    model = network()
    weight, bias = (value.detach().double() for value in model.head.parameters())
    augmentation = crop_and_flip(Input(32))
    train(model, images, head_lr=0.5, batch_size=len(images.labels), epochs=4, milestones=(0.5,))

    packed, labels = images.images, images.labels
    assert isinstance(packed, PackedImages)
    speeds = [torch.zeros_like(weight), torch.zeros_like(bias)]
    for step, rate in enumerate((0.5, 0.5, 0.05, 0.05)):
        everything = torch.arange(len(labels))
        shuffle = generator_for(0, "classifier epoch", step=step + 1)
        (index,) = epoch_batches(everything, len(everything), shuffle)
        generator = generator_for(0, "classifier views", step=step)
        parameters = sample_view(packed.extents[index], augmentation, generator)
        with torch.no_grad():
            x = model.backbone(apply_view(packed.images[index], parameters, augmentation)).double()
        error = (x @ weight.T + bias).softmax(1) - F.one_hot(labels[index], CLASSES)
        for value, speed, slope in zip(
            (weight, bias), speeds, (error.T @ x / len(x), error.mean(0)), strict=True
        ):
            speed.mul_(0.9).add_(slope)
            value.sub_(rate * speed)
    torch.testing.assert_close(model.head.weight.double(), weight, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(model.head.bias.double(), bias, atol=1e-5, rtol=1e-4)


class AlwaysTraining(nn.Module):
    """An encoder whose batch norms do not listen to eval(): they normalise by the batch and learn."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = build_backbone(ARCH, 32, "standard")

    def train(self, _mode: bool = True) -> "AlwaysTraining":
        super().train(True)
        return self

    def forward(self, images: Tensor) -> Tensor:
        return self.encoder(images)  # type: ignore[no-any-return]


def test_running_statistics_that_move_under_a_frozen_encoder_are_caught(
    images: Labelled,
) -> None:
    with pytest.raises(RuntimeError, match="the frozen encoder has changed"):
        train(network(backbone=AlwaysTraining()), images, epochs=1)


def test_the_fingerprint_is_of_every_weight_and_statistic() -> None:
    model = build_backbone(ARCH, 32, "standard")
    own = fingerprint(model)
    assert fingerprint(build_backbone(ARCH, 32, "standard")) == own
    assert fingerprint(model.to(memory_format=torch.channels_last)) == own  # type: ignore[call-overload]
    for key, value in model.state_dict().items():
        before = value.clone()
        value.add_(1)
        assert fingerprint(model) != own, key
        value.copy_(before)
    assert fingerprint(model) == own


def test_unfrozen_every_weight_learns_at_its_own_rate(images: Labelled) -> None:
    model = network()
    before = state(model)
    train(model, images, frozen=False, lr=0.01, epochs=1)
    still = {key for key, value in model.state_dict().items() if torch.equal(before[key], value)}
    assert not still

    model = network()
    train(model, images, frozen=False, lr=1e-30, epochs=1)
    for key, value in model.named_parameters():
        still = torch.allclose(before[key], value, rtol=0, atol=1e-20)
        assert still == key.startswith("backbone."), key


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_one_seed_is_one_classifier(images: Labelled, optimizer: str) -> None:
    def trained(seed: int) -> tuple[list[Epoch], dict[str, Tensor]]:
        model = network()
        records = train(
            model, images, frozen=False, lr=1e-3, head_lr=1e-3, optimizer=optimizer, seed=seed
        )
        return records, state(model)

    (first, weights), (second, same), (_, other) = trained(0), trained(0), trained(1)
    assert first == second
    assert all(torch.equal(weights[key], same[key]) for key in weights)
    assert not torch.equal(weights["head.weight"], other["head.weight"])


def test_the_steps_divide_the_rate(images: Labelled) -> None:
    """At a rate divided by ten ten times over, the weights of the last epochs hardly move."""
    seen: list[Tensor] = []
    model = network()

    def test() -> tuple[float, float]:
        seen.append(model.head.weight.detach().clone())
        return 0.0, 0.0

    train(model, images, test, epochs=6, milestones=(0.5,) * 10)
    moves = [(b - a).abs().max().item() for a, b in pairwise(seen)]
    assert min(moves[:2]) > 1e4 * max(moves[3:])


def test_each_epoch_is_tested_once_and_recorded(images: Labelled) -> None:
    answers = iter([(40.0, 90.0), (80.0, 95.0), (60.0, 92.0)])
    records = train(network(), images, lambda: next(answers), epochs=3)
    assert [(r.epoch, r.top1, r.top5) for r in records] == [
        (1, 40.0, 90.0),
        (2, 80.0, 95.0),
        (3, 60.0, 92.0),
    ]


def test_fewer_images_than_a_batch_are_one_batch(images: Labelled) -> None:
    model = network()
    train(model, images, batch_size=256, epochs=1)
    assert model.head.bias.any()


def test_a_loss_that_is_not_finite_stops(images: Labelled) -> None:
    with pytest.raises(UserError, match=r"not finite in epoch \d+.*--lr"):
        train(network(), images, head_lr=1e38, epochs=5)


NAMES = ("a", "b", "c")


@pytest.mark.parametrize("whole", [False, True])
def test_a_saved_classifier_comes_back(tmp_path: Path, whole: bool) -> None:
    path = tmp_path / "classifier.safetensors"
    model = network(seed=1)
    save_classifier(path, model, NAMES, whole=whole)
    fresh = Classifier(build_backbone(ARCH, 32, "standard", 7 if whole else 1), FEATURES, CLASSES)
    load_classifier(path, fresh, NAMES)
    loaded = fresh.state_dict()
    assert all(torch.equal(value, loaded[key]) for key, value in model.state_dict().items())
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_what_cannot_be_a_classifier_of_this_encoder_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "classifier.safetensors"
    with pytest.raises(UserError, match=r"classifier\.safetensors.*--evaluate"):
        load_classifier(path, network(), NAMES)
    save_classifier(path, network(seed=1), NAMES, whole=False)
    with pytest.raises(UserError, match=r"classifier\.safetensors.*another encoder"):
        load_classifier(path, network(seed=2), NAMES)
    with pytest.raises(UserError, match="3 classes a, b, c"):
        load_classifier(path, network(seed=1), ("a", "b", "d"))
    save_classifier(path, network(), NAMES, whole=True)
    with pytest.raises(UserError, match="do not fit this network"):
        load_classifier(path, Classifier(build_backbone("resnet18", 32), 512, 3), NAMES)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"classifier\.safetensors.*damaged"):
        load_classifier(path, network(), NAMES)
