"""Images of whatever kind -> vectors: what evaluation sees of them, through the frozen encoder."""

from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from mixco.data.datasets.folders import whole_folder
from mixco.data.decode import as_decoded
from mixco.data.image_list import Arrays, ImageList
from mixco.data.images import FEATURE_BATCH
from mixco.data.pixel_format import infer_pixel_format
from mixco.data.streaming import stream
from mixco.embeddings.features import extract_features
from mixco.encoders import checkpoint
from mixco.encoders.checkpoint import LoadedEncoder
from mixco.models.encoder import Stem
from mixco.runtime.device import Compute, pick_device, pick_dtype
from mixco.runtime.errors import UserError

Picture = Image.Image | NDArray[Any] | Tensor
Pictures = str | PathLike[str] | Picture | Iterable[str | PathLike[str] | Picture]

AT_ONCE = FEATURE_BATCH  # pictures in memory that are taken at once


class Embedder(LoadedEncoder):
    """A loaded encoder that makes vectors of images by itself."""

    def embed(
        self,
        images: Pictures,
        *,
        normalise: bool = True,
        batch_size: int = FEATURE_BATCH,
        workers: int = 0,
        device: str = "auto",
        precision: str = "auto",
    ) -> Tensor:
        """A vector of each image: float32 [N, D] on the CPU, in their order.

        images: a folder, whose images come in the order of their sorted paths; a path, or several; PIL
            images; uint8 arrays [H, W, 3] or one [N, H, W, 3]; uint8 tensors [3, H, W] or one
            [N, 3, H, W]. All are seen as in evaluation: the central square, resized and normalised.
        normalise: to unit length, so that a product of two is their cosine similarity; else they are
            the features as they are, as evaluation has them.
        batch_size: images that go through the encoder at once. workers: processes that decode; a
            script that asks for some needs `if __name__ == "__main__":`.
        device, precision: as on the command line. The backbone stays on the device.

        A tensor and no array, as all that goes in and comes out here; its .numpy() copies nothing.

        Raises UserError for an image that cannot be read, naming it, and for one of another kind.
        """
        chosen = pick_device(device)
        compute = Compute(chosen, pick_dtype(chosen, precision))

        def refuse(file: str, reason: str) -> None:
            raise UserError(
                f"{file} cannot be read ({reason}); leave it out, or use `mixco embed`, which leaves "
                "such images out and lists them"
            )

        parts = [
            vectors
            for source in image_lists(images)
            for _, _, vectors in embedded(
                self,
                source,
                torch.arange(len(source.files)),
                normalise=normalise,
                workers=workers,
                compute=compute,
                on_unreadable=refuse,
                batch_size=batch_size,
            )
        ]
        if not parts:  # as many features as of a black image
            size = self.description.size
            black = torch.zeros(1, self.description.channels, size, size, device=chosen)
            return extract_features(self.backbone, [black], compute)[:0]
        return torch.cat(parts)


def load_encoder(
    path: str | PathLike[str],
    *,
    arch: str | None = None,
    stem: Stem | None = None,
    size: int | None = None,
) -> Embedder:
    """Load an encoder, every weight of it; its `embed` makes vectors of images.

    path: a run folder, an encoder.safetensors, a checkpoint of a run, or another project's checkpoint,
        for which arch and stem may be needed.
    size: side in pixels of the images that it will see, if not what the file says.

    Raises UserError when the file is missing or damaged, or when any weight is missing, left over or of
    another shape (see checkpoint.load_encoder).
    """
    return Embedder(**vars(checkpoint.load_encoder(Path(path), arch=arch, stem=stem, size=size)))


def embedded(
    encoder: LoadedEncoder,
    source: ImageList,
    index: Tensor,
    *,
    normalise: bool,
    workers: int,
    compute: Compute,
    on_unreadable: Callable[[str, str], None],
    batch_size: int = FEATURE_BATCH,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """The vectors of some images of a list, batch after batch, in order.

    index: int64 [N]. Yields its next part [B], those images of it that can be read [b], and their
    vectors, float32 [b, D] on the CPU, [0, 0] where b is 0. on_unreadable(file, reason) is called for
    the others, before.

    Raises UserError as `extract_features` and `decode_batches` do, but however many are unreadable.
    """
    description = encoder.description
    images = stream(infer_pixel_format(source, description.channels, None), workers)
    seen = images.evaluation_batches(
        index,
        description.input,
        compute=compute,
        on_unreadable=on_unreadable,
        batch_size=batch_size,
        tolerated=1.0,
    )
    for wanted, (readable, batch) in zip(torch.split(index, batch_size), seen, strict=True):
        if len(readable) == 0:
            yield wanted, readable, torch.empty(0, 0)
            continue
        vectors = extract_features(encoder.backbone, [batch], compute)
        yield wanted, readable, F.normalize(vectors, dim=1) if normalise else vectors


def image_lists(images: Pictures) -> Iterator[ImageList]:
    """Images of any kind that `Embedder.embed` takes, as lists; pictures in memory a part at a time.

    Raises UserError for other kinds.
    """
    if isinstance(images, (str, PathLike)):
        path = Path(images).expanduser()
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


def _of_files(paths: Iterable[Any]) -> ImageList:
    try:
        files = tuple(str(Path(path).expanduser()) for path in paths)
    except TypeError as error:
        raise UserError(f"images: paths and other things in one list ({error})") from None
    return ImageList("images", Path(), files, None, ())


def _of_pixels(pictures: list[NDArray[np.uint8]]) -> ImageList:
    names = tuple(f"image {i}" for i in range(len(pictures)))
    arrays = Arrays((), tuple(picture[None] for picture in pictures))
    return ImageList("images", Path(), names, None, (), arrays=arrays)


def _pixels(picture: Any) -> NDArray[np.uint8]:
    """uint8 [H, W, 3]"""
    if isinstance(picture, Image.Image):
        return as_decoded(picture)
    what = type(picture).__name__
    if isinstance(picture, (np.ndarray, Tensor)):
        pixels = picture.detach().cpu().numpy() if isinstance(picture, Tensor) else picture
        if isinstance(picture, Tensor) and pixels.ndim == 3:
            pixels = pixels.transpose(1, 2, 0)
        if pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3:
            return pixels
        what = f"{what} of {str(picture.dtype).removeprefix('torch.')} {list(picture.shape)}"
    raise UserError(
        f"images: a {what} cannot be embedded; expected paths, PIL images, uint8 arrays [H, W, 3] or "
        "uint8 tensors [3, H, W] (for tensors that are normalised already there is encoder.backbone)"
    )
