"""The results of several runs side by side: one row a setting, mean and spread over its seeds.

Reads run folders and collections (see runtime/run_folder.py); needs neither torch nor the images.
"""

from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from mixco.evaluation.kinds import in_order, title_of
from mixco.runtime.errors import UserError
from mixco.runtime.run_folder import read_json, run_results
from mixco.settings.parse import affects, with_unsaid

# The columns that identify a row; other settings are named only where two rows would look alike.
SHOWN = ("method", "data", "arch", "size", "epochs")

# Settings whose values a row shows already, as the run recorded them in its results.
SHOWN_SETTINGS = {"data.data", "data.size", "model.arch", "optimisation.epochs"}

# What an evaluation was set to beforehand; not what it found or chose by the data.
EVALUATED_WITH = (
    *(
        "k",
        "temperature",
        "votes",
        "epochs",
        "optimizer",
        "schedule",
        "milestones",
        "batch_size",
        "lr",
    ),
    *("labels", "size", "train_images", "test_images"),
)

NUMBERS = {"top1": "top-1", "top5": "top-5"}
NO_RESULTS = ("config", "pretrain")  # entries of a run's results that are no evaluations


def distinguishes(name: str) -> bool:
    """Whether runs that differ in a setting are different experiments; name: "data.size", ...

    Not the seed: runs that differ in nothing else are repetitions of one experiment.
    """
    return affects().get(name, "learning") == "learning" and name != "run.seed"


@dataclass(frozen=True)
class Row:
    """The runs of one experiment."""

    shown: tuple[str, ...]
    settings: dict[str, Any]
    """Those that distinguish it and are not shown, by dotted names."""
    runs: list[dict[str, Any]]
    """As `run_results` returns them."""


@dataclass(frozen=True)
class Table:
    """A head, lines of cells below it, and notes to be read with them."""

    head: list[str]
    lines: list[list[str]]
    notes: list[str]


def table(paths: tuple[Path, ...]) -> str:
    """A Markdown table with one row for all runs that differ by nothing but their seed.

    paths: run folders, or files or folders of collections. A run that is given twice counts once.

    Raises UserError when there is nothing to show.
    """
    rows = group([run for path in paths for run in load(path)])
    if not rows:
        raise UserError(f"{', '.join(map(str, paths))}: there are no results yet")
    shown = tabulate(rows)
    lines = [shown.head, ["---"] * len(shown.head), *shown.lines]
    escaped = [[text.replace("|", "\\|") for text in line] for line in lines]
    return "\n".join([*(f"| {' | '.join(line)} |" for line in escaped), "", *shown.notes])


def tabulate(rows: list[Row]) -> Table:
    """One line for each row, with a column for each evaluation that any run has.

    Cells are percentages; those of several runs are `mean +- standard deviation (number of runs)`, with
    the deviation of a sample (n - 1).
    """
    kinds = in_order(k for row in rows for run in row.runs for k in run if k not in NO_RESULTS)
    columns = [
        (kind, number)
        for kind in kinds
        for number in NUMBERS
        if any(_shows(run.get(kind, {}), number) for row in rows for run in row.runs)
    ]
    differences = [difference(row, rows) for row in rows]
    told = any(differences)
    head = [
        *SHOWN,
        *(["otherwise"] if told else []),
        *(f"{title_of(kind)} {NUMBERS[number]}" for kind, number in columns),
    ]
    lines = []
    for row, own in zip(rows, differences, strict=True):
        cells = [
            cell([run[kind] for run in row.runs if n in run.get(kind, {})], n)
            for kind, n in columns
        ]
        lines.append([*row.shown, *([own] if told else []), *cells])
    notes = ["In percent; of several seeds `mean +- standard deviation (seeds)`."]
    if any(" / " in text for line in lines for text in line[len(SHOWN) + told :]):
        notes.append("A / separates evaluations with different settings.")
    return Table(head, lines, notes)


def _shows(result: dict[str, Any], number: str) -> bool:
    """Whether a result has a number to show. A vote of k neighbours ranks few classes: no top-5."""
    return number in result and not (number == "top5" and "k" in result)


def load(path: Path) -> list[dict[str, Any]]:
    """The one run of a run folder, or all runs of a collection, as `run_results` returns them.

    Raises UserError when there is no results.json, or it is damaged.
    """
    results = run_results(path) if path.is_dir() else read_json(path)
    if not isinstance(results, dict) or not all(isinstance(v, dict) for v in results.values()):
        raise UserError(f"{path}: not a file of results; give a run folder or a results.json")
    # A run's entries hold numbers and texts; those of a collection are runs, which hold entries.
    entries = {key: entry for key, entry in results.items() if key != "config"}
    nested = [all(isinstance(v, dict) for v in entry.values()) for entry in entries.values()]
    if any(nested) and not all(nested):
        raise UserError(
            f"{path}: damaged, neither the results of one run nor of several; restore it"
        )
    runs = list(entries.values()) if all(nested) else [results]
    for entry in (entry for run in runs for entry in run.values()):
        for number in NUMBERS.keys() & entry.keys():
            value = entry[number]
            if type(value) not in (int, float) or not 0 <= value <= 100:
                raise UserError(
                    f"{path}: damaged, {number} is {value!r}; expected a percentage; evaluate again"
                )
    return runs


def group(runs: list[dict[str, Any]]) -> list[Row]:
    """Put runs that differ by nothing but their seed into one row; the same run twice counts once."""
    rows: list[Row] = []
    for run in runs:
        pretraining = run.get("pretrain", {})
        if not pretraining and not (run.keys() - {"config"}):
            continue
        settings = {
            name: value
            for name, value in flat(with_unsaid(run["config"]) if run.get("config") else {}).items()
            if distinguishes(name) and name not in SHOWN_SETTINGS
        }
        settings["images"] = pretraining.get("images")
        shown = tuple(str(value) for value in describe(run))
        for row in rows:
            if (row.shown, row.settings) == (shown, settings):
                if run not in row.runs:
                    row.runs.append(run)
                break
        else:
            rows.append(Row(shown, settings, [run]))
    return rows


def describe(run: dict[str, Any]) -> tuple[Any, ...]:
    """The values of the columns SHOWN: as the run recorded them, or else from its config."""
    config = flat(run.get("config", {}))
    pretraining = {
        "arch": config.get("model.arch", ""),
        "size": config.get("data.size", ""),
        **run.get("pretrain", {}),
    }
    if "method" not in pretraining:  # an evaluation of another project's encoder
        texts = [entry.get("training", "") for kind, entry in run.items() if kind != "config"]
        pretraining["method"] = texts[0]
    data = str(pretraining.get("data", "")).removesuffix("/pretrain").removesuffix("/train")
    return tuple(data if key == "data" else pretraining.get(key, "") for key in SHOWN)


def flat(config: dict[str, Any], above: str = "") -> dict[str, Any]:
    """{"method": {"mix": "none"}} -> {"method.mix": "none"}"""
    values: dict[str, Any] = {}
    for key, value in config.items():
        inner = flat(value, f"{above}{key}.") if isinstance(value, dict) else {above + key: value}
        values.update(inner)
    return values


def difference(row: Row, rows: list[Row]) -> str:
    """The settings that tell a row from those that look like it: "temperature 0.1, queue 4096"."""
    alike = [other.settings for other in rows if other.shown == row.shown]
    names = dict.fromkeys(name for settings in alike for name in settings)
    differing = [n for n in names if any(s.get(n) != row.settings.get(n) for s in alike)]
    return ", ".join(f"{name.split('.')[-1]} {row.settings.get(name)}" for name in differing)


def cell(results: list[dict[str, Any]], number: str) -> str:
    """The results of one evaluation of a row's runs: one spread for each way of evaluating."""

    def settings(result: dict[str, Any]) -> list[Any]:
        given = result.get("head_lr_from") == "settings"
        split = str(result.get("data", "")).rpartition("/")[2]  # test and val are two things
        return [*map(result.get, EVALUATED_WITH), split, result.get("head_lr") if given else None]

    apart: list[list[dict[str, Any]]] = []
    for result in results:
        for together in apart:
            if settings(together[0]) == settings(result):
                together.append(result)
                break
        else:
            apart.append([result])
    return " / ".join(spread([result[number] for result in together]) for together in apart)


def spread(values: list[float]) -> str:
    """ "62.1 +- 0.8 (3)", of one value "62.1"."""
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{mean(values):.1f} +- {stdev(values):.1f} ({len(values)})"
