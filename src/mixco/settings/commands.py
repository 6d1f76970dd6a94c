"""The settings of all commands but pretrain, which has config.py."""

from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Any, Literal

from mixco.data.datasets import DATASETS, MAX_UNREADABLE, Data
from mixco.runtime.setting import setting
from mixco.settings.config import (
    Device,
    Loading,
    Precision,
    PretrainConfig,
    column,
    labels_from,
)

Split = Literal["pretrain", "train", "test"]
OtherStem = Literal["standard", "conv3s1", "conv3s1p2", "conv3s1linear", "conv3s1pool", "conv3s2"]

# Options that several commands share.

WEIGHTS = (
    "A run folder, a file of weights, or published weights (timm:NAME, hf:OWNER/NAME, "
    "efficientnet-lite0)."
)


def _device() -> Any:
    return setting("auto", "auto: a GPU where there is one.", affects="run")


def _precision() -> Any:
    return setting(
        "auto",
        "Number format. auto: the fastest for this encoder on this machine, by measurement.",
    )


def _workers() -> Any:
    return setting(
        None,
        "Processes that decode images.",
        chosen="nothing: one for each processor",
        affects="run",
    )


def _data_path() -> Any:
    return setting(None, "The folder of a named data set.", chosen="the run", affects="run")


def _epochs(default: int, help: str) -> Any:
    return setting(default, help, at_least=1)


@dataclass(frozen=True)
class EncoderConfig:
    """What the file of another project's encoder does not tell."""

    arch: str | None = setting(
        None,
        "timm's name of another project's encoder.",
        chosen="the weights, which tell a ResNet",
    )
    stem: OtherStem | None = setting(
        None, "First layers of another project's ResNet.", chosen="the first convolution"
    )
    prefix: str | None = setting(
        None,
        "What the weights of another project's encoder begin with in its file, where it holds several: "
        "momentum_encoder.",
        chosen="the project, or the only encoder in the file",
    )
    mean: tuple[float, ...] | None = setting(
        None,
        "Mean of each channel of another project's images, in [0, 1].",
        chosen="nothing: ImageNet's",
    )
    std: tuple[float, ...] | None = setting(
        None,
        "Standard deviation of each channel of another project's images.",
        above=0,
        chosen="nothing: ImageNet's",
    )
    size: int | None = setting(
        None,
        "Side of the encoder's input, in pixels.",
        chosen="the pretraining, else 224, or 32 for a small stem",
    )


@dataclass(frozen=True)
class DoctorConfig:
    """`mixco doctor`: look at images and machine before a run. It takes the options of pretrain."""

    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    all: bool = setting(
        False, "Decode every file, however long it takes, not only as many as half a minute allows."
    )
    trial: bool = setting(True, "Try some steps, for the time and the memory that the run needs.")
    json: Path | None = setting(
        None, "A file for everything that was found.", chosen="nothing: no file"
    )


@dataclass(frozen=True)
class EvaluationConfig:
    """The encoder, and the labelled images."""

    run: Path | None = setting(
        None,
        "A run folder: its encoder, its data, and where results.json is written.",
        chosen="nothing: none; give it or --checkpoint",
    )
    checkpoint: Path | None = setting(
        None,
        "Weights instead of a run: an encoder.safetensors, a checkpoint, also of another project, or "
        "published ones (timm:NAME, hf:OWNER/NAME, efficientnet-lite0).",
        chosen="nothing: none; give it or --run",
    )
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    data: Data | None = setting(
        None,
        "A data set by its name, or a folder with train/<class>/ and test/<class>/ (or val/). Also "
        "several folders, lists, shards, and hf:OWNER/NAME, as in `mixco pretrain`.",
        chosen="the run",
        may_be_path=True,
    )
    data_path: Path | None = _data_path()
    labels_from: Path | None = labels_from()
    path_column: str | None = column("path", "path, file, image, id, ...")
    label_column: str | None = column("label", "label, class, ...")
    split_column: str | None = column("split", "split")
    train_folder: str | None = setting(
        None, "The folder below --data whose images are learned from.", chosen="nothing: train"
    )
    test_folder: str | None = setting(
        None,
        "The folder below --data whose images are tested.",
        chosen="the folders: test, or val where test is missing or has no class folders",
    )
    download: bool = setting(
        False,
        "Download a named data set into --data-path first, unless it is there.",
        affects="nothing",
    )
    labels: str | None = setting(
        None,
        "1% or 10% of the train split's labels, or a file that lists images.",
        chosen="nothing: all labels",
        may_be_path=True,
    )
    max_unreadable: float = setting(
        MAX_UNREADABLE,
        "Share of the images that may be unreadable; they are left out. More end the evaluation.",
        at_least=0,
        below=1,
    )
    out: Path | None = setting(
        None, "The folder for results.json and classifiers.", chosen="the run", affects="nothing"
    )
    cache: Path = setting(Path("~/.cache/mixco"), "Where packed images are kept.", affects="run")
    loading: Loading = setting(
        "auto",
        "packed: decoded once. streamed: decoded as they are needed. auto: packed where it fits.",
        affects="run",
    )
    workers: int | None = _workers()
    device: Device = _device()
    precision: Precision = _precision()
    seed: int = setting(0, "Seed of all random numbers.")


@dataclass(frozen=True)
class ClassifierConfig:
    """Training of a classifier on augmented images (linear --protocol paper, finetune)."""

    optimizer: Literal["sgd", "adam"] = setting("sgd", "SGD has momentum 0.9.")
    lr: float | None = setting(
        None,
        "Peak learning rate; of the backbone in finetune.",
        above=0,
        chosen="nothing: for a linear classifier that of the run's recipe (published: 30 on ImageNet, 3 "
        "on Tiny-ImageNet), else by the scale of the features; 0.1 x batch / 256 from scratch, 0.02 in "
        "finetune",
    )
    batch_size: int = setting(256, "Images of a step.", at_least=1)
    weight_decay: float | None = setting(
        None,
        "Weight decay.",
        at_least=0,
        chosen="the command: 0 for linear and finetune, 5e-4 for --supervised",
    )


@dataclass(frozen=True)
class LinearConfig:
    """`mixco linear`: a linear classifier on the frozen encoder."""

    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    protocol: Literal["fast", "paper"] = setting(
        "fast",
        "fast: a probe on features that chooses its settings on held-out images; it takes --epochs, but "
        "no other option of the classifier. paper: as published, SGD on augmented images.",
    )
    epochs: int = _epochs(100, "Passes over the images, or over their features.")
    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)
    milestones: tuple[float, ...] = setting(
        (0.6, 0.8), "Shares of all steps at which the rate is divided by ten.", above=0, below=1
    )
    supervised: bool = setting(
        False,
        "The supervised baseline: the same network from scratch, trained whole with the labels.",
    )
    evaluate: bool = setting(False, "Test the classifier that was saved, without training.")


@dataclass(frozen=True)
class FinetuneConfig:
    """`mixco finetune`: train the whole network with labels, starting from the encoder."""

    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    init: Path | None = setting(
        None,
        f"Weights to start from, as in `mixco pretrain`; the same as --checkpoint. {WEIGHTS}",
        chosen="nothing: those of --run or --checkpoint",
    )
    epochs: int = _epochs(30, "Passes over the images.")
    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)
    head_lr: float | None = setting(
        None,
        "Peak rate of the layer on top.",
        above=0,
        chosen="the scale of the features, a tenth of linear's",
    )
    evaluate: bool = setting(False, "Test the network that was saved, without training.")


@dataclass(frozen=True)
class KNNConfig:
    """`mixco knn`: k-nearest-neighbour classification on frozen features."""

    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    k: int = setting(20, "Neighbours that vote.", at_least=1)
    temperature: float = setting(
        0.07, "Temperature of the weighted votes exp(similarity / temperature).", above=0
    )
    votes: Literal["weighted", "equal"] = setting(
        "weighted", "Whether the more similar neighbours count more."
    )


@dataclass(frozen=True)
class CollectionConfig:
    """The collection of images."""

    split: Split | None = setting(
        None,
        "Split of a named data set, or of a folder with train/ and test/.",
        chosen="nothing: pretrain, or all images of a folder that the run was not trained on",
    )
    data_path: Path | None = _data_path()
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    cache: Path = setting(Path("~/.cache/mixco"), "Where the index of a folder's files is kept.")
    workers: int | None = _workers()
    device: Device = _device()
    precision: Precision = _precision()


@dataclass(frozen=True)
class EmbedConfig:
    """`mixco embed`: write a vector of each image into a file."""

    run: Path = setting(MISSING, WEIGHTS, metavar="RUN")
    data: Data | None = setting(
        None,
        "A folder of images or the name of a data set. Also several folders, lists, and shards.",
        chosen="the run",
        metavar="[DATA ...]",
        positional=True,
        may_be_path=True,
    )
    out: Path | None = setting(
        None,
        "The file: .parquet (pip install 'mixco[parquet]'), .npz or .safetensors. Under torchrun each "
        "process writes a shard of it, such as vectors-00000-of-00002.parquet.",
        chosen="nothing: none; it must be given",
    )
    normalise: bool = setting(
        True, "Scale vectors to unit length, so that their product is the cosine similarity."
    )
    collection: CollectionConfig = field(default_factory=CollectionConfig)


@dataclass(frozen=True)
class NeighboursConfig:
    """`mixco neighbours`: find the images of a collection that are nearest to some images."""

    run: Path = setting(MISSING, WEIGHTS, metavar="RUN")
    images: tuple[str, ...] = setting(
        MISSING,
        "Image files, or names of images in the collection.",
        metavar="IMAGE ...",
        may_be_path=True,
    )
    among: Data | None = setting(
        None,
        "A file of `mixco embed`, a folder of images or the name of a data set.",
        chosen="the run",
        may_be_path=True,
    )
    k: int = setting(10, "Neighbours of each image.", at_least=1)
    picture: Path | None = setting(None, "A PNG that shows them.", chosen="nothing: no picture")
    collection: CollectionConfig = field(default_factory=CollectionConfig)


@dataclass(frozen=True)
class DuplicatesConfig:
    """`mixco duplicates`: find images that are nearly or exactly the same, also in two splits."""

    run: Path = setting(
        MISSING,
        f"{WEIGHTS[:-1]}; or a file of `mixco embed`.",
        metavar="RUN|VECTORS",
    )
    among: Data | None = setting(
        None,
        "A file of `mixco embed`, a folder of images or the name of a data set.",
        chosen="the run",
        may_be_path=True,
    )
    threshold: float = setting(
        0.999,
        "The least cosine similarity to the first image of a group. It depends on the encoder: see "
        "docs/embedding.md.",
        above=0,
        at_most=1,
    )
    between: tuple[Split, Split] | None = setting(
        None,
        "Two splits: find the images of the second that are in the first, such as `train test`. Splits "
        "are called as in --split.",
        chosen="nothing: groups within one collection",
        metavar="SPLIT SPLIT",
    )
    out: Path | None = setting(
        None, "A file for the groups, .csv or .json.", chosen="nothing: no file"
    )
    picture: Path | None = setting(
        None,
        "A PNG of the groups that are printed, at most 48, and of 8 images of each.",
        chosen="nothing: no picture",
    )
    show: int = setting(
        20,
        "Groups that are printed, the tightest first, and images of each; 0 for all.",
        at_least=0,
    )
    collection: CollectionConfig = field(default_factory=CollectionConfig)


@dataclass(frozen=True)
class DownloadConfig:
    """`mixco download`: get a data set by its name, or from the Hugging Face hub."""

    name: str = setting(
        MISSING,
        f"One of {', '.join(DATASETS)}. For those that cannot be downloaded it says how to get them. Or "
        "hf:OWNER/NAME, Parquet files on the Hugging Face hub; also hf:OWNER/NAME@REVISION and "
        "hf:OWNER/NAME:CONFIG.",
        metavar="NAME",
    )
    data_path: Path | None = setting(
        None,
        "The folder for the data set.",
        chosen="nothing: none; it must be given, except for those of the hub, which lie in its cache",
    )


@dataclass(frozen=True)
class ReportConfig:
    """`mixco report`: make a page on one or several runs, or only their table."""

    runs: tuple[Path, ...] = setting(
        MISSING,
        "Run folders, or results.json files that hold several runs. Pictures are of the first. Also a "
        "file of weights or published ones, with --data.",
        metavar="RUN ...",
    )
    out: Path | None = setting(
        None,
        "The page. Its figures are also written as PNGs, into a folder beside it with the same name.",
        chosen="the runs: report.html in the run's folder, or in the folder around several",
    )
    images: tuple[Path, ...] = setting(
        (),
        "Image files whose nearest neighbours are shown, or names below the folder of the run's images.",
    )
    most_images: int = setting(
        5000, "Images that are looked at; of more, a random part.", at_least=1
    )
    data: Data | None = setting(
        None,
        "Where the run's images lie, if they have moved, as in `mixco pretrain`.",
        chosen="the run",
        may_be_path=True,
    )
    data_path: Path | None = _data_path()
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    device: Device = _device()
    table: bool = setting(
        False,
        "No page: print a Markdown table, a row for each setting, with mean and spread over the seeds.",
    )
    collect: Path | None = setting(
        None,
        "No page: a results.json of many runs, to which these are added. Several processes may do so at "
        "once.",
        chosen="nothing: no collection",
    )
    name: str | None = setting(
        None, "What a single run is called in that file.", chosen="nothing: the name of its folder"
    )


@dataclass(frozen=True)
class ExportConfig:
    """`mixco export`: take an encoder away in another library's format, with a model card."""

    run: Path = setting(
        MISSING,
        WEIGHTS,
        metavar="RUN",
    )
    to: Literal["timm", "torchvision", "safetensors", "onnx", "hub"] = setting(
        "timm", "The format. hub: a folder for the Hugging Face hub, which timm loads from there."
    )
    out: Path | None = setting(
        None, "The folder to make.", chosen="the run: exports/FORMAT in it, or beside the file"
    )
    license: str | None = setting(
        None,
        "Licence of the weights, for the card: mit, apache-2.0, cc-by-nc-4.0, ...",
        chosen="nothing: none; the card says that it is unknown",
    )
    onnx_input: Literal["unit", "bytes", "normalised"] = setting(
        "unit",
        "What the ONNX graph takes. unit: floats from 0 to 1. bytes: uint8. Both are normalised in the "
        "graph. normalised: what is normalised already.",
    )
    encoder: EncoderConfig = field(default_factory=EncoderConfig)


@dataclass(frozen=True)
class PushConfig:
    """`mixco push`: put an encoder onto the Hugging Face hub, with the token in HF_TOKEN."""

    run: Path = setting(
        MISSING,
        "A run folder, an encoder.safetensors or a checkpoint; or what `mixco export --to hub` made.",
        metavar="RUN",
    )
    repo_id: str = setting(
        MISSING, "The repository. It is made unless it is there.", metavar="OWNER/NAME"
    )
    private: bool = setting(False, "Make a private repository.")
    license: str | None = setting(
        None,
        "As in `mixco export`; an export has it in its card already.",
        chosen="nothing: none; the card says that it is unknown",
    )


@dataclass(frozen=True)
class DemoConfig:
    """`mixco demo`: the main job on the built-in sample, with and without mixing."""

    out: Path = setting(Path("runs/demo"), "The folder for runs, results.json and pictures.")
    seed: int = setting(0, "Seed of all random numbers.")
    device: Device = _device()
    precision: Precision = _precision()
    epochs: int | None = setting(
        None, "How often each image is seen.", at_least=1, chosen="the recipe"
    )
    cache: Path = setting(Path("~/.cache/mixco"), "Where packed images are kept.")
