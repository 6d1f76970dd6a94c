"""The one style of all figures: colours, letters, and how a figure is saved."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from mixco.runtime.files import replacing

# The first five are told apart with any kind of colour vision, and all of them are legible on white.
SERIES = (
    *("#0072b2", "#c85200", "#00805c", "#a8508c", "#8c6d00"),
    *("#2f8fcb", "#7a4a2b", "#5b5bd6", "#c2255c", "#5f6b74"),
)
MIXED, BASE, UNTRAINED = SERIES[0], SERIES[1], SERIES[9]  # trained with mixing, without, not at all
RIGHT, WRONG = SERIES[2], SERIES[1]
INK, QUIET, LINE = "#1c1c1e", "#5c6068", "#dcdee2"  # text, secondary text, rules
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a class may be called "$"
    "font.family": "DejaVu Sans",
    "font.size": 8,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.titlecolor"), INK),
    **dict.fromkeys(("xtick.color", "ytick.color", "axes.edgecolor"), QUIET),
}
SMALL = 7  # points
DPI = 200


@contextmanager
def styled() -> Iterator[None]:
    """Apply STYLE, and do not warn of letters that the font lacks: they show as boxes."""
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")
        yield


def save(figure: Figure, path: Path) -> None:
    """Write a PNG file on white, atomically."""
    with styled(), replacing(path) as temporary:
        figure.savefig(temporary, dpi=DPI, facecolor="white")
