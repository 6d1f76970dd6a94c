"""What can be set, as small composed dataclasses: recipe (TOML) < command line.

None means: chosen from the images, the method and the device when the run starts (`resolve`, by the
rules of defaults.py). The resolved config is written into the run folder.
"""

import dataclasses
import difflib
import math
import os
import shlex
import sys
import tomllib
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from tyro.conf import Positional, arg

from mixco import defaults
from mixco.errors import UserError

T = TypeVar("T")

MOST = 2**31 - 1  # of what is counted in the device's memory; that will say where less is too much

Device = Literal["auto", "cpu", "cuda", "mps"]
Precision = Literal["auto", "bfloat16", "float32"]
Loading = Literal["auto", "packed", "streamed"]
Logger = Literal["wandb", "mlflow", "trackio"]


@dataclass(frozen=True)
class DataConfig:
    """Which images, and at which size."""

    data: str = "sample"
    """sample, cifar10, cifar100, stl10, tiny-imagenet, imagenet, or the path of a folder of images."""
    data_path: Path | None = None
    """The folder that a named data set lies in."""
    download: bool = False
    """Download a named data set into --data-path first, unless it is there."""
    channels: int | None = None
    """Of an image; default: 3, or what the files have if all looked at are greyscale, or all have one
    other number. See docs/other-images.md."""
    bits: int | None = None
    """Of a channel, 8 or 16; default: 16 where files are deeper than 8, but 8 for RGB."""
    size: int | None = None
    """Side in pixels of what the encoder sees, 32 to 224; default: by the median image, 32 to 128, and
    at most 64 on a CPU."""
    cache: Path = Path("~/.cache/mixco")
    """Where packed images and the index of a folder's files are kept for later runs."""
    loading: Loading = "auto"
    """packed: decoded once, reduced, in one file; streamed: decoded anew each time, from their full
    size; auto: packed where it fits into half of the memory and half of the free disk."""
    workers: int | None = None
    """Processes that decode streamed images; default: one a processor."""
    mean: tuple[float, ...] | None = None
    """Of pixels in [0, 1], three values; default: a named set's own, of a folder as measured."""
    std: tuple[float, ...] | None = None
    """Likewise their standard deviation."""


@dataclass(frozen=True)
class ModelConfig:
    """The encoder."""

    arch: str = "resnet18"
    """Any timm model."""
    stem: Literal["auto", "standard", "conv3s1", "conv3s2"] = "auto"
    """First layers of a ResNet; auto: 3x3 stride 1 to 48 px, 3x3 stride 2 to 112 px."""
    head: Literal["linear", "mlp"] = "mlp"
    """Projection head: linear is MoCo v1's."""
    dim: int = 128
    """Dimensions of the projection."""


@dataclass(frozen=True)
class MethodConfig:
    """The base method and the mixing."""

    method: Literal["moco", "simclr"] = "simclr"
    mix: Literal["none", "mixco"] = "mixco"
    temperature: float | None = None
    """Default 0.2."""
    mix_temperature: float | None = None
    """Of the mixed loss; default: as the other."""
    mix_weight: float = 1.0
    queue: int | None = None
    """MoCo's K; default: the largest power of two within a quarter of the images, at most 65536."""
    momentum: float | None = None
    """Of MoCo's key encoder; default 0.99, and 0.999 for runs of over 50,000 steps."""
    bn_splits: int | None = None
    """MoCo's virtual devices, in all; default: as many as leave each 16 images, 2 to 8."""
    bn_over: Literal["auto", "process", "all"] = "auto"
    """Whose images a batch norm takes its statistics of, where there are several processes: each
    process's own, or those of all; auto: all for simclr, process for moco."""
    augmentation: Literal["auto", "moco-v1", "moco-v2", "simclr"] = "auto"
    """How views are made; auto: moco-v2 for moco, simclr for simclr."""
    jitter: float = 1.0
    """Strength of the augmentation's colour jitter: 0.5 is half of it, 0 none."""


@dataclass(frozen=True)
class OptimisationConfig:
    """The optimiser and its schedule."""

    epochs: int | None = None
    """Default: for some 20,000 steps, 2,500 on a CPU, but 100 to 400."""
    batch_size: int | None = None
    """Images of a step, of all processes together; default: 256, or what leaves 8 steps an epoch, or
    what fits into half of the memory."""
    pieces: int = 1
    """Pieces that a batch passes the encoder in (gradient caching): with 4 it takes about a quarter of
    the memory, and a third more time; the gradient is the same."""
    optimizer: Literal["sgd", "adamw"] = "adamw"
    lr: float | None = None
    """Peak rate; default: 1e-3 x root of batch / 256 for adamw, 0.06 (moco) or 0.3 (simclr) x batch
    / 256 for sgd."""
    weight_decay: float | None = None
    """Default: 0.05 for adamw, 5e-4 for sgd."""
    schedule: Literal["cosine", "steps"] = "cosine"
    warmup: float = 0.05
    """Share of all steps with a linear warm-up."""
    milestones: tuple[float, ...] = (0.6, 0.8)
    """Shares of all steps at which `steps` divides the rate by ten."""


@dataclass(frozen=True)
class RunConfig:
    """The run itself."""

    out: Path | None = None
    """The run folder; default runs/<data>-<method>-<mix>-s<seed>. It must be new or empty, or hold a
    run by the same settings, which then goes on where it was stopped."""
    seed: int = 0
    device: Device = "auto"
    precision: Precision = "auto"
    """auto: bfloat16 where the hardware computes in it."""
    knn_every: int = 10
    """Epochs between two kNN checks on held-out training images; 0: none. Needs labels."""
    holdout: float = 0.1
    """Share of the labelled training images that the kNN check asks about."""
    exclude_holdout: bool = False
    """Leave the held-out images out of pretraining too: for choosing settings."""
    checkpoint_minutes: float = 5.0
    """Minutes between two checkpoints, the most that a killed run loses; the last two stay. 0: none."""
    checkpoint_steps: int = 0
    """Steps between two checkpoints, beside those by the clock; 0: none."""
    keep_every: int = 0
    """Epochs between two checkpoints that stay for good; 0: none."""
    timeout_minutes: float = 10.0
    """Of several processes: how long one waits for another before the run ends."""
    log_to: tuple[Logger, ...] = ()
    """Services that the metrics go to as well, of wandb, mlflow and trackio; TensorBoard's events are
    written always."""
    report: bool = False
    """At the end make the page of `mixco report` too."""
    linear_lr: float | None = None
    """Kept for `mixco linear --protocol paper` on this run: its rate where it is given none."""


@dataclass(frozen=True)
class PretrainConfig:
    """`mixco pretrain`: train an encoder without labels."""

    recipe: str | None = None
    """A recipe's name or a TOML file; what the command line gives beside it goes first."""
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    optimisation: OptimisationConfig = field(default_factory=OptimisationConfig)
    run: RunConfig = field(default_factory=RunConfig)


@dataclass(frozen=True)
class DoctorConfig:
    """`mixco doctor`: look at images and machine before a run is begun, which takes the same options."""

    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    all: bool = False
    """Decode every file, however long it takes; else as many as half a minute allows."""
    trial: bool = True
    """Try some steps, for the time and the memory that the run needs."""
    json: Path | None = None
    """A file for everything that was found."""


@dataclass(frozen=True)
class EvaluationConfig:
    """Which encoder, and on which labelled images."""

    run: Path | None = None
    """A run folder: its encoder, its data, and where results.json is written."""
    checkpoint: Path | None = None
    """An encoder.safetensors or a checkpoint, also of another project, instead of a run."""
    arch: str | None = None
    """timm's name of another project's encoder; default: a ResNet is known by its weights."""
    stem: Literal["standard", "conv3s1", "conv3s1p2", "conv3s1linear", "conv3s2"] | None = None
    """First layers of another project's ResNet; default: by the first convolution."""
    data: str | None = None
    """A name as in `mixco pretrain`, or a folder with train/<class>/ and test/<class>/; default: the
    run's."""
    data_path: Path | None = None
    """The folder that a named data set lies in; default: the run's."""
    download: bool = False
    """Download a named data set into --data-path first, unless it is there."""
    labels: str | None = None
    """1% or 10% of the train split's labels, or a file that lists images; default: all."""
    size: int | None = None
    """Side in pixels of what the encoder sees; default: what it was pretrained at, or 224, or 32."""
    out: Path | None = None
    """The folder that results.json and classifiers go to; default: the run's."""
    cache: Path = Path("~/.cache/mixco")
    """Where packed images are kept."""
    loading: Loading = "auto"
    """packed, streamed (decoded as they are needed), or auto: packed where it fits."""
    workers: int | None = None
    """Processes that decode streamed images; default: one a processor."""
    device: Device = "auto"
    precision: Precision = "auto"
    seed: int = 0


@dataclass(frozen=True)
class ClassifierConfig:
    """How a classifier is trained on augmented images: linear --protocol paper, finetune."""

    optimizer: Literal["sgd", "adam"] = "sgd"
    """SGD has momentum 0.9."""
    lr: float | None = None
    """Peak rate; default: of a linear classifier the recipe's of the run (published: 30 on ImageNet, 3
    on Tiny-ImageNet), or from the scale of the features; else 0.1 x batch / 256 from scratch, 0.02 in
    finetune, where it is the backbone's."""
    batch_size: int = 256
    weight_decay: float | None = None
    """Default: 0 for linear and finetune, 5e-4 for --supervised."""


@dataclass(frozen=True)
class LinearConfig:
    """`mixco linear`: a linear classifier on the frozen encoder."""

    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    protocol: Literal["fast", "paper"] = "fast"
    """fast: a probe on features, its settings chosen on held-out images. paper: as published, SGD
    on augmented images; of the options here and under classifier, fast knows --epochs alone."""
    epochs: int = 100
    """Passes over the images, or over their features."""
    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)
    milestones: tuple[float, ...] = (0.6, 0.8)
    """Shares of all steps at which the rate is divided by ten."""
    supervised: bool = False
    """The baseline: the same network from scratch, all of it trained with the labels."""
    evaluate: bool = False
    """Test the classifier that was saved, without training."""


@dataclass(frozen=True)
class FinetuneConfig:
    """`mixco finetune`: train the whole network with labels, starting from the encoder."""

    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    epochs: int = 30
    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)
    head_lr: float | None = None
    """Peak rate of the layer on top; default: a tenth of linear's, from the scale of the features."""
    evaluate: bool = False
    """Test the network that was saved, without training."""


@dataclass(frozen=True)
class KNNConfig:
    """`mixco knn`: weighted k-nearest-neighbour classification on frozen features."""

    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    k: int = 20
    """Neighbours that vote."""
    temperature: float = 0.07
    """Of the votes exp(similarity / temperature)."""


@dataclass(frozen=True)
class CollectionConfig:
    """How a collection of images is listed and embedded."""

    split: Literal["pretrain", "train", "test"] | None = None
    """Of a named data set, or of a folder with train/ and test/; default: what the run was trained on,
    "pretrain" of another named set, all images of a folder."""
    data_path: Path | None = None
    """The folder that a named data set lies in; default: the run's."""
    arch: str | None = None
    """timm's name of another project's encoder; default: a ResNet is known by its weights."""
    stem: Literal["standard", "conv3s1", "conv3s1p2", "conv3s1linear", "conv3s2"] | None = None
    """First layers of another project's ResNet; default: by the first convolution."""
    size: int | None = None
    """Side in pixels of what the encoder sees; default: what it was pretrained at, or 224, or 32."""
    cache: Path = Path("~/.cache/mixco")
    """Where the index of a folder's files is kept."""
    workers: int | None = None
    """Processes that decode images; default: one a processor."""
    device: Device = "auto"
    precision: Precision = "auto"


@dataclass(frozen=True)
class EmbedConfig:
    """`mixco embed`: a vector of each image, in a file."""

    run: Annotated[Positional[Path], arg(metavar="RUN")]
    """A run folder, an encoder.safetensors or a checkpoint."""
    data: Annotated[Positional[str | None], arg(metavar="[DATA]")] = None
    """A folder of images or the name of a data set; default: the run's own data."""
    out: Path | None = None
    """The file: .parquet (pip install 'mixco[embed]'), .npz or .safetensors."""
    normalise: bool = True
    """Vectors of unit length, whose product is the cosine similarity; else the features as they are."""
    collection: CollectionConfig = field(default_factory=CollectionConfig)


@dataclass(frozen=True)
class NeighboursConfig:
    """`mixco neighbours`: the images of a collection that are nearest to some images."""

    run: Annotated[Positional[Path], arg(metavar="RUN")]
    """A run folder, an encoder.safetensors or a checkpoint."""
    images: Annotated[Positional[tuple[str, ...]], arg(metavar="IMAGE ...")]
    """Image files, or names of images in the collection."""
    among: str | None = None
    """A file of `mixco embed`, a folder of images or the name of a data set; default: the run's data."""
    k: int = 10
    """Neighbours of each image."""
    picture: Path | None = None
    """A PNG that shows them."""
    collection: CollectionConfig = field(default_factory=CollectionConfig)


@dataclass(frozen=True)
class DuplicatesConfig:
    """`mixco duplicates`: groups of images that are nearly or exactly the same."""

    run: Annotated[Positional[Path], arg(metavar="RUN|VECTORS")]
    """A run folder, an encoder or a checkpoint; or a file of `mixco embed`."""
    among: str | None = None
    """As of neighbours; default: the run's data."""
    threshold: float = 0.999
    """The least cosine similarity to the first image of a group, above 0 and at most 1; see
    docs/embedding.md, for it depends on the encoder."""
    out: Path | None = None
    """Write the groups into this file, .csv or .json."""
    show: int = 20
    """Groups that are printed, the tightest first, and images of each; 0: all."""
    collection: CollectionConfig = field(default_factory=CollectionConfig)


@dataclass(frozen=True)
class DownloadConfig:
    """`mixco download`: get a data set by its name."""

    name: str
    """cifar10, cifar100, stl10 or tiny-imagenet; of sample and imagenet it tells how they are got."""
    data_path: Path | None = None
    """The folder that it is to lie in."""


@dataclass(frozen=True)
class ReportConfig:
    """`mixco report`: a page on a run, or on several beside each other; or only their table."""

    runs: tuple[Path, ...]
    """Run folders, or results.json files that hold several runs. Pictures are of the first."""
    out: Path | None = None
    """The page; default: report.html in the run's folder, of several runs in the folder around it.
    Its figures are also PNGs in a folder beside it that is named like it."""
    images: tuple[Path, ...] = ()
    """Image files whose nearest neighbours are shown, or names below the folder of the run's images."""
    most_images: int = 5000
    """So many images are looked at; of more a random part."""
    data: str | None = None
    """Where the run's images lie, if not where they were: a name or a folder, as in `mixco pretrain`."""
    data_path: Path | None = None
    """The folder that a named data set lies in; default: the run's."""
    device: Device = "auto"
    table: bool = False
    """No page: print a Markdown table, a row a setting, mean and spread where runs differ by their seed
    alone."""
    collect: Path | None = None
    """No page: a results.json of many runs, to which these are added; several processes may do so at
    once."""
    name: str | None = None
    """What a single run is called in that file; default: its folder's name."""


@dataclass(frozen=True)
class ExportConfig:
    """`mixco export`: take an encoder away in another library's format, with a model card."""

    run: Path
    """A run folder, an encoder.safetensors or a checkpoint, also of another project."""
    to: Literal["timm", "torchvision", "safetensors", "onnx", "hub"] = "timm"
    """hub: a folder for the Hugging Face hub, which timm loads from there."""
    out: Path | None = None
    """The folder to make; default: exports/FORMAT in the run, or beside the file."""
    license: str | None = None
    """Of the weights, for the card: mit, apache-2.0, cc-by-nc-4.0, ...; default: said to be unknown."""
    onnx_input: Literal["unit", "bytes", "normalised"] = "unit"
    """What the onnx graph takes: float from 0 to 1 or bytes, normalised in it, or what is normalised."""
    arch: str | None = None
    """timm's name of another project's encoder; default: a ResNet is known by its weights."""
    stem: Literal["standard", "conv3s1", "conv3s1p2", "conv3s1linear", "conv3s2"] | None = None
    """First layers of another project's ResNet; default: by the first convolution."""
    size: int | None = None
    """Side in pixels of what the encoder sees; default: what it was pretrained at, or 224, or 32."""


@dataclass(frozen=True)
class PushConfig:
    """`mixco push`: put an encoder onto the Hugging Face hub, with the token in HF_TOKEN."""

    run: Path
    """A run folder, an encoder.safetensors or a checkpoint; or what `mixco export --to hub` made."""
    repo_id: str
    """OWNER/NAME of the repository, which is made unless it is there."""
    private: bool = False
    """Make it a private one."""
    license: str | None = None
    """As in `mixco export`; an export has it in its card already."""


@dataclass(frozen=True)
class DemoConfig:
    """`mixco demo`: the main job on the built-in sample, with and without mixing."""

    out: Path = Path("runs/demo")
    """Where the runs, results.json and pictures go."""
    seed: int = 0
    device: Device = "auto"
    precision: Precision = "auto"
    epochs: int | None = None
    """Default: the recipe's."""
    cache: Path = Path("~/.cache/mixco")
    """Where packed images are kept."""


def nearest(word: str, known: typing.Iterable[str]) -> str:
    """ "; did you mean X?" for the nearest known word, else the list of them."""
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else f"known are: {', '.join(names)}"


def recipe_names() -> list[str]:
    files = resources.files("mixco").joinpath("recipes").iterdir()
    return sorted(f.name.removesuffix(".toml") for f in files if f.name.endswith(".toml"))


def load_recipe(recipe: str) -> PretrainConfig:
    """The config of a recipe: a name of those shipped, or the path of a TOML file."""
    if recipe in recipe_names():
        text = resources.files("mixco").joinpath("recipes", f"{recipe}.toml").read_text("utf-8")
    elif recipe.endswith(".toml"):
        try:
            text = Path(recipe).read_text("utf-8")
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "it is not text in UTF-8"
            raise UserError(
                f"--recipe {recipe}: cannot be read ({reason}); give a recipe's name or a TOML file"
            ) from None
    else:
        raise UserError(f"--recipe {recipe}: no such recipe; {nearest(recipe, recipe_names())}")
    try:
        values = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"recipe {recipe} is not valid TOML: {error}; the shipped ones are examples"
        ) from None
    return dataclasses.replace(from_dict(PretrainConfig, values, f"recipe {recipe}"), recipe=recipe)


def from_dict(cls: type[T], values: dict[str, Any], where: str) -> T:
    """A dataclass from nested plain values (of TOML or JSON).

    Raises UserError for an unknown key, with the nearest known one, and for a value of a wrong type.
    """
    hints = typing.get_type_hints(cls)
    known = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    arguments: dict[str, Any] = {}
    for key, value in values.items():
        if key not in known:
            raise UserError(f"{where}: unknown key {key}; {nearest(key, known)}")
        arguments[key] = _convert(hints[key], value, f"{where}: {key}")
    return cls(**arguments)


def flat_fields(cls: type) -> dict[str, dataclasses.Field[Any]]:
    """The settings of a config and of its parts, by the names that the command line has for them."""
    found: dict[str, dataclasses.Field[Any]] = {}
    hints = typing.get_type_hints(cls)
    for one in dataclasses.fields(cls):
        part = hints[one.name]
        is_part = isinstance(part, type) and dataclasses.is_dataclass(part)
        found |= flat_fields(part) if is_part else {one.name: one}
    return found


def with_settings(config: T, settings: dict[str, Any], where: str) -> T:
    """The config with some settings changed, each by its flat name, in whichever part it belongs to.

    Raises UserError for an unknown name, with the nearest known one, and for a value of a wrong type.
    """
    known = flat_fields(type(config))
    for name in settings:
        if name not in known:
            raise UserError(f"{where}: unknown keyword {name}; {nearest(name, known)}")

    def changed(part: Any) -> Any:
        hints = typing.get_type_hints(type(part))
        changes = {}
        for name, kind in hints.items():
            if dataclasses.is_dataclass(kind):
                changes[name] = changed(getattr(part, name))
            elif name in settings:
                changes[name] = _convert(kind, settings[name], f"{where}: {name}")
        return dataclasses.replace(part, **changes)

    return typing.cast(T, changed(config))


def _convert(kind: Any, value: Any, where: str) -> Any:
    origin, options = typing.get_origin(kind), typing.get_args(kind)
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if dataclasses.is_dataclass(kind) and isinstance(value, dict):
        return from_dict(typing.cast(type, kind), value, where)
    if origin is Literal and value in options:
        return value
    if origin in (types.UnionType, typing.Union):  # the latter with a Literal in it
        if value is None and types.NoneType in options:
            return None
        return _convert(next(o for o in options if o is not types.NoneType), value, where)
    if origin is tuple and isinstance(value, (list, tuple)):
        return tuple(_convert(options[0], v, where) for v in value)
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind is float and type(value) in (int, float) and abs(value) <= sys.float_info.max:
        return float(value)
    if kind in (int, str, bool) and type(value) is kind:
        return value
    if origin is Literal:
        raise UserError(f"{where} = {value!r}; {nearest(str(value), map(str, options))}")
    raise UserError(f"{where} = {value!r} is not a {getattr(kind, '__name__', kind)}")


def to_dict(config: Any) -> dict[str, Any]:
    """Nested plain values, for JSON; `from_dict` reads them back."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(v) for key, v in value.items()}
        if isinstance(value, (tuple, list)):
            return [plain(v) for v in value]
        return str(value) if isinstance(value, Path) else value

    return typing.cast(dict[str, Any], plain(dataclasses.asdict(config)))


def command_of(config: dict[str, Any]) -> str:
    """The `mixco pretrain` of a run, from its config.json: all that differs from the defaults."""
    words = ["mixco", "pretrain"]
    for part, usual in to_dict(PretrainConfig()).items():
        for key, default in usual.items() if isinstance(usual, dict) else ():
            value = config.get(part, {}).get(key, default)
            option = key.replace("_", "-")
            if value == default or value is None:
                continue
            if isinstance(value, bool):
                words.append(f"--{option}" if value else f"--no-{option}")
            else:
                values = value if isinstance(value, list) else [value]
                words += [f"--{option}", *map(str, values)]
    return shlex.join(words)


def check_classifier(config: LinearConfig | FinetuneConfig) -> None:
    """Raises UserError for settings that make no sense, or that the fast protocol does not have."""
    training = config.classifier
    checks = [
        (config.epochs >= 1, f"--epochs {config.epochs}: at least 1"),
        (training.batch_size >= 1, f"--batch-size {training.batch_size}: at least 1"),
        (
            training.lr is None or 0 < training.lr < math.inf,
            f"--lr {training.lr}: above 0, and finite",
        ),
        (
            0 <= (training.weight_decay or 0) < math.inf,
            f"--weight-decay {training.weight_decay}: at least 0, and finite",
        ),
    ]
    if isinstance(config, FinetuneConfig):
        rate = config.head_lr
        checks += [(rate is None or 0 < rate < math.inf, f"--head-lr {rate}: above 0, and finite")]
    else:
        shares = config.milestones
        plain = LinearConfig(config.evaluation, epochs=config.epochs)
        checks += [
            (
                all(0 < share < 1 for share in shares),
                f"--milestones {' '.join(map(str, shares))}: shares of the run, above 0 and below 1",
            ),
            (
                config.protocol == "paper" or config == plain,
                "the fast probe chooses its settings itself; --optimizer, --lr, --batch-size, "
                "--weight-decay, --milestones, --supervised and --evaluate need --protocol paper",
            ),
        ]
    for right, message in checks:
        if not right:
            raise UserError(message)


def check_knn(config: KNNConfig) -> None:
    """Raises UserError for settings that make no sense."""
    if config.k < 1:
        raise UserError(f"--k {config.k}: at least 1")
    if not 0 < config.temperature < math.inf:
        raise UserError(f"--temperature {config.temperature}: above 0, and finite")


def run_folder_of(config: PretrainConfig) -> Path:
    name, method, run = Path(config.data.data).name, config.method, config.run
    return run.out or Path("runs") / f"{name}-{method.method}-{method.mix}-s{run.seed}"


def resolve(
    config: PretrainConfig,
    images: int,
    processes: int = 1,
    *,
    device: str = "cpu",
    memory: int | None = None,
    image_bytes: float | None = None,
    tell: Callable[[str, Any, str], None] = lambda *_: None,
) -> PretrainConfig:
    """Fill in every None, by the rules of defaults.py; refuse what cannot be.

    images: how many are trained on. processes: that the run is to have. device: cpu, cuda or mps.
    memory, image_bytes: see `defaults.batch_size`.
    tell(option, value, reason) is called for each that is chosen. What depends on the images themselves,
    their size and their normalisation, is filled in beforehand (training/choosing.py).

    Raises UserError for combinations that make no sense.
    """
    method, optimisation, run = config.method, config.optimisation, config.run

    def chosen(option: str, given: Any, rule: Callable[..., tuple[Any, str]], *facts: Any) -> Any:
        if given is not None:
            return given
        value, why = rule(*facts)
        tell(option, value, why)
        return value

    batch = chosen(
        *("batch_size", optimisation.batch_size, defaults.batch_size),
        *(images, image_bytes, memory),
    )
    _check(config, images, batch, processes)
    moco = method.method == "moco"
    epochs = chosen("epochs", optimisation.epochs, defaults.epochs, images, batch, device)
    optimisation = dataclasses.replace(
        optimisation,
        batch_size=batch,
        epochs=epochs,
        lr=chosen(
            *("lr", optimisation.lr, defaults.lr),
            *(optimisation.optimizer, method.method, batch),
        ),
        weight_decay=chosen(
            *("weight_decay", optimisation.weight_decay, defaults.weight_decay),
            optimisation.optimizer,
        ),
    )
    temperature = chosen("temperature", method.temperature, defaults.temperature)
    mixed = ("mix_temperature", method.mix_temperature, defaults.mix_temperature)
    of_moco = ("queue", "momentum", "bn_splits") if moco else ()
    facts = {"queue": images, "momentum": images // batch * epochs, "bn_splits": batch}
    method = dataclasses.replace(
        method,
        augmentation=("moco-v2" if moco else "simclr")
        if method.augmentation == "auto"
        else method.augmentation,
        bn_over=("process" if moco else "all") if method.bn_over == "auto" else method.bn_over,
        temperature=temperature,
        mix_temperature=chosen(*mixed, temperature, method.mix),
        **{
            name: chosen(name, getattr(method, name), getattr(defaults, name), facts[name])
            for name in of_moco
        },
    )
    run = dataclasses.replace(run, out=run_folder_of(config))
    return dataclasses.replace(config, method=method, optimisation=optimisation, run=run)


def _check(config: PretrainConfig, images: int, batch: int, processes: int) -> None:
    """Raises UserError for what cannot be."""
    data, method, optimisation, run = config.data, config.method, config.optimisation, config.run

    def one_each(values: tuple[float, ...] | None) -> bool:
        return values is None or len(values) == (data.channels or 3)

    checks = [
        (data.size is None or 32 <= data.size <= 224, f"--size {data.size}: 32 to 224 pixels"),
        (batch >= 2, f"--batch-size {batch}: at least 2"),
        (
            batch <= images,
            f"--batch-size {batch}: there are only {images} images to train on; "
            f"give --batch-size {max(2, images // 8)} or more images",
        ),
        (
            optimisation.epochs is None or 1 <= optimisation.epochs <= MOST,
            f"--epochs {optimisation.epochs}: at least 1, at most {MOST:,}",
        ),
        (-MOST <= run.seed <= MOST, f"--seed {run.seed}: at most {MOST:,}, also below zero"),
        (
            optimisation.lr is None or 0 < optimisation.lr < math.inf,
            f"--lr {optimisation.lr}: above 0, and finite",
        ),
        (
            0 <= (optimisation.weight_decay or 0) < math.inf,
            f"--weight-decay {optimisation.weight_decay}: at least 0, and finite",
        ),
        (optimisation.pieces >= 1, f"--pieces {optimisation.pieces}: at least 1"),
        (
            batch >= 2 * processes * optimisation.pieces,
            f"--batch-size {batch}: at least two images for each of {processes} processes and of "
            f"{optimisation.pieces} pieces",
        ),
        (
            method.method != "moco" or method.bn_over != "all" or method.bn_splits == 1,
            "--bn-over all: MoCo leaks through statistics that all images share; leave it out "
            "(--bn-splits 1 beside it accepts the leak)",
        ),
        (
            0 < run.timeout_minutes <= MOST,
            f"--timeout-minutes {run.timeout_minutes:g}: above 0, at most {MOST:,}",
        ),
        (0 <= optimisation.warmup < 1, f"--warmup {optimisation.warmup}: from 0 up to below 1"),
        (
            all(0 < share < 1 for share in optimisation.milestones),
            f"--milestones {' '.join(map(str, optimisation.milestones))}: shares of the run, above 0 "
            "and below 1",
        ),
        *(
            (value is None or 0 < value < math.inf, f"--{name} {value}: above 0, and finite")
            for name, value in (
                ("temperature", method.temperature),
                ("mix-temperature", method.mix_temperature),
            )
        ),
        (
            0 <= method.mix_weight < math.inf,
            f"--mix-weight {method.mix_weight}: 0 or more, and finite",
        ),
        (1 <= config.model.dim <= MOST, f"--dim {config.model.dim}: 1 to {MOST:,}"),
        (
            one_each(data.mean) and one_each(data.std),
            f"--mean and --std: {data.channels or 3} values each, one a channel",
        ),
        (all(value > 0 for value in data.std or ()), f"--std {data.std}: above 0"),
        (0 <= method.jitter <= 1.25, f"--jitter {method.jitter}: 0 to 1.25"),
        (
            method.queue is None or 1 <= method.queue <= MOST,
            f"--queue {method.queue}: at least 1, at most {MOST:,}",
        ),
        (
            method.bn_splits is None or 1 <= method.bn_splits <= batch // 2,
            f"--bn-splits {method.bn_splits}: 1 to {batch // 2}, two images a part at least",
        ),
        (
            method.momentum is None or 0 <= method.momentum < 1,
            f"--momentum {method.momentum}: from 0 up to below 1",
        ),
        (0 < run.holdout < 1, f"--holdout {run.holdout}: above 0 and below 1"),
        (
            run.linear_lr is None or 0 < run.linear_lr < math.inf,
            f"--linear-lr {run.linear_lr}: above 0, and finite",
        ),
        *(
            (getattr(run, name) >= 0, f"--{name.replace('_', '-')} {getattr(run, name)}: 0 or more")
            for name in ("checkpoint_minutes", "checkpoint_steps", "keep_every", "knn_every")
        ),
    ]
    for right, message in checks:
        if not right:
            raise UserError(message)
