"""A large batch through the encoder in the memory of a small one (Gao et al. 2021, arXiv 2101.06983).

A contrastive loss needs the outputs of the whole batch at once, so its gradient cannot be accumulated
over small batches. But outputs are small; it is what a pass keeps for its gradient that is large. So the
batch passes in pieces that keep nothing; the loss is taken of all outputs; and on the way back one piece
after the other passes again, with the gradient of its outputs at hand. The gradient is exact and a step
takes a third more time.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def made_for_pieces(encoder: nn.Module, pieces: int) -> nn.Module:
    """Have running statistics retain, after all pieces, what they would after one whole batch.

    Works in place and returns the encoder.
    """
    if pieces == 1:
        return encoder
    for module in encoder.modules():
        momentum = getattr(module, "momentum", None)
        if hasattr(module, "running_mean") and isinstance(momentum, float):
            setattr(module, "momentum", 1 - (1 - momentum) ** (1 / pieces))  # noqa: B010
    return encoder


def in_pieces(encoder: nn.Module, images: Tensor, pieces: int) -> Tensor:
    """encoder(images), [N, C, H, W] -> [N, D], the images in so many pieces.

    Batch norms normalise each piece by itself, and keep running statistics of the first passes only.
    Dropout draws the same in both passes.
    """
    if pieces == 1:
        return encoder(images)  # type: ignore[no-any-return]
    some = images.tensor_split(pieces)
    if not torch.is_grad_enabled():
        return torch.cat([encoder(piece) for piece in some])

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _statistics_stay(encoder)

    return torch.cat(
        [checkpoint(encoder, piece, use_reentrant=False, context_fn=contexts) for piece in some]
    )


@contextmanager
def _statistics_stay(encoder: nn.Module) -> Iterator[None]:
    """Inside, running statistics are written into copies."""
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
