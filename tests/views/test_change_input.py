"""Views of one encoder as another one takes them."""

import pytest
import torch
import torch.nn.functional as F
from sample_images import sample_images

from mixco.views.augment import evaluation_view
from mixco.views.augmentation import IMAGENET_MEAN, IMAGENET_STD, Input
from mixco.views.change_input import change_input

OURS = Input(64, (0.5, 0.4, 0.3), (0.2, 0.3, 0.25))


def view(input: Input, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    images = sample_images(6)
    return evaluation_view(images, torch.tensor([[64, 64]]).expand(6, 2), input, dtype)


def test_the_same_input_leaves_the_views_as_they_are() -> None:
    views = view(OURS)
    assert change_input(views, OURS, OURS) is views


def test_another_normalisation() -> None:
    theirs = Input(64, IMAGENET_MEAN, IMAGENET_STD)
    torch.testing.assert_close(change_input(view(OURS), OURS, theirs), view(theirs))


@pytest.mark.parametrize("size", [40, 64, 96, 224])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_another_size_is_antialiased_where_it_is_smaller(size: int, dtype: torch.dtype) -> None:
    theirs = Input(size, IMAGENET_MEAN, IMAGENET_STD)
    found = change_input(view(OURS, dtype), OURS, theirs)
    pixels = sample_images(6).float() / 255
    resized = F.interpolate(pixels, (size, size), mode="bilinear", antialias=True)
    mean, std = (torch.tensor(values)[:, None, None] for values in theirs[1:])
    assert found.dtype == dtype
    assert found.is_contiguous(memory_format=torch.channels_last)
    tolerance = 1e-4 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(found.float(), (resized - mean) / std, rtol=0, atol=tolerance)
