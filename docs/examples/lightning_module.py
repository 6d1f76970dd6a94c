"""MixCo as a Lightning module (pip install lightning): python lightning_module.py photos/"""

import sys
from pathlib import Path

import lightning
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms.functional import resize

import mixco
from mixco.losses import soft_infonce


class Photos(Dataset[Tensor]):
    """Files -> uint8 [3, 64, 64]."""

    def __init__(self, folder: str) -> None:
        self.files = sorted(Path(folder).rglob("*.jpg"))

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        return resize(decode_image(str(self.files[index]), ImageReadMode.RGB), [64, 64])


class MixCo(lightning.LightningModule):
    """Two views, mixed images of the first view, and both losses."""

    def __init__(self, arch: str = "resnet10t", temperature: float = 0.2, seed: int = 0) -> None:
        super().__init__()
        self.backbone = timm.create_model(arch, num_classes=0)
        self.head = nn.Linear(self.backbone.num_features, 128)
        self.temperature, self.seed = temperature, seed

    def configure_model(self) -> None:
        # Each process has its own draws. The module's state_dict lets them continue.
        self.two_views = mixco.TwoViews(size=32, seed=self.seed, rank=self.global_rank)
        self.draws = torch.Generator().manual_seed(self.seed + self.global_rank)

    def training_step(self, images: Tensor, _: int) -> Tensor:
        first, second = self.two_views(images)
        mixed = mixco.mixco(first, self.draws)
        outputs = self.head(self.backbone(torch.cat([first, second, mixed.images])))
        batch, mixed_count = len(first), len(mixed.images)
        z_first, z_second, z_mixed = F.normalize(outputs, dim=1).split([batch, batch, mixed_count])
        itself = torch.eye(batch, device=self.device)  # the positive of a first view is its second
        clean = soft_infonce(z_first, z_second, itself, self.temperature)
        return clean + soft_infonce(z_mixed, z_second, mixed.targets, self.temperature)

    def on_train_batch_end(self, outputs: dict[str, Tensor], *_: object) -> None:
        print(f"step {self.global_step}  loss {outputs['loss']:.3f}")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


if __name__ == "__main__":
    trainer = lightning.Trainer(
        max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    trainer.fit(MixCo(), DataLoader(Photos(sys.argv[1]), 64, shuffle=True, drop_last=True))
