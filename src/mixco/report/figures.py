"""Figures for the page: as SVG in the page's colours, and beside the page as PNG files."""

import io
import re
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure

from mixco.plots.style import INK, LINE, QUIET, SERIES, save, styled

# style.css has each colour as a variable, with another value in the dark.
VARIABLES = {
    INK: "currentColor",
    QUIET: "var(--quiet)",
    LINE: "var(--line)",
    **{colour: f"var(--c{i})" for i, colour in enumerate(SERIES)},
}


@dataclass(frozen=True)
class Drawing:
    """A figure, ready for the page."""

    svg: Markup
    alt: str
    caption: str = ""


def finish(figure: Figure, folder: Path, name: str, alt: str, caption: str = "") -> Drawing:
    """Write the figure's PNG into the folder, and convert it to SVG for the page."""
    save(figure, folder / f"{slug(name)}.png")
    for axes in figure.axes:
        if legend := axes.get_legend():
            legend.set_visible(False)  # the page has one for all
    return Drawing(to_svg(figure, name), alt, caption)


def slug(name: str) -> str:
    """A safe file name of any text."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "figure"


def to_svg(figure: Figure, name: str) -> Markup:
    """An <svg> element for an HTML page, in the page's colours and its font, as wide as its parent.

    name: unique on the page; the ids within the figure are made from it.
    It has no style sheet and no addresses; matplotlib has escaped its text.
    """
    file = io.StringIO()
    with styled(), matplotlib.rc_context({"svg.hashsalt": name}):
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' (xmlns(:xlink)?|version)="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = re.sub(r' id="[a-zA-Z.\d]+_\d+"', "", svg)  # counted anew in each figure
    width, height = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg).groups()  # type: ignore[union-attr]
    svg = f'<svg viewBox="0 0 {width} {height}" aria-hidden="true"{svg[svg.index(">") :]}'
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, variable)
    svg = re.sub(r"'DejaVu Sans'(, 'DejaVu Sans')*", "var(--plain)", svg)
    return Markup(re.sub(r"\n\s*", "\n", svg))
