"""Where the golden vectors lie, the encoder they were computed with, and how a step is compared."""

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from mixco.methods.moco import MoCo
from mixco.models.encoder import Encoder

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


def encoder(golden: dict[str, Tensor], prefix: str) -> Encoder:
    head = nn.Sequential(
        linear(golden[f"{prefix}.fc.0.weight"], golden[f"{prefix}.fc.0.bias"]),
        nn.ReLU(),
        linear(golden[f"{prefix}.fc.2.weight"], golden[f"{prefix}.fc.2.bias"]),
    )
    return Encoder(Body(golden[f"{prefix}.body.weight"]), head)


def theirs(name: str) -> str:
    return name.replace("backbone.body", "body").replace("head", "fc")


def equal(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual.detach(), expected, rtol=1e-9, atol=1e-12)


def equal_gradients(model: nn.Module, golden: dict[str, Tensor]) -> None:
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None
        equal(parameter.grad, golden[f"grad.{theirs(key)}"])


def equal_keys(method: MoCo, golden: dict[str, Tensor]) -> None:
    """The key encoder and the queue after a step."""
    for key, parameter in method.key_encoder.named_parameters():
        equal(parameter, golden[f"key_after.{theirs(key)}"])
    equal(method.queue.keys.T, golden["queue_after"])
