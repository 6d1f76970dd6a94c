"""A large batch through the encoder in the memory of a small one (Gao et al. 2021, arXiv 2101.06983).

A contrastive loss needs the outputs of the whole batch at once, so its gradient cannot be accumulated
over small batches. But outputs are small; the activations that a forward pass keeps for its gradient
are large. So the batch passes the encoder in micro-batches that keep no activations, and the loss is
computed from all outputs. In the backward pass each micro-batch passes the encoder again, now with the
gradient of its outputs at hand. The gradient is exact, and a step takes a third more time.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def adjust_momentum(encoder: nn.Module, micro_batches: int) -> nn.Module:
    """Adjust the momentum of batch norms: all micro-batches together then count as one whole batch.

    Works in place and returns the encoder.
    """
    if micro_batches == 1:
        return encoder
    for module in encoder.modules():
        momentum = getattr(module, "momentum", None)
        if hasattr(module, "running_mean") and isinstance(momentum, float):
            setattr(module, "momentum", 1 - (1 - momentum) ** (1 / micro_batches))  # noqa: B010
    return encoder


def encode_in_micro_batches(encoder: nn.Module, images: Tensor, micro_batches: int) -> Tensor:
    """Encode images [N, C, H, W] -> [N, D] in so many micro-batches.

    Batch norms normalise each micro-batch by itself, and update running statistics in its first pass
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
    """Inside, updates of running statistics go into copies, which are dropped at the end."""
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
