"""The projection heads of the papers, and the predictor of BYOL and SimSiam."""

from itertools import pairwise
from typing import Literal

import torch
from torch import nn

Head = Literal["linear", "mlp", "mlp-bn", "mlp3-bn-last", "mlp-bn-last", "mlp3-bn"]

# For each head: its hidden layers, their usual width, and what batch norms it has: one after each hidden
# layer, and one after the output, which SimSiam's has without scale and shift. None: as wide as the
# features.
HEADS: dict[Head, tuple[int, int | None, bool, bool]] = {
    "linear": (0, None, False, False),
    "mlp": (1, None, False, False),
    "mlp-bn": (1, 4096, True, False),
    "mlp3-bn-last": (2, 2048, True, True),
    "mlp-bn-last": (1, 2048, True, True),
    "mlp3-bn": (2, 2048, True, False),
}


class HeadNorm(nn.BatchNorm1d):
    """A BatchNorm1d of outputs [N, C], a row for each image. In backbones rows may be tokens."""


def build_head(
    features: int, dim: int, head: Head, seed: int = 0, hidden: int | None = None
) -> nn.Module:
    """The projection head: [B, features] -> [B, dim].

    "linear" is MoCo v1's; "mlp", with one hidden layer, MoCo v2's and SimCLR's. The others have batch
    norms: "mlp-bn" is BYOL's, with one hidden layer, "mlp3-bn" Barlow's, with two. "mlp3-bn-last" is
    SimSiam's, whose output has a batch norm too, and "mlp-bn-last" its one for CIFAR.
    hidden: the width of hidden layers; None for the usual one, see `HEADS`.
    seed: of the initial weights; the global generator does not move.
    """
    layers, usual, norm, norm_after = HEADS[head]
    width = hidden or usual or features
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if layers == 0:
            return nn.Linear(features, dim)
        sides = [features, *[width] * layers]
        modules: list[nn.Module] = []
        for wide, narrow in pairwise(sides):
            # A bias before a batch norm would do nothing.
            modules += [nn.Linear(wide, narrow, bias=not norm)]
            modules += [HeadNorm(narrow), nn.ReLU()] if norm else [nn.ReLU()]
        # Nor does one that Barlow Twins takes away when it standardises.
        modules.append(nn.Linear(width, dim, bias=not norm_after and head != "mlp3-bn"))
        if norm_after:
            modules.append(HeadNorm(dim, affine=False))
        return nn.Sequential(*modules)


def build_predictor(dim: int, hidden: int, generator: torch.Generator) -> nn.Module:
    """The predictor of BYOL and SimSiam: [B, dim] -> [B, dim], one hidden layer with batch norm.

    generator: draws the seed of the initial weights.
    """
    seed = int(torch.randint(2**31, (), generator=generator))
    return build_head(dim, dim, "mlp-bn", seed, hidden)
