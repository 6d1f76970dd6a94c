"""A large batch through the encoder in the memory of a small one (Gao et al. 2021, arXiv 2101.06983).

A contrastive loss needs the outputs of the whole batch at once, so its gradient cannot be accumulated
over small batches. But outputs are small; the activations that a forward pass keeps for its gradient
are large. So the encoder computes the outputs of one micro-batch at a time and keeps no activations,
and the loss takes all outputs together. The backward pass repeats the forward pass of each micro-batch,
once the gradient of its outputs is known. The gradient is exact, and a step takes a third more time.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def adjust_momentum(encoder: nn.Module, micro_batches: int) -> nn.Module:
    """Adjust the momentum of batch norms, in place, so that all micro-batches count as one whole batch.

    Returns the encoder.
    """
    if micro_batches == 1:
        return encoder
    for module in encoder.modules():
        momentum = getattr(module, "momentum", None)
        if hasattr(module, "running_mean") and isinstance(momentum, float):
            setattr(module, "momentum", 1 - (1 - momentum) ** (1 / micro_batches))  # noqa: B010
    return encoder


def encode_in_micro_batches(encoder: nn.Module, images: Tensor, micro_batches: int) -> Tensor:
    """Encode images [N, C, H, W] -> [N, D], in `micro_batches` parts.

    Batch norms normalise each micro-batch separately, and update running statistics in its first pass
    only. Dropout draws the same in both passes.
    """
    if micro_batches == 1:
        return encoder(images)  # type: ignore[no-any-return]
    parts = images.tensor_split(micro_batches)
    if not torch.is_grad_enabled():
        return torch.cat([encoder(part) for part in parts])

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _running_statistics_kept(encoder)

    return torch.cat(
        [checkpoint(encoder, part, use_reentrant=False, context_fn=contexts) for part in parts]
    )


@contextmanager
def _running_statistics_kept(encoder: nn.Module) -> Iterator[None]:
    """Inside, running statistics are updated in copies, which are dropped at the end."""
    kept = [
        (module, name, buffer)
        for module in encoder.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    for module, name, buffer in kept:
        module._buffers[name] = buffer.clone()
    try:
        yield
    finally:
        for module, name, buffer in kept:
            module._buffers[name] = buffer
