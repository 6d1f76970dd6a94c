"""On CUDA evaluation computes where the features are, and finds what the CPU finds."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from configs import config_of, evaluation_config
from no_waits import refused_to_wait
from run_folders import random_run
from sample_images import sample_images
from torch import Tensor

from mixco.data.image_list import ImageList
from mixco.data.packed import PackedImages
from mixco.embeddings.features import extract_features
from mixco.embeddings.knn import knn_scores, neighbours, topk_accuracy
from mixco.evaluation.features import compute_features
from mixco.evaluation.linear_probe import LinearProbe, _fit, fit_linear_probe
from mixco.evaluation.protocols import evaluate_knn, evaluate_linear, finetune
from mixco.models.encoder import build_backbone
from mixco.runtime import device as devices
from mixco.runtime.device import Compute, keeper, pick_device
from mixco.settings.commands import FinetuneConfig, KNNConfig, LinearConfig
from mixco.training.monitor import effective_rank, spread
from mixco.views.augmentation import Input, crop_and_flip

pytestmark = pytest.mark.gpu
if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def _picked() -> None:
    pick_device("cuda")


def clusters(n: int, seed: int, dim: int = 64, classes: int = 10) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, dim, generator=torch.Generator().manual_seed(99))
    labels = torch.arange(n) % classes
    return centres[labels] + 2 * torch.randn(n, dim, generator=generator), labels


@pytest.mark.parametrize("chunk", [100, 4096])
def test_the_same_neighbours_without_waiting(chunk: int) -> None:
    (bank, labels), (queries, truth) = clusters(5000, 0), clusters(300, 1)
    found, _ = neighbours(bank, queries, 20, chunk=chunk)
    on_gpu = bank.to(CUDA), queries.to(CUDA)
    with refused_to_wait():
        near, where = neighbours(*on_gpu, 20, chunk=chunk)
    assert near.device.type == where.device.type == "cuda"
    torch.testing.assert_close(near.cpu(), found, atol=1e-5, rtol=0)
    own = F.normalize(bank, dim=1)[where.cpu()] @ F.normalize(queries, dim=1)[:, :, None]
    torch.testing.assert_close(own.squeeze(2), found, atol=1e-5, rtol=0)
    assert all(len(row.unique()) == 20 for row in where.cpu())
    votes = knn_scores(bank, labels, queries, classes=10)
    there = knn_scores(on_gpu[0], labels, on_gpu[1], classes=10)
    torch.testing.assert_close(there.cpu(), votes, atol=1e-3, rtol=1e-3)
    assert abs(topk_accuracy(there, truth, 1) - topk_accuracy(votes, truth, 1)) <= 1


def fitted(features: Tensor, labels: Tensor, **settings: Any) -> LinearProbe:
    return fit_linear_probe(features, labels, classes=10, epochs=10, **settings)


def test_one_probe_is_the_same() -> None:
    features, labels = clusters(2000, 0)
    settings: dict[str, Any] = {"learning_rates": (0.1,), "weight_decays": (1e-3,)}
    here, there = (
        fitted(features, labels, **settings),
        fitted(features.to(CUDA), labels, **settings),
    )
    assert there.weight.device.type == there.mean.device.type == "cuda"
    for name in ("weight", "bias", "mean", "std"):
        found = getattr(there, name).cpu()
        torch.testing.assert_close(found, getattr(here, name), atol=1e-3, rtol=1e-3)
    assert there.selection == ((0.1, 1e-3, pytest.approx(here.selection[0][2], abs=0.5)),)


def test_the_sweep_finds_the_same_accuracies() -> None:
    (features, labels), (test, truth) = clusters(2000, 0), clusters(1000, 1)
    here, there = fitted(features, labels), fitted(features.to(CUDA), labels.to(CUDA))
    for own, other in zip(here.selection, there.selection, strict=True):
        assert other == (*own[:2], pytest.approx(own[2], abs=1.5))
    own, other = topk_accuracy(here.scores(test), truth, 1), there.scores(test.to(CUDA))
    assert topk_accuracy(other, truth, 1) == pytest.approx(own, abs=1.5)


def test_a_fit_does_not_wait() -> None:
    features, labels = clusters(1000, 0)
    features = features.to(CUDA)
    with refused_to_wait():
        _fit(features, labels, 10, [(0.1, 0.0), (0.1, 1e-3)], epochs=2, batch_size=256, seed=0)


def test_features_stay_where_they_fit_and_float32_is_float32(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    views = torch.randn(60, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    backbone = build_backbone("resnet18", 32)
    expected = extract_features(backbone, views.split(20), Compute(CPU, torch.float32))
    compute = Compute(CUDA, torch.float32)
    found = extract_features(backbone, views.to(CUDA).split(20), compute, count=60)
    assert found.device.type == "cuda"
    torch.testing.assert_close(found.cpu(), expected, atol=1e-4, rtol=1e-4)

    monkeypatch.setattr(devices, "free_memory", lambda _: 4 * found.nbytes - 1)
    assert keeper(CUDA, found.nbytes) == CPU
    away = extract_features(backbone, views.to(CUDA).split(20), compute, count=60)
    assert away.device == CPU
    assert extract_features(backbone, views.to(CUDA).split(20), compute).device.type == "cuda"


def test_spread_and_effective_rank_are_the_cpus() -> None:
    features, _ = clusters(200, 0)
    assert spread(features.to(CUDA)) == pytest.approx(spread(features), abs=1e-6)
    assert effective_rank(features.to(CUDA)) == pytest.approx(effective_rank(features), abs=1e-4)


def test_evaluation_sees_the_copy_that_the_views_come_from() -> None:
    compute = Compute(CUDA, torch.float32)
    source = ImageList("some", Path(), ("a",) * 50, None, ())
    images = PackedImages(
        sample_images(50), torch.full((50, 2), 64), None, source.files, (), source, Path()
    )

    def seen() -> Tensor:
        parts = images.evaluation_batches(
            torch.arange(50), Input(32), compute=compute, on_unreadable=print, batch_size=20
        )
        return torch.cat([view for _, view in parts])

    expected = seen()
    batches = images.draw_batches(
        iter([]),
        crop_and_flip(Input(32)),
        members=torch.arange(50),
        batch_size=20,
        device=compute.device,
        on_unreadable=print,
    )
    held = torch.cuda.memory_allocated()
    assert torch.equal(seen(), expected)
    assert torch.cuda.memory_allocated() <= held + expected.nbytes + 2**20, "no second copy"
    batches.close()


def test_evaluations_give_the_cpus_numbers(tmp_path: Path) -> None:
    run = random_run(tmp_path / "run", "sample")

    def both(device: str) -> tuple[float, float]:
        config = evaluation_config(
            run, device=device, precision="float32", cache=tmp_path / "cache"
        )
        features = compute_features(config)
        assert features.train_features.device.type == features.train_labels.device.type == device
        knn = evaluate_knn(KNNConfig(config), features)
        return knn["top1"], evaluate_linear(LinearConfig(config, epochs=20), features)["top1"]

    knn, probe = both("cpu")
    # Rounding may decide between settings of the probe that are equally good.
    assert both("cuda") == (pytest.approx(knn, abs=1), pytest.approx(probe, abs=4))


@pytest.mark.parametrize("protocol", ["as published", "fine-tuned"])
def test_classifiers_learn_what_they_learn_on_the_cpu(tmp_path: Path, protocol: str) -> None:
    run = random_run(tmp_path / "run", "sample")

    def loss(device: str) -> float:
        settings: dict[str, Any] = {
            "run": run,
            "device": device,
            "precision": "float32",
            "cache": tmp_path / "cache",
            "epochs": 2,
        }
        if protocol == "fine-tuned":
            found = finetune(config_of(FinetuneConfig, lr=1e-3, head_lr=0.1, **settings))
        else:
            found = evaluate_linear(config_of(LinearConfig, protocol="paper", lr=0.1, **settings))
        return float(found["loss"])

    assert loss("cuda") == pytest.approx(loss("cpu"), rel=0.02)
