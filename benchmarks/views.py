"""Two views of each image, and nothing else: ours against torchvision and kornia, in turn.

    python benchmarks/views.py [--size 32 64 96 224] [--rounds 5] [--device cpu] [--out FILE.json]

The same images, operations and distributions of parameters, of MoCo v2's and SimCLR's augmentation:

- ours: `two_views` of a batch of resident uint8 images
- torchvision-v2: its transforms on uint8 tensors, an image at a time
- torchvision-pil: as the code of 2020 had it, on PIL images, an image at a time, blurred by PIL
- kornia, if it is installed: batches, with parameters drawn for each image; its crop does not
  antialias, and it draws one order of the jitter's operations for the whole batch

Images are decoded before. They are mosaics of the built-in sample, of the view's size, or 256 pixels
for 224. All ends in normalised float32 batches on the device. On a CPU every subject has --threads (1):
so figures are those of one core, since torchvision's users multiply theirs by loader workers. On CUDA
torchvision still works on the CPU, and its batches are copied over. Ratios are within a round.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torchvision.transforms as v1
from harness import (
    RESULTS,
    Figures,
    arguments_of,
    in_turn,
    rate,
    ratios,
    spreads,
    write_figures,
    write_mosaics,
)
from PIL import Image, ImageFilter
from torch import Tensor, nn
from torchvision.transforms import v2

from mixco.runtime.device import pick_device
from mixco.views.augment import two_views
from mixco.views.augmentation import Augmentation, Input, moco_v2, simclr

try:
    import kornia.augmentation
except ImportError:
    kornia = None
    print("without kornia: install it beside mixco (pip install kornia) to compare with it")

PRESETS = {"moco-v2": moco_v2, "simclr": simclr}
Views = tuple[Tensor, Tensor]


def photos(count: int, side: int) -> Tensor:
    """uint8 [count, 3, side, side]"""
    with tempfile.TemporaryDirectory() as folder:
        files = sorted(write_mosaics(Path(folder) / "photos", count, side).iterdir())
        pixels = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()


def blur_sigma(a: Augmentation) -> tuple[float, float]:
    """In pixels of the view."""
    low, high = (sigma * a.input.size / 224 for sigma in a.blur_sigma)
    return low, high


def of_ours(images: Tensor, a: Augmentation, device: torch.device) -> Callable[[], Views]:
    resident = images.to(device)
    extents = torch.tensor(images.shape[2:]).expand(len(images), 2)
    generator = torch.Generator().manual_seed(0)
    return lambda: two_views(resident, extents, a, generator, torch.float32)


def of_torchvision_v2(images: Tensor, a: Augmentation, device: torch.device) -> Callable[[], Views]:
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(a.input.size, a.scale, a.ratio, antialias=True),
            v2.RandomApply([v2.ColorJitter(*a.jitter)], a.jitter_probability),
            v2.RandomGrayscale(a.grey),
            v2.RandomApply([v2.GaussianBlur(a.blur_kernel, blur_sigma(a))], a.blur),
            v2.RandomHorizontalFlip(a.flip),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(a.input.mean, a.input.std),
        ]
    )
    return one_by_one(list(images), transform, device)


class BlurOf2020:
    """PIL's, three passes of a box; the radius is its sigma."""

    def __init__(self, sigma: tuple[float, float]) -> None:
        self.sigma = sigma

    def __call__(self, image: Image.Image) -> Image.Image:
        return image.filter(ImageFilter.GaussianBlur(float(np.random.uniform(*self.sigma))))  # noqa: NPY002


def of_torchvision_pil(
    images: Tensor, a: Augmentation, device: torch.device
) -> Callable[[], Views]:
    transform = v1.Compose(
        [
            v1.RandomResizedCrop(a.input.size, a.scale, a.ratio),
            v1.RandomApply([v1.ColorJitter(*a.jitter)], a.jitter_probability),
            v1.RandomGrayscale(a.grey),
            v1.RandomApply([BlurOf2020(blur_sigma(a))], a.blur),
            v1.RandomHorizontalFlip(a.flip),
            v1.ToTensor(),
            v1.Normalize(a.input.mean, a.input.std),
        ]
    )
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    return one_by_one(pictures, transform, device)


def one_by_one(
    images: list, transform: Callable[..., Tensor], device: torch.device
) -> Callable[[], Views]:
    def views() -> Views:
        pairs = [(transform(image), transform(image)) for image in images]
        first, second = (torch.stack(half).to(device) for half in zip(*pairs, strict=True))
        return first, second

    return views


def of_kornia(images: Tensor, a: Augmentation, device: torch.device) -> Callable[[], Views]:
    k = kornia.augmentation
    transform = nn.Sequential(
        k.RandomResizedCrop((a.input.size, a.input.size), a.scale, a.ratio),
        k.ColorJitter(*a.jitter, p=a.jitter_probability),
        k.RandomGrayscale(p=a.grey),
        k.RandomGaussianBlur((a.blur_kernel, a.blur_kernel), blur_sigma(a), p=a.blur),
        k.RandomHorizontalFlip(p=a.flip),
        k.Normalize(torch.tensor(a.input.mean), torch.tensor(a.input.std)),
    ).to(device)
    resident = images.to(device)

    def views() -> Views:
        unit = resident.float() / 255
        return transform(unit), transform(unit)

    return views


def measured(
    make: Callable[..., Callable[[], Views]], images: Tensor, *rest: object, seconds: float
) -> Callable[[], Figures]:
    """Measure images a second, with two views of each, for about `seconds` and at least one batch."""
    device = rest[-1]
    assert isinstance(device, torch.device)
    make(images[:8], *rest)()  # what only a first call has to do
    views = make(images, *rest)
    began = time.perf_counter()
    views()
    batches = max(1, round(seconds / (time.perf_counter() - began)))
    return lambda: rate(views, len(images), batches, device)


MAKERS = {
    "ours": of_ours,
    "torchvision-v2": of_torchvision_v2,
    "torchvision-pil": of_torchvision_pil,
    **({} if kornia is None else {"kornia": of_kornia}),
}


def main() -> None:
    several = {"type": int, "nargs": "+"}
    arguments = arguments_of(
        __doc__,
        size={**several, "default": [32, 64, 96, 224]},
        side={"type": int, "help": "of the images; default: the view's, 256 for 224"},
        augmentation={"nargs": "+", "choices": PRESETS, "default": list(PRESETS)},
        batch_size={"type": int, "default": 256},
        seconds={"type": float, "default": 0.5, "help": "about, of each measurement"},
        threads={"type": int, "default": 1},
        rounds=5,
    )
    device, seconds = pick_device(arguments.device), arguments.seconds
    torch.set_num_threads(arguments.threads)
    rows: list[Figures] = []
    for size in arguments.size:
        side = arguments.side or (256 if size == 224 else size)
        images = photos(arguments.batch_size, side)
        for name in arguments.augmentation:
            print(f"{name}, {size} pixels of {side}")
            a = PRESETS[name](Input(size))
            makers = MAKERS.items()
            subjects = {n: measured(make, images, a, device, seconds=seconds) for n, make in makers}
            found = in_turn(subjects, arguments.rounds)
            ours = found.pop("ours")
            row: Figures = {"augmentation": name, "size": size, "side": side}
            row |= {} if kornia is None else {"kornia": kornia.__version__}
            of_all = {"ours": ours, **found}
            row["images_per_second"] = {
                subject: spreads(rounds)["images_per_second"] for subject, rounds in of_all.items()
            }
            row["ours_over"] = {peer: ratios(ours, rounds) for peer, rounds in found.items()}
            rows.append(row)
    out = arguments.out or RESULTS / f"views-{device.type}.json"
    write_figures(out, rows, device)


if __name__ == "__main__":
    main()
