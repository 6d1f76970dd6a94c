"""What is measured: ways of pretraining, each a function that `harness.child` calls in its own process.

All take the same settings (see `Settings`) and return images_per_second, waiting_share, the part of the
time in which the loop waits for its next batch, and dtype. Peers are imported where they are called:
they live in an environment of their own (`make peers`).
"""

import copy
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from harness import Figures, config_of
from torch import Tensor, nn

from mixco.methods import METHODS, mixer_of, passes_of
from mixco.models.encoder import build_backbone, feature_dim
from mixco.models.momentum import momentum_update
from mixco.runtime.device import peak_memory, synchronise
from mixco.runtime.progress import Stopwatch, waited
from mixco.runtime.run_folder import read_config, read_metrics
from mixco.runtime.seeding import generator_for
from mixco.training.build import build
from mixco.training.optimisers import build_optimizer
from mixco.training.pretrain import pretrain
from mixco.training.run import opened
from mixco.training.setup import Setup, prepare
from mixco.training.step import forward_backward, update
from mixco.views.augmentation import IMAGENET_MEAN, IMAGENET_STD

WARM_UP = 2  # steps that are not timed
LR = 1e-3


@dataclass(frozen=True)
class Settings:
    """The settings that every subject of pretraining.py takes."""

    data: str
    """Holds epoch/, as many images as are timed, and ample/, more for loaders that read ahead."""
    method: str
    size: int
    arch: str
    batch_size: int
    steps: int
    queue: int
    workers: int
    device: str

    @property
    def on(self) -> torch.device:
        return torch.device(self.device)

    @property
    def scratch(self) -> Path:
        return Path(tempfile.mkdtemp(dir=self.data))


def settings_of_run(s: Settings, **more: Any) -> dict[str, Any]:
    given = {k: getattr(s, k) for k in ("method", "size", "arch", "batch_size", "queue", "workers")}
    place = {"data": f"{s.data}/epoch", "cache": f"{s.data}/cache", "device": s.device}
    return {**given, **place, **more}


def ours(loading: str = "packed", precision: str = "auto", **settings: Any) -> Figures:
    """`pretrain` as it is, and its own record of an epoch; an epoch has as many steps as are timed.

    The first epoch warms up, the second counts. Where images are streamed a third follows, so that the
    workers still read ahead while the second is timed.
    """
    s = Settings(**settings)
    epochs = 3 if loading == "streamed" else 2
    run = settings_of_run(s, loading=loading, precision=precision, epochs=epochs, out=s.scratch)
    folder = pretrain(config_of(**run))
    record = read_metrics(folder)[1]
    return {
        "images_per_second": record["images_per_second"],
        "waiting_share": record["data_wait"],
        **described(s.on, f"torch.{read_config(folder)['run']['precision']}"),
    }


def of_commit(commit: str, **settings: Any) -> Figures:
    """`mixco pretrain` of another commit, on packed images; its second epoch counts, as in `ours`."""
    s = Settings(**settings)
    source, out = s.scratch, s.scratch
    command = ["git", "archive", commit, "src"]
    archive = subprocess.run(
        command, cwd=Path(__file__).parent.parent, check=True, capture_output=True
    )
    subprocess.run(["tar", "-x", "-C", source], input=archive.stdout, check=True)
    method, _, mix = s.method.partition("+")
    given = {**settings_of_run(s, epochs=2, knn_every=0, out=out / "run"), "method": method}
    given |= {"mix": mix or "none", "loading": "packed"}
    if method != "moco":
        del given["queue"]
    options = [f"--{key.replace('_', '-')}={value}" for key, value in given.items()]
    environment = {**os.environ, "PYTHONPATH": str(source / "src")}
    subprocess.run(
        [sys.executable, "-m", "mixco", "pretrain", *options], env=environment, check=True
    )
    record = read_metrics(out / "run")[1]
    return {
        "images_per_second": record["images_per_second"],
        "waiting_share": record["data_wait"],
    }


def bare(plain_norms: bool = False, **settings: Any) -> Figures:
    """The limit: the passes of the encoder that the method needs, over random numbers in memory.

    Number format, memory layout and number of images are ours; there are no views, loss, optimiser or
    momentum update. plain_norms: without splitting MoCo's batch norms into virtual devices.
    """
    s = Settings(**settings)
    splits = 1 if plain_norms else None
    with ExitStack() as stack:
        setup = prepare(config_of(**settings_of_run(s, bn_splits=splits)), stack)
        step = bare_step(setup)
    step()
    figures = timed(iter([None] * s.steps), lambda _: step(), s, warm_up=0)
    return {**figures, **described(s.on, str(setup.compute.dtype))}


def bare_step(setup: Setup) -> Callable[[], None]:
    """Forward and backward of the encoder, and MoCo's pass of the keys, as `bare` has them."""
    (device, dtype, memory_format), method = setup.compute, build(setup).train()
    size, batch = setup.settings.data.size, setup.settings.optimisation.batch_size
    mixing = setup.settings.method
    mixer = mixer_of(mixing.mix, mixing.mix_alpha, mixing.mix_loss)
    passes = passes_of(METHODS[mixing.method], mixer)
    images = torch.randn(int(batch * passes), 3, size, size, device=device)
    images = images.to(dtype, memory_format=memory_format)

    def step() -> None:
        with setup.compute.autocast():
            if hasattr(method, "key_encoder"):
                with torch.no_grad():
                    method.key_encoder(images[:batch])
            outputs = method.encoder(images)
        outputs.float().square().mean().backward()
        method.zero_grad(set_to_none=True)

    return step


def described(device: torch.device, dtype: str, *libraries: str) -> Figures:
    """The dtype, the versions of libraries, and on CUDA the memory that torch allocated at most."""
    figures: Figures = {"dtype": dtype}
    if device.type == "cuda":
        figures["cuda_peak_memory_mib"] = torch.cuda.max_memory_allocated() / 2**20
    if libraries:
        figures["libraries"] = {name: metadata.version(name) for name in ("torch", *libraries)}
    return figures


def time_steps(
    *,
    untimed: int = WARM_UP,
    seconds: float = 0,
    least: int = 1,
    parts: bool = False,
    began: float | None = None,
    **settings: Any,
) -> Figures:
    """Steps of a run, put together from the functions of `pretrain` but without its records.

    untimed: steps before timing begins, besides the batches that workers prepare ahead.
    seconds, least: timing ends after this many seconds and this many steps, whichever comes later.
    parts: also time the parts of a step, see `Parts`.
    began: time.time() at the start of the process. If given, the run folder is opened too, and the
        result has seconds_to_here, from `began` to the end.

    Returns images_per_second, waiting_share, steps, seconds, loss, growth_mib (how much the peak of
    memory has grown since before the first step), and where asked for seconds_to_here or parts.
    """
    with ExitStack() as stack:
        setup = prepare(config_of(**{"epochs": 10**6, **settings}), stack)
        optimisation, seed = setup.settings.optimisation, setup.settings.run.seed
        method, device = build(setup), setup.compute.device
        optimizer = build_optimizer(
            method, optimisation.optimizer, optimisation.weight_decay, optimisation.lr
        )
        if began is not None:
            stack.enter_context(opened(setup)).restore(method, optimizer)
        method.train()
        batches = stack.enter_context(closing(setup.batches(print)))
        before, watch = peak_memory(device), Stopwatch()
        clock = Parts(device, method) if parts else None
        untimed += setup.images.prefetched
        for step, drawn in enumerate(waited(batches, watch), 1):
            draws = generator_for(seed, "method", step=step)
            with clock.part("views") if clock else nullcontext():
                views = setup.make_views(drawn)
            with clock.part("passes") if clock else nullcontext():
                losses = forward_backward(method, views, draws, compute=setup.compute)
            with clock.part("optimiser") if clock else nullcontext():
                update(optimizer, LR)
                cast(Any, method).after_step(0.0)
            watch.images += optimisation.batch_size
            if step == untimed:
                synchronise(device)
                watch.reset()
                if clock:
                    clock.seconds.clear()
            elif step >= untimed + least and watch.seconds >= seconds:
                break
        synchronise(device)
        figures: Figures = {
            "images_per_second": watch.rate,
            "waiting_share": watch.data_wait,
            "steps": step - untimed,
            "seconds": watch.seconds,
            "loss": losses["loss"].item(),
        }
        if (after := peak_memory(device)) is not None and before is not None:
            figures["growth_mib"] = (after - before) / 2**20
        if clock:
            figures |= {"parts": clock.milliseconds(watch, step - untimed)}
        if began is not None:
            figures["seconds_to_here"] = time.time() - began
        return figures


class Parts:
    """Seconds of the parts of a step. On an accelerator each border waits for the device."""

    def __init__(self, device: torch.device, method: nn.Module) -> None:
        self.device, self.method = device, method
        self.seconds: Counter[str] = Counter()
        for name, module in (
            ("forward", method),
            ("queries", method.encoder),
            ("keys", getattr(method, "key_encoder", None)),
        ):
            if module is not None:
                self.hook(module, name)

    def hook(self, module: nn.Module, name: str) -> None:
        module.register_forward_pre_hook(lambda *_: self.add(name, -1))
        module.register_forward_hook(lambda *_: self.add(name, 1))

    def add(self, name: str, sign: int) -> None:
        synchronise(self.device)
        self.seconds[name] += sign * time.perf_counter()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        self.add(name, -1)
        yield
        self.add(name, 1)

    def milliseconds(self, watch: Stopwatch, steps: int) -> Figures:
        """Milliseconds of a step and of its parts, which add up to the step."""
        momentum = 0.0
        if "keys" in self.seconds:  # it has no hook: timed by itself, and taken from the losses
            pair = self.method.key_encoder, self.method.encoder
            self.add("alone", -1)
            for _ in range(steps):
                momentum_update(*pair, self.method.momentum)
            self.add("alone", 1)
            momentum = self.seconds["alone"]
        s, whole = self.seconds, watch.seconds
        found = {
            "views": s["views"] + watch.waited,
            "queries": s["queries"],
            "keys": s["keys"],
            "momentum": momentum,
            "losses": s["forward"] - s["queries"] - s["keys"] - momentum,
            "backward": s["passes"] - s["forward"],
            "optimiser": s["optimiser"],
        }
        found["rest"] = whole - sum(found.values())
        return {name: 1000 * value / steps for name, value in {"step": whole, **found}.items()}


# Peers: loops over a loader, and a library with a loop of its own.


def timed(
    batches: Iterator[Any], step: Callable[[Any], None], s: Settings, *, warm_up: int = WARM_UP
) -> Figures:
    """Images a second, and the share of waiting for the next batch, over the steps after the warm-up.

    A loader must have more batches than are taken: one that has read everything leaves the processors to
    the step, and its last batches would come at no cost.
    """
    for _ in range(warm_up):
        step(next(batches))
    synchronise(s.on)
    waiting, began = 0.0, time.perf_counter()
    for _ in range(s.steps):
        asked = time.perf_counter()
        batch = next(batches)
        waiting += time.perf_counter() - asked
        step(batch)
    synchronise(s.on)
    seconds = time.perf_counter() - began
    return {
        "images_per_second": s.steps * s.batch_size / seconds,
        "waiting_share": waiting / seconds,
    }


def loader_of(dataset: Any, s: Settings, **more: Any) -> Iterable[Any]:
    return torch.utils.data.DataLoader(
        dataset,
        batch_size=s.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=s.workers,
        **more,
    )


def lightly(**settings: Any) -> Figures:
    """The library lightly, put together as the PyTorch loops of its documentation do.

    Its dataset, transforms, projection head, loss (for MoCo with a memory bank) and momentum update,
    plain SGD, float32. Beyond that: our encoder and image size, and as many workers as the others have.
    """
    from lightly.data import LightlyDataset
    from lightly.loss import NTXentLoss
    from lightly.models.modules import MoCoProjectionHead, SimCLRProjectionHead
    from lightly.models.utils import deactivate_requires_grad
    from lightly.models.utils import update_momentum as lightly_momentum
    from lightly.transforms import MoCoV2Transform, SimCLRTransform

    s = Settings(**settings)
    moco = s.method == "moco"
    backbone = build_backbone(s.arch, s.size)
    width = feature_dim(backbone, s.size)
    head = (MoCoProjectionHead if moco else SimCLRProjectionHead)(width, width, 128)
    encoder = nn.Sequential(backbone, nn.Flatten(), head).to(s.on)
    transform = (MoCoV2Transform if moco else SimCLRTransform)(input_size=s.size)
    loader = loader_of(LightlyDataset(f"{s.data}/ample", transform=transform), s)
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.06)
    criterion = NTXentLoss(memory_bank_size=(s.queue, 128) if moco else 0)
    criterion.to(s.on)
    key_encoder = copy.deepcopy(encoder)
    deactivate_requires_grad(key_encoder)

    def step(batch: tuple[list[Tensor], Tensor, list[str]]) -> None:
        view_q, view_k = (view.to(s.on) for view in batch[0])
        if moco:
            lightly_momentum(encoder, key_encoder, m=0.996)
            loss = criterion(encoder(view_q), key_encoder(view_k).detach())
        else:
            loss = criterion(encoder(view_q), encoder(view_k))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return {**timed(iter(loader), step, s), **described(s.on, "torch.float32", "lightly")}


class Done(Exception):
    """Enough steps are timed."""


def lightly_train(**settings: Any) -> Figures:
    """lightly-train's own `pretrain` with method simclr and the settings that it recommends.

    Number of workers, precision and optimiser are left to it; image size, batch and encoder are those of
    the others. PyTorch's hooks note when the optimiser has done a step and when the next pass begins:
    the time between counts as waiting, its own logging included. The run is ended once enough is timed.
    """
    os.environ["LIGHTLY_TRAIN_EVENTS_DISABLED"] = "1"  # it would report how it is used
    import lightly_train as library
    from torch.optim.optimizer import register_optimizer_step_post_hook

    s = Settings(**settings)
    ends: list[float] = []  # of all steps
    begins: list[float] = []  # of the passes that follow them

    def on_step(*_: object) -> None:
        if len(ends) + 1 in (WARM_UP, WARM_UP + s.steps):
            synchronise(s.on)
        ends.append(time.perf_counter())
        if len(ends) == WARM_UP + s.steps:
            raise Done

    def on_pass(*_: object) -> None:
        if len(begins) < len(ends):
            begins.append(time.perf_counter())

    backbone = build_backbone(s.arch, s.size)
    first = next(module for module in backbone.modules() if isinstance(module, nn.Conv2d))
    first.register_forward_pre_hook(on_pass)
    register_optimizer_step_post_hook(on_step)
    with suppress(Done):
        library.pretrain(
            out=s.scratch,
            data=f"{s.data}/ample",
            model=backbone,
            method="simclr",
            epochs=1,
            batch_size=s.batch_size,
            devices=1,
            accelerator={"cuda": "gpu"}.get(s.device, s.device),
            transform_args={"image_size": (s.size, s.size)},
            overwrite=True,
        )
    seconds = ends[-1] - ends[WARM_UP - 1]
    pairs = zip(ends[WARM_UP - 1 :], begins[WARM_UP - 1 :], strict=False)
    bfloat16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()  # as it chooses
    dtype = "torch.bfloat16" if bfloat16 else "torch.float32"
    return {
        "images_per_second": s.steps * s.batch_size / seconds,
        "waiting_share": sum(begin - end for end, begin in pairs) / seconds,
        **described(s.on, dtype, "lightly-train", "pytorch-lightning"),
    }


class ViewsOf2020:
    """Torchvision's transforms on a PIL image, twice."""

    def __init__(self, size: int) -> None:
        from torchvision import transforms as t

        self.view = t.Compose(
            [
                t.RandomResizedCrop(size, scale=(0.2, 1.0)),
                t.RandomApply([t.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
                t.RandomGrayscale(p=0.2),
                t.RandomApply([blurred], p=0.5),
                t.RandomHorizontalFlip(),
                t.ToTensor(),
                t.Normalize(IMAGENET_MEAN, IMAGENET_STD),
            ]
        )

    def __call__(self, image: Any) -> tuple[Tensor, Tensor]:
        return self.view(image), self.view(image)


def blurred(image: Any) -> Any:
    from PIL import ImageFilter

    return image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))


def way_of_2020(**settings: Any) -> Figures:
    """The way of the 2020 code, rebuilt from its description: MoCo v2 on one device, MixCo or not.

    Torchvision's transforms on PIL images in loader workers; float32, contiguous layout, SGD with
    momentum, a loop over parameters for the key encoder. On one device its batch norms are plain ones
    and keys are not shuffled. The queue is as long as the others' (its own default, 65536, costs more).
    """
    from torchvision.datasets import ImageFolder

    s = Settings(**settings)
    temperature, mix_temperature, momentum, dim, half = 0.2, 0.05, 0.999, 128, s.batch_size // 2
    backbone = build_backbone(s.arch, s.size)
    width = feature_dim(backbone, s.size)
    head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, dim))
    encoder = nn.Sequential(backbone, head).to(s.on)
    key_encoder = copy.deepcopy(encoder).requires_grad_(False)
    queue = F.normalize(torch.randn(s.queue, dim, device=s.on))
    position = 0
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.03, momentum=0.9, weight_decay=1e-4)
    photos = ImageFolder(f"{s.data}/ample", ViewsOf2020(s.size))
    loader = loader_of(photos, s, pin_memory=s.device == "cuda")

    def step(batch: tuple[tuple[Tensor, Tensor], Tensor]) -> None:
        nonlocal position
        view_q, view_k = (view.to(s.on, non_blocking=True) for view in batch[0])
        images = view_q
        if s.method == "moco+mixco":
            lam = torch.rand(half, 1, 1, 1, device=s.on)
            images = torch.cat([view_q, lam * view_q[:half] + (1 - lam) * view_q[half : 2 * half]])
        outputs = F.normalize(encoder(images))
        with torch.no_grad():
            pairs = zip(encoder.parameters(), key_encoder.parameters(), strict=True)
            for parameter, averaged in pairs:
                averaged.mul_(momentum).add_(parameter, alpha=1 - momentum)
            keys = F.normalize(key_encoder(view_k))

        queries = outputs[: s.batch_size]
        own = (queries * keys).sum(1, keepdim=True)
        logits = torch.cat([own, queries @ queue.T], dim=1) / temperature
        loss = F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=s.on))
        if s.method == "moco+mixco":
            logits = outputs[s.batch_size :] @ torch.cat([keys, queue]).T / mix_temperature
            targets = torch.zeros_like(logits)
            row = torch.arange(half, device=s.on)
            targets[row, row] = lam.flatten()
            targets[row, row + half] = 1 - lam.flatten()
            loss = loss - (targets * logits.log_softmax(1)).sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        queue[position : position + s.batch_size] = keys
        position = (position + s.batch_size) % s.queue

    assert s.queue % s.batch_size == 0, "as in 2020"
    return {**timed(iter(loader), step, s), **described(s.on, "torch.float32")}
