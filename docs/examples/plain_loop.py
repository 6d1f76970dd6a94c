"""MixCo's loss in your own loop, with your network and loader: python plain_loop.py photos/

It uses three parts of mixco: TwoViews, mixco.mixco and losses.soft_infonce.
"""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms.functional import resize

import mixco
from mixco.losses import soft_infonce

EPOCHS, BATCH, TEMPERATURE = 3, 64, 0.2


class Photos(Dataset[Tensor]):
    """Files -> uint8 [3, 64, 64]."""

    def __init__(self, folder: str) -> None:
        self.files = sorted(Path(folder).rglob("*.jpg"))

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        return resize(decode_image(str(self.files[index]), ImageReadMode.RGB), [64, 64])


def layer(inputs: int, outputs: int) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


device = "cuda" if torch.cuda.is_available() else "cpu"
torch.manual_seed(0)
network = nn.Sequential(
    *(layer(3, 32), layer(32, 64), layer(64, 128)),
    *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 64)),
).to(device)
optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
loader = DataLoader(Photos(sys.argv[1]), BATCH, shuffle=True, drop_last=True)
two_views = mixco.TwoViews(size=32)
draws = torch.Generator().manual_seed(0)  # for lambda; on the CPU

for epoch in range(1, EPOCHS + 1):
    total = 0.0
    for images in loader:
        first, second = two_views(images.to(device))  # [B, 3, 32, 32] each
        mixed = mixco.mixco(first, draws)  # images [B/2, 3, 32, 32], targets [B/2, B]
        outputs = F.normalize(network(torch.cat([first, second, mixed.images])), dim=1)
        z_first, z_second, z_mixed = outputs.split([BATCH, BATCH, len(mixed.images)])

        itself = torch.eye(BATCH, device=device)  # the positive of a first view is its second
        clean = soft_infonce(z_first, z_second, itself, TEMPERATURE)
        loss = clean + soft_infonce(z_mixed, z_second, mixed.targets, TEMPERATURE)

        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item()
    print(f"epoch {epoch}  loss {total / len(loader):.3f}")
