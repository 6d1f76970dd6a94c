"""What can be set, as small composed dataclasses: recipe (TOML) < command line.

None means: chosen from the images, the method and the device when the run starts (resolve.py, by the
rules of defaults.py). The resolved config is written into the run folder.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

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
    micro_batches: int = 1
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
