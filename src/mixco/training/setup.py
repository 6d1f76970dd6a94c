"""A run before it begins: its images, its settings with everything chosen, its device, its method."""

import dataclasses
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from statistics import median
from typing import cast

import torch
from torch import Tensor, nn

from mixco import methods
from mixco.data.datasets import DATASETS, Where, places_in
from mixco.data.datasets.download import download
from mixco.data.holdout import split_holdout
from mixco.data.image_list import ImageList, picture_size
from mixco.data.images import Drawn, Images
from mixco.data.loading import epoch_batches, open_images
from mixco.data.normalisation import measure, shown
from mixco.data.pixel_format import LOOKED_AT, spread
from mixco.data.run_images import known_images, pinned, under_first_name
from mixco.encoders.checkpoint import EncoderDescription
from mixco.encoders.loading import LoadedEncoder
from mixco.methods import METHODS, mixer_of, passes_of
from mixco.methods.options import UNTOLD, DistilOptions
from mixco.models.encoder import (
    build_backbone,
    choose_stem,
    feature_dim,
    input_channels,
    output_elements,
    takes_stems,
)
from mixco.models.frozen_batchnorm import has_batch_norms
from mixco.runtime.device import (
    Compute,
    device_memory,
    keep_freed_memory,
    memory_bytes,
    pick_device,
    processors,
    send,
)
from mixco.runtime.distributed import (
    broadcast_object,
    launch_env,
    process_group,
    rank,
    split_batch,
    world,
)
from mixco.runtime.errors import UserError
from mixco.runtime.locks import one_at_a_time
from mixco.runtime.precision import Workload, fastest
from mixco.runtime.progress import counting, downloading, say
from mixco.runtime.seeding import generator_for
from mixco.settings import defaults
from mixco.settings.config import DataConfig, PretrainConfig, Settings, label_source
from mixco.settings.parse import check_ranges, from_dict, to_dict
from mixco.settings.resolve import Choice, Facts, arch_of, resolve, run_folder_of
from mixco.training.checkpoints import as_begun, left_out_before
from mixco.training.initial_weights import choose_encoder, find_initial
from mixco.training.teacher import Teacher, load_teacher, with_central_outputs, with_teacher
from mixco.views.augment import GROUPED, ViewFunctions
from mixco.views.augmentation import Augmentation, Input, augmentation_of

# The loss is read this often, to see whether it is finite: on a GPU each look waits for the device.
STEPS_BETWEEN_LOOKS = {"cpu": 1, "cuda": 20, "mps": 20}


@dataclass(frozen=True)
class Setup:
    """All that a run needs before its first step."""

    settings: Settings
    images: Images
    bank: Tensor
    """int64: the images that the kNN check searches in."""
    held_out: Tensor
    """int64: the images that the kNN check asks about; none without labels."""
    members: Tensor
    """int64, sorted: the images that are trained on."""
    compute: Compute
    choices: tuple[Choice, ...]
    workers: int
    """Processes that decode streamed images."""
    spread: float | None = None
    """The largest standard deviation of a channel, of pixels in [0, 1]; None: not measured."""
    initial: LoadedEncoder | None = None
    """The weights that the run begins with; None for random ones."""
    teacher: Teacher | None = None
    """The encoder that the base learns from, where it learns from one."""

    @property
    def loading(self) -> str:
        """How the images are loaded, in words."""
        packed = self.images.loading == "packed"
        return "packed" if packed else f"streamed, {self.workers} workers"

    @property
    def name(self) -> str:
        """ "simclr+mixco" """
        return methods.run_name(self.settings.method.method, self.settings.method.mix)

    @property
    def input(self) -> Input:
        data = self.settings.data
        return Input(data.size, data.mean, data.std)

    @property
    def augmentation(self) -> Augmentation:
        seen = self.input._replace(size=self.settings.data.views)
        return augmentation_of(vars(self.settings.method), seen)

    @property
    def encoder(self) -> EncoderDescription:
        """What is saved with the encoder."""
        settings, source = self.settings, self.images.source
        epochs, seed = settings.optimisation.epochs, settings.run.seed
        begun = f", starting from {self.initial.description.training}" if self.initial else ""
        taught = f" from {self.teacher.name}" if self.teacher else ""
        return EncoderDescription(
            arch=settings.model.arch,
            stem=settings.model.stem,
            size=settings.data.size,
            mean=settings.data.mean,
            std=settings.data.std,
            training=f"{self.name}{taught} on {source.name}, {epochs} epochs, seed {seed}{begun}",
            origin=self.initial.description.origin if self.initial else None,
        )

    @property
    def steps_per_epoch(self) -> int:
        return len(self.members) // self.settings.optimisation.batch_size

    @property
    def steps(self) -> int:
        """All steps of the run."""
        return self.steps_per_epoch * self.settings.optimisation.epochs

    def looks(self, step: int) -> bool:
        """Is the loss read at this step? Always at the last one of an epoch."""
        ends = (step + 1) % self.steps_per_epoch == 0
        return ends or step % STEPS_BETWEEN_LOOKS[self.compute.device.type] == 0

    def batches(
        self, on_unreadable: Callable[[str, str], None], start: int = 0
    ) -> Generator[Drawn, None, None]:
        """What the views of each step are made from, from step `start` on, this process's part of it.

        With --teacher-views central the teacher looks at all images first; see methods/protocol.py.
        """
        batch, method = self.settings.optimisation.batch_size, self.settings.method
        batches = self.images.draw_batches(
            plan(self, start),
            self.augmentation,
            members=self.members,
            batch_size=batch,
            device=self.compute.device,
            on_unreadable=on_unreadable,
            count=METHODS[method.method].views,
            rows=split_batch(batch, world())[rank()] if world() > 1 else None,
        )
        if self.teacher and cast(DistilOptions, method).teacher_views == "central":
            return with_central_outputs(
                batches,
                self.teacher,
                self.images,
                self.members,
                on_unreadable=on_unreadable,
            )
        return batches

    def make_views(self, drawn: Drawn, functions: ViewFunctions = GROUPED) -> list[Tensor]:
        """What a method takes at a step: the views, and what goes beside them (`Method.forward`)."""
        views = self.images.make_views(drawn, self.augmentation, self.compute, functions)
        return [*views, *(send(other, self.compute.device) for other in drawn.others)]


def prepare(config: PretrainConfig, stack: ExitStack) -> Setup:
    """Find the device, open the images, choose what is unset, join the other processes.

    stack: given back when it is left. Raises UserError for what the user can mend.
    """
    check_ranges(config)
    teacher = load_teacher(config)
    here = launch_env()
    device = device_of(config, here.local_rank)
    data = config.data
    cache, workers = data.cache, data.workers
    if workers is None:
        workers = max(1, processors() // here.local_processes)
    with one_at_a_time(cache / ".several.lock") if here.processes > 1 else nullcontext():
        if data.download:
            name = " ".join(places_in(data.data))
            with downloading(name) as on_progress:
                download(name, data.data_path, tell=say, on_progress=on_progress)
        where = Where(data.data, data.data_path, label_source(data))
        known = known_images(run_folder_of(config))
        source = pinned(where, known.revision if known else "").images("pretrain", cache)
        source = dataclasses.replace(source, max_unreadable=data.max_unreadable)
        source = under_first_name(run_folder_of(config), where, source)
        config = as_it_began(config)
        initial = find_initial(config)
        config, choices = choose_size(config, source, device, initial)
        with counting(f"packing {source.name}") as on_progress:
            images = open_images(
                source,
                size=size_of(config),
                cache=cache,
                loading=config.data.loading,
                workers=workers,
                memory=memory_bytes(),
                channels=config.data.channels,
                bits=config.data.bits,
                on_progress=on_progress,
                leave_out=left_out_before(run_folder_of(config)),
            )
    stack.enter_context(process_group(device, config.run.timeout_minutes))
    setup = set_up(
        config,
        images,
        device,
        choices,
        initial,
        workers=workers,
        processes=here.processes,
        teacher=teacher,
    )
    # Machines with another memory would choose another batch.
    return dataclasses.replace(setup, settings=broadcast_object(setup.settings))


def device_of(config: PretrainConfig, local_rank: int = 0) -> torch.device:
    """The device of a run."""
    device = pick_device(config.run.device, local_rank)
    keep_freed_memory(device)
    return device


def as_it_began(config: PretrainConfig) -> PretrainConfig:
    """The config, its unset settings as they were when a run in the same folder began, if one did."""
    begun = as_begun(run_folder_of(config), to_dict(config))
    return from_dict(PretrainConfig, begun, "config.json")


def choose_size(
    config: PretrainConfig,
    source: ImageList,
    device: torch.device,
    initial: LoadedEncoder | None = None,
) -> tuple[PretrainConfig, list[Choice]]:
    """The config with a size, chosen by the weights to start from, or by the headers of some files."""
    if config.data.size is not None:
        return config, []
    sampled = spread(len(source.files), LOOKED_AT)
    sides = [side for i in sampled if min(side := picture_size(source, i)) > 0]
    height, width = (int(median(values)) for values in zip(*sides or [(64, 64)], strict=True))
    weights = initial.description.size if initial else None
    size, why = defaults.size(height, width, device.type, weights)
    return _with_data(config, size=size), [Choice("size", str(size), why)]


def size_of(config: PretrainConfig) -> int:
    """The size of a config that has one; one that is too small or large is refused."""
    check_ranges(config.data)
    if config.data.size is None:
        raise ValueError("the size must be chosen first")
    return config.data.size


def set_up(
    config: PretrainConfig,
    images: Images,
    device: torch.device,
    choices: list[Choice],
    initial: LoadedEncoder | None,
    *,
    workers: int,
    processes: int = 1,
    teacher: LoadedEncoder | None = None,
) -> Setup:
    """Choose the rest of the settings for some images.

    config: with a size. choices: those so far. initial: the weights to start from; None for random ones.
    processes: of the run, one on each device. teacher: as `load_teacher` returns it.

    Raises UserError as `resolve` does.
    """
    bank, held_out = split_holdout(images, config.run.holdout, config.run.seed)
    members = bank if config.run.exclude_holdout else torch.arange(len(images))
    choices = list(choices)
    size, source = size_of(config), images.source
    pixel = source.pixel
    config = _with_data(config, loading=images.loading, channels=pixel.channels, bits=pixel.bits)
    spread = None
    config, of_encoder = choose_encoder(config, initial)
    choices += of_encoder
    if config.data.mean is None or config.data.std is None:
        named = config.data.data in DATASETS
        mean, std = (source.mean, source.std) if named else measure(images)
        if not named:
            spread = max((value for value in std if value < 1), default=0.0)  # 1: constant
            why = "measured on these images"
            choices.append(Choice("mean and --std", shown(mean, std), why))
        config = _with_data(config, mean=config.data.mean or mean, std=config.data.std or std)
    model = config.model
    backbone = build_backbone(arch_of(config), size, model.stem, channels=pixel.channels)
    _refuse_views(backbone, config)
    if model.stem == "auto" and takes_stems(backbone):
        stem = choose_stem(size)
        why = "its own" if stem == "standard" else "its own is for larger images"
        choices.append(Choice("stem", stem, f"for a ResNet at {size} px; {why}"))
    config, compute = _with_fastest(config, backbone, device, choices)

    def tell(name: str, value: object, why: str) -> None:
        if why != UNTOLD:
            choices.append(Choice(name.replace("_", "-"), str(value), why))

    devices = processes if device.type == "cuda" else 1
    facts = Facts(
        len(members),
        processes,
        device.type,
        device_memory(device) * devices,
        step_bytes(backbone, config, compute.dtype.itemsize),
        has_batch_norms(backbone),
    )
    settings = resolve(config, facts, tell)
    taught = None
    if teacher is not None:
        settings, taught = with_teacher(settings, teacher, device, tell)
    return Setup(
        settings,
        images,
        bank,
        held_out,
        members,
        compute,
        tuple(choices),
        workers,
        spread,
        initial,
        taught,
    )


def _refuse_views(backbone: nn.Module, config: PretrainConfig) -> None:
    """Raises UserError for views that are smaller or larger than the only images the network takes."""
    if config.data.views != config.data.size:
        try:
            feature_dim(backbone, config.data.views)
        except UserError:
            raise UserError(
                f"--view-size {config.data.views}: {arch_of(config)} takes images of one size only, "
                f"{config.data.size} pixels; leave it out, or give --size {config.data.views}"
            ) from None


def _with_fastest(
    config: PretrainConfig, backbone: nn.Module, device: torch.device, choices: list[Choice]
) -> tuple[PretrainConfig, Compute]:
    """The config with a number format and a memory format, and what they are for torch."""
    run, size, channels = config.run, config.data.views, input_channels(backbone)
    workload = Workload(arch_of(config), config.model.stem, size, channels, training=True)
    formats, why = fastest(
        backbone,
        workload,
        device,
        config.data.cache,
        precision=run.precision,
        memory_format=run.memory_format,
    )
    if why:
        chosen = f"{formats.precision}, --memory-format {formats.memory_format}"
        choices.append(Choice("precision", chosen, why))
    run = dataclasses.replace(run, **formats._asdict())
    return dataclasses.replace(config, run=run), formats.compute(device)


def _with_data(config: PretrainConfig, **changes: object) -> PretrainConfig:
    data: DataConfig = dataclasses.replace(config.data, **changes)  # type: ignore[arg-type]
    return dataclasses.replace(config, data=data)


def step_bytes(backbone: nn.Module, config: PretrainConfig | Settings, itemsize: int) -> float:
    """Bytes that a training step holds at its peak for each image of its batch, about."""
    method = config.method
    mixer = mixer_of(method.mix, method.mix_alpha, method.mix_loss)
    passes = passes_of(METHODS[method.method], mixer)
    outputs = output_elements(backbone, config.data.views) * itemsize
    return defaults.HELD * passes * outputs / config.optimisation.micro_batches


def plan(setup: Setup, start: int = 0) -> Iterator[tuple[Tensor, torch.Generator]]:
    """Each step's images, int64 [B], and the generator of its views, from step `start` on."""
    optimisation, seed = setup.settings.optimisation, setup.settings.run.seed
    steps_per_epoch = setup.steps_per_epoch
    for epoch in range(start // steps_per_epoch + 1, optimisation.epochs + 1):
        draws = generator_for(seed, "epoch", step=epoch)
        shuffled = epoch_batches(setup.members, optimisation.batch_size, draws)
        for step, index in enumerate(shuffled, (epoch - 1) * steps_per_epoch):
            if step >= start:
                yield index, generator_for(seed, "views", step=step)
