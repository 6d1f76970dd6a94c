import pytest
import torch
from sample_images import sample_images

from mixco.embeddings.features import extract_features, on_one_device
from mixco.models.encoder import build_backbone
from mixco.runtime import device as devices
from mixco.runtime.device import Compute, keeper
from mixco.runtime.errors import UserError
from mixco.views.augment import evaluation_view
from mixco.views.augmentation import Input

CPU = Compute(torch.device("cpu"), torch.float32)
EXTENTS = torch.full((20, 2), 64)
SEEN = evaluation_view(sample_images(20), EXTENTS, Input(32))


def test_features_are_the_backbones_in_order_whatever_the_batch() -> None:
    backbone = build_backbone("resnet18", 32).train()
    features = [extract_features(backbone, SEEN.split(size), CPU) for size in (7, 20)]
    assert backbone.training, "put back as it was"
    with torch.no_grad():
        expected = backbone.eval()(SEEN)
    for found in features:
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_the_running_statistics_are_left_alone() -> None:
    backbone = build_backbone("resnet18", 32).train()
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    extract_features(backbone, [SEEN], CPU)
    after = backbone.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_features_that_are_not_finite_are_an_error() -> None:
    backbone = build_backbone("resnet18", 32)
    with torch.no_grad():
        backbone.conv1.weight.fill_(float("nan"))
    with pytest.raises(UserError, match=r"20 images.*--precision float32"):
        extract_features(backbone, [SEEN], CPU)


def test_features_stay_on_a_gpu_in_a_quarter_of_its_free_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(devices, "free_memory", lambda _: 4000)
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    assert [keeper(cuda, size) for size in (1000, 1001)] == [cuda, cpu]
    assert keeper(torch.device("mps"), 1) == keeper(cpu, 10**9) == cpu


def test_features_of_two_splits_come_together() -> None:
    there = torch.ones(2, 3, device="meta")
    assert on_one_device(there, there) == (there, there)
    with pytest.raises(NotImplementedError, match="no data"):  # it goes to the CPU, if it has any
        on_one_device(there, torch.ones(2, 3))
