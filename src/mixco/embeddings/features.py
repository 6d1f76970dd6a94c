"""Features of a frozen encoder, streamed once."""

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

from mixco.data.images import Images
from mixco.runtime.device import Compute
from mixco.runtime.distributed import gather_all, rank, world
from mixco.runtime.errors import UserError
from mixco.views.augment import Input


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
    """Features of the images of an index that can be read, by what evaluation sees of them.

    index: int64 [N]. Of packed images all can be read; of streamed ones on_unreadable(file, reason) is
    called for those that cannot.

    Returns float32 [n, D] and the index int64 [n] of their images; of several processes each computes
    a share and all return all. Raises UserError as `extract_features` and `decode_batches` do.
    """
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

    features = extract_features(backbone, batches(), compute)
    if not sharded:
        return features, torch.cat(seen)
    return gather_all(features), gather_all(torch.cat(seen))


@torch.no_grad()  # under inference_mode, .to() would leave weights that can never be trained again
def extract_features(backbone: nn.Module, views: Iterable[Tensor], compute: Compute) -> Tensor:
    """Features of all views, in order: float32 [N, D] on the CPU.

    backbone: [B, C, S, S] -> [B, D]; in evaluation mode here, then put back as it was: its batch norms
        use and keep their running statistics.
    views: batches [B, C, S, S] on the device.

    Raises UserError when a feature is not finite.
    """
    training = backbone.training
    backbone.eval().to(compute.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    features = []
    try:
        for batch in views:
            with compute.autocast():
                features.append(backbone(batch).float().cpu())
    finally:
        backbone.train(training)
    result = torch.cat(features)
    wrong = (~result.isfinite()).any(1).nonzero()
    if len(wrong):
        raise UserError(
            f"the features of {len(wrong)} images are not finite (the first is image "
            f"{int(wrong[0])}); the encoder is broken or overflows: try --precision float32"
        )
    return result
