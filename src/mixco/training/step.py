"""One step of training: the losses and their gradient, then the update of the weights."""

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from mixco.runtime.device import Compute
from mixco.runtime.distributed import all_reduce_mean
from mixco.runtime.seeding import global_draws


def forward_backward(
    method: nn.Module,
    views: Sequence[Tensor],
    draws: torch.Generator,
    *,
    compute: Compute,
    batch: int | None = None,
    dropout: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """Compute the losses of a batch and their gradient.

    method: see methods/protocol.py; with several processes, wrapped by `distributed.ddp`.
    views, draws, batch: see `Method.forward`. dropout: seeds dropout and stochastic depth; None without
    such layers.

    Returns the losses, scalars without gradient, the means over all processes.
    """
    with compute.autocast(), global_draws(dropout, compute.device) if dropout else nullcontext():
        losses: dict[str, Tensor] = method(views, draws, batch)
    losses["loss"].backward()  # type: ignore[no-untyped-call]
    return all_reduce_mean(losses)


def update(optimizer: torch.optim.Optimizer, lr: float | Sequence[float]) -> None:
    """Update the weights, and drop the gradients.

    lr: one learning rate, or one for each parameter group.
    """
    groups = optimizer.param_groups
    rates = [lr] * len(groups) if isinstance(lr, (int, float)) else lr
    for group, rate in zip(groups, rates, strict=True):
        group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
