"""The command line: a table of commands. Each loads what it needs only when it runs."""

import os
import sys
import textwrap
from collections.abc import Callable
from functools import partial
from pkgutil import resolve_name
from typing import Any, NamedTuple, TypeVar

from mixco.evaluation import EVALUATIONS, evaluate, measured
from mixco.runtime.errors import UserError
from mixco.runtime.files import shown
from mixco.runtime.streams import Unread, answer, shown_lines, usable_streams
from mixco.runtime.version import VERSION
from mixco.settings.commands import DoctorConfig, DownloadConfig
from mixco.settings.config import PretrainConfig, of_other_bases
from mixco.settings.parse import load_recipe, nearest, recipe_names

T = TypeVar("T")

ABOUT = "Pretrain an image encoder without labels, with or without mixed images, and measure it."
# Commands in the order of a project; others follow.
ORDER = (
    *("demo", "doctor", "pretrain", "compare", "linear", "knn", "finetune", "embed", "neighbours"),
    *("duplicates", "report", "export", "push", "download"),
)


class Command(NamedTuple):
    """A command of `mixco`."""

    summary: str
    """Its line in `mixco --help`."""
    config: str
    """Import string of its settings, "module:class"."""
    run: str | Callable[[Any], Any]
    """The function that takes them, or its import string."""
    show: Callable[[Any, Any], None]
    """(settings, what the function returned): prints it."""


def show_run(_: Any, folder: Any) -> None:
    from mixco.runtime.progress import say

    say(f"done: {folder}")
    say(
        f"next: mixco report {folder}; mixco neighbours {folder} IMAGE; mixco export {folder} --to timm"
    )


def show_doctor(_: Any, found: dict[str, Any]) -> None:
    """The page is printed already."""
    if found["unusable"]:
        sys.exit(2)


def show_done(_: Any, path: Any) -> None:
    if path is not None:
        from mixco.runtime.progress import say

        say(f"done: {path}")


def show_value(_: Any, value: Any) -> None:
    answer(str(value))


def show_nothing(*_: Any) -> None:
    """For commands that print by themselves."""


def show_compared(config: Any, found: dict[str, Any]) -> None:
    from mixco.report.compared import markdown, print_compared

    if config.markdown:
        answer(markdown(found))
    else:
        print_compared(found)


def show_neighbours(_: Any, found: list[Any]) -> None:
    for each in found:
        answer(shown(each.image))
        for path, similarity in zip(each.paths, each.similarities, strict=True):
            answer(f"  {similarity:.4f}  {shown(path)}")


def show_duplicates(config: Any, groups: list[Any]) -> None:
    if config.between is not None:
        return show_between(config, groups)
    most = config.show or sys.maxsize
    for number, group in enumerate(groups[:most], 1):
        answer(f"group {number}: {len(group.paths)} images")
        rows = list(zip(group.paths, group.similarities, group.same_pixels_as, strict=True))
        for path, similarity, same in rows[:most]:
            answer(
                f"  {similarity:.4f}  {shown(path)}"
                + (f"  (the pixels of {shown(same)})" if same else "")
            )
        if len(rows) > most:
            answer(f"  and {len(rows) - most:,} more")
    if len(groups) > most:
        answer(f"and {len(groups) - most:,} groups more; --show 0, or --out FILE, has them all")
    more = sum(len(group.paths) - 1 for group in groups)
    exact = sum(same is not None for group in groups for same in group.same_pixels_as)
    answer(
        f"groups: {len(groups):,}, at a similarity of {config.threshold:g} or more; images besides the "
        f"first ones: {more:,}, exact copies among them: {exact:,}"
    )


def show_between(config: Any, pairs: list[Any]) -> None:
    most = config.show or sys.maxsize
    for pair in pairs[:most]:
        (image, near), (_, similarity), (_, same) = (
            pair.paths,
            pair.similarities,
            pair.same_pixels_as,
        )
        answer(shown(image))
        answer(f"  {similarity:.4f}  {shown(near)}{'  (the same pixels)' if same else ''}")
    if len(pairs) > most:
        answer(f"and {len(pairs) - most:,} more; --show 0, or --out FILE, has them all")
    first, second = config.between
    exact = sum(pair.same_pixels_as[1] is not None for pair in pairs)
    answer(
        f"images of {second} that are in {first}, at a similarity of {config.threshold:g} or more: "
        f"{len(pairs):,}, exact copies among them: {exact:,}"
    )


def show_accuracy(kind: str, config: Any, result: dict[str, Any]) -> None:
    if os.environ.get("RANK", "0") != "0":
        return  # of the processes that torchrun starts, the first one speaks
    top5 = f", top-5 {result['top5']:.2f} %" if "top5" in result else ""
    answer(
        f"{EVALUATIONS[measured(kind, config)].title}: top-1 {result['top1']:.2f} %{top5}  "
        f"({result['test_images']:,} images of {result['data']}, "
        f"{result['train_images']:,} labelled; {result['training']})"
    )
    if "best_epoch" in result:
        answer(
            f"  the last of {result['epochs']} epochs; the best on the test split, which is no result: "
            f"{result['best_top1']:.2f} % after epoch {result['best_epoch']}"
        )


def download(config: DownloadConfig) -> None:
    from mixco.data.datasets import is_hub
    from mixco.data.datasets.download import download
    from mixco.runtime.progress import downloading, say

    if is_hub(config.name):  # the hub's client draws its own bar
        download(config.name, config.data_path, tell=say)
        return
    with downloading(config.name) as on_progress:
        download(config.name, config.data_path, tell=say, on_progress=on_progress)


CONFIG = "mixco.settings.commands"
COMMANDS: dict[str, Command] = {
    "demo": Command(
        "the main job on the built-in sample: pretrain, evaluate, compare, draw",
        f"{CONFIG}:DemoConfig",
        "mixco.demo:demo",
        show_nothing,
    ),
    "doctor": Command(
        "look at your images and this machine before a run: what spoils it, how long it takes",
        f"{CONFIG}:DoctorConfig",
        "mixco.doctor.doctor:doctor",
        show_doctor,
    ),
    "pretrain": Command(
        "train an encoder on your images",
        "mixco.settings.config:PretrainConfig",
        "mixco.api:pretrain_and_report",
        show_run,
    ),
    "compare": Command(
        "was it worth it? runs beside the weights they began with, and labels alone",
        "mixco.settings.compare:CompareConfig",
        "mixco.comparison.compare:compare",
        show_compared,
    ),
    "embed": Command(
        "a vector of each image, in a Parquet, NumPy or safetensors file",
        f"{CONFIG}:EmbedConfig",
        "mixco.embeddings.commands:embed",
        show_done,
    ),
    "neighbours": Command(
        "the images of a collection that are nearest to yours",
        f"{CONFIG}:NeighboursConfig",
        "mixco.embeddings.commands:neighbours",
        show_neighbours,
    ),
    "duplicates": Command(
        "groups of images that are nearly or exactly the same",
        f"{CONFIG}:DuplicatesConfig",
        "mixco.embeddings.duplicates:duplicates",
        show_duplicates,
    ),
    "report": Command(
        "a page to look at: curves, neighbours, a map, classes; several runs side by side",
        f"{CONFIG}:ReportConfig",
        "mixco.report.command:report",
        show_done,
    ),
    "export": Command(
        "a run's encoder for timm, torchvision, ONNX or the Hugging Face hub, with a model card",
        f"{CONFIG}:ExportConfig",
        "mixco.export.export:export",
        show_value,
    ),
    "push": Command(
        "put an encoder onto the Hugging Face hub",
        f"{CONFIG}:PushConfig",
        "mixco.export.push:push",
        show_value,
    ),
    "download": Command(
        "get a data set by its name, or from the Hugging Face hub",
        f"{CONFIG}:DownloadConfig",
        download,
        show_nothing,
    ),
}


def commands() -> dict[str, Command]:
    """All commands by name: COMMANDS, and one for each evaluation that has a summary."""
    evaluations = {
        kind: Command(
            entry.summary, entry.config, partial(evaluate, kind), partial(show_accuracy, kind)
        )
        for kind, entry in EVALUATIONS.items()
        if entry.summary
    }
    return COMMANDS | evaluations


def usage() -> str:
    """What `mixco --help` prints."""
    known = commands()
    width = max(map(len, known))
    order = [name for name in ORDER if name in known]
    order += [name for name in known if name not in ORDER]
    lines = "\n".join(f"  {name:{width}}  {known[name].summary}" for name in order)
    recipes = textwrap.fill(f"Recipes: {', '.join(recipe_names())}.", 100)
    return (
        f"usage: mixco COMMAND [OPTIONS]\n\n{ABOUT}\n\n{lines}\n\n"
        f"`mixco COMMAND --help` shows the options of a command.\n{recipes}"
    )


def run(name: str, arguments: list[str]) -> None:
    """Run one command."""
    command = commands()[name]
    config = read(name, resolve_name(command.config), arguments)
    function = resolve_name(command.run) if isinstance(command.run, str) else command.run
    command.show(config, function(config))


def read(name: str, kind: type[T], arguments: list[str]) -> T:
    """The settings of a command from its options, over those of a recipe where one is given."""
    from mixco.settings.options import parse  # loads tyro, which `mixco --help` does without

    if name == "doctor" and arguments and not arguments[0].startswith("-"):
        arguments = ["--data", *arguments]
    if kind not in (PretrainConfig, DoctorConfig):
        return parse(kind, name, arguments)
    recipe = _given("--recipe", arguments)
    default = load_recipe(recipe) if recipe else PretrainConfig()
    left_out = set[str]()
    if {"--help", "-h"} & {*arguments}:  # nobody wants to read the options of six bases
        left_out = of_other_bases(_given("--method", arguments) or default.method.method)
    settings: Any = default if kind is PretrainConfig else DoctorConfig(default)
    config: T = parse(kind, name, arguments, settings, left_out)
    return config


def main(arguments: list[str] | None = None) -> None:
    """Run one command. A mistake of the user ends in one sentence on stderr and exit code 2."""
    arguments = sys.argv[1:] if arguments is None else arguments
    name, *rest = arguments or ["--help"]
    with usable_streams():
        try:
            if name in ("--help", "-h"):
                print(usage())
            elif name == "--version":
                print(f"mixco {VERSION}")
            elif name in commands():
                run(name, rest)
            else:
                raise UserError(f"{name} is not a command of mixco; {nearest(name, commands())}")
        except UserError as error:
            process = os.environ.get("RANK", "0")  # of those that torchrun started
            _leave(f"mixco: {error}" if process == "0" else f"mixco, process {process}: {error}", 2)
        except Unread:
            sys.exit(1)
        except KeyboardInterrupt as stopped:
            _leave(f"mixco: {str(stopped) or 'stopped; what was written stays'}", 130)


def _leave(sentence: str, code: int) -> None:
    print(shown_lines(sentence), file=sys.stderr)
    sys.exit(code)


def _given(option: str, arguments: list[str]) -> str | None:
    """What an option is given, before the options are parsed; None for nothing."""
    for i, argument in enumerate(arguments):
        if argument.startswith(f"{option}="):
            return argument.removeprefix(f"{option}=")
        if argument == option and i + 1 < len(arguments):
            return arguments[i + 1]
    return None
