"""Pretraining: the whole run in one function, top to bottom."""

import dataclasses
import math
from collections.abc import Iterator
from contextlib import closing, nullcontext
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn

from mixco.checkpoint import EncoderDescription, save_checkpoint, save_encoder
from mixco.config import PretrainConfig, resolve, to_dict
from mixco.data import views
from mixco.data.download import download
from mixco.data.loading import Images, canvases, open_images, view_batches
from mixco.data.packing import PackedImages
from mixco.data.resident import batches
from mixco.data.sources import list_images
from mixco.errors import UserError
from mixco.hardware import (
    describe,
    keep_freed_memory,
    memory_bytes,
    pick_device,
    pick_dtype,
    processors,
)
from mixco.methods.moco import MoCo
from mixco.methods.simclr import SimCLR
from mixco.mixing import MIXERS
from mixco.models.encoder import Encoder, build_backbone, build_head, drops_at_random, feature_dim
from mixco.pictures import draw_curves, draw_views
from mixco.progress import Stopwatch, counting, downloading, say, training, waited
from mixco.results import (
    add_result,
    append_metrics,
    new_run_folder,
    read_metrics,
    versions,
    write_json,
)
from mixco.schedules import learning_rate
from mixco.seeding import generator_for, global_draws
from mixco.training.held_out import knn_check, split_holdout

# The loss is looked at this often for not being finite: on a GPU each look waits for the device.
STEPS_BETWEEN_LOOKS = {"cpu": 1}


def pretrain(config: PretrainConfig) -> Path:
    """Train an encoder without labels and leave everything in a run folder (see results.py).

    Returns the run folder. Raises UserError for what the user can mend, among it a loss that is not
    finite: then the last good checkpoint stays.
    """
    device = pick_device(config.run.device)
    dtype = pick_dtype(device, config.run.precision)
    keep_freed_memory(device)

    if config.data.download:
        with downloading(config.data.data) as on_progress:
            download(config.data.data, config.data.data_path, tell=say, on_progress=on_progress)

    # The images, packed once or streamed; labels are only for the kNN check.
    cache = config.data.cache.expanduser()
    source = list_images(config.data.data, config.data.data_path, "pretrain", cache)
    workers = processors() if config.data.workers is None else config.data.workers
    with counting(f"packing {source.name}") as on_progress:
        images = open_images(
            source,
            size=config.data.size,
            cache=cache,
            loading=config.data.loading,
            workers=workers,
            memory=memory_bytes(),
            on_progress=on_progress,
        )
    packed = isinstance(images, PackedImages)
    bank, held_out = split_holdout(images, config.run.holdout, config.run.seed)
    members = bank if config.run.exclude_holdout else torch.arange(len(images))
    loading = dataclasses.replace(config.data, loading="packed" if packed else "streamed")
    config = resolve(dataclasses.replace(config, data=loading), len(members))
    data, method_config, optimisation, run = (
        config.data,
        config.method,
        config.optimisation,
        config.run,
    )
    name = method_config.method + ("" if method_config.mix == "none" else f"+{method_config.mix}")
    assert run.out is not None and optimisation.lr is not None  # resolve() has filled them in
    assert optimisation.weight_decay is not None

    # The method around its encoder; what cannot be built leaves no run folder.
    method = build_method(config).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    folder = new_run_folder(run.out)
    write_json(folder / "config.json", to_dict(config))
    write_json(folder / "versions.json", versions(describe(device)))
    report_data(images, members, method_config.queue, folder)
    augmentation = views.weaken_jitter(
        AUGMENTATIONS[method_config.augmentation](data.size, mean=source.mean, std=source.std),
        method_config.jitter,
    )
    drops = drops_at_random(method)  # to be seeded at each step: they take no generator
    optimizer = build_optimizer(method, optimisation.optimizer, optimisation.weight_decay)
    encoder = EncoderDescription(
        arch=config.model.arch,
        stem=config.model.stem,
        size=data.size,
        mean=source.mean,
        std=source.std,
        training=f"{name} on {source.name}, {optimisation.epochs} epochs, seed {run.seed}",
    )
    steps_per_epoch = len(members) // optimisation.batch_size
    steps = steps_per_epoch * optimisation.epochs

    def save(epoch: int) -> None:
        state = {
            "method": method.state_dict(),
            "optimizer": optimizer.state_dict(),
            "epoch": epoch,
            "encoder": dataclasses.asdict(encoder),
            "config": to_dict(config),
        }
        save_checkpoint(folder / "checkpoints" / "last.pt", state)

    def on_unreadable(file: str, reason: str) -> None:
        with (folder / "unreadable.txt").open("a", encoding="utf-8", errors="surrogateescape") as f:
            f.write(f"{file}\t{reason}\n")
        say(f"warning: {source.root / file} cannot be read ({reason}); left out")

    def check_knn() -> float:
        return knn_check(
            method.encoder.backbone,
            images,
            bank,
            held_out,
            encoder,
            device=device,
            dtype=dtype,
            on_unreadable=on_unreadable,
        )

    views_of_run = view_batches(
        images,
        plan(members, optimisation.batch_size, optimisation.epochs, run.seed),
        augmentation,
        members=members,
        batch_size=optimisation.batch_size,
        device=device,
        dtype=dtype,
        on_unreadable=on_unreadable,
    )

    from torch.utils.tensorboard import SummaryWriter  # half a second, only needed here

    board = SummaryWriter(str(folder / "tensorboard"))
    say(
        f"{name}: {config.model.arch} at {data.size} px, {len(members):,} images "
        f"{'packed' if packed else f'streamed, {workers} workers'}, "
        f"{optimisation.epochs} epochs of {steps_per_epoch} steps, {describe(device)}, "
        f"{str(dtype).removeprefix('torch.')}"
    )
    save(0)
    knn_possible = run.knn_every > 0 and len(held_out) > 0
    total, epoch_watch = Stopwatch(), Stopwatch()
    step = 0
    method.train()
    with training(name, steps) as on_step, closing(views_of_run):
        for epoch in range(1, optimisation.epochs + 1):
            epoch_watch.reset()
            sums: dict[str, Tensor] = {}
            of_epoch = islice(views_of_run, steps_per_epoch)
            for _, (view_q, view_k) in waited(of_epoch, epoch_watch, total):
                rate = learning_rate(
                    step,
                    steps=steps,
                    peak=optimisation.lr,
                    schedule=optimisation.schedule,
                    warmup=optimisation.warmup,
                    milestones=optimisation.milestones,
                )
                for group in optimizer.param_groups:
                    group["lr"] = rate
                dropout = generator_for(run.seed, "dropout", step=step) if drops else None
                with (
                    torch.autocast(device.type, dtype, enabled=dtype != torch.float32),
                    global_draws(dropout, device) if dropout else nullcontext(),
                ):
                    losses = method(view_q, view_k, generator_for(run.seed, "method", step=step))
                losses["loss"].backward()
                for key, value in losses.items():
                    sums[key] = sums.get(key, 0.0) + value.detach()
                epoch_ends = (step + 1) % steps_per_epoch == 0  # before it is saved
                if step % STEPS_BETWEEN_LOOKS.get(device.type, 20) == 0 or epoch_ends:
                    stop_unless_finite(sums["loss"], step, rate, config, folder)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                step += 1
                epoch_watch.images += len(view_q)
                total.images += len(view_q)
                on_step(f"epoch {epoch}/{optimisation.epochs}", epoch_watch)

            record = {
                "epoch": epoch,
                **{key: round(value.item() / steps_per_epoch, 5) for key, value in sums.items()},
                "lr": rate,
                "images_per_second": round(epoch_watch.rate, 1),
                "waiting_share": round(epoch_watch.waiting_share, 4),
            }
            last = epoch == optimisation.epochs
            if knn_possible and (epoch % run.knn_every == 0 or last):
                record["knn"] = check_knn()
            append_metrics(folder, record)
            for key, value in record.items():
                board.add_scalar(key, value, epoch)
            if epoch % run.checkpoint_every == 0 or last:
                save(epoch)
            say_epoch(record, optimisation.epochs)
    board.close()

    save_encoder(folder / "encoder.safetensors", method.encoder.backbone, encoder)
    metrics = read_metrics(folder)
    show_what_it_saw(folder / "views.png", images, augmentation, config)
    draw_curves(folder / "curves.png", {name: metrics})
    add_result(
        folder,
        "pretrain",
        {
            "method": name,
            "data": source.name,
            "images": len(members),
            "arch": config.model.arch,
            "size": data.size,
            "epochs": optimisation.epochs,
            "loss": metrics[-1]["loss"],
            "images_per_second": round(total.rate, 1),
            "waiting_share": round(total.waiting_share, 4),
            "seconds": round(total.seconds, 1),
            "seed": run.seed,
        },
    )
    return folder


AUGMENTATIONS = {
    "moco-v1": views.moco_v1,
    "moco-v2": views.moco_v2,
    "simclr": views.simclr,
}


def build_method(config: PretrainConfig) -> MoCo | SimCLR:
    """The method of a resolved config, with weights drawn from its seed."""
    model, method, seed = config.model, config.method, config.run.seed
    backbone = build_backbone(model.arch, config.data.size, model.stem, seed)
    head = build_head(feature_dim(backbone, config.data.size), model.dim, model.head, seed)
    encoder = Encoder(backbone, head)
    if method.method == "simclr":
        return SimCLR(
            encoder,
            temperature=method.temperature,
            mix=MIXERS[method.mix],
            mix_temperature=method.mix_temperature,
            mix_weight=method.mix_weight,
        )
    assert method.queue and method.bn_splits and method.momentum is not None
    return MoCo(
        encoder,
        dim=model.dim,
        queue=method.queue,
        momentum=method.momentum,
        temperature=method.temperature,
        mix=MIXERS[method.mix],
        mix_temperature=method.mix_temperature,
        mix_weight=method.mix_weight,
        bn_splits=method.bn_splits,
        generator=generator_for(seed, "queue"),
    )


def plan(
    members: Tensor, batch_size: int, epochs: int, seed: int
) -> Iterator[tuple[Tensor, torch.Generator]]:
    """Of every step of a run: the images, int64 [B], and where the draws of their views come from."""
    step = 0
    for epoch in range(1, epochs + 1):
        for index in batches(members, batch_size, generator_for(seed, "epoch", step=epoch)):
            yield index, generator_for(seed, "views", step=step)
            step += 1


def build_optimizer(method: nn.Module, name: str, weight_decay: float) -> torch.optim.Optimizer:
    """SGD with momentum 0.9 and decay on all parameters, as published, or AdamW.

    AdamW's decay leaves out biases and the scales of norms: decoupled, it would pull them to zero
    whatever the gradient.
    """
    parameters = [p for p in method.parameters() if p.requires_grad]
    fused = parameters[0].device.type in ("cpu", "cuda")
    if name == "sgd":
        return torch.optim.SGD(
            parameters, lr=0.0, momentum=0.9, weight_decay=weight_decay, fused=fused
        )
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=0.0, fused=fused)


def stop_unless_finite(
    loss: Tensor, step: int, rate: float, config: PretrainConfig, folder: Path
) -> None:
    """Raises UserError with what a person needs to know, before a bad step reaches the weights."""
    if math.isfinite(loss.item()):
        return
    raise UserError(
        f"the loss is not finite at step {step} (learning rate {rate:.3g}, temperature "
        f"{config.method.temperature:g}, mixed temperature {config.method.mix_temperature:g}); "
        f"the last good checkpoint is {folder / 'checkpoints' / 'last.pt'}. "
        "Lower --lr, raise --temperature or --warmup, or give --precision float32"
    )


def report_data(images: Images, members: Tensor, queue: int | None, folder: Path) -> None:
    """List what was left out, and warn of a queue that meets its own images."""
    if isinstance(images, PackedImages) and images.unreadable:
        lines = [f"{file}\t{reason}\n" for file, reason in images.unreadable]
        (folder / "unreadable.txt").write_text("".join(lines), "utf-8")
        say(f"{len(lines)} unreadable images left out, listed in {folder / 'unreadable.txt'}")
    if queue is not None and queue > len(members) // 2:
        say(
            f"warning: the queue of {queue:,} keys is more than half of the {len(members):,} images:"
            f" an image meets its own old keys as negatives; --queue {len(members) // 4} is safer"
        )


def say_epoch(record: dict[str, float], epochs: int) -> None:
    """A line in the log at each kNN check, the first and the last epoch, and each tenth of the run."""
    epoch = int(record["epoch"])
    if "knn" in record or epoch in (1, epochs) or epoch % max(1, epochs // 10) == 0:
        knn = f"  kNN {record['knn']:.1f} % (held out)" if "knn" in record else ""
        say(
            f"epoch {epoch:>4}/{epochs}  loss {record['loss']:.3f}{knn}  "
            f"{record['images_per_second']:,.0f} images/s  data {record['waiting_share']:.0%}"
        )


def show_what_it_saw(
    path: Path, images: Images, augmentation: views.Augmentation, config: PretrainConfig
) -> None:
    """The picture of the views and mixtures of eight images, drawn as in training."""
    count = min(8, len(images))
    index = torch.linspace(0, len(images) - 1, count).long()
    originals, extents = canvases(images, index, 2 * config.data.size)
    generator = generator_for(config.run.seed, "what it saw")
    view_q, view_k = views.two_views(originals, extents, augmentation, generator, torch.float32)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (augmentation.mean, augmentation.std))

    def visible(view: Tensor) -> Tensor:
        return (view * std + mean).clamp(0, 1)

    mixed: Tensor | None = None
    shares: list[tuple[int, int, float]] = []
    mixer = MIXERS[config.method.mix]
    if mixer is not None and count >= 2:
        mixture = mixer(view_q, generator)
        mixed = visible(mixture.images)
        half = count // 2
        shares = [(i, i + half, mixture.targets[i, i].item()) for i in range(half)]
    draw_views(path, originals, visible(view_q), visible(view_k), mixed, shares)
