"""The page's section on classes: how well each does, and what it is confused with."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mixco.plots.charts import confusion_matrix
from mixco.report.embedding import Embedding, Guesses, worst_confusions
from mixco.report.figures import Drawing, finish
from mixco.report.pictures import SHOWN_AS, Picture
from mixco.report.thumbnails import data_uri, squares

MOST_IN_MATRIX = 25
MOST_IN_TABLE = 40

Counts = dict[tuple[str, str], int]
"""(class, what it was taken for) -> images, as `read_confusions` returns it."""


@dataclass(frozen=True)
class PerClass:
    """The accuracy of each class in each of several evaluations."""

    columns: list[str]
    rows: list[tuple[str, list[tuple[float, int] | None]]]
    """Each class with its (percentage, number of images) in each column; the worst first."""
    left_out: int
    """How many classes in the middle are not shown."""


def per_class(evaluations: dict[str, Counts]) -> PerClass | None:
    """evaluations: by name. None where there are none."""
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
    """A confusion matrix; None for more classes than can be read."""
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
    """ "River taken for Highway: 4; ..." """
    wrong = sorted(((n, *pair) for pair, n in counts.items() if pair[0] != pair[1]), reverse=True)
    listed = [f"{truth} taken for {guess}: {n}" for n, truth, guess in wrong[:most]]
    return ("; ".join(listed) or "none") + "."


def counts_of(guesses: Guesses, classes: Sequence[str]) -> Counts:
    table = guesses.counts
    return {(classes[t], classes[g]): int(table[t, g]) for t, g in np.argwhere(table)}


@dataclass(frozen=True)
class Confused:
    """A class that is taken for another, with examples: the image, and the one that misled."""

    truth: str
    guess: str
    images: int
    examples: list[tuple[Picture, Picture]]


def confused(embedding: Embedding, guesses: Guesses) -> list[Confused]:
    """The most frequent mistakes, each image beside the one that misled."""
    classes = embedding.images.classes

    def picture(row: int, caption: str) -> Picture:
        image = squares(*embedding.pictures(torch.tensor([row])), SHOWN_AS)[0]
        return Picture(data_uri(image), embedding.title(row), caption)

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
        for c in worst_confusions(embedding, guesses, pairs=6, examples=3)
    ]
