"""The optimisers, and which parameters they decay."""

from typing import Any

import torch
from torch import nn


def build_optimizer(
    method: nn.Module, name: str, weight_decay: float, peak: float = 0.0
) -> torch.optim.Optimizer:
    """SGD with momentum 0.9 and decay on all parameters, as published, or AdamW.

    AdamW's decay leaves out biases and the scales of norms: decoupled, it would pull them to zero
    whatever the gradient.
    peak: the rate of weights that keep it at all steps, which a method names by `constant_rate`. Their
    groups are marked "constant", and `step.update` leaves their rate as it is.
    """
    steady = {id(p) for p in getattr(method, "constant_rate", lambda: ())()}
    parameters = [p for p in method.parameters() if p.requires_grad]
    fused = parameters[0].device.type in ("cpu", "cuda")
    groups = []
    for constant in (False, True) if steady else (False,):
        some = [p for p in parameters if (id(p) in steady) == constant]
        more: dict[str, Any] = {"lr": peak, "constant": True} if constant else {}
        if name == "sgd":
            groups.append({"params": some, "weight_decay": weight_decay, **more})
        else:
            matrices, vectors = (
                [p for p in some if (p.ndim > 1) == wide] for wide in (True, False)
            )
            groups.append({"params": matrices, "weight_decay": weight_decay, **more})
            groups.append({"params": vectors, "weight_decay": 0.0, **more})
    if name == "sgd":
        return torch.optim.SGD(groups, lr=0.0, momentum=0.9, fused=fused)
    return torch.optim.AdamW(groups, lr=0.0, fused=fused)
