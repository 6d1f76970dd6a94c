"""The optimisers, and which parameters they decay."""

import torch
from torch import nn


def build_optimizer(method: nn.Module, name: str, weight_decay: float) -> torch.optim.Optimizer:
    """SGD with momentum 0.9 and decay on all parameters, as published, or AdamW.

    AdamW's decay leaves out biases and the scales of norms: decoupled, it would pull them to zero
    whatever the gradient.
    """
    parameters = [p for p in method.parameters() if p.requires_grad]
    fused = parameters[0].device.type in ("cpu", "cuda")
    if name == "sgd":
        return torch.optim.SGD(
            parameters, lr=0.0, momentum=0.9, weight_decay=weight_decay, fused=fused
        )
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=0.0, fused=fused)
