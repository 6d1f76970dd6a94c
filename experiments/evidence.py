"""The runs of evidence.toml: made in order of worth, resumed, evaluated, and put into a table.

    python experiments/evidence.py run --data-path DATA [--minutes 60] [--row NAME] [--seed 0]
    python experiments/evidence.py state
    python experiments/evidence.py table
    python experiments/evidence.py add FILE

run     Works on the first run that is not finished and that no other process works on, then on the
        next, until the minutes are over. Then it stops the run, which saves itself, and the next call
        goes on with it. A second process beside it takes another run. Rows that need a GPU are left out
        where there is none. A finished run is evaluated on the test split: kNN in three ways, and the
        linear probe. The process has the lowest priority, or that of --nice.
state   What is finished, and how far the others are.
table   Writes the tables into experiments/RESULTS.md, from evidence.json and evidence.toml alone.
add     Takes the runs of another machine from its evidence.json.

DATA is a folder of data sets, such as `mixco download cifar10 --data-path DATA` makes, or one with a
folder for each by its name. Run folders are in runs/evidence. Each run adds its figures to evidence.json
when it is stopped (epochs so far) and when it is finished. `make evidence DATA=...` starts `run` in the
background.
"""

import argparse
import os
import shlex
import signal
import statistics
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from mixco.methods import METHODS, mixer_of, passes_of
from mixco.runtime.locks import LockHeld, locked, one_at_a_time
from mixco.runtime.run_folder import read_json, read_metrics, write_json
from mixco.settings.parse import load_recipe

HERE = Path(__file__).parent
FOUND = HERE / "evidence.json"
RESULTS = HERE / "RESULTS.md"
BEGIN, END = "<!-- made by evidence.py table -->", "<!-- end -->"

# How each figure is measured; the name of a kNN is that of its folder too.
EVALUATIONS = {
    "knn": ("knn",),
    "knn_equal": ("knn", "--k", "10", "--votes", "equal"),
    "knn_200": ("knn", "--k", "200", "--temperature", "0.1"),
    "linear": ("linear",),
}
COLUMNS = {
    "knn": "kNN, %",
    "knn_equal": "k = 10, equal votes",
    "knn_200": "k = 200, T = 0.1",
    "linear": "linear probe, %",
}

Row = dict[str, Any]
Found = dict[str, dict[str, dict[str, Any]]]  # row -> seed -> the figures of the run


def plan() -> tuple[list[Row], list[Row], list[int]]:
    """Our rows, the published ones, and the seeds."""
    read = tomllib.loads((HERE / "evidence.toml").read_text("utf-8"))
    return read["row"], read["published"], read["seeds"]


def read(path: Path) -> dict[str, Any]:
    """A JSON file, {} where there is none."""
    return dict(read_json(path)) if path.exists() else {}


def finished(row: Row, seed: int, found: Found) -> bool:
    return "linear" in found.get(row["name"], {}).get(str(seed), {})


def options_of(row: Row, seed: int, more: str) -> list[str]:
    options = [*shlex.split(row.get("options", "")), *shlex.split(more)]
    return ["--recipe", row["recipe"], *options, "--seed", str(seed)]


def figures(options: list[str], folder: Path) -> dict[str, Any]:
    """What evidence.json says of a run, finished or not."""
    config, versions = (read_json(folder / f"{name}.json") for name in ("config", "versions"))
    records, results = read_metrics(folder), read(folder / "results.json")
    about = {
        "command": shlex.join(["mixco", "pretrain", *options, "--data-path", "DATA"]),
        "epochs": records[-1]["epoch"] if records else 0,
        "of_epochs": config["optimisation"]["epochs"],
        "knn_held_out": {r["epoch"]: r["knn"] for r in records if "knn" in r},
        "settings": {
            part: {key: value for key, value in config[part].items() if value is not None}
            for part in ("model", "method", "optimisation")
        },
        **{key: versions.get(key) for key in ("mixco", "torch", "hardware", "processor")},
        **{key: config["run"][key] for key in ("precision", "device")},
    }
    about["settings"]["data"] = {key: config["data"][key] for key in ("data", "size", "loading")}
    if "pretrain" in results:
        about["seconds"] = results["pretrain"]["seconds"]
        about["images_per_second"] = results["pretrain"]["images_per_second"]
    for name, (kind, *_) in EVALUATIONS.items():
        path = (folder if name == kind else folder / name) / "results.json"
        own = {key.partition("@")[0]: value for key, value in read(path).items()}
        if kind in own:
            about[name] = own[kind]["top1"]
    return about


def note(row: Row, seed: int, figures: dict[str, Any], path: Path) -> None:
    """Add the figures of a run to an evidence.json."""
    with one_at_a_time(path.with_name(f".{path.name}.lock")):
        every = read(path)
        every.setdefault(row["name"], {})[str(seed)] = figures
        write_json(path, every)


def call(arguments: list[str], ends: float) -> None:
    """`mixco` with these arguments; interrupted, and waited for, when the time is up.

    Raises TimeoutError then, and CalledProcessError where it fails.
    """
    process = subprocess.Popen([sys.executable, "-m", "mixco", *arguments])
    try:
        code = process.wait(max(0.0, ends - time.monotonic()) if ends < float("inf") else None)
    except (subprocess.TimeoutExpired, SystemExit):
        process.send_signal(signal.SIGTERM)
        process.wait()
        raise TimeoutError from None
    if code:
        raise subprocess.CalledProcessError(code, ["mixco", *arguments])


def make(row: Row, seed: int, arguments: argparse.Namespace, ends: float) -> None:
    """Pretrain and evaluate one run; what is done stays."""
    folder: Path = arguments.out / f"{row['name']}-s{seed}"
    own = arguments.data_path / load_recipe(row["recipe"]).data.data
    where = ["--data-path", str(own if own.is_dir() else arguments.data_path)]
    options = options_of(row, seed, arguments.more)
    try:
        if "pretrain" not in read(folder / "results.json"):
            begin = ["--knn-every", "5", "--out", str(folder), *where]
            call(["pretrain", *begin, *options], ends)
        for measure, (kind, *how) in EVALUATIONS.items():
            if measure not in figures(options, folder):
                apart = [] if measure == kind else ["--out", str(folder / measure)]
                call([kind, "--run", str(folder), *how, *apart, *where], ends)
    finally:
        if (folder / "config.json").exists():
            note(row, seed, figures(options, folder), arguments.found)


@contextmanager
def mine(lock: Path) -> Iterator[bool]:
    """Is this run ours, or does another process work on it?"""
    try:
        with locked(lock, seconds=0):
            yield True
    except LockHeld:
        yield False


def _fits(row: Row) -> bool:
    return torch.cuda.is_available() or not row.get("needs_gpu")


def work(arguments: argparse.Namespace) -> None:
    ends = time.monotonic() + 60 * arguments.minutes
    rows, _, seeds = plan()
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    chosen = [
        (row, seed)
        for seed in seeds
        for row in rows
        if arguments.seed in (None, seed)
        and (arguments.row == row["name"] or (arguments.row is None and _fits(row)))
    ]
    for row, seed in chosen:
        if finished(row, seed, read(arguments.found)) or time.monotonic() >= ends:
            continue
        with mine(out / f".{row['name']}-s{seed}.lock") as free:
            if free:
                print(f"{row['name']}, seed {seed}", flush=True)
                try:
                    make(row, seed, arguments, ends)
                except subprocess.CalledProcessError as failed:
                    sys.exit(f"{shlex.join(failed.cmd)} failed, see above; nothing else was begun")
                except TimeoutError:
                    print("stopped; the same command goes on with it", flush=True)
                    return


def state(found: Found) -> None:
    rows, _, seeds = plan()
    for seed in seeds:
        for row in rows:
            about = found.get(row["name"], {}).get(str(seed))
            print(f"{row['name']:30} seed {seed}  {progress(about)}")


def progress(about: dict[str, Any] | None) -> str:
    if about is None:
        return "not begun"
    if "linear" in about:
        return f"finished: kNN {about['knn']:.1f} %, linear {about['linear']:.1f} %"
    held_out = [*about["knn_held_out"].items()][-1:]
    seen = "".join(f", held-out kNN {knn:.1f} % at epoch {epoch}" for epoch, knn in held_out)
    return f"epoch {about['epochs']} of {about['of_epochs']}{seen}"


def tables(every: Found) -> str:
    """Markdown: each table with our rows and the published ones; then the unfinished runs."""
    rows, published, seeds = plan()
    lines: list[str] = []
    for table in dict.fromkeys(row["table"] for row in rows):
        ours = [row for row in rows if row["table"] == table and _done(every, row)]
        theirs = [row for row in published if row["table"] == table]
        if not ours and not theirs:
            continue
        lines += [f"### {table}", ""]
        head = ["method", "epochs", "passes, million", "time", *COLUMNS.values(), "seeds", "by"]
        lines += [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
        lines += [_ours(row, _done(every, row)) for row in ours]
        lines += [_theirs(row) for row in theirs]
        lines.append("")
    going = [
        f"- {row['title']}, {row['table']}, seed {seed}: {progress(about)}"
        for seed in seeds
        for row in rows
        if (about := every.get(row["name"], {}).get(str(seed))) and "linear" not in about
    ]
    return "\n".join([*lines, *(["Not finished:", "", *going, ""] if going else [])])


def _done(every: Found, row: Row) -> list[dict[str, Any]]:
    return [about for about in every.get(row["name"], {}).values() if "linear" in about]


def _ours(row: Row, runs: list[dict[str, Any]]) -> str:
    method, first = runs[0]["settings"]["method"], runs[0]
    images = 100_000 if row["recipe"].startswith("tinyimg") else 50_000
    passes = passes_of(METHODS[method["method"]], mixer_of(method["mix"]))
    hours = statistics.mean(about["seconds"] for about in runs) / 3600
    cells = [
        row["title"],
        str(first["of_epochs"]),
        f"{passes * images * first['of_epochs'] / 1e6:g}",
        f"{hours:.1f} h, {first['hardware']}",
        *(spread([about[name] for about in runs]) for name in COLUMNS),
        str(len(runs)),
        "us",
    ]
    return f"| {' | '.join(cells)} |"


def _theirs(row: Row) -> str:
    measured = [str(row.get(name, "–")) for name in COLUMNS]
    cells = [
        row["title"],
        str(row["epochs"]),
        "",
        row.get("time", "–"),
        *measured,
        "",
        row["source"],
    ]
    return f"| {' | '.join(cells)} |"


def spread(values: list[float]) -> str:
    text = f"{statistics.mean(values):.1f}"
    return f"{text} ± {statistics.stdev(values):.1f}" if len(values) > 1 else text


def write_tables(found: Found) -> None:
    text = RESULTS.read_text("utf-8")
    before, rest = text.split(BEGIN)
    RESULTS.write_text(f"{before}{BEGIN}\n\n{tables(found)}\n{END}{rest.split(END)[1]}", "utf-8")


def give_way(nice: int) -> None:
    """Lower the priority of this process and its session: 0 for not at all, 19 for the lowest."""
    os.nice(nice)
    with suppress(OSError):  # Linux compares sessions first, where it groups by them
        Path("/proc/self/autogroup").write_text(str(nice))


def _stop(*_: int | FrameType | None) -> None:
    sys.exit(1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("do", choices=["run", "state", "table", "add"])
    parser.add_argument("file", type=Path, nargs="?", help="add: an evidence.json")
    parser.add_argument("--data-path", type=Path, help="run: the folder of the data sets")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="run: how long")
    parser.add_argument(
        "--row", choices=[row["name"] for row in plan()[0]], help="run: this row only"
    )
    parser.add_argument("--seed", type=int, help="run: this seed only")
    parser.add_argument("--more", default="", help="run: more options of `mixco pretrain`")
    parser.add_argument(
        "--nice", type=int, default=19, help="run: the priority, 0 for the usual one"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/evidence"), help="the run folders")
    parser.add_argument("--found", type=Path, default=FOUND, help="the evidence.json")
    arguments = parser.parse_args()
    if arguments.do == "run":
        if arguments.data_path is None:
            parser.error("run needs --data-path")
        signal.signal(signal.SIGTERM, _stop)
        if arguments.nice:
            give_way(arguments.nice)
        work(arguments)
    elif arguments.do == "add":
        if arguments.file is None:
            parser.error("add needs a file")
        for name, runs in read(arguments.file).items():
            for seed, figures_there in runs.items():
                note({"name": name}, int(seed), figures_there, arguments.found)
    else:
        {"state": state, "table": write_tables}[arguments.do](read(arguments.found))


if __name__ == "__main__":
    main()
