"""RGB of 8 bits is read, packed and cropped as it was before there were other pixels: the sample.

The hashes and numbers are those of the code before.
"""

import hashlib
from pathlib import Path

import torch

from mixco.data.datasets import list_images
from mixco.data.images import Images, view_batches
from mixco.data.loading import open_images
from mixco.data.workers import Request, decode_batches
from mixco.runtime.device import Compute
from mixco.views.augment import draw_view
from mixco.views.augmentation import Input, simclr

SOURCE = list_images("sample", None, "pretrain")
INDEX = torch.arange(0, 1600, 100)


def opened(cache: Path, loading: str) -> Images:
    return open_images(
        SOURCE,
        size=64,
        cache=cache,
        loading=loading,  # type: ignore[arg-type]
        workers=2 if loading == "packed" else 0,
        memory=2**30,
    )


def sha256(x: torch.Tensor) -> str:
    return hashlib.sha256(x.contiguous().numpy().tobytes()).hexdigest()


def test_packed_pixels_and_the_file_they_lie_in(tmp_path: Path) -> None:
    packed = opened(tmp_path, "packed")
    assert sha256(packed.images) == PACKED  # type: ignore[union-attr]


def test_streamed_crops() -> None:
    a = simclr(Input(40, SOURCE.mean, SOURCE.std))
    crops, _ = draw_view(16, a, torch.Generator().manual_seed(7))
    request = Request(INDEX.numpy(), crops[:, :, None].numpy())
    (batch,) = decode_batches(
        SOURCE,
        [request],
        workers=0,
        unreadable={},
        size=40,
        most=16,
        on_unreadable=print,
        augmentation=a,
    )
    assert sha256(batch.crops) == STREAMED


def test_views(tmp_path: Path) -> None:
    """To what float32 keeps: processors add in different orders."""
    a = simclr(Input(40, SOURCE.mean, SOURCE.std))
    batches = view_batches(
        opened(tmp_path, "packed"),
        [(INDEX, torch.Generator().manual_seed(7))],
        a,
        members=torch.arange(1600),
        batch_size=16,
        compute=Compute(torch.device("cpu"), torch.float32),
        on_unreadable=print,
    )
    _, views = next(batches)
    found = torch.stack(views)[:, ::5, :, 20, 20].flatten()
    assert torch.allclose(found, torch.tensor(VIEWS), atol=2e-5)


PACKED = "ba68303f949b98d1f422043e9981735dbc3509385f24f4af5e83579bc269b47e"
STREAMED = "54f15ccc82d388788f8b25f54808af09bd7e45f445571b8193de2f6914c6fd4e"
VIEWS = [
    0.40958,
    0.31788,
    0.12751,
    -1.1543,
    -1.87694,
    -2.54905,
    0.66969,
    0.7047,
    0.57648,
    -1.35331,
    -2.30379,
    -2.91538,
    1.53909,
    1.17418,
    2.86925,
    -1.39058,
    -2.39936,
    -2.86295,
    -0.55029,
    -1.02118,
    -1.00622,
    -1.32159,
    -2.03732,
    -2.65591,
]
