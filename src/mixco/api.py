"""The commands as Python functions: by a config, or by the command line's settings as keywords."""

import inspect
from collections.abc import Callable, Iterable
from dataclasses import MISSING, Field, dataclass
from os import PathLike
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, TypeVar

from mixco.comparison import compare as comparison
from mixco.embeddings import commands
from mixco.embeddings import duplicates as copies
from mixco.embeddings.embedding import Embedder, load_encoder
from mixco.encoders.loading import LoadedEncoder
from mixco.evaluation import EVALUATIONS, protocols
from mixco.evaluation import evaluate as run_evaluation
from mixco.evaluation.features import Features
from mixco.runtime.distributed import launch_env
from mixco.runtime.errors import UserError
from mixco.runtime.progress import say
from mixco.runtime.run_folder import read_json, read_metrics
from mixco.settings.commands import (
    DuplicatesConfig,
    EmbedConfig,
    FinetuneConfig,
    KNNConfig,
    LinearConfig,
    NeighboursConfig,
    ReportConfig,
)
from mixco.settings.compare import CompareConfig
from mixco.settings.config import PretrainConfig
from mixco.settings.parse import flat_fields, from_dict, load_recipe, nearest, with_settings
from mixco.training import pretrain as training

Function = TypeVar("Function", bound=Callable[..., Any])
AnyPath = str | PathLike[str]


@dataclass(frozen=True)
class Run:
    """What pretraining left in a folder; goes wherever a path does."""

    folder: Path

    @property
    def config(self) -> PretrainConfig:
        """The resolved settings."""
        path = self.folder / "config.json"
        return from_dict(PretrainConfig, read_json(path), str(path))

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """A record an epoch: epoch, loss, clean, lr, images_per_second, data_wait; mixed, knn."""
        return read_metrics(self.folder)

    @property
    def results(self) -> dict[str, Any]:
        """results.json: what pretraining came to, and each evaluation so far."""
        results: dict[str, Any] = read_json(self.folder / "results.json")
        return results

    def encoder(self) -> Embedder:
        """The encoder, loaded (see `load_encoder`)."""
        return load_encoder(self.folder)

    def __fspath__(self) -> str:
        return str(self.folder)

    def __truediv__(self, name: AnyPath) -> Path:
        return self.folder / name


def takes(config: type) -> Callable[[Function], Function]:
    """Show a config's settings as a function's keywords, in help() and to completion."""

    def keyword(field: Field[Any]) -> inspect.Parameter:
        default = None if field.default is MISSING else field.default
        kind = inspect.Parameter.KEYWORD_ONLY
        return inspect.Parameter(field.name, kind, default=default, annotation=field.type)

    def shown(function: Function) -> Function:
        own = inspect.signature(function)
        named = [p for p in own.parameters.values() if p.kind != inspect.Parameter.VAR_KEYWORD]
        fields = (f for f in flat_fields(config).values() if f.name not in own.parameters)
        parameters = [*named, *map(keyword, fields)]
        function.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
        return function

    return shown


@takes(PretrainConfig)
def pretrain(config: PretrainConfig | None = None, **settings: Any) -> Run:
    """Train an encoder without labels and leave everything in a run folder (see runtime/run_folder.py).

    config: the settings, or those of a recipe (recipe="..."), or else the defaults. Keywords go first:
    those of `mixco pretrain --help`, with underscores, as in `pretrain(data="photos/", epochs=50)`.

    A run that was stopped goes on with the same call; one that is finished stays as it is.

    Raises UserError for an unknown keyword, with the nearest known one, and for whatever else can be
    mended.
    """
    if recipe := settings.get("recipe"):
        if config is not None:
            raise UserError("pretrain: give a config or recipe=, not both")
        config = load_recipe(recipe)
    config = with_settings(config or PretrainConfig(), settings, "pretrain")
    return Run(pretrain_and_report(config))


def pretrain_and_report(config: PretrainConfig) -> Path:
    """Pretrain, and then make the page of the run where the settings ask for it.

    A page that cannot be made is a warning: the run is there.
    """
    rehearsals = (_rehearse_export, *((_rehearse_page,) if config.run.report else ()))
    folder = training.pretrain(config, rehearsals=rehearsals)
    if config.run.report and launch_env().rank == 0:
        from mixco.report.page import write_page  # it takes time to load, and is seldom wanted

        try:
            page = write_page(ReportConfig((folder,), device=config.run.device))
        except Exception as error:  # of many libraries; the run is worth more than its page
            reason = str(error) or type(error).__name__
            say(f"warning: no page of the run ({reason}); `mixco report {folder}` tries it again")
        else:
            say(f"the page of the run: {page}")
    return folder


def _rehearse_export(encoder: LoadedEncoder, folder: Path) -> None:
    from mixco.export.export import rehearse  # it takes time to load, too

    rehearse(encoder, folder)


def _rehearse_page(_encoder: LoadedEncoder, _folder: Path) -> None:
    try:
        from mixco.report.page import page_template

        page_template()
    except Exception as error:  # a library that is missing or broken
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"the page of the run cannot be made ({reason}); nothing was trained, leave out --report"
        ) from error


def evaluate(kind: str, **settings: Any) -> dict[str, Any]:
    """Any evaluation of the table: {"top1": percent, "top5": ..., ...}.

    kind: the name of a command, "knn", "linear", "finetune", or of one's own in
        `mixco.evaluation.EVALUATIONS`. settings: the options of that command as keywords.

    Written into the run's results.json too. Raises UserError for an unknown kind or keyword.
    """
    if kind not in EVALUATIONS:
        raise UserError(f"evaluate: {kind} is no evaluation; {nearest(kind, EVALUATIONS)}")
    config = with_settings(resolve_name(EVALUATIONS[kind].config)(), settings, kind)
    return run_evaluation(kind, config)


@takes(KNNConfig)
def evaluate_knn(
    config: KNNConfig | None = None, features: Features | None = None, **settings: Any
) -> dict[str, Any]:
    """Weighted kNN of the test split among the train split: {"top1": percent, "top5": ..., ...}.

    By a config, or by the keywords of `mixco knn --help`: `evaluate_knn(run="runs/a")`. Written into the
    run's results.json too. features: of `evaluation.features.compute_features`, to save their time.
    """
    return protocols.evaluate_knn(with_settings(config or KNNConfig(), settings, "knn"), features)


@takes(LinearConfig)
def evaluate_linear(
    config: LinearConfig | None = None, features: Features | None = None, **settings: Any
) -> dict[str, Any]:
    """A linear classifier on the frozen encoder: {"top1": percent, "top5": ..., ...}.

    By a config, or by the keywords of `mixco linear --help`; as `evaluate_knn` otherwise.
    """
    config = with_settings(config or LinearConfig(), settings, "linear")
    return protocols.evaluate_linear(config, features)


@takes(FinetuneConfig)
def finetune(config: FinetuneConfig | None = None, **settings: Any) -> dict[str, Any]:
    """Train the whole network with labels: {"top1": percent, "top5": ..., ...}.

    By a config, or by the keywords of `mixco finetune --help`; as `evaluate_knn` otherwise.
    """
    return protocols.finetune(with_settings(config or FinetuneConfig(), settings, "finetune"))


@takes(CompareConfig)
def compare(runs: AnyPath | Iterable[AnyPath], **settings: Any) -> dict[str, Any]:
    """Was it worth it? Runs beside the weights they began with, and labels alone, on the same images.

    By the keywords of `mixco compare --help`. Returns what it writes into compare.json: "rows",
    "verdicts" (each with an "outcome" and a "sentence"; none without labels) and "notes".
    """
    given = [runs] if isinstance(runs, (str, PathLike)) else list(runs)
    config = CompareConfig(tuple(Path(run) for run in given))
    return comparison.compare(with_settings(config, settings, "compare"))


@takes(EmbedConfig)
def embed(run: AnyPath, data: AnyPath | None = None, **settings: Any) -> Path:
    """Write the vectors of a collection of images into a file, out="vectors.parquet"; returns it.

    Under torchrun each process writes a shard, vectors-00000-of-00002.parquet, and returns that.

    By the keywords of `mixco embed --help`. For vectors in memory there is `load_encoder(run).embed`.
    """
    config = with_settings(EmbedConfig(Path(run)), {"data": data, **settings}, "embed")
    return commands.embed(config)


@takes(NeighboursConfig)
def neighbours(
    run: AnyPath, images: AnyPath | Iterable[AnyPath], **settings: Any
) -> list[commands.Neighbours]:
    """Of each image the nearest ones of a collection, by the keywords of `mixco neighbours --help`."""
    given = [images] if isinstance(images, (str, PathLike)) else list(images)
    config = NeighboursConfig(Path(run), tuple(map(str, given)))
    return commands.neighbours(with_settings(config, settings, "neighbours"))


@takes(DuplicatesConfig)
def duplicates(run: AnyPath, **settings: Any) -> list[copies.Duplicates]:
    """Groups of near-duplicates in a collection, by the keywords of `mixco duplicates --help`.

    between=("train", "test"): a pair for each image of test that is in train, exactly or nearly; the
    first of its two paths is that of test.
    """
    return copies.duplicates(with_settings(DuplicatesConfig(Path(run)), settings, "duplicates"))
