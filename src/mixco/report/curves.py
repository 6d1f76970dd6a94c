"""The page's sections of numbers: the curves of its runs, and their results side by side."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mixco.evaluation.kinds import in_order, title_of
from mixco.plots.charts import Line, dots, panel
from mixco.plots.style import SERIES
from mixco.report.figures import Drawing, finish
from mixco.report.run import Run
from mixco.report.table import NO_RESULTS, Row, Table, difference, distinguishes, tabulate
from mixco.report.text import method_of

# Columns of metrics.jsonl: title, unit, factor. Others are drawn under their own names.
PANELS = {
    "knn": ("kNN, held-out training images", "%", 1.0),
    "lr": ("Learning rate", "", 1.0),
    "images_per_second": ("Speed", "images/s", 1.0),
    "data_wait": ("Waiting for images", "% of the time", 100.0),
}
LAST = ("lr", "images_per_second", "data_wait")
LOSSES = ("loss", "clean", "mixed")


def settings(runs: Sequence[Run]) -> list[tuple[str, list[Run]]]:
    """Runs that differ by nothing but their seed, together, with a name that tells them apart."""
    groups: dict[Any, list[Run]] = {}
    for run in runs:
        learned = {k: str(v) for k, v in run.config.items() if distinguishes(k)}
        key = (run.trained, tuple(sorted(learned.items())))
        groups.setdefault(key, []).append(run)
    names = [method_of(g[0]) if g[0].trained else "random weights" for g in groups.values()]
    return [
        (name if names.count(name) == 1 else f"{name}, {group[0].name}", group)
        for name, group in zip(names, groups.values(), strict=True)
    ]


def curves(groups: list[tuple[str, list[Run]]], folder: Path) -> list[Drawing]:
    """A panel for each number that the runs recorded at their epochs."""
    runs = [run for _, group in groups for run in group]
    names = list(dict.fromkeys(name for run in runs for record in run.records for name in record))
    names = [name for name in names if name not in ("epoch", *LOSSES) and any_of(runs, name)]
    names.sort(key=lambda name: (name in LAST, name != "knn"))
    epochs = [int(record["epoch"]) for run in runs for record in run.records]
    drawings = []
    if any(any_of(runs, name) for name in LOSSES):
        drawings.append(_loss_panel(groups, epochs, folder))
    for name in names:
        own = name.replace("_", " ").strip()
        title, unit, factor = PANELS.get(name, (own[:1].upper() + own[1:], "", 1.0))
        lines = _lines(groups, name, factor)
        figure = panel(lines, title, unit, epochs)
        drawings.append(
            finish(figure, folder, name, _in_text(f"{title}, {unit}".strip(", "), lines))
        )
    return drawings


def any_of(runs: Sequence[Run], name: str) -> bool:
    return any(run.column(name) for run in runs)


def _loss_panel(groups: list[tuple[str, list[Run]]], epochs: list[int], folder: Path) -> Drawing:
    lines = []
    for place, (label, group) in enumerate(groups):
        kinds = [n for n in ("clean", "mixed") if any_of(group, n)] or ["loss"]
        for kind in kinds:
            ending = {"clean": "clean", "mixed": "mixed images"}.get(kind, "")
            lines += _lines(
                [(label, group)],
                kind,
                1.0,
                place,
                ending if len(kinds) > 1 else "",
                kind == "mixed",
            )
    title = "Loss"
    return finish(panel(lines, title, "", epochs), folder, "loss", _in_text(title, lines))


def _lines(
    groups: list[tuple[str, list[Run]]],
    name: str,
    factor: float,
    first: int = 0,
    ending: str = "",
    dashed: bool = False,
) -> list[Line]:
    """The lines of each setting: its run, or the mean of its runs in the epochs that all have, and each
    of them faintly.
    """
    lines = []
    for place, (label, group) in enumerate(groups, first):
        colour = SERIES[place % len(SERIES)]
        columns = [{e: factor * v for e, v in run.column(name)} for run in group]
        columns = [column for column in columns if column]
        if not columns:
            continue
        several = len(columns) > 1
        for column in columns if several else []:
            lines.append(Line(label, list(column.items()), colour, dashed, faint=True))
        common = [e for e in columns[0] if all(e in column for column in columns)]
        mean = [(e, float(np.mean([column[e] for column in columns]))) for e in common]
        if mean:
            lines.append(Line(label, mean, colour, dashed, ending=ending))
    return lines


def _in_text(title: str, lines: Sequence[Line]) -> str:
    """What a panel shows, for people who cannot see it."""
    sentences = []
    for line in lines:
        if line.faint:
            continue
        (first, before), (last, after) = line.points[0], line.points[-1]
        name = f"{line.label} {line.ending}".strip()
        sentences.append(
            f"{name} goes from {before:.4g} in epoch {first:g} to {after:.4g} in epoch {last:g}"
            if last != first
            else f"{name} is {after:.4g} in epoch {last:g}"
        )
    return f"{title}: {'; '.join(sentences)}."


@dataclass(frozen=True)
class Comparison:
    """Several runs side by side."""

    table: Table
    drawings: list[Drawing]


def comparison(rows: list[Row], folder: Path) -> Comparison | None:
    """The table of the runs, and a figure for each evaluation; None for less than two runs."""
    if sum(len(row.runs) for row in rows) < 2:
        return None
    shown = tabulate(rows)
    drawings = []
    for kind in in_order(k for row in rows for run in row.runs for k in run if k not in NO_RESULTS):
        values = [
            (
                ", ".join(filter(None, (row.shown[0], difference(row, rows)))),
                [run[kind]["top1"] for run in row.runs if "top1" in run.get(kind, {})],
            )
            for row in rows
        ]
        values = [(name, numbers) for name, numbers in values if numbers]
        if not values:
            continue
        title = f"{title_of(kind)}, top-1"
        listed = "; ".join(f"{n}: {', '.join(f'{v:.1f}' for v in vs)}" for n, vs in values)
        alt = f"{title} in percent. {listed}."
        drawings.append(finish(dots(values, title), folder, f"comparison {kind}", alt))
    cells = [[text.replace("+-", "±") for text in line] for line in shown.lines]
    notes = [note.replace("`", "").replace("+-", "±") for note in shown.notes]
    return Comparison(Table(shown.head, cells, notes), drawings)
