"""Views of any number of channels: what is for all, and what only three have."""

import dataclasses
from collections.abc import Callable

import pytest
import torch
from multichannel_images import bands, photographs
from torch import Tensor

from mixco.views.augment import apply_view, evaluation_view, finish_view, sample_view, two_views
from mixco.views.augmentation import Augmentation, Input, moco_v1, simclr


def images(channels: int, bits: int = 16, count: int = 24) -> Tensor:
    """[count, channels, 64, 64]"""
    return torch.stack(
        [torch.from_numpy(bands(channels, bits, p)).permute(2, 0, 1) for p in photographs(count)]
    )


def plain(size: int, channels: int) -> Input:
    return Input(size, (0.0,) * channels, (1.0,) * channels)


def view(batch: Tensor, a: Augmentation, seed: int = 0) -> Tensor:
    extents = torch.tensor(batch.shape[2:]).expand(len(batch), 2)
    return two_views(batch, extents, a, torch.Generator().manual_seed(seed), torch.float32)[0]


@pytest.mark.parametrize("preset", [moco_v1, simclr])
@pytest.mark.parametrize("channels", [2, 4, 13])
def test_no_channel_is_special(channels: int, preset: Callable[[Input], Augmentation]) -> None:
    """Views of images whose channels are put in another order are the views, in that order."""
    batch, order = images(channels), torch.arange(channels).roll(1)
    a = preset(plain(32, channels))
    assert torch.allclose(view(batch, a)[:, order], view(batch[:, order], a), atol=1e-6)


def test_a_channel_is_cropped_flipped_and_blurred_as_if_it_were_alone() -> None:
    a = dataclasses.replace(simclr(plain(32, 13)), jitter_probability=0.0)
    alone = dataclasses.replace(a, input=plain(32, 1))
    together, batch = view(images(13), a), images(13)
    for channel in range(13):
        one = view(batch[:, channel : channel + 1], alone)
        assert torch.allclose(one, together[:, channel : channel + 1], atol=1e-6)


@pytest.mark.parametrize("channels", [1, 4])
def test_jitter_is_brightness_and_contrast(channels: int) -> None:
    """Written out image by image; saturation and hue draw as ever and do nothing."""
    batch = images(channels, 8)
    whole = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0), "flip": 0.0, "blur": 0.0}
    a = dataclasses.replace(simclr(plain(64, channels)), **whole, jitter_probability=1.0, grey=1.0)
    extents = torch.tensor([64, 64]).expand(len(batch), 2)
    p = sample_view(extents, a, torch.Generator().manual_seed(3))
    ours = apply_view(batch, p, a)
    for i, x in enumerate(batch / 255):
        for operation in p.order[i].tolist():
            factor = p.factors[i, operation]
            if operation < 2:
                towards = 0.0 if operation == 0 else x.mean()
                x = (factor * x + (1 - factor) * towards).clamp(0, 1)
        assert torch.allclose(ours[i], x, atol=2e-6)


def test_the_draws_are_those_of_rgb() -> None:
    extents = torch.tensor([64, 64]).expand(24, 2)
    one, three = (
        sample_view(extents, simclr(plain(32, c)), torch.Generator().manual_seed(5)) for c in (1, 3)
    )
    for name in ("box", "flip", "jitter", "factors", "order", "grey", "sigma"):
        assert torch.equal(getattr(one, name), getattr(three, name))


def test_sixteen_bits_make_the_views_of_eight() -> None:
    """The same shares of the maximum, on dense matrices, bands, and after a crop elsewhere."""
    eight = images(4, 8)
    sixteen = (eight.to(torch.int32) * 257).to(torch.uint16)
    for size in (32, 160):
        a = simclr(plain(size, 4))
        assert torch.allclose(view(eight, a), view(sixteen, a), atol=1e-6)
        extents = torch.tensor([[64, 40]]).expand(24, 2)
        x, y = (evaluation_view(b, extents, plain(size, 4)) for b in (eight, sixteen))
        assert torch.allclose(x, y, atol=1e-6)
    a = simclr(plain(64, 4))
    p = sample_view(torch.tensor([64, 64]).expand(24, 2), a, torch.Generator().manual_seed(1))
    assert torch.allclose(finish_view(eight, p, a), finish_view(sixteen, p, a), atol=1e-6)
