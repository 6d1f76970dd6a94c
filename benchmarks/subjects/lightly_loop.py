"""The library lightly, put together as the PyTorch loops of its documentation do.

Its dataset, transforms, projection head, loss (for MoCo with a memory bank) and momentum update, plain
SGD, float32. Beyond that: our encoder and image size, and as many loader workers as the others have.
"""

import copy

import torch
from common import read_settings, tell, timed
from lightly.data import LightlyDataset
from lightly.loss import NTXentLoss
from lightly.models.modules import MoCoProjectionHead, SimCLRProjectionHead
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.transforms import MoCoV2Transform, SimCLRTransform
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mixco.models.encoder import build_backbone, feature_dim


def main() -> None:
    settings = read_settings()
    moco = settings.method == "moco"
    backbone = build_backbone(settings.arch, settings.size)
    width = feature_dim(backbone, settings.size)
    head = (MoCoProjectionHead if moco else SimCLRProjectionHead)(width, width, 128)
    encoder = nn.Sequential(backbone, nn.Flatten(), head).to(settings.device)
    transform = (MoCoV2Transform if moco else SimCLRTransform)(input_size=settings.size)
    loader = DataLoader(
        LightlyDataset(str(settings.data / "ample"), transform=transform),
        batch_size=settings.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=settings.workers,
    )
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.06)
    criterion = NTXentLoss(memory_bank_size=(settings.queue, 128) if moco else 0)
    criterion.to(settings.device)
    if moco:
        key_encoder = copy.deepcopy(encoder)
        deactivate_requires_grad(key_encoder)

    def step(batch: tuple[list[Tensor], Tensor, list[str]]) -> None:
        view_q, view_k = (view.to(settings.device) for view in batch[0])
        if moco:
            update_momentum(encoder, key_encoder, m=0.996)
            loss = criterion(encoder(view_q), key_encoder(view_k).detach())
        else:
            loss = criterion(encoder(view_q), encoder(view_k))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    tell(timed(loader, step, settings), settings, "torch.float32", "lightly")


if __name__ == "__main__":
    main()
