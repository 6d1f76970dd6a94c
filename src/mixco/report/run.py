"""What a run folder holds, read for people: also of a run that goes on, was stopped, or lacks files."""

import json
import math
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from mixco.report.table import flat
from mixco.runtime.errors import UserError
from mixco.runtime.run_folder import read_json

NAMES = {"moco": "MoCo", "simclr": "SimCLR", "mixco": "MixCo"}


@dataclass(frozen=True)
class Run:
    """One run, as its files tell it."""

    folder: Path
    config: dict[str, Any]
    """By dotted names: {"data.size": 64, ...}"""
    records: list[dict[str, Any]]
    """Of metrics.jsonl, one an epoch."""
    results: dict[str, Any]
    """Of results.json; {} where there is none."""
    versions: dict[str, str]
    unreadable: list[str]
    """Lines of unreadable.txt: file, tab, reason."""
    touched: str
    """When the metrics were last written; "" where there are none."""

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def method(self) -> str:
        """ "SimCLR with MixCo" """
        base, mix = (str(self.config.get(f"method.{key}", "")) for key in ("method", "mix"))
        words = NAMES.get(base, base)
        return words if mix in ("none", "") else f"{words} with {NAMES.get(mix, mix)}"

    @property
    def trained(self) -> bool:
        """Is it a training at all? The demo's random encoder is none."""
        return bool(self.results.get("pretrain", {}).get("epochs", 1))

    @property
    def finished(self) -> bool:
        return "pretrain" in self.results

    @property
    def encoder(self) -> Path | None:
        """The finished encoder, or the newest checkpoint; None where there is neither."""
        finished = self.folder / "encoder.safetensors"
        if finished.is_file():
            return finished
        # Their names hold the step with leading zeros.
        return max(self.folder.glob("checkpoints/step-*.pt"), default=None)

    def column(self, name: str) -> list[tuple[int, float]]:
        """(epoch, value) of the records that hold a finite number of this name."""
        return [
            (int(record["epoch"]), float(value))
            for record in self.records
            if isinstance(value := record.get(name), (int, float))
            and not isinstance(value, bool)
            and math.isfinite(value)
        ]

    def last(self, name: str) -> float | None:
        values = self.column(name)
        return values[-1][1] if values else None


def read_run(folder: Path) -> Run:
    """Raises UserError when it is no run folder or a file of it is damaged."""
    config = read_json(folder / "config.json")
    results, versions = (
        read_json(path) if (path := folder / name).exists() else {}
        for name in ("results.json", "versions.json")
    )
    if not all(isinstance(values, dict) for values in (config, results, versions)):
        raise UserError(f"{folder}: its config.json, results.json or versions.json is of no run")
    unreadable = folder / "unreadable.txt"
    lines = unreadable.read_text("utf-8", "replace").splitlines() if unreadable.exists() else []
    metrics = folder / "metrics.jsonl"
    touched = ""
    if metrics.exists():
        touched = datetime.fromtimestamp(metrics.stat().st_mtime).strftime("%Y-%m-%d %H:%M")
    return Run(folder, flat(config), _whole_records(metrics), results, versions, lines, touched)


def _whole_records(path: Path) -> list[dict[str, Any]]:
    """Without a last line that is being written at this moment."""
    if not path.exists():
        return []
    try:
        records = [json.loads(line) for line in path.read_text("utf-8").split("\n")[:-1] if line]
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}; restore it or run again") from None
    return [r for r in records if isinstance(r, dict) and isinstance(r.get("epoch"), (int, float))]
