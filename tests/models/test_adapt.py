"""Weights of timm's models, adapted to other sizes and channels: what comes out, and what is refused."""

import pytest
import timm
import torch
from sample_images import sample_images
from torch import Tensor, nn

from mixco.models.adapt import adapt
from mixco.models.families import create
from mixco.runtime.errors import UserError


def whole(arch: str) -> nn.Module:
    """timm's model with its classifier and random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return timm.create_model(arch)


def features(weights: dict[str, Tensor], arch: str, images: Tensor) -> Tensor:
    backbone = create(arch, images.shape[-1], images.shape[1])
    backbone.load_state_dict(weights)
    with torch.no_grad():
        return backbone.eval()(images)


def photographs(size: int = 64) -> Tensor:
    images = sample_images(4).float() / 255 - 0.5
    return nn.functional.interpolate(images, size=(size, size), mode="bilinear")


@pytest.mark.parametrize("arch", ["test_vit", "test_resnet"])
def test_at_their_own_size_the_weights_are_as_they_were(arch: str) -> None:
    model = whole(arch)
    adapted = adapt(model.state_dict(), arch, 160, 3)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in adapted.items())
    images = photographs(160)
    model.reset_classifier(0)
    with torch.no_grad():
        assert torch.equal(features(adapted, arch, images), model.eval()(images))


def test_position_embeddings_are_interpolated_as_timm_does_it() -> None:
    model = whole("test_vit")
    weights = model.state_dict()
    before = {key: value.clone() for key, value in weights.items()}
    state = torch.get_rng_state()
    adapted = adapt(weights, "test_vit", 64, 3)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(weights[key], before[key]) for key in before)
    model.set_input_size(img_size=64)
    model.reset_classifier(0)
    images = photographs()
    with torch.no_grad():
        torch.testing.assert_close(features(adapted, "test_vit", images), model.eval()(images))


@pytest.mark.parametrize("arch", ["test_vit", "test_resnet", "test_efficientnet"])
def test_grey_images_give_what_they_gave_in_rgb(arch: str) -> None:
    weights = whole(arch).state_dict()
    grey = photographs().mean(1, keepdim=True)
    of_rgb = features(adapt(weights, arch, 64, 3), arch, grey.repeat(1, 3, 1, 1))
    torch.testing.assert_close(features(adapt(weights, arch, 64, 1), arch, grey), of_rgb)


def test_five_channels_have_the_filters_of_three_again_and_scaled() -> None:
    weights = whole("test_resnet").state_dict()
    first = adapt(weights, "test_resnet", 64, 5)["conv1.0.weight"]
    rgb = weights["conv1.0.weight"]
    torch.testing.assert_close(first, rgb[:, [0, 1, 2, 0, 1]] * 3 / 5)


def test_what_timm_cannot_adapt_is_refused_with_the_size_that_fits() -> None:
    weights = whole("convit_tiny").state_dict()
    with pytest.raises(
        UserError, match=r"64 pixels \(pos_embed is \[1, 196, 192\] instead of .*--size 224"
    ):
        adapt(weights, "convit_tiny", 64, 1)
    adapt(weights, "convit_tiny", 224, 1)


def test_weights_of_another_model_and_incomplete_ones_are_refused() -> None:
    weights = whole("test_resnet").state_dict()
    with pytest.raises(UserError, match=r"do not fit test_vit: .*is missing.* more"):
        adapt(weights, "test_vit", 64, 3)
    with pytest.raises(UserError, match=r"do not fit test_resnet: extra is left over$"):
        adapt({**weights, "extra": torch.zeros(1)}, "test_resnet", 64, 3)
    del weights["layer2.0.conv1.weight"]
    with pytest.raises(UserError, match=r"layer2\.0\.conv1\.weight is missing"):
        adapt(weights, "test_resnet", 64, 3)


def test_a_first_layer_that_timm_would_draw_at_random_is_refused() -> None:
    """timm itself warns, and leaves the layer as it was drawn."""
    weights = whole("test_vit").state_dict()
    weights["patch_embed.proj.weight"] = torch.rand(64, 4, 16, 16)
    with pytest.raises(UserError, match=r"5 channels .*patch_embed.proj.weight"):
        adapt(weights, "test_vit", 160, 5)
