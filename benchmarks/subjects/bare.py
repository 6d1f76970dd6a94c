"""The limit: forward and backward passes of our encoder over resident random numbers, nothing else.

For MoCo also the forward pass of the key encoder. The same number format, memory layout and number of
image passes as ours; no views, loss, optimiser or momentum update. --plain-norms: MoCo's without
splitting its batch norms into virtual devices, which tells what splitting costs.
"""

import time

import torch
from common import read_settings, synchronize, tell

from mixco.runtime.device import Compute, keep_freed_memory, pick_dtype
from mixco.settings.config import (
    DataConfig,
    MethodConfig,
    ModelConfig,
    OptimisationConfig,
    PretrainConfig,
)
from mixco.settings.resolve import resolve
from mixco.training.pretrain import build_method


def main() -> None:
    settings = read_settings(plain_norms={"action": "store_true"})
    device, batch, size = settings.device, settings.batch_size, settings.size
    keep_freed_memory(device)
    dtype = pick_dtype(device, "auto")
    splits = 1 if settings.plain_norms else None
    config = PretrainConfig(
        data=DataConfig(size=size),
        model=ModelConfig(arch=settings.arch),
        method=MethodConfig(
            method=settings.method, mix=settings.mix, queue=settings.queue, bn_splits=splits
        ),
        optimisation=OptimisationConfig(batch_size=batch),
    )
    method = build_method(resolve(config, settings.steps * batch))
    method = method.to(device, memory_format=torch.channels_last).train()
    moco = settings.method == "moco"
    # Each view once, and half as many mixed images.
    passes = (1 if moco else 2) * (2 if settings.mix == "none" else 3) * batch // 2
    random = torch.randn(passes, 3, size, size, device=device)
    random = random.to(dtype, memory_format=torch.channels_last)

    def step() -> None:
        with Compute(device, dtype).autocast():
            if moco:
                with torch.no_grad():
                    method.key_encoder(random[:batch])
            outputs = method.encoder(random)
        outputs.float().square().mean().backward()
        method.zero_grad(set_to_none=True)

    step()
    synchronize(device)
    began = time.perf_counter()
    for _ in range(settings.steps):
        step()
    synchronize(device)
    rate = settings.steps * batch / (time.perf_counter() - began)
    tell({"images_per_second": rate, "waiting_share": 0.0}, settings, str(dtype))


if __name__ == "__main__":
    main()
