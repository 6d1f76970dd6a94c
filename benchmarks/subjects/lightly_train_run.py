"""lightly-train's own run: its `pretrain` with method simclr and the settings that it recommends.

Of these, number of workers, precision and optimiser are left to it; image size, batch and encoder are
those of the others. PyTorch's hooks note when the optimiser has done a step and when the next pass
begins: what lies between counts as waiting, the library's own logging in it. The run is ended once
enough steps are timed.
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
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from mixco.models.encoder import build_backbone


class Done(Exception):
    """Enough steps are timed."""


def main() -> None:
    settings = read_settings()
    assert (settings.method, settings.mix) == ("simclr", "none")
    ends: list[float] = []  # of all steps
    begins: list[float] = []  # of the passes that follow them

    def on_step(*_: object) -> None:
        if len(ends) + 1 in (WARM_UP, WARM_UP + settings.steps):
            synchronize(settings.device)
        ends.append(time.perf_counter())
        if len(ends) == WARM_UP + settings.steps:
            raise Done

    def on_pass(*_: object) -> None:
        if len(begins) < len(ends):
            begins.append(time.perf_counter())

    backbone = build_backbone(settings.arch, settings.size)
    first = next(module for module in backbone.modules() if isinstance(module, nn.Conv2d))
    first.register_forward_pre_hook(on_pass)
    register_optimizer_step_post_hook(on_step)
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
            overwrite=True,
        )
    seconds = ends[-1] - ends[WARM_UP - 1]
    pairs = zip(ends[WARM_UP - 1 :], begins[WARM_UP - 1 :], strict=False)
    figures = {
        "images_per_second": settings.steps * settings.batch_size / seconds,
        "waiting_share": sum(begin - end for end, begin in pairs) / seconds,
    }
    bfloat16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()  # as it chooses
    dtype = "torch.bfloat16" if bfloat16 else "torch.float32"
    tell(figures, settings, dtype, "lightly-train", "pytorch-lightning")


if __name__ == "__main__":
    main()
