"""From images of any kind, on disk or in memory, to vectors of a frozen encoder."""

from collections.abc import Iterable, Iterator
from itertools import chain, islice
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from mixco.data.datasets.folders import whole_folder
from mixco.data.decode import as_decoded
from mixco.data.image_list import ImageList
from mixco.data.images import FEATURE_BATCH
from mixco.data.opening import UnreadableImage
from mixco.data.pixel_format import infer_pixel_format
from mixco.data.storage import Arrays
from mixco.embeddings.features import embed_batches, extract_features, fastest_compute
from mixco.encoders import loading
from mixco.encoders.loading import LoadedEncoder
from mixco.models.encoder import Stem
from mixco.runtime.device import pick_device
from mixco.runtime.errors import UserError
from mixco.runtime.files import at_home

Picture = Image.Image | NDArray[Any] | Tensor
Pictures = str | PathLike[str] | Picture | Iterable[str | PathLike[str] | Picture]

AT_ONCE = FEATURE_BATCH  # pictures of a generator that are in memory at once


class Embedder(LoadedEncoder):
    """A loaded encoder that embeds images of any kind."""

    def embed(
        self,
        images: Pictures,
        *,
        normalise: bool = True,
        batch_size: int = FEATURE_BATCH,
        workers: int = 0,
        device: str = "auto",
        precision: str = "auto",
        cache: str | PathLike[str] = "~/.cache/mixco",
    ) -> Tensor:
        """One vector an image: float32 [N, D] on the CPU, in the order of the images.

        images: a folder, in the order of its sorted paths; a path, or several; PIL images; uint8
            arrays [H, W, 3] or one [N, H, W, 3]; uint8 tensors [3, H, W] or one [N, 3, H, W]. As in
            evaluation, the encoder sees the central square, resized and normalised.
        normalise: scale vectors to unit length, so that the product of two is their cosine
            similarity. False: the features of evaluation, unscaled.
        batch_size: images in one forward pass. workers: processes that decode; with more than 0 a
            script needs `if __name__ == "__main__":`.
        device, precision, cache: as on the command line. The backbone stays on the device. cache keeps
            which precision is the fastest on this machine.

        The tensor's .numpy() makes no copy.

        Raises UserError for an unreadable image, naming it, and for objects of another kind.
        """
        chosen = pick_device(device)
        place = Path(at_home(str(Path(cache)), "cache"))
        compute = fastest_compute(self, chosen, precision, place, tell=lambda _: None)

        def refuse(file: str, reason: str) -> None:
            raise UserError(
                f"{file} cannot be read ({reason}); leave it out, or use `mixco embed`, which skips "
                "and lists such images"
            )

        parts = [
            vectors
            for source in image_lists(images)
            for _, _, vectors in embed_batches(
                self,
                infer_pixel_format(source, self.description.channels, None),
                torch.arange(len(source.files)),
                normalise=normalise,
                workers=workers,
                compute=compute,
                on_unreadable=refuse,
                batch_size=batch_size,
            )
        ]
        if not parts:  # a black image, to find out D
            size = self.description.size
            black = torch.zeros(1, self.description.channels, size, size, device=chosen)
            return extract_features(self.backbone, [black], compute)[:0].cpu()
        return torch.cat(parts)


def load_encoder(
    path: str | PathLike[str],
    *,
    arch: str | None = None,
    stem: Stem | None = None,
    size: int | None = None,
    prefix: str | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
) -> Embedder:
    """Load an encoder, with every weight of it; its `embed` turns images into vectors.

    path: a run folder, an encoder.safetensors, a checkpoint of a run, or another project's checkpoint.
    size: side of the encoder's input in pixels; default: as in the file.
    arch, stem, prefix, mean, std: of another project's encoder, where its file does not tell: timm's
        name; the first layers of a ResNet; what the keys of the weights begin with, where the file holds
        several encoders; and how its images are normalised, ImageNet's by default.

    Raises UserError when the file is missing or damaged, or when any weight is missing, left over or of
    another shape (see loading.load_encoder).
    """
    loaded = loading.load_encoder(
        _file(path), arch=arch, stem=stem, size=size, prefix=prefix, mean=mean, std=std
    )
    return Embedder(**vars(loaded))


def image_lists(images: Pictures) -> Iterator[ImageList]:
    """Lists of the images that `Embedder.embed` was given; pictures in memory come in parts.

    Raises UserError for objects of another kind.
    """
    if isinstance(images, (str, PathLike)):
        path = _file(images)
        yield whole_folder(path) if path.is_dir() else _of_files([path])
    elif isinstance(images, Image.Image) or (
        isinstance(images, (np.ndarray, Tensor)) and images.ndim == 3
    ):
        yield _of_pixels([_pixels(images)])
    else:
        rest = iter(images)
        while some := list(islice(rest, AT_ONCE)):
            if isinstance(some[0], (str, PathLike)):
                yield _of_files(chain(some, rest))
                return
            yield _of_pixels([_pixels(picture) for picture in some])


def _file(path: str | PathLike[str]) -> Path:
    return Path(at_home(str(Path(path)), "images"))


def _of_files(paths: Iterable[Any]) -> ImageList:
    try:
        files = tuple(str(_file(path)) for path in paths)
    except TypeError as error:
        raise UserError(
            f"images: expected only paths after the first path ({error}); embed other images separately"
        ) from None
    return ImageList("images", Path(), files, None, ())


def _of_pixels(pictures: list[NDArray[np.uint8]]) -> ImageList:
    names = tuple(f"image {i}" for i in range(len(pictures)))
    arrays = Arrays((), tuple(picture[None] for picture in pictures))
    return ImageList("images", Path(), names, None, (), stored=arrays)


def _pixels(picture: Any) -> NDArray[np.uint8]:
    """uint8 [H, W, 3]. Raises UserError."""
    if isinstance(picture, Image.Image):
        try:
            return as_decoded(picture)
        except UnreadableImage as error:
            raise UserError(
                f"images: a picture of mode {picture.mode} cannot be read ({error}); leave it out, or "
                "scale its numbers"
            ) from None
    what = type(picture).__name__
    if isinstance(picture, (np.ndarray, Tensor)):
        pixels = picture.detach().cpu().numpy() if isinstance(picture, Tensor) else picture
        if isinstance(picture, Tensor) and pixels.ndim == 3:
            pixels = pixels.transpose(1, 2, 0)
        if pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3:
            return pixels
        what = f"{what} of {str(picture.dtype).removeprefix('torch.')} {list(picture.shape)}"
    raise UserError(
        f"images: expected paths, PIL images, uint8 arrays [H, W, 3] or uint8 tensors [3, H, W], got "
        f"{what}; call encoder.backbone for tensors that are normalised already"
    )
