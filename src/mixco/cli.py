"""The command line: a verb, its options, one call. Libraries that load slowly load in the verbs."""

import os
import sys
import textwrap
from collections.abc import Callable
from typing import Any, TypeVar

import tyro

from mixco.runtime.errors import UserError
from mixco.settings.config import (
    DemoConfig,
    DoctorConfig,
    DownloadConfig,
    DuplicatesConfig,
    EmbedConfig,
    ExportConfig,
    FinetuneConfig,
    KNNConfig,
    LinearConfig,
    NeighboursConfig,
    PretrainConfig,
    PushConfig,
    ReportConfig,
)
from mixco.settings.resolve import load_recipe, nearest, recipe_names

T = TypeVar("T")

USAGE = """\
usage: mixco VERB [OPTIONS]

Pretrain an image encoder without labels, with or without mixed images, and see what it is worth.

  demo       the main job on the built-in sample: pretrain, evaluate, compare, draw
  doctor     look at your images and this machine before a run: what spoils it, how long it takes
  pretrain   train an encoder on your images
  linear     a linear classifier on a run's frozen encoder, fast or as published
  knn        nearest-neighbour classification with a run's frozen encoder
  finetune   train the whole network with labels, starting from a run's encoder
  embed      a vector of each image, in a Parquet, NumPy or safetensors file
  neighbours the images of a collection that are nearest to yours
  duplicates groups of images that are nearly, or exactly, the same
  report     a page to look at: curves, neighbours, a map, classes; several runs side by side
  export     a run's encoder for timm, torchvision, ONNX or the Hugging Face hub, with a model card
  push       put it onto the Hugging Face hub
  download   get a data set by its name

`mixco VERB --help` tells a verb's options.
"""


def parse(cls: type[T], verb: str, arguments: list[str], default: T) -> T:
    """Options without prefixes, whichever part of the config they belong to; a typo exits with 2."""
    return tyro.cli(
        cls,
        prog=f"mixco {verb}",
        description=(cls.__doc__ or "").partition(": ")[2],
        args=arguments,
        default=default,
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.PositionalRequiredArgs),
    )


def demo(arguments: list[str]) -> None:
    config = parse(DemoConfig, "demo", arguments, DemoConfig())
    from mixco.demo import demo as run

    run(config)


def pretrain(arguments: list[str]) -> None:
    recipe = _recipe_in(arguments)
    default = load_recipe(recipe) if recipe else PretrainConfig()
    config = parse(PretrainConfig, "pretrain", arguments, default)
    from mixco.runtime.progress import say
    from mixco.training.pretrain import pretrain as run

    folder = run(config)
    say(f"done: {folder}")
    say(
        f"next: mixco report {folder}; mixco neighbours {folder} IMAGE; mixco export {folder} --to timm"
    )


def doctor(arguments: list[str]) -> None:
    if arguments and not arguments[0].startswith("-"):
        arguments = ["--data", *arguments]
    recipe = _recipe_in(arguments)
    default = DoctorConfig(load_recipe(recipe) if recipe else PretrainConfig())
    config = parse(DoctorConfig, "doctor", arguments, default)
    from mixco.doctor.doctor import doctor as run

    if run(config)["unusable"]:
        sys.exit(2)


def linear(arguments: list[str]) -> None:
    config = parse(LinearConfig, "linear", arguments, LinearConfig())
    from mixco.evaluation.protocols import evaluate_linear

    what = "linear probe" if config.protocol == "fast" else "linear classifier, as published"
    _print_accuracy("supervised" if config.supervised else what, evaluate_linear(config))


def knn(arguments: list[str]) -> None:
    config = parse(KNNConfig, "knn", arguments, KNNConfig())
    from mixco.evaluation.protocols import evaluate_knn

    _print_accuracy("kNN", evaluate_knn(config))


def finetune(arguments: list[str]) -> None:
    config = parse(FinetuneConfig, "finetune", arguments, FinetuneConfig())
    from mixco.evaluation.protocols import finetune as run

    _print_accuracy("fine-tuned", run(config))


def embed(arguments: list[str]) -> None:
    config = parse(EmbedConfig, "embed", arguments, EmbedConfig(tyro.MISSING))
    from mixco.embeddings.commands import embed as run
    from mixco.runtime.progress import say

    say(f"done: {run(config)}")


def neighbours(arguments: list[str]) -> None:
    default = NeighboursConfig(tyro.MISSING, tyro.MISSING)
    config = parse(NeighboursConfig, "neighbours", arguments, default)
    from mixco.embeddings.commands import neighbours as run

    for each in run(config):
        print(each.image)
        for path, similarity in zip(each.paths, each.similarities, strict=True):
            print(f"  {similarity:.4f}  {path}")


def duplicates(arguments: list[str]) -> None:
    config = parse(DuplicatesConfig, "duplicates", arguments, DuplicatesConfig(tyro.MISSING))
    from mixco.embeddings.commands import duplicates as run

    groups, most = run(config), config.show or sys.maxsize
    for number, group in enumerate(groups[:most], 1):
        print(f"group {number}: {len(group.paths)} images")
        rows = list(zip(group.paths, group.similarities, group.same_pixels_as, strict=True))
        for path, similarity, same in rows[:most]:
            print(f"  {similarity:.4f}  {path}" + (f"  (the pixels of {same})" if same else ""))
        if len(rows) > most:
            print(f"  and {len(rows) - most:,} more")
    if len(groups) > most:
        print(f"and {len(groups) - most:,} groups more; --show 0, or --out FILE, has them all")
    more = sum(len(group.paths) - 1 for group in groups)
    exact = sum(same is not None for group in groups for same in group.same_pixels_as)
    print(
        f"groups: {len(groups):,}, at a similarity of {config.threshold:g} or more; images beside the "
        f"first ones: {more:,}, exact copies among them: {exact:,}"
    )


def report(arguments: list[str]) -> None:
    config = parse(ReportConfig, "report", arguments, ReportConfig(tyro.MISSING))
    from mixco.report.table import table
    from mixco.runtime.run_folder import collect

    if not config.runs:
        raise UserError("report: give run folders, or results.json files that hold several runs")
    if config.name is not None and (config.collect is None or len(config.runs) != 1):
        raise UserError("--name is what --collect calls a single run; leave it out")
    page = not config.table and config.collect is None
    if not page and (config.out or config.images):
        raise UserError("--out and --images are of the page; leave out --table and --collect")
    if config.collect is not None:
        for run in config.runs:
            collect(run, config.collect, config.name or run.resolve().name)
    if config.table:
        print(table(config.runs))
    if page:
        from mixco.report.page import write_page
        from mixco.runtime.progress import say

        say(f"done: {write_page(config)}")


def export(arguments: list[str]) -> None:
    config = parse(ExportConfig, "export", arguments, ExportConfig(tyro.MISSING))
    from mixco.export.export import export as run

    print(run(config))


def push(arguments: list[str]) -> None:
    config = parse(PushConfig, "push", arguments, PushConfig(tyro.MISSING, tyro.MISSING))
    from mixco.export.push import push as run

    print(run(config))


def download(arguments: list[str]) -> None:
    config = parse(DownloadConfig, "download", arguments, DownloadConfig(tyro.MISSING))
    from mixco.data.datasets.download import download as run
    from mixco.runtime.progress import downloading, say

    with downloading(config.name) as on_progress:
        run(config.name, config.data_path, tell=say, on_progress=on_progress)


VERBS: dict[str, Callable[[list[str]], None]] = {
    "demo": demo,
    "doctor": doctor,
    "pretrain": pretrain,
    "linear": linear,
    "knn": knn,
    "finetune": finetune,
    "embed": embed,
    "neighbours": neighbours,
    "duplicates": duplicates,
    "report": report,
    "export": export,
    "push": push,
    "download": download,
}


def main(arguments: list[str] | None = None) -> None:
    """Run one verb. A mistake of the user's ends in one sentence on stderr and exit code 2."""
    arguments = sys.argv[1:] if arguments is None else arguments
    verb, *rest = arguments or ["--help"]
    try:
        if verb in ("--help", "-h"):
            recipes = textwrap.fill(f"Recipes: {', '.join(recipe_names())}.", 100)
            print(f"{USAGE}{recipes}")
        elif verb == "--version":
            from mixco.runtime.version import mixco_version

            print(f"mixco {mixco_version()}")
        elif verb in VERBS:
            VERBS[verb](rest)
        else:
            raise UserError(f"{verb} is not a verb of mixco; {nearest(verb, VERBS)}")
    except UserError as error:
        process = os.environ.get("RANK", "0")  # of those that torchrun started
        who = "mixco" if process == "0" else f"mixco, process {process}"
        print(f"{who}: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as stopped:
        print(f"mixco: {str(stopped) or 'stopped; what was written stays'}", file=sys.stderr)
        sys.exit(130)


def _recipe_in(arguments: list[str]) -> str | None:
    for i, argument in enumerate(arguments):
        if argument.startswith("--recipe="):
            return argument.removeprefix("--recipe=")
        if argument == "--recipe" and i + 1 < len(arguments):
            return arguments[i + 1]
    return None


def _print_accuracy(what: str, result: dict[str, Any]) -> None:
    if os.environ.get("RANK", "0") != "0":
        return  # of the processes that torchrun starts the first one speaks
    print(
        f"{what}: top-1 {result['top1']:.2f} %, top-5 {result['top5']:.2f} %  "
        f"({result['test_images']:,} images of {result['data']}, "
        f"{result['train_images']:,} labelled; {result['training']})"
    )
    if "best_epoch" in result:
        print(
            f"  the last of {result['epochs']} epochs; the best on the test split, which is no result: "
            f"{result['best_top1']:.2f} % after epoch {result['best_epoch']}"
        )
