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
USUAL_TEMPERATURE = 0.2
UNTOLD = ""
"""The reason of a choice that no person needs to read of."""


class Advice(NamedTuple):
    """What may spoil a run, and the remedy."""

    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.what}; {self.remedy}"


class MethodOptions(Protocol):
    """The resolved settings that every base has."""

    @property
    def mix_weight(self) -> float: ...


class ContrastiveOptions(MethodOptions, Protocol):
    """The resolved settings of bases that compare with negatives, such as SimCLR."""

    @property
    def temperature(self) -> float: ...
    @property
    def mix_temperature(self) -> float: ...


class MoCoOptions(ContrastiveOptions, Protocol):
    """MoCo's resolved settings."""

    @property
    def queue(self) -> int: ...
    @property
    def momentum(self) -> float: ...
    @property
    def bn_splits(self) -> int: ...


class DistilOptions(ContrastiveOptions, Protocol):
    """SEED's resolved settings."""

    @property
    def teacher_views(self) -> str: ...
    @property
    def queue(self) -> int: ...
    @property
    def teacher_temperature(self) -> float: ...


class PredictorOptions(MethodOptions, Protocol):
    """SimSiam's resolved settings."""

    @property
    def predictor_hidden(self) -> int: ...


class BYOLOptions(PredictorOptions, Protocol):
    """BYOL's resolved settings."""

    @property
    def momentum(self) -> float: ...
    @property
    def momentum_schedule(self) -> str: ...


class BarlowOptions(MethodOptions, Protocol):
    """The resolved settings of Barlow Twins."""

    @property
    def off_diagonal(self) -> float: ...


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


def temperature() -> tuple[float, str]:
    """Temperature of the clean loss."""
    return USUAL_TEMPERATURE, "MoCo v2's, and between SimCLR's 0.1 (ImageNet) and 0.5 (CIFAR-10)"


def mix_temperature(clean: float, mix: str) -> tuple[float, str]:
    """Temperature of the mixed loss. Without mixing it is not used."""
    if mix == "none":
        return USUAL_TEMPERATURE, UNTOLD
    return clean, "as --temperature; published are 0.05 (Tiny-ImageNet) to 1 (ImageNet)"


def momentum(steps: int, method: str) -> tuple[float, str]:
    """Momentum of the key encoder: 0.99 looks back 100 steps, 0.999 a thousand. BYOL's rises to 1."""
    if method == "byol":
        return (
            (0.99, "BYOL's, for short runs")
            if steps <= 50_000
            else (0.996, "BYOL's, for long runs")
        )
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


def momentum_schedule() -> tuple[str, str]:
    """BYOL's."""
    return "cosine", UNTOLD


def predictor_hidden(method: str, dim: int) -> tuple[int, str]:
    """BYOL's predictor is wide; SimSiam's is a bottleneck."""
    return (
        (max(1, dim // 4), "a quarter of --dim, as SimSiam's")
        if method == "simsiam"
        else (4096, "BYOL's")
    )


def off_diagonal() -> tuple[float, str]:
    """Barlow's lambda."""
    return 0.0051, "Barlow's, for ImageNet"


def teacher_temperature() -> tuple[float, str]:
    """SEED's T_T."""
    return 0.01, "SEED's"


def teacher_views() -> tuple[str, str]:
    """What the teacher looks at."""
    return "same", "SEED's"


@dataclass(frozen=True)
class ContrastiveConfig:
    """The settings of bases that compare with negatives."""

    temperature: float | None = setting(
        None,
        "Temperature of the clean loss; byol, simsiam and barlow have none.",
        above=0,
        rule=Rule(temperature, ()),
        chosen="nothing: 0.2",
    )
    mix_temperature: float | None = setting(
        None,
        "Temperature of the mixed loss.",
        above=0,
        rule=Rule(mix_temperature, ("temperature", "mix")),
        chosen="nothing: --temperature",
    )


@dataclass(frozen=True)
class QueueConfig(ContrastiveConfig):
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
        "published weights (timm:NAME, hf:OWNER/NAME, efficientnet-lite0).",
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
class MomentumConfig:
    """The setting of bases with a second encoder that follows the first."""

    momentum: float | None = setting(
        None,
        "Momentum of MoCo's key encoder, or of BYOL's target encoder at the first step.",
        at_least=0,
        below=1,
        rule=Rule(momentum, ("steps", "method")),
        chosen="the steps: 0.99; above 50,000 0.999 for moco and 0.996 for byol",
    )


@dataclass(frozen=True)
class PredictorConfig:
    """The setting of bases with a predictor."""

    predictor_hidden: int | None = setting(
        None,
        "Width of the hidden layer of the predictor, in byol and simsiam.",
        at_least=1,
        at_most=MOST,
        rule=Rule(predictor_hidden, ("method", "dim")),
        chosen="the method: 4096 for byol, a quarter of --dim for simsiam",
    )


@dataclass(frozen=True)
class BYOLConfig(MomentumConfig, PredictorConfig):
    """BYOL's own settings."""

    momentum_schedule: Literal["cosine", "constant"] | None = setting(
        None,
        "cosine: byol's momentum rises to 1 over the run. constant: it stays.",
        rule=Rule(momentum_schedule, ()),
        chosen="nothing: cosine",
    )


@dataclass(frozen=True)
class BarlowConfig:
    """Barlow Twins' own setting."""

    off_diagonal: float | None = setting(
        None,
        "Weight of the correlations between different dimensions in barlow, the paper's lambda.",
        at_least=0,
        rule=Rule(off_diagonal, ()),
        chosen="nothing: 0.0051",
    )


@dataclass(frozen=True)
class MoCoConfig(QueueConfig, MomentumConfig):
    """MoCo's own settings."""

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


def advise_without_negatives(_: Any, images: int, batch: int) -> Iterator[Advice]:
    """What may spoil a run of BYOL, SimSiam or Barlow Twins: they rely on batch norms."""
    wanted = 4 * FULL_PART
    if batch < wanted <= images:
        yield Advice(
            f"this method relies on statistics of a batch, and those of {batch} images are noisy",
            f"give --batch-size {wanted} or more",
        )


def no_advice(_options: Any, _images: int, _batch: int) -> Iterator[Advice]:
    yield from ()


def nothing_refused(_options: Any, _batch: int) -> str | None:
    return None
