"""The tables and the plot of docs/performance.md, from the files of figures.

    python benchmarks/tables.py [--device cpu] > tables.md

Prints Markdown and draws docs/images/performance.png. It measures nothing.
"""

import argparse
import json
import re
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
PICTURE = HERE.parent / "docs" / "images" / "performance.png"
METHODS_A_LINE = 7
COLOURS = {
    "ours": "#d1495b",
    "bare": "#9aa5b1",
    "lightly": "#30638e",
    "lightly-train": "#00798c",
    "2020": "#edae49",
}


def figures(pattern: str) -> list[tuple[Path, dict[str, Any]]]:
    paths = sorted((HERE / "results").glob(pattern), key=lambda path: (len(path.name), path.name))
    return [(path, json.loads(path.read_text("utf-8"))) for path in paths]


def shown(value: dict[str, float] | None, form: str) -> str:
    """median (min to max)"""
    if value is None:
        return ""
    low, middle, high = (format(value[key], form) for key in ("min", "median", "max"))
    return middle if low == high else f"{middle} ({low} to {high})"


def table(head: list[str], rows: list[list[str]]) -> None:
    for cells in (head, ["---"] * len(head), *rows):
        print(f"| {' | '.join(cells)} |")
    print()


def pretraining(device: str) -> list[dict[str, Any]]:
    everything = []
    for path, content in figures(f"pretraining-{device}-*.json"):
        rows = [row for row in content["rows"] if "images_per_second" in row]
        print(
            f"`{content['command']}` ({path.name}, commit {content['commit']}, {content['machine']})\n"
        )
        table(
            ["size", "method", "subject", "images/s", "ours / theirs", "waiting", "peak MiB"],
            [
                [
                    str(row["size"]),
                    row["method"],
                    row["subject"],
                    shown(row["images_per_second"], ",.1f"),
                    shown(row.get("ours_over_theirs_images_per_second"), ".2f"),
                    shown(row["waiting_share"], ".0%"),
                    shown(row.get("peak_memory_mib"), ",.0f"),
                ]
                for row in rows
            ],
        )
        machine = re.sub(r"\(R\)| Processor|,.*", "", content["machine"])
        everything += [{**row, "file": path.stem, "machine": machine} for row in rows]
    return everything


def views(device: str) -> None:
    for path, content in figures(f"views-{device}.json"):
        print(f"`{content['command']}` ({path.name}, commit {content['commit']})\n")
        peers = list(content["rows"][0]["ours_over"])
        table(
            ["size", "augmentation", "ours, images/s", *(f"ours / {peer}" for peer in peers)],
            [
                [
                    str(row["size"]),
                    row["augmentation"],
                    shown(row["images_per_second"]["ours"], ",.0f"),
                    *(shown(row["ours_over"][peer], ".1f") for peer in peers),
                ]
                for row in content["rows"]
            ],
        )


def others(device: str) -> None:
    """Flat rows, whatever they hold."""
    for pattern in (f"evaluation-{device}*.json", "startup*.json", "loading.json"):
        for path, content in figures(pattern):
            print(f"`{content['command']}` ({path.name}, commit {content['commit']})\n")
            for row in content["rows"]:
                cells = [
                    f"{key} {shown(value, ',.3g')}"
                    if isinstance(value, dict) and "median" in value
                    else f"{key} {value}"
                    for key, value in row.items()
                ]
                print(f"- {'; '.join(cells)}")
            print()


def of_file(name: str) -> tuple[str, int, bool]:
    """Encoder, size, and whether it is of MixCo alone: pretraining-cpu-64-resnet50-mixco"""
    _, _, size, *rest = name.split("-")
    return next(iter({*rest} - {"mixco"}), "resnet18"), int(size), "mixco" in rest


def draw(rows: list[dict[str, Any]]) -> None:
    """Images a second of each subject, a panel a size and encoder, a group a method."""
    files = list(dict.fromkeys(row["file"] for row in rows))
    files.sort(key=of_file)
    methods = {f: list(dict.fromkeys(r["method"] for r in rows if r["file"] == f)) for f in files}
    lines: list[list[str]] = [[]]
    for file in files:
        if sum(len(methods[other]) for other in (*lines[-1], file)) > METHODS_A_LINE:
            lines.append([])
        lines[-1].append(file)
    figure = plt.figure(
        figsize=(1 + 1.4 * METHODS_A_LINE, 0.5 + 3 * len(lines)), layout="constrained"
    )
    panels = {}
    for line, part in zip(
        lines, figure.subfigures(len(lines), 1, squeeze=False)[:, 0], strict=True
    ):
        ratios = [len(methods[file]) for file in line]
        row = part.subplots(1, len(line), width_ratios=ratios, squeeze=False)[0]
        row[0].set_ylabel("images a second")
        panels |= dict(zip(line, row, strict=True))
    named = {}
    for file, panel in panels.items():
        some = [row for row in rows if row["file"] == file and row["subject"] in COLOURS]
        for place, method in enumerate(methods[file]):
            bars = [row for row in some if row["method"] == method]
            for number, row in enumerate(bars):
                rate = row["images_per_second"]
                x = place + 0.19 * (number - (len(bars) - 1) / 2)
                bar = panel.bar(x, rate["median"], 0.17, color=COLOURS[row["subject"]])
                named.setdefault(row["subject"], bar)
                panel.vlines(x, rate["min"], rate["max"], color="black", linewidth=1)
        arch, size, _ = of_file(file)
        panel.set_title(f"{arch}, {size} px\n{some[0]['machine']}", fontsize=10)
        panel.set_xticks(range(len(methods[file])), [m.replace("+", "\n+ ") for m in methods[file]])
        panel.tick_params(labelsize=9)
        panel.set_xlim(-0.5, len(methods[file]) - 0.5)
        panel.spines[["top", "right"]].set_visible(False)
        panel.set_ylim(0)
    labels = {name: "bare passes: the limit" if name == "bare" else name for name in named}
    figure.legend(
        named.values(), [labels[name] for name in named], loc="outside lower center", ncols=5
    )
    figure.savefig(PICTURE, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    rows = pretraining(arguments.device)
    views(arguments.device)
    others(arguments.device)
    if rows:
        draw(rows)


if __name__ == "__main__":
    main()
