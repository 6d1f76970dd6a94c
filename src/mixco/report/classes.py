"""Of the page: how the classes do, and what they are taken for."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mixco.report import embedding as of
from mixco.report.embedding import Embedding, Guesses
from mixco.report.figures import Drawing, confusion_matrix, finish
from mixco.report.sections import SHOWN_AS, Picture
from mixco.report.thumbnails import data_uri, squares

MOST_IN_MATRIX = 25
MOST_IN_TABLE = 40

Counts = dict[tuple[str, str], int]
"""(class, what it was taken for) -> images, as results.read_confusions has it."""


@dataclass(frozen=True)
class PerClass:
    """How the classes do, by each of several evaluations."""

    columns: list[str]
    rows: list[tuple[str, list[tuple[float, int] | None]]]
    """Class, and for each column its percentage and number of images; the worst first."""
    left_out: int
    """Classes in the middle that are not shown."""


def per_class(evaluations: dict[str, Counts]) -> PerClass | None:
    """evaluations: by name."""
    if not evaluations:
        return None
    classes = sorted({truth for counts in evaluations.values() for truth, _ in counts})
    rows: list[tuple[str, list[tuple[float, int] | None]]] = []
    for name in classes:
        cells: list[tuple[float, int] | None] = []
        for counts in evaluations.values():
            total = sum(n for (truth, _), n in counts.items() if truth == name)
            right = counts.get((name, name), 0)
            cells.append((100 * right / total, total) if total else None)
        rows.append((name, cells))
    rows.sort(key=lambda row: next((cell[0] for cell in reversed(row[1]) if cell), 101.0))
    left_out = max(0, len(rows) - MOST_IN_TABLE)
    if left_out:
        rows = rows[: MOST_IN_TABLE // 2] + rows[-MOST_IN_TABLE // 2 :]
    return PerClass(list(evaluations), rows, left_out)


def matrix(name: str, counts: Counts, folder: Path) -> Drawing | None:
    """None where there are too many classes to be read."""
    classes = sorted({c for pair in counts for c in pair})
    if not 2 <= len(classes) <= MOST_IN_MATRIX:
        return None
    table = np.zeros((len(classes), len(classes)), np.int64)
    for (truth, guess), n in counts.items():
        table[classes.index(truth), classes.index(guess)] += n
    figure = confusion_matrix(table, classes)
    alt = f"Confusions by {name}: {most_frequent(counts)}"
    return finish(figure, folder, f"confusions {name}", alt, name)


def most_frequent(counts: Counts, most: int = 5) -> str:
    """ "River taken for Highway 4 times; ..." """
    wrong = sorted(((n, *pair) for pair, n in counts.items() if pair[0] != pair[1]), reverse=True)
    told = [f"{truth} taken for {guess}: {n}" for n, truth, guess in wrong[:most]]
    return ("; ".join(told) or "none") + "."


def counts_of(guesses: Guesses, classes: Sequence[str]) -> Counts:
    table = guesses.counts
    return {(classes[t], classes[g]): int(table[t, g]) for t, g in np.argwhere(table)}


@dataclass(frozen=True)
class Confused:
    """A class that is taken for another, with examples."""

    truth: str
    guess: str
    images: int
    examples: list[tuple[Picture, Picture]]


def confused(embedding: Embedding, guesses: Guesses) -> list[Confused]:
    """The most frequent mistakes: each image beside the one that misled."""
    classes = embedding.images.classes

    def picture(row: int, caption: str) -> Picture:
        image = squares(*embedding.pictures(torch.tensor([row])), SHOWN_AS)[0]
        return Picture(
            data_uri(image), f"{embedding.name(row)}, {embedding.class_of(row)}", caption
        )

    return [
        Confused(
            classes[c.truth],
            classes[c.guess],
            c.images,
            [
                (picture(row, ""), picture(other, f"{similarity:.2f}"))
                for row, other, similarity in c.examples
            ],
        )
        for c in of.worst_confusions(embedding, guesses, pairs=6, examples=3)
    ]
