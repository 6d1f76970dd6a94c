"""The way of the 2020 code, rebuilt from its description: MoCo v2 on one device, with or without MixCo.

Torchvision's transforms on PIL images in loader workers; float32, contiguous layout, SGD with
momentum, a loop over parameters for the key encoder. On one device its batch norms are plain ones
and keys are not shuffled. The queue is as long as the others' (its own default, 65536, costs more).
"""

import copy
import random

import torch
from common import read_settings, tell, timed
from PIL import Image, ImageFilter
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from mixco.models.encoder import build_backbone, feature_dim
from mixco.views.augment import IMAGENET_MEAN, IMAGENET_STD

TEMPERATURE, MIX_TEMPERATURE, MOMENTUM, DIM = 0.2, 0.05, 0.999, 128


def blurred(image: Image.Image) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))


class TwoViews:
    def __init__(self, size: int) -> None:
        self.view = transforms.Compose(
            [
                transforms.RandomResizedCrop(size, scale=(0.2, 1.0)),
                transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
                transforms.RandomGrayscale(p=0.2),
                transforms.RandomApply([blurred], p=0.5),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
            ]
        )

    def __call__(self, image: Image.Image) -> tuple[Tensor, Tensor]:
        return self.view(image), self.view(image)


def main() -> None:
    settings = read_settings()
    assert settings.method == "moco"
    device, batch_size = settings.device, settings.batch_size
    backbone = build_backbone(settings.arch, settings.size)
    width = feature_dim(backbone, settings.size)
    head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, DIM))
    encoder = nn.Sequential(backbone, head).to(device)
    key_encoder = copy.deepcopy(encoder).requires_grad_(False)
    queue = functional.normalize(torch.randn(settings.queue, DIM, device=device))
    position = 0
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.03, momentum=0.9, weight_decay=1e-4)
    loader = DataLoader(
        ImageFolder(str(settings.data / "ample"), TwoViews(settings.size)),
        batch_size=batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=settings.workers,
        pin_memory=device.type == "cuda",
    )

    def step(batch: tuple[tuple[Tensor, Tensor], Tensor]) -> None:
        nonlocal position
        view_q, view_k = (view.to(device, non_blocking=True) for view in batch[0])
        half = batch_size // 2
        images = view_q
        if settings.mix == "mixco":
            share = torch.rand(half, 1, 1, 1, device=device)
            mixed = share * view_q[:half] + (1 - share) * view_q[half : 2 * half]
            images = torch.cat([view_q, mixed])
        outputs = functional.normalize(encoder(images))
        with torch.no_grad():
            pairs = zip(encoder.parameters(), key_encoder.parameters(), strict=True)
            for parameter, momentary in pairs:
                momentary.mul_(MOMENTUM).add_(parameter, alpha=1 - MOMENTUM)
            keys = functional.normalize(key_encoder(view_k))

        queries = outputs[:batch_size]
        own = (queries * keys).sum(1, keepdim=True)
        logits = torch.cat([own, queries @ queue.T], dim=1) / TEMPERATURE
        first = torch.zeros(batch_size, dtype=torch.long, device=device)
        loss = functional.cross_entropy(logits, first)
        if settings.mix == "mixco":
            candidates = torch.cat([keys, queue])
            logits = outputs[batch_size:] @ candidates.T / MIX_TEMPERATURE
            targets = torch.zeros_like(logits)
            row = torch.arange(half, device=device)
            targets[row, row] = share.flatten()
            targets[row, row + half] = 1 - share.flatten()
            loss = loss - (targets * logits.log_softmax(1)).sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        queue[position : position + batch_size] = keys
        position = (position + batch_size) % settings.queue

    assert settings.queue % batch_size == 0, "as in 2020"
    tell(timed(loader, step, settings), settings, "torch.float32")


if __name__ == "__main__":
    main()
