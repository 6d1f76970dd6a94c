"""The settings of pretraining, as small composed dataclasses.

A recipe (TOML) sets them; what the command line gives goes first.

`PretrainConfig` is what a user asks for. None in it means: chosen from the images, the method and the
device when the run starts. `Settings` is the same without None, and what config.json holds.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, fields, make_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mixco.data.datasets import DATASETS, MAX_UNREADABLE, Data, LabelSource
from mixco.methods import METHODS, MIXERS, NO_MIXER
from mixco.runtime.loggers import LOGGERS
from mixco.runtime.setting import MOST, Rule, setting
from mixco.settings import defaults
from mixco.views.augmentation import AUGMENTATIONS

Device = Literal["auto", "cpu", "cuda", "mps"]
Precision = Literal["auto", "bfloat16", "float32"]
MemoryFormat = Literal["auto", "channels_last", "contiguous"]
Loading = Literal["auto", "packed", "streamed"]


def one_of(*tables: Any) -> Callable[[], tuple[str, ...]]:
    """The names of some tables, read when they are needed."""
    return lambda: tuple(name for table in tables for name in table)


def labels_from() -> Any:
    """A setting that several commands have."""
    return setting(
        None,
        "A table with a row for each image (.csv, .tsv, .parquet): its path, its label, and perhaps its "
        "split.",
        chosen="the class folders or the shards",
    )


def column(name: str, usual: str) -> Any:
    """A setting that several commands have."""
    shards = ", or in shards the column or key" if name == "label" else ""
    return setting(
        None, f"Column of that table with the {name}s{shards}.", chosen=f"the names: {usual}"
    )


def label_source(config: Any) -> LabelSource:
    """Where the labels are, by a config that has these four settings."""
    return LabelSource(
        config.labels_from, config.path_column, config.label_column, config.split_column
    )


@dataclass(frozen=True)
class DataConfig:
    """Which images, and at which size."""

    data: Data = setting(
        "",
        f"A folder of images, or the name of a data set: {', '.join(DATASETS)}. Also several folders, "
        "lists of paths (.txt), shards (.tar, .parquet) and sets of the Hugging Face hub "
        "(hf:OWNER/NAME); see docs/your-data.md.",
        chosen="nothing: none; it must be given",
        first=True,
        may_be_path=True,
    )
    data_path: Path | None = setting(
        None,
        "The folder of a named data set.",
        chosen="nothing: none; a named data set needs it",
        affects="run",
    )
    labels_from: Path | None = labels_from()
    path_column: str | None = column("path", "path, file, image, id, ...")
    label_column: str | None = column("label", "label, class, ...")
    split_column: str | None = column("split", "split, if there is one")
    download: bool = setting(
        False,
        "Download a named data set into --data-path first, unless it is there.",
        affects="nothing",
    )
    channels: int | None = setting(
        None,
        "Channels of an image.",
        at_least=1,
        chosen="the files: 3, unless all have another number",
    )
    bits: int | None = setting(
        None,
        "Bits of a channel, 8 or 16.",
        chosen="the files: 16 where they are deeper than 8, but 8 for RGB",
    )
    size: int | None = setting(
        None,
        "Side of the encoder's input.",
        at_least=32,
        at_most=224,
        unit="pixels",
        chosen="the median image: 32 to 128, at most 64 on a CPU; with --init, from the weights",
        first=True,
    )
    view_size: int | None = setting(
        None,
        "Side of the views that are trained on. Smaller views than the encoder's input train faster.",
        at_least=32,
        at_most=224,
        unit="pixels",
        chosen="nothing: --size",
    )
    max_unreadable: float = setting(
        MAX_UNREADABLE,
        "Share of the images that may be unreadable; they are left out. More end the run.",
        at_least=0,
        below=1,
        affects="run",
    )
    cache: Path = setting(
        Path("~/.cache/mixco"),
        "Where packed images and the index of a folder's files are kept for later runs.",
        affects="run",
    )
    loading: Loading = setting(
        "auto",
        "packed: decode once, reduce, keep in one file. streamed: decode each time, from the full size. "
        "auto: packed where it fits into half of the memory and half of the free disk.",
    )
    workers: int | None = setting(
        None,
        "Processes that decode streamed images.",
        chosen="nothing: one for each processor",
        affects="run",
    )
    mean: tuple[float, ...] | None = setting(
        None,
        "Mean of pixels in [0, 1], one number for each channel.",
        chosen="the data set, or measured on the images of a folder",
    )
    std: tuple[float, ...] | None = setting(
        None,
        "Standard deviation of pixels in [0, 1], one number for each channel.",
        above=0,
        chosen="the data set, or measured on the images of a folder",
    )

    @property
    def views(self) -> int:
        """Side of the views, in pixels. Raises ValueError where no size is chosen yet."""
        side = self.view_size or self.size
        if side is None:
            raise ValueError("the size must be chosen first")
        return side


@dataclass(frozen=True)
class ModelConfig:
    """The encoder."""

    init: str | None = setting(
        None,
        "Weights to start from: timm (published ones of --arch), timm:NAME, hf:OWNER/NAME (what "
        "mixco push and others wrote), efficientnet-lite0, a run folder, or a file of weights.",
        chosen="nothing: random weights",
        first=True,
        may_be_path=True,
    )
    arch: str | None = setting(
        None,
        "Any model of timm, by its name.",
        chosen="the weights of --init, else resnet18",
        first=True,
    )
    stem: Literal[
        "auto", "standard", "conv3s1", "conv3s1p2", "conv3s1linear", "conv3s1pool", "conv3s2"
    ] = setting(
        "auto",
        "First layers of a ResNet. auto: those of --init; else 3x3 with stride 1 up to 48 px, 3x3 with "
        "stride 2 up to 112 px.",
    )
    prefix: str | None = setting(
        None,
        "What the weights of --init begin with, where its file holds several encoders.",
        chosen="the file",
        affects="run",
    )
    bn_statistics: Literal["frozen", "batch"] | None = setting(
        None,
        "By which statistics batch norms normalise. batch: by those of the batch, and running ones "
        "follow. frozen: by those of --init, which stay.",
        rule=Rule(defaults.bn_statistics, ("init", "batch_norm")),
        chosen="--init: frozen where there are weights to start from, else batch",
    )
    head: Literal["linear", "mlp", "mlp-bn", "mlp3-bn", "mlp-bn-last", "mlp3-bn-last"] | None = (
        setting(
            None,
            "Projection head. linear is MoCo v1's, mlp MoCo v2's and SimCLR's. With batch norms: mlp-bn "
            "is BYOL's, mlp3-bn Barlow's, mlp3-bn-last SimSiam's, mlp-bn-last SimSiam's for CIFAR.",
            rule=Rule(defaults.head, ("usual_head",)),
            chosen="the method: mlp for moco, simclr and distil, its own for each of the others",
        )
    )
    head_hidden: int | None = setting(
        None,
        "Width of the hidden layers of the head.",
        at_least=1,
        at_most=MOST,
        chosen="the head: as wide as the features for mlp, 4096 for mlp-bn, 2048 for the others",
    )
    dim: int | None = setting(
        None,
        "Dimensions of the projection.",
        at_least=1,
        at_most=MOST,
        rule=Rule(defaults.dim, ("usual_dim",)),
        chosen="the method: 128 for moco and simclr, 256 for byol, 2048 for simsiam and barlow; for "
        "distil the teacher's",
    )


def _of_views(help: str) -> Any:
    """A probability that each augmentation has, unless it is given."""
    return setting(None, help, at_least=0, at_most=1, chosen="nothing: the augmentation's")


@dataclass(frozen=True)
class SharedMethodConfig:
    """The base method and the mixing. `--method NAME --help` shows the options of another base."""

    method: str = setting("simclr", "The base method.", choices=one_of(METHODS), first=True)
    mix: str = setting(
        "mixco", "How images are mixed.", choices=one_of((NO_MIXER,), MIXERS), first=True
    )
    mix_weight: float = setting(1.0, "Weight of the mixed loss.", at_least=0)
    mix_alpha: float | None = setting(
        None,
        "How much of each source a mixed image holds: lambda ~ Beta(alpha, alpha). 1: any share is as "
        "likely. Less: mostly one source. More: near one half of each.",
        at_least=0.01,
        at_most=100,
        chosen="the mixer: as published, 2 for myol, 1 for the others",
    )
    mix_loss: Literal["auto", "added", "alone"] = setting(
        "auto",
        "added: to the clean loss. alone: in its place, so that no clean query is encoded. auto: as "
        "published, alone for imix and icutmix.",
    )
    bn_over: Literal["auto", "process", "all"] = setting(
        "auto",
        "Whose images give a batch norm its statistics where there are several processes: each "
        "process's own, or those of all. auto: process for moco, all for the others.",
    )
    augmentation: str = setting(
        "auto",
        "How views are made: as in a paper, or for a kind of images. auto: simclr for simclr, moco-v2 "
        "for the others.",
        choices=one_of(("auto",), AUGMENTATIONS),
    )
    jitter: float = setting(
        1.0,
        "Strength of the augmentation's colour jitter: 0.5 is half of it, 0 none.",
        at_least=0,
        at_most=1.25,
    )
    min_crop: float | None = setting(
        None,
        "Share of an image's area that the smallest crop has.",
        above=0,
        at_most=1,
        chosen="nothing: the augmentation's",
    )
    grey: float | None = _of_views("Probability that a view is made grey.")
    blur: float | None = _of_views("Probability that a view is blurred.")
    vertical_flip: float | None = _of_views(
        "Probability that a view is flipped from top to bottom."
    )
    quarter_turns: float | None = _of_views(
        "Probability that a view is turned by 90, 180 or 270 degrees. With 0.75 all four are as likely."
    )


if TYPE_CHECKING:
    MethodConfig = SharedMethodConfig
else:
    # Each base's own settings stand beside the base; here all of them become options of one command.
    _OWN = dict.fromkeys(base.options for base in METHODS.values() if base.options)
    # What another one is made of comes with it.
    _OWN = [each for each in _OWN if not any(each in other.__mro__[1:] for other in _OWN)]
    MethodConfig = make_dataclass(
        "MethodConfig", (), bases=(*_OWN, SharedMethodConfig), frozen=True
    )
    MethodConfig.__doc__, MethodConfig.__module__ = SharedMethodConfig.__doc__, __name__


def of_other_bases(method: str) -> set[str]:
    """The names of the settings that other bases have and this one lacks; none for an unknown one."""
    own = {
        name: {field.name for field in fields(base.options)} if base.options else set()
        for name, base in METHODS.items()
    }
    return set[str]().union(*own.values()) - own[method] if method in own else set()


@dataclass(frozen=True)
class OptimisationConfig:
    """The optimiser and its schedule."""

    epochs: int | None = setting(
        None,
        "How often each image is seen.",
        at_least=1,
        at_most=MOST,
        rule=Rule(defaults.epochs, ("images", "batch_size", "device_kind", "init")),
        chosen="nothing: as many as make 20,000 steps, or 2,500 on a CPU; at least 100, at most 400. "
        "With --init a tenth of the steps; at least 10, at most 40",
        first=True,
    )
    batch_size: int | None = setting(
        None,
        "Images of a step, of all processes together.",
        at_least=2,
        rule=Rule(defaults.batch_size, ("images", "image_bytes", "memory")),
        chosen="the images and the memory: at most 256, fewer for few images or little memory",
    )
    micro_batches: int = setting(
        1,
        "Micro-batches into which a batch is split for the encoder (gradient caching): 4 take about a "
        "quarter of the memory and a third more time. The gradient is the same.",
        at_least=1,
        affects="run",
        old_name="pieces",
    )
    optimizer: Literal["sgd", "adamw"] = setting("adamw", "SGD has momentum 0.9.")
    lr: float | None = setting(
        None,
        "Peak learning rate.",
        above=0,
        rule=Rule(defaults.lr, ("optimizer", "adamw_lr", "sgd_lr", "batch_size", "init")),
        chosen="the batch: root of batch / 256 x 1e-3 for adamw, 3e-4 for simsiam; for sgd batch / 256 "
        "x a number of the method, such as 0.06 for moco and 0.3 for simclr; with --init 0.4 of it",
    )
    weight_decay: float | None = setting(
        None,
        "Weight decay.",
        at_least=0,
        rule=Rule(defaults.weight_decay, ("optimizer",)),
        chosen="the optimiser: 0.05 for adamw, 5e-4 for sgd",
    )
    schedule: Literal["cosine", "steps"] = setting("cosine", "Schedule of the learning rate.")
    warmup: float = setting(0.05, "Share of all steps with a linear warm-up.", at_least=0, below=1)
    milestones: tuple[float, ...] = setting(
        (0.6, 0.8),
        "Shares of all steps at which --schedule steps divides the rate by ten.",
        above=0,
        below=1,
    )


@dataclass(frozen=True)
class RunConfig:
    """The run itself."""

    out: Path | None = setting(
        None,
        "The run folder. It must be new or empty, or hold a run with the same settings, which is then "
        "resumed.",
        chosen="the settings: runs/<data>-<method>-<mix>-s<seed>",
        affects="nothing",
        first=True,
    )
    seed: int = setting(0, "Seed of all random numbers.", at_least=-MOST, at_most=MOST)
    device: Device = setting("auto", "auto: a GPU where there is one.", affects="run")
    precision: Precision = setting(
        "auto",
        "Number format. auto: the faster one for this encoder on this machine, by measurement, when the "
        "run begins.",
    )
    memory_format: MemoryFormat = setting(
        "auto",
        "Order of the numbers of an image in memory. auto: the faster one, measured together with "
        "--precision auto; channels_last where --precision is given.",
        affects="run",
    )
    execution: Literal["auto", "eager", "captured", "compiled"] = setting(
        "auto",
        "How a step runs on an NVIDIA GPU. eager: operation by operation. captured: as CUDA graphs, "
        "with compiled views. compiled: encoder and losses are compiled too, which takes minutes. auto: "
        "captured from 3,000 steps on, on one GPU; else eager.",
        affects="run",
    )
    knn_every: int = setting(
        10,
        "Epochs between two kNN checks on held-out training images; 0 for none. Needs labels.",
        at_least=0,
        affects="run",
    )
    holdout: float = setting(
        0.1,
        "Share of the labelled training images that the kNN check asks about.",
        above=0,
        below=1,
    )
    exclude_holdout: bool = setting(
        False, "Leave the held-out images out of pretraining too: for choosing settings."
    )
    checkpoint_minutes: float = setting(
        5.0,
        "Minutes between two checkpoints, the most that a killed run loses; the last two are kept. 0 "
        "for none.",
        at_least=0,
        affects="run",
    )
    checkpoint_steps: int = setting(
        0,
        "Steps between two checkpoints, besides those by the clock; 0 for none.",
        at_least=0,
        affects="run",
    )
    keep_every: int = setting(
        0,
        "Epochs between two checkpoints that are kept for good; 0 for none.",
        at_least=0,
        affects="run",
    )
    timeout_minutes: float = setting(
        10.0,
        "How long one of several processes waits for another before the run ends.",
        above=0,
        at_most=MOST,
        unit="minutes",
        affects="run",
    )
    log_to: tuple[str, ...] = setting(
        (),
        "Services that get the metrics as well. TensorBoard's events are always written.",
        choices=one_of(LOGGERS),
        affects="run",
    )
    report: bool = setting(
        False, "At the end, make the page of `mixco report` too.", affects="nothing"
    )
    linear_lr: float | None = setting(
        None,
        "Kept for `mixco linear --protocol paper` on this run: its rate where it is given none.",
        above=0,
        chosen="nothing: the recipe's",
        affects="run",
    )


@dataclass(frozen=True)
class PretrainConfig:
    """`mixco pretrain`: train an encoder without labels."""

    recipe: str | None = setting(
        None,
        "A recipe's name or a TOML file. Options on the command line go first.",
        affects="nothing",
        chosen="nothing: no recipe",
        first=True,
        may_be_path=True,
    )
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    optimisation: OptimisationConfig = field(default_factory=OptimisationConfig)
    run: RunConfig = field(default_factory=RunConfig)


# The resolved settings: what was asked for, with everything chosen.


@dataclass(frozen=True, kw_only=True)
class DataSettings(DataConfig):
    """`DataConfig` with everything chosen."""

    size: int
    channels: int
    bits: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    loading: Literal["packed", "streamed"]


@dataclass(frozen=True, kw_only=True)
class ModelSettings(ModelConfig):
    """`ModelConfig` with everything chosen."""

    arch: str
    bn_statistics: Literal["frozen", "batch"]
    head: Literal["linear", "mlp", "mlp-bn", "mlp3-bn", "mlp-bn-last", "mlp3-bn-last"]
    dim: int


@dataclass(frozen=True, kw_only=True)
class MethodSettings(MethodConfig):
    """`MethodConfig` with everything chosen. Settings of other bases than the method's stay None."""

    mix_loss: Literal["added", "alone"]
    bn_over: Literal["process", "all"]


@dataclass(frozen=True, kw_only=True)
class OptimisationSettings(OptimisationConfig):
    """`OptimisationConfig` with everything chosen."""

    epochs: int
    batch_size: int
    lr: float
    weight_decay: float


@dataclass(frozen=True, kw_only=True)
class RunSettings(RunConfig):
    """`RunConfig` with everything chosen."""

    out: Path
    precision: Literal["bfloat16", "float32"]
    memory_format: Literal["channels_last", "contiguous"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of a run, as config.json has them."""

    recipe: str | None
    data: DataSettings
    model: ModelSettings
    method: MethodSettings
    optimisation: OptimisationSettings
    run: RunSettings
