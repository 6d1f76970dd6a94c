import pytest
import torch

from mixco.models.encoder import build_backbone, feature_dim
from mixco.models.heads import build_head
from mixco.runtime.errors import UserError


@pytest.mark.parametrize(
    ("size", "stem", "stride"), [(32, "conv3s1", 8), (64, "conv3s2", 16), (224, "standard", 32)]
)
def test_resnets_get_the_stem_of_their_size(size: int, stem: str, stride: int) -> None:
    auto = build_backbone("resnet18", size)
    chosen = build_backbone("resnet18", size, stem)
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    assert auto.forward_features(images).shape == (2, 512, size // stride, size // stride)
    assert all(
        torch.equal(a, b) for a, b in zip(auto.parameters(), chosen.parameters(), strict=True)
    )


def test_keys_are_torchvisions() -> None:
    import torchvision

    theirs = torchvision.models.resnet18().state_dict()
    ours = build_backbone("resnet18", 224).state_dict()
    assert {k: v.shape for k, v in ours.items()} == {
        k: v.shape for k, v in theirs.items() if not k.startswith("fc.")
    }


@pytest.mark.parametrize("arch", ["vit_tiny_patch16_224", "convnext_atto", "mobilenetv3_small_050"])
def test_other_families(arch: str) -> None:
    backbone = build_backbone(arch, 64)
    assert backbone(torch.zeros(2, 3, 64, 64)).shape == (2, feature_dim(backbone, 64))


def test_the_seed_decides_and_the_global_generator_is_left_alone() -> None:
    state = torch.random.get_rng_state()
    one, same = build_backbone("resnet18", 32, seed=1), build_backbone("resnet18", 32, seed=1)
    other = build_backbone("resnet18", 32, seed=2)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(one.conv1.weight, same.conv1.weight)
    assert not torch.equal(one.conv1.weight, other.conv1.weight)
    assert torch.equal(build_head(8, 4, "mlp", 1)[0].weight, build_head(8, 4, "mlp", 1)[0].weight)


def test_mistakes_are_named() -> None:
    with pytest.raises(UserError, match=r"resnet19.*did you mean resnet1"):
        build_backbone("resnet19", 32)
    with pytest.raises(UserError, match=r"--stem conv3s1.*--stem standard"):
        build_backbone("convnext_atto", 32, "conv3s1")
