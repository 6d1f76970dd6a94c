"""One step of training."""

from collections.abc import Sequence

import torch


def update(optimizer: torch.optim.Optimizer, lr: float | Sequence[float]) -> None:
    """Take a step at a learning rate, or at one rate a parameter group; then drop the gradients."""
    groups = optimizer.param_groups
    rates = lr if isinstance(lr, Sequence) else [lr] * len(groups)
    for group, rate in zip(groups, rates, strict=True):
        group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
