"""The settings of methods: their ranges, default rules and warnings. Plain values, no torch.

`MoCoConfig` is what a user asks for, with None for what is chosen; `MoCoOptions` what the method gets.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

from mixco.runtime.setting import MOST, Rule, setting

MOST_KEYS = 65_536
FULL_PART = 16
"""Images that a batch norm needs for steady statistics."""
MOST_OF_QUEUE = 0.5
"""Share of the images that a queue may be as long as."""
FEW_NEGATIVES = 64


class Advice(NamedTuple):
    """What may spoil a run, and the remedy."""

    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.what}; {self.remedy}"


class MethodOptions(Protocol):
    """The resolved settings that every base has."""

    @property
    def temperature(self) -> float: ...
    @property
    def mix_temperature(self) -> float: ...
    @property
    def mix_weight(self) -> float: ...


class MoCoOptions(MethodOptions, Protocol):
    """MoCo's resolved settings."""

    @property
    def queue(self) -> int: ...
    @property
    def momentum(self) -> float: ...
    @property
    def bn_splits(self) -> int: ...


class DistilOptions(MethodOptions, Protocol):
    """SEED's resolved settings."""

    @property
    def teacher_views(self) -> str: ...
    @property
    def queue(self) -> int: ...
    @property
    def teacher_temperature(self) -> float: ...


def largest_power_of_two(limit: float) -> int:
    """The largest power of two that is not above `limit`; 0 where that is below 1."""
    return 1 << (int(limit).bit_length() - 1) if limit >= 1 else 0


def queue(images: int) -> tuple[int, str]:
    """The queue's K: the largest power of two within a quarter of the images, at most 65536.

    In a longer queue an image meets its own old keys, for MoCo as negatives.
    """
    value = min(MOST_KEYS, max(1, largest_power_of_two(images / 4)))
    if value == MOST_KEYS:
        return value, "MoCo's, for ImageNet"
    return value, f"within a quarter of {images:,} images, so none meets its own old keys"


def momentum(steps: int) -> tuple[float, str]:
    """Momentum of MoCo's key encoder: 0.99 looks back 100 steps, 0.999 a thousand."""
    if steps <= 50_000:
        return 0.99, f"{steps:,} steps are few; 0.999 would follow too slowly"
    return 0.999, f"MoCo's, for long runs; these are {steps:,} steps"


def bn_splits(batch_size: int, bn_statistics: str) -> tuple[int, str]:
    """MoCo's virtual devices.

    Small parts have noisy statistics, but a single part would leak (models/split_batchnorm.py). Frozen
    statistics are of no batch, so they leak nothing.
    """
    if bn_statistics == "frozen":
        return 1, "frozen statistics leak nothing"
    fitting = (splits for splits in (4, 8) if batch_size // splits >= FULL_PART)
    value = max(fitting, default=min(2, batch_size // 2))
    return value, f"parts of {batch_size // value} images for batch norm"


def teacher_temperature() -> tuple[float, str]:
    """SEED's T_T."""
    return 0.01, "SEED's"


def teacher_views() -> tuple[str, str]:
    """What the teacher looks at."""
    return "same", "SEED's"


@dataclass(frozen=True)
class QueueConfig:
    """The setting of bases with a queue."""

    queue: int | None = setting(
        None,
        "Length of the queue: MoCo's K, the keys of earlier batches that are negatives; for distil, the "
        "teacher's outputs for earlier batches.",
        at_least=1,
        at_most=MOST,
        rule=Rule(queue, ("images",)),
        chosen="the number of images: a quarter of them, at most 65536",
    )


@dataclass(frozen=True)
class DistilConfig(QueueConfig):
    """SEED's own settings."""

    teacher: str | None = setting(
        None,
        "The trained encoder that --method distil learns from: a run folder, a file of weights, or "
        "published weights (timm:NAME, efficientnet-lite0).",
        chosen="nothing: none; distil needs it",
        may_be_path=True,
    )
    teacher_size: int | None = setting(
        None,
        "Side of the images that the teacher looks at, in pixels.",
        chosen="the teacher",
        at_least=1,
    )
    teacher_precision: Literal["bfloat16", "float32"] | None = setting(
        None,
        "Number format of the teacher.",
        chosen="this machine: the fastest for the teacher, by measurement",
    )
    teacher_temperature: float | None = setting(
        None,
        "Temperature of the teacher's similarities.",
        above=0,
        rule=Rule(teacher_temperature, ()),
        chosen="nothing: 0.01",
    )
    teacher_views: Literal["same", "central"] | None = setting(
        None,
        "What the teacher looks at. same: the student's view, at each step. central: the middle of each "
        "image, once before the first step.",
        rule=Rule(teacher_views, ()),
        chosen="nothing: same",
    )


@dataclass(frozen=True)
class MoCoConfig(QueueConfig):
    """MoCo's own settings."""

    momentum: float | None = setting(
        None,
        "Momentum of MoCo's key encoder.",
        at_least=0,
        below=1,
        rule=Rule(momentum, ("steps",)),
        chosen="the steps: 0.99, or 0.999 above 50,000",
    )
    bn_splits: int | None = setting(
        None,
        "MoCo's virtual devices for batch norm, over all processes. One accepts a leak.",
        at_least=1,
        rule=Rule(bn_splits, ("batch_size", "bn_statistics")),
        chosen="the batch size: 2 to 8, with 16 images each",
    )


def refuse_moco(options: Any, batch: int) -> str | None:
    """Why MoCo cannot have these settings; None where it can. options: resolved or not."""
    if options.bn_splits is not None and options.bn_splits > max(1, batch // 2):
        return (
            f"--bn-splits must be between 1 and {batch // 2}, two images of the batch for each, got "
            f"{options.bn_splits}"
        )
    if options.bn_over == "all" and options.bn_splits != 1:
        return (
            "--bn-over all: MoCo leaks through statistics that all images share; leave it out "
            "(--bn-splits 1 beside it accepts the leak)"
        )
    return None


def advise_moco(options: MoCoOptions, images: int, batch: int) -> Iterator[Advice]:
    """What may spoil a run of MoCo."""
    if options.queue > images * MOST_OF_QUEUE:
        yield Advice(
            f"the queue of {options.queue:,} keys is more than half of the {images:,} images: an "
            "image meets its own old keys as negatives",
            f"--queue {max(1, images // 4)} is safer",
        )
    splits = options.bn_splits
    if splits > 1 and batch // splits < FULL_PART:
        yield Advice(
            f"batch norm sees {batch // splits} images at a time, whose statistics are noisy",
            _larger_batch(images)
            if splits == 2
            else f"give --bn-splits {max(2, batch // FULL_PART)}",
        )


def _larger_batch(images: int) -> str:
    wanted = 2 * FULL_PART
    return f"give --batch-size {wanted} or more" if images >= wanted else "add images"


def advise_simclr(_: MethodOptions, images: int, batch: int) -> Iterator[Advice]:
    """What may spoil a run of SimCLR."""
    if batch < FEW_NEGATIVES <= images:
        yield Advice(
            f"SimCLR's only negatives are the {batch} images of a batch",
            f"give --batch-size {FEW_NEGATIVES} or more, or --method moco, which has a queue",
        )


def no_advice(_options: Any, _images: int, _batch: int) -> Iterator[Advice]:
    yield from ()


def nothing_refused(_options: Any, _batch: int) -> str | None:
    return None
