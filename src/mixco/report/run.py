"""What a run folder holds; the run may still go on, have been stopped, or lack files."""

import math
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from mixco.data.datasets import Data
from mixco.encoders.loading import LoadedEncoder, load_encoder
from mixco.report.table import flat
from mixco.runtime.errors import UserError
from mixco.runtime.run_folder import read_json, read_metrics


@dataclass(frozen=True)
class Run:
    """A run, as its files have it."""

    folder: Path
    config: dict[str, Any]
    """config.json by dotted names: {"data.size": 64, ...}"""
    records: list[dict[str, Any]]
    """metrics.jsonl, one for each epoch."""
    results: dict[str, Any]
    """results.json; {} where there is none."""
    versions: dict[str, str]
    unreadable: list[str]
    """The lines of unreadable.txt: file, tab, reason."""
    touched: str
    """When metrics.jsonl was last written; "" where there is none."""
    weights: LoadedEncoder | None = None
    """An encoder that is shown without a run."""

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def trained(self) -> bool:
        """Whether there was any training; the demo's random encoder has none."""
        return bool(self.results.get("pretrain", {}).get("epochs", 1))

    @property
    def finished(self) -> bool:
        return "pretrain" in self.results

    @property
    def encoder(self) -> LoadedEncoder | None:
        """The finished encoder, else that of the newest checkpoint; None where there is neither."""
        path = self._encoder_file
        return load_encoder(path) if path and not self.weights else self.weights

    @property
    def _encoder_file(self) -> Path | None:
        finished = self.folder / "encoder.safetensors"
        if finished.is_file():
            return finished
        # Names hold the step with leading zeros.
        return max(self.folder.glob("checkpoints/step-*.pt"), default=None)

    def column(self, name: str) -> list[tuple[int, float]]:
        """(epoch, value) of the records that have a finite number by this name."""
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


def of_weights(weights: LoadedEncoder, data: Data, data_path: Path | None) -> Run:
    """Weights without a run, as the page shows them on some images."""
    about = weights.description
    config = {
        "data.data": data,
        "data.data_path": data_path,
        "data.size": about.size,
        "data.channels": about.channels,
        "data.mean": about.mean,
        "data.std": about.std,
        "model.arch": about.arch,
    }
    results = {"pretrain": {"epochs": 0, **about.provenance}}
    return Run(weights.path, config, [], results, {}, [], "", weights)


def read_run(folder: Path) -> Run:
    """Raises UserError when it is no run folder, or a file of it is damaged."""
    config = read_json(folder / "config.json")
    results, versions = (
        read_json(path) if (path := folder / name).exists() else {}
        for name in ("results.json", "versions.json")
    )
    if not all(isinstance(values, dict) for values in (config, results, versions)):
        raise UserError(
            f"{folder}: config.json, results.json or versions.json is damaged; restore it or run again"
        )
    unreadable = folder / "unreadable.txt"
    lines = (
        unreadable.read_text("utf-8", "surrogateescape").splitlines() if unreadable.exists() else []
    )
    metrics = folder / "metrics.jsonl"
    touched, records = "", []
    if metrics.exists():
        touched = datetime.fromtimestamp(metrics.stat().st_mtime).strftime("%Y-%m-%d %H:%M")
        records = [
            record
            for record in read_metrics(folder)
            if isinstance(record, dict) and isinstance(record.get("epoch"), (int, float))
        ]
    return Run(folder, flat(config), records, results, versions, lines, touched)
