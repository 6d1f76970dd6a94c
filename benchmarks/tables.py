"""The tables and the plots of docs/performance.md, from the files of figures.

    python benchmarks/tables.py [--device cpu] > tables.md

Prints Markdown, and draws performance.png and growth.png into docs/images, or --pictures. It measures
nothing.
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
PICTURES = HERE.parent / "docs" / "images"
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
    """Print all tables of pretraining. Returns the rows to draw, without those of `tables_only`."""
    drawn = []
    tables_only = [
        f for kind in ("separation", "commit") for f in figures(f"{kind}-{device}-*.json")
    ]
    for path, content in figures(f"pretraining-{device}-*.json") + tables_only:
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
        if path.name.startswith("pretraining"):
            drawn += [{**row, "file": path.stem, "machine": machine} for row in rows]
    return drawn


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
    patterns = (f"{name}-{device}*.json" for name in ("evaluation", "parts", "gradient-caching"))
    for pattern in (*patterns, "startup*.json", "loading.json"):
        for path, content in figures(pattern):
            print(f"`{content['command']}` ({path.name}, commit {content['commit']})\n")
            for row in content["rows"]:
                flat = {**row, **row.get("milliseconds", {})}
                flat.pop("milliseconds", None)
                cells = [
                    f"{key} {shown(value, ',.3g') if isinstance(value, dict) else value}"
                    for key, value in flat.items()
                    if not isinstance(value, dict) or "median" in value
                ]
                print(f"- {'; '.join(cells)}")
            print()


def of_file(name: str) -> tuple[str, int, bool]:
    """pretraining-cpu-64-resnet50-mixco -> encoder, size, and whether all methods are with MixCo."""
    _, _, size, *rest = name.split("-")
    return next(iter({*rest} - {"mixco"}), "resnet18"), int(size), "mixco" in rest


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Images a second of each subject: a panel for each size and encoder, a group for each method."""
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
    figure.savefig(path, dpi=150)


MEASURES = {  # key of the figures: label and scale
    "images_per_second": ("images / s", 1.0),
    "waiting_share": ("time spent waiting for data, %", 100.0),
    "memory_mib": ("peak memory, GiB", 1 / 1024),
}
FACTORS = {
    "images": "images",
    "batch": "images in a batch",
    "queue": "keys in MoCo's queue",
    "workers": "decoding processes (streamed)",
}


def draw_growth(figures: dict[str, Any], path: Path) -> None:
    """Speed, waiting and memory over each factor."""
    rows, base = figures["rows"], figures["rows"][0]["base"]
    factors = [factor for factor in FACTORS if any(row["factor"] == factor for row in rows)]
    measures = [key for key in MEASURES if any(key in row for row in rows)]
    size = (3.4 * len(factors), 2.6 * len(measures))
    figure, grid = plt.subplots(
        len(measures), len(factors), figsize=size, squeeze=False, sharey="row"
    )
    for line, key in enumerate(measures):
        label, scale = MEASURES[key]
        grid[line][0].set_ylabel(label)
        top = max(row[key]["max"] * scale for row in rows if key in row)
        for axes, factor in zip(grid[line], factors, strict=True):
            some = [row for row in rows if row["factor"] == factor and key in row]
            x = range(len(some))  # evenly: the values are powers, or few
            for number, style in (("median", "o-"), ("min", "_"), ("max", "_")):
                y = [row[key][number] * scale for row in some]
                axes.plot(x, y, style, color="tab:blue", markersize=6 if number == "median" else 9)
            axes.set_xticks(list(x), [f"{row['value']:,}" for row in some])
            axes.set_ylim(0, max(5, 1.15 * top) if key == "waiting_share" else 1.15 * top)
            axes.grid(axis="y", alpha=0.3)
            if line == len(measures) - 1:
                axes.set_xlabel(FACTORS[factor])
    figure.suptitle(
        f"MoCo + MixCo, {base['arch']} at {base['size']} px. What does not vary: {base['images']:,} "
        f"images, packed;\nbatch {base['batch']}, queue {base['queue']:,}. {figures['machine']}",
        fontsize=9,
    )
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--pictures", type=Path, default=PICTURES, help="where plots are written")
    arguments = parser.parse_args()
    rows = pretraining(arguments.device)
    views(arguments.device)
    others(arguments.device)
    if rows:
        draw(rows, arguments.pictures / "performance.png")
    for _, growth in figures(f"growth-{arguments.device}.json"):
        draw_growth(growth, arguments.pictures / "growth.png")


if __name__ == "__main__":
    main()
