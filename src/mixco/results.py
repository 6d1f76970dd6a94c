"""The run folder and what is written into it.

config.json          the resolved config
versions.json        of Python, the libraries and mixco, and the hardware
metrics.jsonl        one record an epoch
tensorboard/         the same for TensorBoard
checkpoints/         last.pt
encoder.safetensors  the backbone, in timm's (for ResNets also torchvision's) keys
unreadable.txt       the images that were left out, and why; only when there are any
results.json         {"pretrain": {...}, "knn": {...}, "linear": {...}, ...}; keys: docs/evaluation.md
*.safetensors        classifiers that were trained on it: classifier, supervised, finetune
*.png                pictures
"""

import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mixco.errors import UserError
from mixco.files import replacing

LIBRARIES = ("mixco", "torch", "torchvision", "timm", "numpy", "pillow", "safetensors")


def new_run_folder(path: Path) -> Path:
    """Make the run folder. Raises UserError when it is not new or empty: runs are never overwritten."""
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
    """Raises UserError when the file is missing or not JSON."""
    try:
        return json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}); is this a run folder?"
        ) from None
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}; restore it or run again") from None


def add_result(run: Path, kind: str, values: dict[str, Any]) -> None:
    """Set results.json's entry of one kind ("pretrain", "knn", "linear"); keep the others."""
    path = run / "results.json"
    results = read_json(path) if path.exists() else {}
    write_json(path, {**results, kind: values})


def append_metrics(run: Path, record: dict[str, Any]) -> None:
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def read_metrics(run: Path) -> list[dict[str, Any]]:
    lines = (run / "metrics.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


def versions(hardware: str) -> dict[str, str]:
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in LIBRARIES},
        "platform": platform.platform(),
        "hardware": hardware,
    }
