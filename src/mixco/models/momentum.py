"""The key encoder as a slowly moving copy of the query encoder (He et al. 2020, eq. 2)."""

import copy

import torch
from torch import nn


def momentum_copy(encoder: nn.Module) -> nn.Module:
    """A copy of the encoder that takes no gradient."""
    return copy.deepcopy(encoder).requires_grad_(False)


@torch.no_grad()
def momentum_update(key_encoder: nn.Module, encoder: nn.Module, momentum: float) -> None:
    """theta_k <- m theta_k + (1 - m) theta_q, in place, for parameters.

    Buffers are not averaged: the key encoder's batch norms compute their own statistics.
    """
    torch._foreach_lerp_(list(key_encoder.parameters()), list(encoder.parameters()), 1 - momentum)
