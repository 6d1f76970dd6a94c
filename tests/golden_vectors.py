"""Where the golden vectors lie, and the encoder they were computed with."""

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

FOLDER = Path(os.environ.get("MIXCO_GOLDEN", Path(__file__).parent / "golden"))


def load(name: str) -> dict[str, Tensor]:
    with np.load(FOLDER / name) as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays.files}


def names(pattern: str) -> list[str]:
    found = sorted(path.name for path in FOLDER.glob(pattern))
    assert found, f"no golden vectors {pattern} in {FOLDER}"
    return found


class Body(nn.Module):
    """The flattened 3 x 4 x 4 image through one linear layer and ReLU."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.body = nn.Linear(48, 16, bias=False, dtype=torch.float64)
        self.body.weight.data.copy_(weight)

    def forward(self, images: Tensor) -> Tensor:
        return torch.relu(self.body(images.flatten(1)))


def linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], dtype=torch.float64)
    layer.weight.data.copy_(weight)
    layer.bias.data.copy_(bias)
    return layer
