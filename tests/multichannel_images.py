"""The sample's photographs as greyscale, in 12 of 16 bits, and with further channels made of theirs."""

from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image
from sample_images import sample_images

Band = NDArray[np.uint8 | np.uint16]

# Each further channel is a mixture of red, green and blue, as neighbouring wavelengths nearly are.
MIXTURES = np.random.default_rng(0).dirichlet((1, 1, 1), size=10).T


def bands(channels: int, bits: int, photograph: NDArray[np.uint8]) -> Band:
    """[H, W, 3] -> [H, W, channels]; of 16 bits only 12 are used, 0 to 4095."""
    values = photograph.astype(np.float64)
    values = np.concatenate([values, values @ MIXTURES], axis=2)
    values = values.mean(2, keepdims=True) if channels == 1 else values[:, :, :channels]
    scale = 1 if bits == 8 else 4095 / 255
    return np.rint(values * scale).astype(np.uint8 if bits == 8 else np.uint16)


def photographs(count: int) -> list[NDArray[np.uint8]]:
    return [image.permute(1, 2, 0).numpy() for image in sample_images(count)]


def write(path: Path, pixels: Band) -> None:
    """By the ending: .npy, .npz, .tif with all channels of a pixel together, or Pillow's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, pixels)
    elif path.suffix == ".npz":
        np.savez_compressed(path, pixels)
    elif pixels.shape[2] == 1:
        Image.fromarray(pixels[:, :, 0]).save(path)
    elif path.suffix == ".tif":
        tifffile.imwrite(path, pixels, photometric="minisblack", planarconfig="contig")
    else:
        Image.fromarray(pixels).save(path)


def folder_of(folder: Path, count: int, channels: int, bits: int, ending: str) -> Path:
    for i, photograph in enumerate(photographs(count)):
        write(folder / f"{i:03}{ending}", bands(channels, bits, photograph))
    return folder


def labelled(folder: Path, train: int, test: int, channels: int, bits: int, ending: str) -> Path:
    """Class folders: so many images of each of the sample's ten classes."""
    every = photographs(10 * (train + test))  # spread over the list, which is sorted by class
    for i, photograph in enumerate(every):
        label, number = divmod(i, train + test)
        split = "train" if number < train else "test"
        path = folder / split / f"class-{label}" / f"{number}{ending}"
        write(path, bands(channels, bits, photograph))
    return folder
