"""Batch norms whose statistics stay as they are, for encoders that start from existing weights.

Those of published weights are of a million images. A small set of other images moves them, and the
weights no longer fit. Scale and shift still learn. Frozen statistics are of no batch, so nothing leaks
through them in MoCo.
"""

from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


class Frozen:
    """Mixed into a class of batch norms: it stays in evaluation mode."""

    def train(self, mode: bool = True) -> Any:  # noqa: ARG002
        return super().train(False)  # type: ignore[misc]


def freeze_batch_norms(model: nn.Module) -> nn.Module:
    """Let every batch norm of the model normalise by its running statistics, and keep them.

    Works in place and returns the model; keys and values of the state dict stay the same. Norms without
    running statistics are left as they are.
    """
    for module in model.modules():
        if isinstance(module, _BatchNorm) and module.running_mean is not None:
            kind = type(module)
            # Changing the class keeps parameters, buffers and their names.
            module.__class__ = type(f"Frozen{kind.__name__}", (Frozen, kind), {})
            module.train()
    return model


def has_batch_norms(model: nn.Module) -> bool:
    """Does it hold batch norms with running statistics?"""
    return any(
        isinstance(module, _BatchNorm) and module.running_mean is not None
        for module in model.modules()
    )
