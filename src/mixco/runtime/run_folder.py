"""The run folder and its files.

config.json          the resolved config
images.json          where the images lie, and a digest of their list (data/run_images.py)
images.txt.gz        their names
versions.json        Python, the libraries, mixco and the hardware
metrics.jsonl        one record an epoch
tensorboard/         the same for TensorBoard
loggers.json         {"wandb": {"id": ..., "epochs": ...}, ...}; only with --log-to
checkpoints/         step-00000780.pt: the last two, and those of --keep-every
encoder.safetensors  the backbone, with timm's (for ResNets also torchvision's) keys
unreadable.txt       the images that were left out, and why; only if there are any
results.json         {"pretrain": {...}, "knn": {...}, "linear": {...}, ...}; see docs/results.md
confusions-*.csv     test images by class and predicted class, for evaluations of features
*.safetensors        trained classifiers: classifier, supervised, finetune
*.png                pictures
exports/             the output of `mixco export`

One file may collect the results of many runs: {name: {"config": {...}, "pretrain": {...}, ...}}.
"""

import csv
import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mixco.runtime.errors import UserError
from mixco.runtime.files import naming, open_table, refuse_other_than_utf8, replacing
from mixco.runtime.locks import LockHeld, locked
from mixco.runtime.version import VERSION

LIBRARIES = ("torch", "torchvision", "timm", "numpy", "pillow", "safetensors")
CONFUSIONS = ("class", "taken for", "images")
LONGEST_WAIT = 60  # seconds for the lock of a results file; writing one takes milliseconds

# Names that version 0.1 gave to numbers in metrics.jsonl and results.json, and their names today.
RENAMED = {"waiting_share": "data_wait"}
# Settings that earlier versions wrote with a `~` in them.
PATHS = ("data", "data_path", "cache", "out")


def new_run_folder(path: Path) -> Path:
    """Make the run folder; no run is ever overwritten.

    Raises UserError where it is not empty, or cannot be made.
    """
    refuse_other_than_utf8(path, "--out")
    try:
        path.mkdir(parents=True, exist_ok=True)
        if any(path.iterdir()):
            raise UserError(
                f"--out {path}: the folder is not empty; give a new one, or remove it first"
            )
        (path / "checkpoints").mkdir()
    except OSError as error:
        raise UserError(f"--out {path}: cannot be made ({error.strerror})") from None
    return path


def write_json(path: Path, value: Any) -> None:
    """Write atomically."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n", "utf-8")


def read_json(path: Path) -> Any:
    """What a JSON file holds, as today's version would have written it.

    Raises UserError when it is missing or not JSON.
    """
    try:
        return _loads(path.read_text("utf-8"))
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}); is this a run folder?"
        ) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: {error}; restore it or run again") from None


def _loads(text: str) -> Any:
    return json.loads(text, object_hook=_as_today)


def _as_today(values: dict[str, Any]) -> dict[str, Any]:
    return {
        RENAMED.get(k, k): _without_tilde(v) if k in PATHS and isinstance(v, str) else v
        for k, v in values.items()
    }


def _without_tilde(path: str) -> str:
    return os.path.expanduser(path)  # noqa: PTH111, Path's raises where there is no home


def read_results(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds a dict. Raises UserError for any other."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a results file; give another one")
    return content


def read_config(run: Path) -> dict[str, Any]:
    """Read a run's config.json; its sections "data", "method" and "run" are dicts.

    Raises UserError when the file is missing, damaged, or not of a run.
    """
    path = run / "config.json"
    config = read_json(path)
    sections = ("data", "method", "run")
    if not (
        isinstance(config, dict)
        and all(isinstance(config.get(section), dict) for section in sections)
        and all(isinstance(config.get(part, {}), dict) for part in ("model", "optimisation"))
    ):
        raise UserError(f"{path}: not the config of a run; restore it, or give another folder")
    return config


@contextmanager
def changing_json(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the dict of a JSON file, {} where there is none; at the end writes the changed dict.

    Only one process at a time changes the file, so that none loses the changes of another. Readers
    need no lock, because the file is replaced as a whole. The lock is the system's, on a file beside
    it, and ends with its process.

    Raises UserError when the file is damaged or cannot be written, or when another process holds the
    lock for longer than a minute. On any error the old file stays.
    """
    lock = path.with_name(f".{path.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(lock, LONGEST_WAIT):
            content = read_results(path) if path.exists() else {}
            yield content
            write_json(path, content)
    except LockHeld:
        raise UserError(
            f"{path}: another process has held {lock.name} for over {LONGEST_WAIT} s; end it, or "
            "give another file"
        ) from None
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from None


def add_result(run: Path, kind: str, values: dict[str, Any]) -> None:
    """Set one entry of results.json ("pretrain", "knn", "linear", ...); keep the others."""
    with changing_json(run / "results.json") as results:
        results[kind] = values


def write_confusions(run: Path, kind: str, counts: dict[tuple[str, str], int]) -> None:
    """Write confusions-<kind>.csv. counts: (class, predicted class) -> number of test images."""
    rows = [CONFUSIONS, *((*pair, number) for pair, number in counts.items())]
    with replacing(run / f"confusions-{kind}.csv") as temporary, open_table(temporary, "w") as file:
        csv.writer(file).writerows(rows)


def read_confusions(path: Path) -> dict[tuple[str, str], int]:
    """(class, predicted class) -> number of test images.

    Raises UserError when the file is missing or damaged.
    """
    try:
        with open_table(path) as file:
            head, *rows = csv.reader(file)
        if tuple(head) != CONFUSIONS:
            raise ValueError(f"it begins with {head}")
        return {(truth, guess): int(number) for truth, guess, number in rows}
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from None
    except (ValueError, csv.Error) as error:
        raise UserError(f"{path} is damaged: {error}; remove it, or evaluate again") from None


def run_results(run: Path) -> dict[str, Any]:
    """The entry of a run in a collection: "config", and the entries of its results.json.

    The folder of an evaluation with --out has no config. Raises UserError without results.
    """
    config = run / "config.json"
    settings = {"config": read_results(config)} if config.exists() else {}
    return {**settings, **read_results(run / "results.json")}


def collect(run: Path, collection: Path, name: str) -> None:
    """Set the entry of one run in a collection to its present results; keep the others.

    The run is read under the collection's lock, so that of two processes the later one reads later.
    """
    with changing_json(collection) as results:
        results[name] = run_results(run)


def append_metrics(run: Path, record: dict[str, Any]) -> None:
    path = run / "metrics.jsonl"
    with naming(path), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def write_metrics(run: Path, records: list[dict[str, Any]]) -> None:
    """Replace all records, atomically."""
    with replacing(run / "metrics.jsonl") as temporary:
        temporary.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The records of metrics.jsonl, RENAMED applied, without a last line that is still being written.

    Raises FileNotFoundError when there is none, and UserError when it is damaged.
    """
    path = run / "metrics.jsonl"
    try:
        return [_loads(line) for line in path.read_text("utf-8").split("\n")[:-1] if line]
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}; restore it or run again") from None


def versions(hardware: str, processor: str) -> dict[str, str]:
    """The content of versions.json; the two as `device.describe` and `device.processor` say them."""
    return {
        "python": platform.python_version(),
        "mixco": VERSION,
        **{name: version(name) for name in LIBRARIES},
        "platform": platform.platform(),
        "hardware": hardware,
        "processor": processor,
    }
