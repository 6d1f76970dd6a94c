"""A linear probe: softmax regression on frozen features, its settings chosen on held-out images.

The sweep of learning rates and weight decays is one batched problem: S probes see the same batches of
features, and share each matrix product.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mixco.embeddings.knn import topk_accuracy
from mixco.runtime.device import send
from mixco.runtime.errors import UserError
from mixco.runtime.files import shown

LEARNING_RATES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
WEIGHT_DECAYS = (0.0, 1e-4, 1e-3, 1e-2)
# Errors below it change no weight. Where a probe is sure of an image they are denormal numbers, with
# which the matrix products of a CPU take several times as long.
NOTHING = 1e-30


@dataclass(frozen=True)
class LinearProbe:
    """A fitted probe, and the accuracies by which its settings were chosen."""

    weight: Tensor
    """[D, C]"""
    bias: Tensor
    """[C]"""
    mean: Tensor
    std: Tensor
    """[D], of the training features; all on their device"""
    learning_rate: float
    weight_decay: float
    selection: tuple[tuple[float, float, float], ...]
    """(learning rate, weight decay, top-1 in percent on the held-out part)"""

    def scores(self, features: Tensor) -> Tensor:
        """float32 [M, D] -> logits [M, C]"""
        return (features - self.mean) / self.std @ self.weight + self.bias


def fit_linear_probe(
    features: Tensor,
    labels: Tensor,
    *,
    classes: int,
    names: Sequence[str] = (),
    seed: int = 0,
    epochs: int = 100,
    batch_size: int = 256,
    holdout: float = 0.2,
    learning_rates: tuple[float, ...] = LEARNING_RATES,
    weight_decays: tuple[float, ...] = WEIGHT_DECAYS,
) -> LinearProbe:
    """Choose the learning rate and weight decay on a held-out part, then fit again on everything.

    features: float32 [N, D], on the device that computes; labels: int64 [N] in [0, classes), on any.
    names: of the classes, for errors. holdout: fraction of each class. The draws are the same on each
    device.
    Ties in held-out accuracy go to the stronger decay, then to the lower rate.

    Raises UserError when a class has fewer than two images.
    """
    labels = labels.cpu()
    counts = labels.bincount(minlength=classes)
    if counts.min() < 2:
        few = int(counts.argmin())
        raise UserError(
            f"the linear probe needs at least two labelled images of each class; class "
            f"{shown(names[few]) if names else few} has {int(counts[few])}; add some, or give "
            "--protocol paper, which needs one"
        )
    generator = torch.Generator().manual_seed(seed)
    held_out = _stratified(labels, holdout, generator)
    grid = [(lr, decay) for lr in learning_rates for decay in weight_decays]
    weight, bias, mean, std = _fit(
        features[~held_out], labels[~held_out], classes, grid, epochs, batch_size, seed
    )
    held = (features[held_out] - mean) / std
    accuracies = [
        topk_accuracy(torch.nan_to_num(held @ w + b, nan=-math.inf), labels[held_out], 1)
        for w, b in zip(weight, bias, strict=True)
    ]
    selection = tuple((*pair, round(a, 2)) for pair, a in zip(grid, accuracies, strict=True))
    chosen = max(selection, key=lambda row: (row[2], row[1], -row[0]))[:2]
    weight, bias, mean, std = _fit(features, labels, classes, [chosen], epochs, batch_size, seed)
    return LinearProbe(weight[0], bias[0], mean, std, *chosen, selection)


def _stratified(labels: Tensor, fraction: float, generator: torch.Generator) -> Tensor:
    """bool [N]: about this fraction of each class, at least one image and never all."""
    mask = torch.zeros(len(labels), dtype=torch.bool)
    for label in torch.unique(labels):
        members = (labels == label).nonzero().squeeze(1)
        count = min(len(members) - 1, max(1, round(fraction * len(members))))
        mask[members[torch.randperm(len(members), generator=generator)[:count]]] = True
    return mask


def _fit(
    features: Tensor,
    labels: Tensor,
    classes: int,
    grid: list[tuple[float, float]],
    epochs: int,
    batch_size: int,
    seed: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """S probes at once by SGD with Nesterov momentum 0.9 and a cosine schedule.

    It computes where the features are, and no step makes the host wait for that device.

    Returns weights [S, D, C], biases [S, C] and the mean and std [D] that standardise the features.
    A probe whose rate is too high may diverge to NaN without touching the others.
    """
    mean = features.mean(0)
    std = features.std(0).clamp(min=1e-6)
    x = (features - mean).div_(std)
    labels = send(labels, x.device)
    settings, dim = len(grid), x.shape[1]
    # A column for each class of each probe: all probes share two matrix products a step, and every
    # value is where the products want it.
    rates, decays = (
        send(torch.tensor(v).repeat_interleave(classes), x.device) for v in zip(*grid, strict=True)
    )
    weight, bias = x.new_zeros(dim, settings * classes), x.new_zeros(settings * classes)
    weight_speed, bias_speed = torch.zeros_like(weight), torch.zeros_like(bias)
    change = torch.empty_like(weight)
    generator = torch.Generator().manual_seed(seed)
    batch_size = min(batch_size, len(x))
    batches = len(x) // batch_size
    for step in range(epochs * batches):
        if step % batches == 0:
            order = send(torch.randperm(len(x), generator=generator), x.device)
        index = order[step % batches * batch_size :][:batch_size]
        inputs = x[index]  # [B, D]
        logits = (inputs @ weight + bias).view(-1, settings, classes)
        # The gradient of softmax regression, written out.
        error = logits.softmax(2) - F.one_hot(labels[index], classes)[:, None]  # [B, S, C]
        error = F.hardshrink(error.div_(len(index)).flatten(1), NOTHING)
        rate = rates * (0.5 * (1 + math.cos(math.pi * step / (epochs * batches))))
        slope = (inputs.T @ error).add_(torch.mul(weight, decays, out=change))
        weight_speed.mul_(0.9).add_(slope)
        weight.sub_(slope.add_(torch.mul(weight_speed, 0.9, out=change)).mul_(rate))
        slope = error.sum(0)
        bias_speed.mul_(0.9).add_(slope)
        bias.sub_(rate * (slope + 0.9 * bias_speed))
    weight = weight.view(dim, settings, classes).permute(1, 0, 2).contiguous()
    return weight, bias.view(settings, classes), mean, std
