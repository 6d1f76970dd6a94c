"""Real images for tests: those of the built-in sample."""

import zipfile
from functools import lru_cache
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mixco.data.datasets import list_images

CLASSES = list_images("sample", None, "train").classes


@lru_cache
def sample_images(count: int) -> Tensor:
    """uint8 [count, 3, 64, 64], spread over the classes of the train split."""
    source = list_images("sample", None, "train")
    index = torch.linspace(0, len(source.files) - 1, count).long().tolist()
    arrays = [np.array(Image.open(BytesIO(source.read(i)))) for i in index]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()


def mosaics(count: int) -> Tensor:
    """uint8 [count, 3, 128, 128]: four images of the sample each, for larger canvases."""
    tiles = sample_images(4 * count).view(count, 2, 2, 3, 64, 64)
    return tiles.permute(0, 3, 1, 4, 2, 5).reshape(count, 3, 128, 128)


def unpack_sample(folder: Path, train: int, test: int, classes: int = 10) -> Path:
    """Class folders of real JPEG files: `train` and `test` images of each class."""
    for split, count in (("train", train), ("test", test)):
        source = list_images("sample", None, split)
        assert source.labels is not None
        taken = [0] * len(source.classes)
        with zipfile.ZipFile(source.root) as archive:
            for name, label in zip(source.files, source.labels, strict=True):
                if taken[label] < count and label < classes:
                    taken[label] += 1
                    path = folder / split / source.classes[label] / Path(name).name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(archive.read(name))
    return folder
