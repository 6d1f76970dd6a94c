"""The views against torchvision's functions, image by image, with the same parameters.

Tolerances are of pixels in [0, 1] and come from float32 alone: both sides do the same arithmetic in
another order. A product of two resize matrices rounds a little differently from torchvision's two
passes; hue divides by the chroma, which enlarges rounding in nearly grey pixels.
"""

import dataclasses

import pytest
import torch
import torchvision.transforms.v2.functional as F
from sample_images import mosaics, sample_images
from torch import Tensor

from mixco.views.augment import ViewParameters, apply_view, evaluation_view, sample_view, two_views
from mixco.views.augmentation import (
    AUGMENTATIONS,
    IMAGENET_MEAN,
    IMAGENET_STD,
    Augmentation,
    Input,
    aerial,
    crop_and_flip,
    moco_v2,
    simclr,
)
from mixco.views.resampling import _blur_by_taps, blur_by_products, gaussian_taps

ADJUST = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)
NOTHING = Augmentation(
    Input(64, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    scale=(1.0, 1.0),
    ratio=(1.0, 1.0),
    flip=0.0,
    jitter=(0.0, 0.0, 0.0, 0.0),
    jitter_probability=0.0,
    grey=0.0,
    blur=0.0,
)
JITTER = dataclasses.replace(NOTHING, jitter_probability=1.0)
OPERATIONS = {
    "crop and resize": (dataclasses.replace(NOTHING, scale=(0.08, 1.0), ratio=(0.75, 1.33)), 1e-6),
    "flip": (dataclasses.replace(NOTHING, flip=0.5), 1e-6),
    "vertical flip": (dataclasses.replace(NOTHING, vertical_flip=0.5), 1e-6),
    "turns": (dataclasses.replace(NOTHING, flip=0.5, quarter_turns=0.75), 1e-6),
    "brightness": (dataclasses.replace(JITTER, jitter=(0.8, 0, 0, 0)), 1e-6),
    "contrast": (dataclasses.replace(JITTER, jitter=(0, 0.8, 0, 0)), 1e-6),
    "saturation": (dataclasses.replace(JITTER, jitter=(0, 0, 0.8, 0)), 1e-6),
    "hue": (dataclasses.replace(JITTER, jitter=(0, 0, 0, 0.5)), 2e-6),
    "jitter in every order": (dataclasses.replace(JITTER, jitter=(0.8, 0.8, 0.8, 0.2)), 4e-6),
    "greyscale": (dataclasses.replace(NOTHING, grey=0.5), 1e-6),
    "blur": (dataclasses.replace(NOTHING, blur=0.7, blur_sigma=(0.1, 8.0)), 1e-6),
}


def with_torchvision(image: Tensor, p: ViewParameters, i: int, a: Augmentation) -> Tensor:
    """uint8 [3, H, W] and the i-th parameters -> [3, size, size]."""
    top, left, height, width = p.box[i].tolist()
    size = [a.input.size, a.input.size]
    x = F.resized_crop(image.float() / 255, top, left, height, width, size, antialias=True)
    if p.flip[i]:
        x = F.horizontal_flip(x)
    if p.vertical[i]:
        x = F.vertical_flip(x)
    x = F.rotate(x, 90.0 * int(p.turns[i]))
    if a.grey_first and p.grey[i]:
        x = F.rgb_to_grayscale(x, 3)
    if p.jitter[i]:
        for operation in p.order[i].tolist():
            x = ADJUST[operation](x, p.factors[i, operation].item())
    if not a.grey_first and p.grey[i]:
        x = F.rgb_to_grayscale(x, 3)
    if p.sigma[i] > 0:
        x = F.gaussian_blur(x, [a.blur_kernel] * 2, [p.sigma[i].item()] * 2)
    return F.normalize(x, list(a.input.mean), list(a.input.std))


def worst_difference(images: Tensor, extents: Tensor, a: Augmentation, seed: int) -> float:
    p = sample_view(extents, a, torch.Generator().manual_seed(seed))
    ours = apply_view(images, p, a)
    assert ours.shape == (len(images), 3, a.input.size, a.input.size)
    theirs = torch.stack([with_torchvision(x, p, i, a) for i, x in enumerate(images)])
    return (ours - theirs).abs().max().item()


def whole(images: Tensor) -> Tensor:
    return torch.tensor(images.shape[2:]).expand(len(images), 2)


@pytest.mark.parametrize("name", OPERATIONS)
def test_each_operation_is_torchvisions(name: str) -> None:
    augmentation, tolerance = OPERATIONS[name]
    images = sample_images(96)
    assert worst_difference(images, whole(images), augmentation, seed=3) <= tolerance


@pytest.mark.parametrize("size", [40, 224])
def test_a_gpu_blurs_as_a_cpu_does(size: int) -> None:
    """Products there, taps here; both ways compute anywhere."""
    x = torch.rand(6, 3, size, size, generator=torch.Generator().manual_seed(0))
    kernel = Augmentation(Input(size)).blur_kernel
    taps = gaussian_taps(torch.linspace(0.01, 2.0, 6) * size / 224, kernel)
    torch.testing.assert_close(blur_by_products(x, taps), _blur_by_taps(x, taps), atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", [32, 64, 96, 224])
@pytest.mark.parametrize("preset", AUGMENTATIONS)
def test_the_whole_chain_is_torchvisions(preset: str, size: int) -> None:
    """From 64 and from 128 px canvases; 1e-5 of the pixel range, over the std of 0.22 or so."""
    augmentation = AUGMENTATIONS[preset](Input(size))
    for images in (sample_images(40), mosaics(12)):
        assert worst_difference(images, whole(images), augmentation, seed=5) <= 1e-5 / 0.22


def test_crops_never_leave_the_picture_on_its_canvas() -> None:
    """A picture smaller than the canvas: what lies beside it, here white noise, is never seen."""
    images = mosaics(24).clone()
    generator = torch.Generator().manual_seed(0)
    extents = torch.randint(20, 129, (24, 2), generator=generator)
    for image, (height, width) in zip(images, extents.tolist(), strict=True):
        noise = torch.randint(0, 256, image.shape, generator=generator, dtype=torch.uint8)
        image[:, height:] = noise[:, height:]
        image[:, :, width:] = noise[:, :, width:]
    blank = images.clone()
    for image, (height, width) in zip(blank, extents.tolist(), strict=True):
        image[:, height:] = 0
        image[:, :, width:] = 0
    augmentation = moco_v2(Input(64))
    p = sample_view(extents, augmentation, torch.Generator().manual_seed(1))
    assert torch.equal(apply_view(images, p, augmentation), apply_view(blank, p, augmentation))
    assert worst_difference(images, extents, augmentation, seed=1) <= 1e-5 / 0.22


@pytest.mark.parametrize(("size", "share"), [(64, 1.0), (224, 0.875)])
def test_evaluation_sees_the_resized_central_square(size: int, share: float) -> None:
    images = mosaics(3)
    extents = torch.tensor([[128, 128], [100, 60], [61, 128]])
    seen = evaluation_view(images, extents, Input(size))
    for image, (height, width), view in zip(images, extents.tolist(), seen, strict=True):
        side = round(min(height, width) * share)
        top, left = round((height - side) / 2), round((width - side) / 2)
        x = F.resized_crop(image.float() / 255, top, left, side, side, [size, size], antialias=True)
        x = F.normalize(x, list(IMAGENET_MEAN), list(IMAGENET_STD))
        torch.testing.assert_close(view, x, atol=1e-5, rtol=0)


def test_bfloat16_views_are_rounded_float32_views() -> None:
    images = sample_images(8)
    augmentation = simclr(Input(32))
    p = sample_view(whole(images), augmentation, torch.Generator().manual_seed(0))
    exact = apply_view(images, p, augmentation)
    rounded = apply_view(images, p, augmentation, torch.bfloat16)
    assert torch.equal(rounded, exact.to(torch.bfloat16))
    assert rounded.is_contiguous(memory_format=torch.channels_last)


def test_the_two_views_of_an_image_differ_and_one_seed_gives_the_same() -> None:
    images = sample_images(16)
    augmentation = moco_v2(Input(64))

    def draw(seed: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return two_views(images, whole(images), augmentation, generator, torch.float32)

    (a, b), (c, d), (e, _) = draw(0), draw(0), draw(1)
    assert torch.equal(a, c)
    assert torch.equal(b, d)
    assert ((a - b).abs().mean((1, 2, 3)) > 0.01).all()
    assert ((a - e).abs().mean((1, 2, 3)) > 0.01).all()


# The laws of the parameters. 20,000 draws: a share of 0.5 has a standard error of 0.0035, a mean of
# uniform numbers one of 0.002 of their range; five of them never happen by chance.
DRAWS = 20_000


@pytest.fixture(scope="module")
def drawn() -> tuple[ViewParameters, Augmentation]:
    augmentation = simclr(Input(224))
    extents = torch.tensor([[256, 256]]).expand(DRAWS, 2)
    return sample_view(extents, augmentation, torch.Generator().manual_seed(0)), augmentation


def test_probabilities(drawn: tuple[ViewParameters, Augmentation]) -> None:
    p, _ = drawn
    shares = {"flip": 0.5, "jitter": 0.8, "grey": 0.2}
    for name, share in shares.items():
        assert getattr(p, name).float().mean().item() == pytest.approx(share, abs=0.0175), name
    assert (p.sigma > 0).float().mean().item() == pytest.approx(0.5, abs=0.0175)


def test_all_eight_orientations_are_as_likely() -> None:
    augmentation = aerial(Input(32))
    p = sample_view(torch.full((DRAWS, 2), 64), augmentation, torch.Generator().manual_seed(0))
    orientations = p.flip * 4 + p.turns
    assert (orientations.bincount(minlength=8) / DRAWS - 1 / 8).abs().max() < 0.012
    flipped = dataclasses.replace(NOTHING, vertical_flip=0.3)
    p = sample_view(torch.full((DRAWS, 2), 64), flipped, torch.Generator().manual_seed(0))
    assert p.vertical.float().mean().item() == pytest.approx(0.3, abs=0.0175)


def test_turns_change_no_other_draw() -> None:
    """Neither those of the same view nor, without turns, those of the next one."""
    plain = moco_v2(Input(32))
    turned = dataclasses.replace(plain, quarter_turns=0.75, vertical_flip=0.5)
    extents = torch.full((64, 2), 64)
    a, b = (
        sample_view(extents, each, torch.Generator().manual_seed(2)) for each in (plain, turned)
    )
    for name in ("box", "flip", "jitter", "factors", "order", "grey", "sigma"):
        assert torch.equal(getattr(a, name), getattr(b, name))
    assert not a.vertical.any() and not a.turns.any()
    assert b.vertical.any() and b.turns.any()


def test_factors_and_their_order(drawn: tuple[ViewParameters, Augmentation]) -> None:
    p, _ = drawn
    low = torch.tensor([0.2, 0.2, 0.2, -0.2])
    high = torch.tensor([1.8, 1.8, 1.8, 0.2])
    assert (p.factors >= low).all()
    assert (p.factors <= high).all()
    for quantile in (0.1, 0.5, 0.9):
        expected = low + quantile * (high - low)
        found = p.factors.quantile(quantile, dim=0)
        assert ((found - expected).abs() < 0.02 * (high - low)).all()
    orders, counts = p.order.unique(dim=0, return_counts=True)
    assert len(orders) == 24
    assert (counts / DRAWS - 1 / 24).abs().max() < 0.0075


def test_sigmas(drawn: tuple[ViewParameters, Augmentation]) -> None:
    p, augmentation = drawn
    used = p.sigma[p.sigma > 0]
    assert used.min() >= 0.1
    assert used.max() <= 2.0
    assert used.mean().item() == pytest.approx(1.05, abs=0.03)
    assert augmentation.blur_kernel == 23
    small = sample_view(
        torch.tensor([[64, 64]]).expand(DRAWS, 2),
        simclr(Input(56)),
        torch.Generator().manual_seed(0),
    )
    assert small.sigma.max() <= 0.5  # a quarter of 224 px, a quarter of the sigma


def test_crops_follow_random_resized_crops_law(drawn: tuple[ViewParameters, Augmentation]) -> None:
    """Quantiles of area, ratio and place against torchvision's own draws, on a wide picture too."""
    import torchvision.transforms.v2 as T

    for height, width in ((256, 256), (96, 192)):
        extents = torch.tensor([[height, width]]).expand(DRAWS, 2)
        box = sample_view(extents, drawn[1], torch.Generator().manual_seed(1)).box.double()
        theirs = T.RandomResizedCrop(8, scale=(0.2, 1.0))
        picture = torch.empty(3, height, width)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            drawn_there = [theirs.make_params([picture]) for _ in range(4000)]
        keys = ("top", "left", "height", "width")
        other = torch.tensor([[d[k] for k in keys] for d in drawn_there], dtype=torch.float64)
        levels = torch.tensor([0.1, 0.25, 0.5, 0.75, 0.9], dtype=torch.float64)
        ours_at, theirs_at = (
            torch.stack([h * w / (height * width), (w / h).log(), top / height, left / width])
            for top, left, h, w in (box.unbind(1), other.unbind(1))
        )
        difference = ours_at.quantile(levels, dim=1) - theirs_at.quantile(levels, dim=1)
        assert difference.abs().max() < 0.04
        inside = (box[:, 0] + box[:, 2] <= height) & (box[:, 1] + box[:, 3] <= width)
        assert inside.all()
        assert (box[:, :2] >= 0).all()


def test_a_picture_too_narrow_for_any_try_gets_the_largest_central_crop() -> None:
    extents = torch.tensor([[10, 200], [200, 10]]).repeat(50, 1)
    augmentation = moco_v2(Input(64))
    augmentation = dataclasses.replace(augmentation, scale=(0.9, 1.0))
    box = sample_view(extents, augmentation, torch.Generator().manual_seed(0)).box
    assert box[::2].unique(dim=0).tolist() == [[0, 93, 10, 13]]
    assert box[1::2].unique(dim=0).tolist() == [[93, 0, 13, 10]]


def test_the_views_of_linear_evaluation_are_crops_and_flips_alone() -> None:
    augmentation = crop_and_flip(Input(64))
    extents = torch.full((4000, 2), 64)
    p = sample_view(extents, augmentation, torch.Generator().manual_seed(0))
    assert not p.jitter.any()
    assert not p.grey.any()
    assert not p.sigma.any()
    assert p.flip.float().mean().item() == pytest.approx(0.5, abs=0.03)
    share = p.box[:, 2] * p.box[:, 3] / 64**2
    assert 0.06 < share.min().item() < 0.1, "torchvision's scale begins at 0.08"
    assert share.max().item() > 0.95
    assert worst_difference(sample_images(40), extents[:40], augmentation, seed=5) <= 1e-5 / 0.22
