"""Features of a frozen encoder, for the central square of each image, as in evaluation."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixco.data.image_list import ImageList
from mixco.data.images import FEATURE_BATCH, Images
from mixco.data.streaming import stream
from mixco.encoders.loading import LoadedEncoder
from mixco.runtime.device import Compute, keeper
from mixco.runtime.distributed import all_reduce_max, gather_all, rank, world
from mixco.runtime.errors import UserError
from mixco.runtime.precision import Workload, fastest
from mixco.runtime.progress import say
from mixco.views.augmentation import Input


def fastest_compute(
    encoder: LoadedEncoder,
    device: torch.device,
    precision: str,
    cache: Path,
    *,
    training: bool = False,
    tell: Callable[[str], object] = say,
) -> Compute:
    """Where an encoder computes, in the given precision, or with "auto" in the fastest formats.

    cache: see `precision.fastest`. training: is it to be trained? tell: gets a line with the figures,
        where there was a choice.
    """
    about = encoder.description
    workload = Workload(about.arch, about.stem, about.size, about.channels, training)
    formats, why = fastest(encoder.backbone, workload, device, cache, precision=precision)
    if why:
        tell(f"computing in {' '.join(formats)}: {why}")
    return formats.compute(device)


def features_of(
    backbone: nn.Module,
    images: Images,
    index: Tensor,
    input: Input,
    *,
    compute: Compute,
    on_unreadable: Callable[[str, str], None],
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """Features of some images, and which of these could be read.

    index: int64 [N]. on_unreadable(file, reason) is called for each unreadable image; only streamed
    ones may be.

    Returns float32 [n, D], on the device if they fit there (`keeper`), else on the CPU; and the index
    int64 [n] of the images, on the CPU. With several processes each computes a part, and all return
    everything. Raises UserError as `extract_features` and `decode_batches` do.
    """
    count = len(index)
    sharded = len(index) >= world()
    if sharded:
        index = index.tensor_split(world())[rank()]
    seen: list[Tensor] = []

    def batches() -> Iterator[Tensor]:
        for part, batch in images.evaluation_batches(
            index, input, compute=compute, on_unreadable=on_unreadable
        ):
            seen.append(part)
            yield batch
            if on_progress:
                on_progress(sum(map(len, seen)), len(index))

    features = extract_features(backbone, batches(), compute, count=count)
    if not sharded:
        return features, torch.cat(seen)
    # The GPUs may have different room, but an exchange is between devices of one kind.
    if all_reduce_max(int(features.device.type == "cpu"), torch.device("cpu")):
        features = features.cpu()
    return gather_all(features), gather_all(torch.cat(seen))


def on_one_device(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Two sets of features, both on the CPU if one of them did not fit on the device."""
    return (first, second) if first.device == second.device else (first.cpu(), second.cpu())


def embed_batches(
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
    """Embed images of a list, batch after batch, in order.

    source: in the pixel format that its files are to be read in (`infer_pixel_format`).
    index: int64 [N]. Yields the next part of it [B], the readable images of that part [b], and their
    vectors, float32 [b, D] on the CPU; [0, 0] where b is 0. Before that, on_unreadable(file, reason)
    is called for each of the others; any number may be unreadable.

    Raises UserError as `extract_features` does.
    """
    description = encoder.description
    source = dataclasses.replace(source, max_unreadable=math.inf)  # even all of a shard's
    images = stream(source, workers)
    seen = images.evaluation_batches(
        index,
        description.input,
        compute=compute,
        on_unreadable=on_unreadable,
        batch_size=batch_size,
    )
    for wanted, (readable, batch) in zip(torch.split(index, batch_size), seen, strict=True):
        if len(readable) == 0:
            yield wanted, readable, torch.empty(0, 0)
            continue
        vectors = extract_features(encoder.backbone, [batch], compute).cpu()
        yield wanted, readable, F.normalize(vectors, dim=1) if normalise else vectors


@torch.no_grad()  # under inference_mode, .to() would leave weights that can never be trained again
def extract_features(
    backbone: nn.Module, views: Iterable[Tensor], compute: Compute, *, count: int | None = None
) -> Tensor:
    """Features of all views, in order: float32 [N, D].

    They stay on a CUDA device if those of `count` images fit there (`keeper`); else they go to the CPU.

    backbone: [B, C, S, S] -> [B, D]; put into evaluation mode meanwhile, so that batch norms use
        their running statistics and keep them.
    views: batches [B, C, S, S] on the device.
    count: of all images whose features are kept; None for those of one batch.

    Raises UserError when a feature is not finite.
    """
    training = backbone.training
    backbone.eval().to(compute.device, memory_format=compute.memory_format)  # type: ignore[call-overload]
    features: list[Tensor] = []
    try:
        for batch in views:
            with compute.autocast():
                found = backbone(batch).float()
            if not features:
                kept_on = keeper(compute.device, 4 * found.shape[1] * (count or len(found)))
            features.append(found.to(kept_on))
    finally:
        backbone.train(training)
    result = torch.cat(features)
    wrong = (~result.isfinite()).any(1).cpu().nonzero()
    if len(wrong):
        raise UserError(
            f"the features of {len(wrong)} images are not finite (the first is image "
            f"{int(wrong[0])}); the encoder is broken or overflows: try --precision float32"
        )
    return result
