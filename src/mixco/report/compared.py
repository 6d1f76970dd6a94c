"""What `mixco compare` found, from compare.json, as a table: on a screen, in Markdown, on the page."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from mixco.evaluation import EVALUATIONS
from mixco.report.pictures import Picture
from mixco.report.table import Table
from mixco.report.thumbnails import data_uri
from mixco.runtime.errors import UserError
from mixco.runtime.run_folder import read_results
from mixco.runtime.streams import shown_lines

FILE = "compare.json"


@dataclass(frozen=True)
class Compared:
    """A comparison, to be shown."""

    title: str
    table: Table
    verdicts: list[str]
    """Sentences; none without labels."""
    picture: Picture | None = None
    """Of images whose neighbours changed; without labels."""


def read_compared(run: Path) -> Compared | None:
    """The comparison in a run's folder; None where there is none, or it was stopped before its end.

    Raises UserError for a damaged file.
    """
    path = run / FILE
    content = read_results(path) if path.exists() else {}
    if "rows" not in content:
        return None
    try:
        found, drawn = compared(content), content.get("picture")
        drawn = None if drawn is None else run / Path(drawn).name
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(f"{path} is damaged; remove it and compare again") from None
    return found if drawn is None else replace(found, picture=_picture(drawn))


def _picture(path: Path) -> Picture | None:
    """A PNG as it is on the page; None where it is gone."""
    try:
        with Image.open(path) as file:
            uri = data_uri(file.convert("RGB"))
    except OSError:
        return None
    return Picture(uri, "Images whose neighbours changed most, with those before and after")


def compared(content: dict[str, Any]) -> Compared:
    """From what `compare` returns."""
    show = _with_labels if content["labelled"] else _without_labels
    title, head, lines = show(content)
    verdicts = [str(verdict["sentence"]) for verdict in content["verdicts"]]
    return Compared(title, Table(head, lines, list(map(str, content["notes"]))), verdicts)


def _with_labels(content: dict[str, Any]) -> tuple[str, list[str], list[list[str]]]:
    """A line for each measure of each row; cells are `accuracy ± standard error (seeds spread)`."""
    shares = content["shares"]
    head = ["encoder", "measure", *("all labels" if s == "100%" else s for s in shares), "seconds"]
    lines = []
    for row in content["rows"]:
        name = _name(row)
        for number, (kind, cells) in enumerate(row["results"].items()):
            lines.append(
                [
                    "" if number else name,
                    EVALUATIONS[kind].title if kind != "supervised" else "whole",
                    *(_cell(cells[share]) if share in cells else "" for share in shares),
                    "" if number else _seconds(row),
                ]
            )
    return (
        f"{content['data']}: {content['test_images']:,} test images, {content['classes']} classes",
        head,
        lines,
    )


def _cell(cell: dict[str, float]) -> str:
    spread = f" (seeds {cell['spread']:.1f})" if "spread" in cell else ""
    return f"{cell['top1']:.1f} ± {cell['error']:.1f}{spread}"


def _without_labels(content: dict[str, Any]) -> tuple[str, list[str], list[list[str]]]:
    head = ["encoder", "effective rank", "alignment", "uniformity", "same neighbours", "seconds"]
    lines = [
        [
            _name(row),
            f"{row['geometry']['effective_rank']:.1f} of {row['geometry']['dimensions']}",
            f"{row['geometry']['alignment']:.3f}",
            f"{row['geometry']['uniformity']:.2f}",
            f"{100 * row['same_neighbours']:.0f} %",
            _seconds(row),
        ]
        for row in content["rows"]
    ]
    return f"{content['data']}: {content['images']:,} images without labels", head, lines


def _name(row: dict[str, Any]) -> str:
    return f"{row['name']} ({row['size']} px)" if row["size_differs"] else str(row["name"])


def _seconds(row: dict[str, Any]) -> str:
    """ "3600 + 12": of the pretraining, or of the training from scratch, and of the evaluation."""
    parts = (row["training_seconds"], row["evaluation_seconds"])
    return " + ".join(f"{seconds:.0f}" for seconds in parts if seconds is not None)


def markdown(content: dict[str, Any]) -> str:
    """The comparison as Markdown: title, table, verdicts, notes."""
    shown = compared(content)
    head, *lines = (
        f"| {' | '.join(text.replace('|', chr(92) + '|') for text in line)} |"
        for line in (shown.table.head, *shown.table.lines)
    )
    rule = f"|{' --- |' * len(shown.table.head)}"
    table = "\n".join([head, rule, *lines])
    notes = "\n".join(f"- {note}" for note in shown.table.notes)
    return "\n\n".join(filter(None, [shown.title, table, *shown.verdicts, notes]))


def print_compared(content: dict[str, Any]) -> None:
    """Print the comparison for a terminal of 80 columns or more."""
    shown = compared(content)
    grid = Grid(title=Text(shown.title), box=None, padding=(0, 1, 0, 0), title_justify="left")
    for number, name in enumerate(shown.table.head):
        grid.add_column(Text(name), justify="left" if number < 2 else "right", overflow="fold")
    for line in shown.table.lines:
        grid.add_row(*(Text(shown_lines(text)) for text in line))
    console = Console()
    console.print(grid)
    for text in (*shown.verdicts, *shown.table.notes):
        console.print(Text(f"\n{shown_lines(text)}" if text in shown.verdicts else f"- {text}"))
