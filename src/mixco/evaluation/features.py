"""Features of a frozen encoder, streamed once."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mixco.errors import UserError


@torch.no_grad()  # under inference_mode, .to() would leave weights that can never be trained again
def extract_features(
    backbone: nn.Module,
    images: Tensor,
    view: Callable[[Tensor, Tensor], Tensor],
    extents: Tensor,
    *,
    device: torch.device,
    dtype: torch.dtype,
    batch_size: int = 512,
    on_progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Features of all images, in order: float32 [N, D] on the CPU.

    backbone: [B, 3, S, S] -> [B, D]; in evaluation mode here, then put back as it was: its batch norms
        use and keep their running statistics.
    images: uint8 [N, 3, H, W]; extents: int64 [N, 2]; view: both of a batch -> [B, 3, S, S].
    dtype: of autocast; float32 for none.

    Raises UserError when a feature is not finite.
    """
    training = backbone.training
    backbone.eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    features = []
    try:
        for start in range(0, len(images), batch_size):
            batch = images[start : start + batch_size].to(device)
            seen = view(batch, extents[start : start + batch_size])
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                features.append(backbone(seen).float().cpu())
            if on_progress:
                on_progress(min(start + batch_size, len(images)), len(images))
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
