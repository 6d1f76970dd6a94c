"""lightly-train's own run: its `pretrain` with method simclr and the settings that it recommends.

Of these, number of workers, precision and optimiser are left to it; image size, batch and encoder are
those of the others. A profiler, handed in as Lightning has it, notes when steps end and how long the
next batch takes to come; it ends the run once enough steps are timed.
"""

import contextlib
import os
import tempfile
import time
from pathlib import Path

os.environ["LIGHTLY_TRAIN_EVENTS_DISABLED"] = "1"  # it would send what it is used for

import lightly_train
import torch
from common import WARM_UP, read_settings, synchronize, tell
from pytorch_lightning.profilers import Profiler

from mixco.models.encoder import build_backbone

STEP, NEXT = "run_training_batch", "[_TrainingEpochLoop].train_dataloader_next"


class Done(Exception):
    """Enough steps are timed."""


class Watch(Profiler):
    def __init__(self, device: torch.device, steps: int) -> None:
        super().__init__()
        self.device, self.steps = device, steps
        self.done, self.waited, self.seconds = 0, 0.0, 0.0

    def start(self, action_name: str) -> None:
        if action_name == NEXT:
            self.asked = time.perf_counter()

    def stop(self, action_name: str) -> None:
        if action_name == NEXT and WARM_UP <= self.done < WARM_UP + self.steps:
            self.waited += time.perf_counter() - self.asked
        if action_name != STEP:
            return
        self.done += 1
        if self.done == WARM_UP:
            synchronize(self.device)
            self.began = time.perf_counter()
        elif self.done == WARM_UP + self.steps:
            synchronize(self.device)
            self.seconds = time.perf_counter() - self.began
            raise Done

    def summary(self) -> str:
        return ""


def main() -> None:
    settings = read_settings()
    assert (settings.method, settings.mix) == ("simclr", "none")
    watch = Watch(settings.device, settings.steps)
    backbone = build_backbone(settings.arch, settings.size)
    with contextlib.suppress(Done):
        lightly_train.pretrain(
            out=Path(tempfile.mkdtemp(dir=settings.data)),
            data=settings.data / "ample",
            model=backbone,
            method="simclr",
            epochs=1,
            batch_size=settings.batch_size,
            devices=1,
            accelerator={"cuda": "gpu"}.get(settings.device.type, settings.device.type),
            transform_args={"image_size": (settings.size, settings.size)},
            trainer_args={"profiler": watch},
            overwrite=True,
        )
    figures = {
        "images_per_second": settings.steps * settings.batch_size / watch.seconds,
        "waiting_share": watch.waited / watch.seconds,
    }
    bfloat16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()  # as it chooses
    dtype = "torch.bfloat16" if bfloat16 else "torch.float32"
    tell(figures, settings, dtype, "lightly-train", "pytorch-lightning")


if __name__ == "__main__":
    main()
