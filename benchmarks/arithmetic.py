"""What a pretraining step costs in operations and bytes, and so the floor on a given card. Markdown.

    python benchmarks/arithmetic.py [--tflops 989] [--bandwidth 3.35] [--arch resnet18] [--size 64 224]

Nothing is computed: the real methods, as `pretrain` builds them, make a step of tensors without
content (FakeTensorMode), forward, loss and backward, under autocast in bfloat16. Every operation that
torch dispatches is counted: the operations of matrix products and convolutions by torch's own formulas
(2 for a multiply and add), and the bytes of what it reads and writes, each tensor once; views move
nothing. A batch norm in training reads its input twice, for it needs the statistics first.
The momentum update is among them; the optimiser is added (AdamW: 7 numbers of 4 bytes a parameter).

An operation takes no less than its operations over --tflops (10^12 a second) and no less than its bytes
over --bandwidth (10^12 bytes a second). The floor of a step is the sum over its operations. It is given
for matrix products and convolutions alone, as if everything else were fused into them, and for all
operations one by one, as PyTorch runs them. Real kernels reach neither rate, and views, the host and
launching are not in it. The default rates are an H100's (SXM, dense bfloat16).
"""

import argparse
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from mixco.models.encoder import Encoder, build_backbone, build_head, feature_dim
from mixco.settings.config import (
    DataConfig,
    MethodConfig,
    ModelConfig,
    OptimisationConfig,
    PretrainConfig,
)
from mixco.settings.resolve import resolve
from mixco.training.pretrain import build_method

IMAGES = 1_281_167  # decides MoCo's queue: 65,536 keys
KINDS = ("products", "batch norm", "elementwise", "optimiser", "momentum")
MOVE_NOTHING = ("detach", "device", "_unsafe_view", "empty", "empty_like")
NORM_READS_TWICE = ("native_batch_norm", "native_batch_norm_backward")


@dataclass
class Step:
    """Of each kind of operation what it computes and moves, and the least time that it takes."""

    flops: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    moved: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    def add(self, kind: str, flops: float, moved: float, rates: tuple[float, float]) -> None:
        self.flops[kind] += flops
        self.moved[kind] += moved
        self.seconds[kind] += max(flops / rates[0], moved / rates[1])


class Count(TorchDispatchMode):
    """Adds each operation to a Step."""

    def __init__(self, step: Step, rates: tuple[float, float]) -> None:
        super().__init__()
        self.step, self.rates = step, rates

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:  # types: torch's protocol
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        packet = func._overloadpacket
        name = packet.__name__
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        if func.is_view or name in MOVE_NOTHING:
            return out
        moved = float(sum(t.numel() * t.element_size() for t in [*given, *made]))
        if name == "_foreach_lerp_":  # writes its first list, and returns nothing
            moved += sum(t.numel() * t.element_size() for t in args[0])
        if name in NORM_READS_TWICE:
            large = [t for t in given if t.ndim == 4]
            moved += sum(t.numel() * t.element_size() for t in large)
        flops = 0.0
        if packet in flop_registry:
            flops = float(flop_registry[packet](*args, **kwargs, out_val=out))
        self.step.add(kind_of(name, bool(flops)), flops, moved, self.rates)
        return out


def kind_of(name: str, product: bool) -> str:
    if product:
        return "products"
    kinds = {"_foreach_lerp_": "momentum"}
    return "batch norm" if "batch_norm" in name else kinds.get(name, "elementwise")


def config_of(method: str, mix: str, size: int, arguments: argparse.Namespace) -> PretrainConfig:
    config = PretrainConfig(
        data=DataConfig(size=size),
        model=ModelConfig(arch=arguments.arch),
        method=MethodConfig(method=method, mix=mix),  # type: ignore[arg-type]
        optimisation=OptimisationConfig(batch_size=arguments.batch_size),
    )
    return resolve(config, IMAGES)


def count_step(config: PretrainConfig, rates: tuple[float, float]) -> Step:
    """What forward (with momentum update and queue), loss and backward dispatch, and the optimiser."""
    batch, size = config.optimisation.batch_size, config.data.size
    step = Step()
    method = build_method(config).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    trained = sum(p.numel() for p in method.parameters() if p.requires_grad)
    without_content = FakeTensorMode()
    hollow_out(method, without_content)
    with without_content:
        views = [
            torch.empty(batch, 3, size, size, dtype=torch.bfloat16).to(
                memory_format=torch.channels_last
            )
            for _ in range(2)
        ]
        with Count(step, rates):
            with torch.autocast("cpu", torch.bfloat16):
                losses = method(*views, torch.Generator())
            losses["loss"].backward()
    # Reads parameter, gradient and both moments; writes all but the gradient.
    step.add("optimiser", 0, 7 * 4 * trained, rates)
    return step


def hollow_out(model: nn.Module, mode: FakeTensorMode) -> None:
    """Parameters and buffers that have shapes and no content."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                hollow = mode.from_tensor(parameter.detach())
                module._parameters[name] = nn.Parameter(hollow, parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = mode.from_tensor(buffer)


def flops_of_image(arch: str, size: int) -> tuple[float, float]:
    """Of one image's pass through the real encoder: forward, and forward with backward."""
    backbone = build_backbone(arch, size)
    head = build_head(feature_dim(backbone, size), 128, "mlp")
    encoder: nn.Module = Encoder(backbone, head).to("meta")
    images = torch.empty(2, 3, size, size, device="meta")
    found = []
    for backward in (False, True):
        with FlopCounterMode(display=False) as counter:
            outputs = encoder(images)
            if backward:
                outputs.sum().backward()
        found.append(counter.get_total_flops() / len(images))
    return found[0], found[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tflops", type=float, default=989, help="10^12 operations a second")
    parser.add_argument("--bandwidth", type=float, default=3.35, help="10^12 bytes a second")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--arch", default="resnet18")
    parser.add_argument("--size", type=int, nargs="+", default=[64, 224])
    arguments = parser.parse_args()
    rates = (arguments.tflops * 1e12, arguments.bandwidth * 1e12)

    print(f"| {arguments.arch}, one image | forward, GFLOP | forward and backward, GFLOP |")
    print("| --- | --- | --- |")
    for size in arguments.size:
        forward, both = flops_of_image(arguments.arch, size)
        print(f"| {size} px | {forward / 1e9:.2f} | {both / 1e9:.2f} |")
    print()
    print(
        f"Steps of {arguments.batch_size} images at {arguments.tflops:g} TFLOP/s and "
        f"{arguments.bandwidth:g} TB/s:\n"
    )
    head = ["method", "size", "TFLOP", *(f"GB, {kind}" for kind in KINDS)]
    for unit in ("ms", "images/s"):
        head += [f"{unit}, products alone", f"{unit}, each operation"]
    print(f"| {' | '.join(head)} |")
    print("| --- " * len(head) + "|")
    for size in arguments.size:
        for method in ("moco", "simclr"):
            for mix in ("none", "mixco"):
                step = count_step(config_of(method, mix, size, arguments), rates)
                total = sum(step.seconds.values())
                alone = step.seconds["products"]
                name = method + ("" if mix == "none" else f" + {mix}")
                cells = [name, str(size), f"{step.flops['products'] / 1e12:.2f}"]
                cells += [f"{step.moved[kind] / 1e9:.2f}" for kind in KINDS]
                cells += [f"{seconds * 1e3:.2f}" for seconds in (alone, total)]
                cells += [f"{arguments.batch_size / seconds:,.0f}" for seconds in (alone, total)]
                print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
