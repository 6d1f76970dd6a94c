"""Views by operations of fixed shapes, as a GPU makes them, are those that a CPU makes."""

import pytest
import torch
from sample_images import sample_images

from mixco.views import colour, dense
from mixco.views.augment import apply_view, finish_view, sample_view
from mixco.views.augmentation import AUGMENTATIONS, Input, crop_and_flip

IMAGES = 48


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16])
@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("name", [*AUGMENTATIONS, "crop"])
def test_dense_views_are_the_views(name: str, size: int, dtype: torch.dtype) -> None:
    a = (crop_and_flip if name == "crop" else AUGMENTATIONS[name])(Input(size))
    images = sample_images(IMAGES).to(torch.int32)
    images = (images * (257 if dtype == torch.uint16 else 1)).to(dtype)
    extents = torch.tensor([[64, 64], [40, 64]]).repeat(IMAGES // 2, 1)
    p = sample_view(extents, a, torch.Generator().manual_seed(1))
    functions = dense.dense_views()
    found = functions.apply(images, p, a)
    torch.testing.assert_close(found, apply_view(images, p, a), rtol=0, atol=5e-6)
    assert found.is_contiguous(memory_format=torch.channels_last)
    # Blurred by products here and by taps there, so not to the bit.
    crops = images[:, :, :size, :size]
    torch.testing.assert_close(
        functions.finish(crops, p, a), finish_view(crops, p, a), rtol=0, atol=5e-6
    )
    rounded = functions.apply(images, p, a, torch.bfloat16, torch.contiguous_format)
    assert rounded.dtype == torch.bfloat16 and rounded.is_contiguous()
    assert torch.equal(rounded, found.to(torch.bfloat16))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_dense_colours_are_the_colours_to_the_bit(channels: int) -> None:
    x = torch.rand(IMAGES, channels, 16, 16, generator=torch.Generator().manual_seed(0))
    extents = torch.full((IMAGES, 2), 16)
    p = sample_view(extents, AUGMENTATIONS["simclr"](Input(16)), torch.Generator().manual_seed(2))
    expected = colour.jitter(x.clone(), p.jitter, p.order, p.factors)
    assert torch.equal(dense.jitter(x.clone(), p.jitter, p.order, p.factors), expected)
    expected = colour.greyscale(x.clone(), p.grey)
    assert torch.equal(dense.greyscale(x.clone(), p.grey), expected)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_a_compiler_takes_a_view_whole(name: str) -> None:
    """Without a break of the graph: nothing asks the host for a value."""
    a = AUGMENTATIONS[name](Input(32))
    images = sample_images(8)
    p = sample_view(torch.full((8, 2), 64), a, torch.Generator().manual_seed(1))
    expected = dense.dense_views().apply(images, p, a)
    compiled = torch.compile(dense._apply, fullgraph=True, dynamic=False, backend="eager")
    constants = dense.normalisation(a.input, images.device)
    found = compiled(images, p, constants, a, torch.float32, torch.channels_last)
    assert torch.equal(found, expected)
