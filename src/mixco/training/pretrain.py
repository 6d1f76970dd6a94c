"""Pretraining: the whole run in one function, top to bottom."""

import dataclasses
import math
import signal
from collections.abc import Iterator
from contextlib import ExitStack, closing, nullcontext
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from mixco.data.datasets.download import download
from mixco.data.datasets.sources import list_images
from mixco.data.decode import RGB
from mixco.data.loading import epoch_batches, open_images
from mixco.encoders.checkpoint import EncoderDescription, save_encoder
from mixco.methods.moco import MoCo
from mixco.methods.simclr import SimCLR
from mixco.mixing import MIXERS
from mixco.models.encoder import Encoder, build_backbone, build_head, drops_at_random, feature_dim
from mixco.models.sync_batchnorm import synchronise_batch_norms
from mixco.plots import draw_curves
from mixco.runtime.device import (
    Compute,
    describe,
    keep_freed_memory,
    memory_bytes,
    pick_device,
    pick_dtype,
    processors,
)
from mixco.runtime.distributed import (
    all_reduce_max,
    all_reduce_mean,
    broadcast_buffers,
    broadcast_object,
    ddp,
    launch_env,
    process_group,
    rank,
    split_batch,
    world,
)
from mixco.runtime.errors import UserError, explain_machine_failures
from mixco.runtime.files import one_at_a_time
from mixco.runtime.progress import Stopwatch, counting, downloading, say, training, waited
from mixco.runtime.run_folder import (
    add_result,
    append_metrics,
    read_results,
    versions,
    write_json,
    write_metrics,
)
from mixco.runtime.seeding import generator_for, global_draws
from mixco.settings.config import PretrainConfig, ReportConfig
from mixco.settings.resolve import to_dict
from mixco.training.checkpoints import (
    Due,
    newest_state,
    open_run,
    restore,
    save_step,
    signals_noticed,
)
from mixco.training.collapse import collapse_check, warn_of_collapse, watched_views
from mixco.training.held_out import knn_check, split_holdout
from mixco.training.loggers import followed_by, require
from mixco.training.optimisers import build_optimizer
from mixco.training.schedules import learning_rate
from mixco.training.setup import as_it_began, cautions_of, choose_rest, choose_size
from mixco.training.telling import (
    note_once,
    report_data,
    say_choices,
    say_epoch,
    show_what_it_saw,
    what_it_sees,
)
from mixco.views import augment as views

# The loss is looked at this often for not being finite: on a GPU each look waits for the device.
STEPS_BETWEEN_LOOKS = {"cpu": 1}


def pretrain(config: PretrainConfig) -> Path:
    """Train an encoder without labels and leave everything in a run folder (see runtime/run_folder.py).

    A run that was stopped there, at any moment, goes on and ends as one that never was: with the same
    weights, queue, optimiser and metrics, on the CPU bit for bit. One that is finished stays as it is.

    Where torchrun started several processes, each trains on its part of every batch and the first one
    writes; the run is the one that a single process would make, but for rounding and batch norms.

    Returns the run folder. Raises UserError for what the user can mend, among it a loss that is not
    finite: then the last good checkpoint stays. On SIGINT and SIGTERM the step is finished and saved,
    and KeyboardInterrupt or SystemExit(143) raised; a second signal acts at once.
    """
    # With other settings it is another run, but for the micro_batches.
    remedy = (
        "raise --micro-batches, or lower --batch-size, --queue or --size and give another --out"
    )
    with ExitStack() as until_the_end, explain_machine_failures(remedy):
        folder = _pretrain(config, until_the_end)
    if config.run.report and launch_env().rank == 0:
        from mixco.report.page import write_page  # it takes time to load, and is seldom wanted

        say(f"the page of the run: {write_page(ReportConfig((folder,), device=config.run.device))}")
    return folder


def _pretrain(config: PretrainConfig, until_the_end: ExitStack) -> Path:
    """`pretrain`; until_the_end holds what is given back when it is left, however."""
    require(config.run.log_to)
    here = launch_env()
    device = pick_device(config.run.device, here.local_rank)
    dtype = pick_dtype(device, config.run.precision)
    compute = Compute(device, dtype)
    keep_freed_memory(device)

    # The images, packed once or streamed; labels are only for the kNN check.
    cache = config.data.cache.expanduser()
    workers = config.data.workers
    if workers is None:
        workers = max(1, processors() // here.local_processes)
    with one_at_a_time(cache / ".several.lock") if here.processes > 1 else nullcontext():
        if config.data.download:
            with downloading(config.data.data) as on_progress:
                download(config.data.data, config.data.data_path, tell=say, on_progress=on_progress)
        source = list_images(config.data.data, config.data.data_path, "pretrain", cache)
        config, choices = choose_size(as_it_began(config), source, device)
        assert config.data.size is not None
        with counting(f"packing {source.name}") as on_progress:
            images = open_images(
                source,
                size=config.data.size,
                cache=cache,
                loading=config.data.loading,
                workers=workers,
                memory=memory_bytes(),
                channels=config.data.channels,
                bits=config.data.bits,
                on_progress=on_progress,
            )
    pixel = images.source.pixel
    bank, held_out = split_holdout(images, config.run.holdout, config.run.seed)
    members = bank if config.run.exclude_holdout else torch.arange(len(images))
    loading = dataclasses.replace(
        config.data,
        loading=images.loading,
        channels=pixel.channels,
        bits=pixel.bits,
    )
    until_the_end.enter_context(process_group(device, config.run.timeout_minutes))
    config, more = choose_rest(
        dataclasses.replace(config, data=loading),
        images,
        len(members),
        device,
        dtype,
        processes=here.processes,
    )
    config = broadcast_object(config)  # machines with another memory would choose another batch
    data, method_config, optimisation, run = (
        config.data,
        config.method,
        config.optimisation,
        config.run,
    )
    name = method_config.method + ("" if method_config.mix == "none" else f"+{method_config.mix}")
    # All of them are filled in by now.
    assert run.out is not None and data.size is not None and data.mean and data.std
    assert optimisation.epochs and optimisation.batch_size and optimisation.lr
    assert optimisation.weight_decay is not None

    # The method around its encoder; what cannot be built leaves no run folder.
    method = build_method(config).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if method_config.bn_over == "all":
        method = synchronise_batch_norms(method, device)
    folder, first = run.out, rank() == 0
    if first:
        until_the_end.enter_context(open_run(folder, to_dict(config), say))
    if broadcast_object(first and is_finished(folder)):
        say(f"{folder}: this run is finished already")
        return folder
    if first:
        write_json(folder / "versions.json", versions(describe(device)))
        report_data(images, cautions_of(config, len(members), dtype), data.size, folder)
    drops = drops_at_random(method)  # to be seeded at each step: they take no generator
    optimizer = build_optimizer(method, optimisation.optimizer, optimisation.weight_decay)
    encoder = EncoderDescription(
        arch=config.model.arch,
        stem=config.model.stem,
        size=data.size,
        mean=data.mean,
        std=data.std,
        training=f"{name} on {source.name}, {optimisation.epochs} epochs, seed {run.seed}",
    )
    augmentation = views.weaken_jitter(
        views.AUGMENTATIONS[method_config.augmentation](encoder.input),
        method_config.jitter,
    )
    steps_per_epoch = len(members) // optimisation.batch_size
    steps = steps_per_epoch * optimisation.epochs

    # Where the run stands: after `step` steps, `records` of whole epochs, `sums` of the one it is in.
    step, rate = 0, 0.0
    means: dict[str, float] = {}  # of what the epoch had done when it was last looked at
    records: list[dict[str, float]] = []
    sums: dict[str, Tensor] = {}
    total, epoch_watch = Stopwatch(), Stopwatch()
    due = Due(run.checkpoint_minutes, run.checkpoint_steps)
    identity = {"name": source.name, "images": len(images)}

    def save(keep: bool = False) -> None:
        due.saved()
        if not first:
            return
        # The loss of the last step says nothing of the weights that came after it.
        if not all(value.isfinite().all() for value in method.state_dict().values()):
            raise not_finite("the weights are", step, rate, config, folder)
        state = {
            "method": method.state_dict(),
            "optimizer": optimizer.state_dict(),
            "step": step,
            "records": records,
            "sums": sums,
            "time": (total.seconds, total.waited, total.images),
            "data": identity,
            "encoder": dataclasses.asdict(encoder),
            "config": to_dict(config),
        }
        save_step(folder, step, state, keep=keep)

    state = broadcast_object(newest_state(folder, say) if first else None)
    if state is not None:
        if state["data"] != identity:
            raise UserError(
                f"--out {folder}: the run began on {state['data']['images']:,} images of "
                f"{state['data']['name']}, now there are {len(images):,} of {source.name}; give the "
                "same images to go on with it, or another --out"
            )
        restore(method, optimizer, state)
        step, records = state["step"], state["records"]
        sums = {key: value.to(device) for key, value in state["sums"].items()}
        total.go_on(*state["time"])
    if first:
        write_metrics(folder, records)

    def on_unreadable(file: str, reason: str) -> None:
        if folder.is_dir():  # not on other machines that do not share it
            note_once(folder / "unreadable.txt", f"{file}\t{reason}\n")
        say(f"warning: {source.root / file} cannot be read ({reason}); left out")

    def check_knn() -> float:
        return knn_check(
            method.encoder.backbone,
            images,
            bank,
            held_out,
            encoder.input,
            compute=compute,
            on_unreadable=on_unreadable,
        )

    views_of_run = images.view_batches(
        plan(members, optimisation.batch_size, optimisation.epochs, run.seed, start=step),
        augmentation,
        members=members,
        batch_size=optimisation.batch_size,
        compute=compute,
        on_unreadable=on_unreadable,
        rows=split_batch(optimisation.batch_size, world())[rank()] if world() > 1 else None,
    )
    trained = ddp(method)
    watched = watched_views(images, members, encoder.input, compute)
    say(
        f"{name}: {config.model.arch} at {data.size} px, {len(members):,} images "
        f"{'' if pixel == RGB else f'with {pixel}, '}"
        f"{'packed' if images.loading == 'packed' else f'streamed, {workers} workers'}, "
        f"{optimisation.epochs} epochs of {steps_per_epoch} steps, "
        f"{f'{world()} processes, each ' if world() > 1 else ''}{describe(device)}, "
        f"{str(dtype).removeprefix('torch.')}"
    )
    if state is None:
        say_choices([*choices, *more])
        save()
    else:
        say(f"going on after step {step:,} of {steps:,}")
    del state
    followers = followed_by(run.log_to if first else None, folder, to_dict(config), len(records))
    follow = until_the_end.enter_context(followers)
    knn_possible = run.knn_every > 0 and len(held_out) > 0
    method.train()
    with (
        training(name, steps, records, done=step) as on_step,
        closing(views_of_run),
        signals_noticed() as signal_that_came,
    ):
        for epoch in range(len(records) + 1, optimisation.epochs + 1):
            epoch_watch.reset()
            of_epoch = islice(views_of_run, epoch * steps_per_epoch - step)
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
                dropout = generator_for(run.seed, "dropout", rank(), step) if drops else None
                with (
                    compute.autocast(),
                    global_draws(dropout, device) if dropout else nullcontext(),
                ):
                    draws = generator_for(run.seed, "method", step=step)
                    losses = trained(view_q, view_k, draws, optimisation.batch_size)
                losses["loss"].backward()
                for key, value in all_reduce_mean(losses).items():
                    sums[key] = sums.get(key, torch.zeros_like(value)) + value
                epoch_ends = (step + 1) % steps_per_epoch == 0  # before it is saved
                looks = step % STEPS_BETWEEN_LOOKS.get(device.type, 20) == 0 or epoch_ends
                if looks:
                    done = step % steps_per_epoch + 1
                    means = {key: value.item() / done for key, value in sums.items()}
                    if not math.isfinite(means["loss"]):  # before a bad step reaches the weights
                        raise not_finite("the loss is", step, rate, config, folder)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                step += 1
                epoch_watch.images += optimisation.batch_size
                total.images += optimisation.batch_size
                on_step(f"epoch {epoch}/{optimisation.epochs}", {**means, "lr": rate}, epoch_watch)
                # Processes must agree, which makes them wait for the device: only when they look.
                if (world() == 1 or looks or due.by_steps(step)) and not epoch_ends:
                    asked = all_reduce_max(2 * signal_that_came() + due(step), device)
                    if asked:
                        save()
                        leave_on(asked // 2, folder, step)

            record = {
                "epoch": epoch,
                **{key: round(mean, 5) for key, mean in means.items()},
                "lr": rate,
                "images_per_second": round(epoch_watch.rate, 1),
                "data_wait": round(epoch_watch.data_wait, 4),
            }
            last = epoch == optimisation.epochs
            broadcast_buffers(method.encoder)  # the checks are shared out, and are of one encoder
            if knn_possible and (epoch % run.knn_every == 0 or last):
                record["knn"] = check_knn()
            record |= collapse_check(method.encoder, watched, compute)
            records.append(record)
            sums = {}
            if first:
                append_metrics(folder, record)
            follow(records)
            say_epoch(record, optimisation.epochs, (steps - step) * optimisation.batch_size)
            warn_of_collapse(records)
            keep = run.keep_every > 0 and epoch % run.keep_every == 0
            asked = all_reduce_max(2 * signal_that_came() + due(step), device)
            if keep or last or asked:
                save(keep)
                leave_on(0 if last else asked // 2, folder, step)
    if first:
        save_encoder(folder / "encoder.safetensors", method.encoder.backbone, encoder)
        seen = what_it_sees(images, augmentation, MIXERS[method_config.mix], run.seed)
        show_what_it_saw(folder / "views.png", seen)
        draw_curves(folder / "curves.png", {name: records})
        result = {
            "method": name,
            "data": source.name,
            "images": len(members),
            "arch": config.model.arch,
            "size": data.size,
            "epochs": optimisation.epochs,
            "loss": records[-1]["loss"],
            "images_per_second": round(total.rate, 1),
            "data_wait": round(total.data_wait, 4),
            "seconds": round(total.seconds, 1),
            "seed": run.seed,
        }
        add_result(folder, "pretrain", result)
    return folder


def build_method(config: PretrainConfig) -> MoCo | SimCLR:
    """The method of a resolved config, with weights drawn from its seed."""
    model, method, seed = config.model, config.method, config.run.seed
    assert config.data.size and method.temperature and method.mix_temperature
    channels = config.data.channels or 3
    backbone = build_backbone(model.arch, config.data.size, model.stem, seed, channels)
    head = build_head(feature_dim(backbone, config.data.size), model.dim, model.head, seed)
    encoder = Encoder(backbone, head)
    if method.method == "simclr":
        return SimCLR(
            encoder,
            temperature=method.temperature,
            mix=MIXERS[method.mix],
            mix_temperature=method.mix_temperature,
            mix_weight=method.mix_weight,
            micro_batches=config.optimisation.micro_batches,
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
        micro_batches=config.optimisation.micro_batches,
    )


def plan(
    members: Tensor, batch_size: int, epochs: int, seed: int, start: int = 0
) -> Iterator[tuple[Tensor, torch.Generator]]:
    """Of every step of a run: the images, int64 [B], and where the draws of their views come from.

    start: the first step that is wanted; the others are left out.
    """
    steps_per_epoch = len(members) // batch_size
    for epoch in range(start // steps_per_epoch + 1, epochs + 1):
        shuffled = epoch_batches(members, batch_size, generator_for(seed, "epoch", step=epoch))
        for step, index in enumerate(shuffled, (epoch - 1) * steps_per_epoch):
            if step >= start:
                yield index, generator_for(seed, "views", step=step)


def is_finished(folder: Path) -> bool:
    results = folder / "results.json"
    return (folder / "encoder.safetensors").exists() and (
        results.exists() and "pretrain" in read_results(results)
    )


def leave_on(number: int, folder: Path, step: int) -> None:
    """Raise what the signal asks for: KeyboardInterrupt, or SystemExit with 128 + its number."""
    if number == 0:
        return
    what = f"stopped after step {step:,}, saved in {folder}; the same command goes on from there"
    if number == signal.SIGINT:
        raise KeyboardInterrupt(what)
    say(what)
    raise SystemExit(128 + number)


def not_finite(
    what: str, step: int, rate: float, config: PretrainConfig, folder: Path
) -> UserError:
    return UserError(
        f"{what} not finite at step {step} (learning rate {rate:.3g}, temperature "
        f"{config.method.temperature:g}, mixed temperature {config.method.mix_temperature:g}); "
        f"the last good checkpoint is in {folder / 'checkpoints'}. "
        "Lower --lr, raise --temperature or --warmup, or give --precision float32"
    )
