"""What a pretraining step costs in operations and bytes, and so the floor on a given card. Markdown.

    python benchmarks/arithmetic.py [--tflops 989] [--bandwidth 3.35] [--arch resnet18] [--size 64 224]

Nothing is computed: the real methods make a step of tensors without content (FakeTensorMode), forward,
loss and backward, under autocast in bfloat16. Every operation that torch dispatches is counted: the
operations of matrix products and convolutions by torch's own formulas (2 for a multiply and add), and
the bytes that it reads and writes, each tensor once; views move nothing. A batch norm in training reads
its input twice, because it needs the statistics first. The momentum update is counted with them; the
optimiser is added (AdamW: 7 numbers of 4 bytes a parameter).

An operation takes at least its operations over --tflops (10^12 a second) and its bytes over --bandwidth
(10^12 bytes a second). The floor of a step is the sum over its operations: of matrix products and
convolutions alone, as if everything else were fused into them, and of all operations one by one, as
PyTorch runs them. Real kernels reach neither rate, and views, the host and launching are left out. The
default rates are an H100's (SXM, dense bfloat16).
"""

import argparse
from collections import Counter
from typing import Any

import torch
from harness import config_of
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from mixco.models.encoder import Encoder, build_backbone, feature_dim
from mixco.models.heads import build_head
from mixco.runtime.device import Compute
from mixco.settings.config import Settings
from mixco.settings.resolve import Facts, resolve
from mixco.training.build import build_method
from mixco.training.step import forward_backward
from mixco.views.augmentation import IMAGENET_MEAN, IMAGENET_STD

IMAGES = 1_281_167  # decides MoCo's queue: 65,536 keys
KINDS = ("products", "batch norm", "elementwise", "optimiser", "momentum")
MOVE_NOTHING = ("detach", "device", "_unsafe_view", "empty", "empty_like", "new_empty")
NORM_READS_TWICE = ("native_batch_norm", "native_batch_norm_backward")


def nbytes(tensors: Any) -> float:
    return float(sum(t.numel() * t.element_size() for t in tensors))


class Count(TorchDispatchMode):
    """Adds up what each kind of operation computes and moves, and the least time it takes."""

    def __init__(self, flops_a_second: float, bytes_a_second: float) -> None:
        super().__init__()
        self.rates = flops_a_second, bytes_a_second
        self.flops: Counter[str] = Counter()
        self.moved: Counter[str] = Counter()
        self.seconds: Counter[str] = Counter()

    def add(self, kind: str, flops: float, moved: float) -> None:
        self.flops[kind] += flops
        self.moved[kind] += moved
        self.seconds[kind] += max(flops / self.rates[0], moved / self.rates[1])

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        packet = func._overloadpacket
        name = packet.__name__
        results = {argument.name for argument in func._schema.arguments if argument.is_out}
        read = (args, {key: value for key, value in kwargs.items() if key not in results})
        given = [leaf for leaf in tree_leaves(read) if isinstance(leaf, Tensor)]
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        if func.is_view or name in MOVE_NOTHING:
            return out
        moved = nbytes([*given, *made])
        if name == "_foreach_lerp_":  # writes its first list, and returns nothing
            moved += nbytes(args[0])
        if name in NORM_READS_TWICE:
            moved += nbytes(t for t in given if t.ndim == 4)
        product = packet in flop_registry
        flops = float(flop_registry[packet](*args, **kwargs, out_val=out)) if product else 0.0
        kind = "momentum" if name == "_foreach_lerp_" else "elementwise"
        kind = "batch norm" if "batch_norm" in name else kind
        self.add("products" if flops else kind, flops, moved)
        return out


def count_step(settings: Settings, count: Count) -> None:
    """Count what a step dispatches: forward, momentum update, queue, loss, backward and optimiser."""
    batch, size = settings.optimisation.batch_size, settings.data.size
    method = build_method(settings).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    trained = sum(p.numel() for p in method.parameters() if p.requires_grad)
    # The orders in which images are dealt stay real numbers: the methods look at them.
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    empty_out(method, fake)
    view = torch.empty(batch, 3, size, size, dtype=torch.bfloat16)
    view = view.to(memory_format=torch.channels_last)
    views = [fake.from_tensor(view) for _ in range(2)]
    compute = Compute(torch.device("cpu"), torch.bfloat16)
    with count:
        forward_backward(method, views, torch.Generator(), compute=compute)
    # Reads parameter, gradient and both moments; writes all but the gradient.
    count.add("optimiser", 0, 7 * 4 * trained)


def empty_out(model: nn.Module, mode: FakeTensorMode) -> None:
    """Replace parameters and buffers by tensors that have a shape and no content."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                hollow = mode.from_tensor(parameter.detach())
                module._parameters[name] = nn.Parameter(hollow, parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = mode.from_tensor(buffer)


def flops_of_image(arch: str, size: int) -> tuple[float, float]:
    """One image's pass through the real encoder: forward, and forward with backward."""
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


def row_of(name: str, size: int, arguments: argparse.Namespace) -> list[str]:
    """The cells of one method at one size."""
    asked = {"channels": 3, "bits": 8, "mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    asked |= {"size": size, "arch": arguments.arch, "batch_size": arguments.batch_size}
    config = config_of(name, loading="packed", **asked)
    count = Count(arguments.tflops * 1e12, arguments.bandwidth * 1e12)
    count_step(resolve(config, Facts(IMAGES)), count)
    times = count.seconds["products"], sum(count.seconds.values())
    cells = [name.replace("+", " + "), str(size), f"{count.flops['products'] / 1e12:.2f}"]
    cells += [f"{count.moved[kind] / 1e9:.2f}" for kind in KINDS]
    cells += [f"{seconds * 1e3:.2f}" for seconds in times]
    return cells + [f"{arguments.batch_size / seconds:,.0f}" for seconds in times]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tflops", type=float, default=989, help="10^12 operations a second")
    parser.add_argument("--bandwidth", type=float, default=3.35, help="10^12 bytes a second")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--arch", default="resnet18")
    parser.add_argument("--size", type=int, nargs="+", default=[64, 224])
    arguments = parser.parse_args()

    print(f"| {arguments.arch}, one image | forward, GFLOP | forward and backward, GFLOP |")
    print("| --- | --- | --- |")
    for size in arguments.size:
        forward, both = flops_of_image(arguments.arch, size)
        print(f"| {size} px | {forward / 1e9:.2f} | {both / 1e9:.2f} |")
    print(
        f"\nSteps of {arguments.batch_size} images at {arguments.tflops:g} TFLOP/s and "
        f"{arguments.bandwidth:g} TB/s:\n"
    )
    head = ["method", "size", "TFLOP", *(f"GB, {kind}" for kind in KINDS)]
    for unit in ("ms", "images/s"):
        head += [f"{unit}, products alone", f"{unit}, each operation"]
    for cells in (head, ["---"] * len(head)):
        print(f"| {' | '.join(cells)} |")
    for size in arguments.size:
        for name in ("moco", "moco+mixco", "simclr", "simclr+mixco"):
            print(f"| {' | '.join(row_of(name, size, arguments))} |")


if __name__ == "__main__":
    main()
