"""Which encoders are compared: random weights, the weights that runs began with, and the runs."""

import dataclasses
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any, Literal, cast

from mixco.encoders.checkpoint import EncoderDescription, fingerprint
from mixco.encoders.loading import LoadedEncoder, load_encoder
from mixco.models.encoder import Stem, build_backbone
from mixco.report.table import group
from mixco.runtime.errors import UserError
from mixco.runtime.files import shown
from mixco.runtime.run_folder import run_results

START = "init.safetensors"
"""In a run folder: the weights that the run began with; a run from random weights has none."""

Kind = Literal["random", "start", "run", "supervised"]


@dataclass(frozen=True)
class Encoder:
    """An encoder that is built when it is needed, so that one at a time is in memory."""

    description: EncoderDescription
    fingerprint: str
    path: Path
    """A file of an encoder for the same images: its own, or for random weights that of the run."""
    load: Callable[[], LoadedEncoder]


@dataclass(frozen=True)
class Row:
    """The encoders of a row of the table: one, or those of runs that differ in nothing but the seed."""

    kind: Kind
    name: str
    encoders: tuple[Encoder, ...]
    runs: tuple[Path, ...] = ()
    """The runs of a row of runs; for random and starting weights, the runs that they belong to."""
    pretraining: tuple[dict[str, Any], ...] = ()
    """What results.json says of the pretraining of each run."""

    @property
    def description(self) -> EncoderDescription:
        return self.encoders[0].description


def rows_of(runs: tuple[Path, ...], *, size: int | None, seed: int) -> list[Row]:
    """The rows of encoders in the order of the table: random weights, starting weights, runs.

    runs: run folders; one that is given twice counts once. size: of the images, in pixels; None for
    each encoder's own. seed: of random weights.

    Raises UserError for what is no run folder, or holds no finished run.
    """
    found = {folder: _results(folder) for folder in dict.fromkeys(runs)}
    of_runs = {folder: _saved(folder / "encoder.safetensors", size) for folder in found}
    starts = {
        folder: _saved(folder / START, size) for folder in found if (folder / START).is_file()
    }
    names = _names(found)
    together: dict[Any, list[Path]] = {}
    for number, alike in enumerate(group(list(found.values()))):
        for folder, results in found.items():
            if results in alike.runs:
                began = starts[folder].fingerprint if folder in starts else ""
                key = (number, began, of_runs[folder].description.input)
                together.setdefault(key, []).append(folder)
    called = _called([[names[folder] for folder in folders] for folders in together.values()])
    rows = [
        Row(
            "run",
            name,
            tuple(of_runs[folder] for folder in folders),
            tuple(folders),
            tuple(found[folder]["pretrain"] for folder in folders),
        )
        for name, folders in zip(called, together.values(), strict=True)
    ]
    untrained = _distinct(
        "random",
        "random weights",
        {folder: _random(encoder, seed) for folder, encoder in of_runs.items()},
        names,
    )
    return [*untrained, *_distinct("start", "starting weights", starts, names), *rows]


def about(row: Row, sizes_differ: bool) -> dict[str, Any]:
    """What compare.json says of every row."""
    description = row.description
    trained = "random weights, trained with the labels"
    return {
        "kind": row.kind,
        "name": row.name,
        "runs": [str(folder) for folder in row.runs],
        "training": trained if row.kind == "supervised" else description.training,
        "arch": description.arch,
        "size": description.size,
        "size_differs": sizes_differ,
        "seeds": len(row.encoders),
    }


def pretraining_seconds(row: Row) -> float | None:
    """The mean over the seeds of a row of runs; None where it is unknown, or nothing was trained."""
    known = [each["seconds"] for each in row.pretraining if "seconds" in each]
    return round(mean(known), 1) if known else None


def names_of_published(rows: Iterable[Row]) -> Iterable[str]:
    """Sentences: which published weights the rows are that have only "published weights" as a name."""
    for row in rows:
        origin = row.description.origin
        if row.kind == "start" and is_published(row.description) and origin:
            yield f"The {row.name} are {origin.name}."


def baseline_of(row: Row, rows: Iterable[Row]) -> Row:
    """What a row of runs began with: its starting weights, or else random weights."""
    theirs = [r for r in rows if r.kind in ("start", "random") and row.runs[0] in r.runs]
    return max(theirs, key=lambda r: r.kind == "start")


def _distinct(kind: Kind, name: str, of: dict[Path, Encoder], names: dict[Path, str]) -> list[Row]:
    """A row for each distinct encoder, called after its runs where the name is of several."""
    by_fingerprint: dict[Any, list[Path]] = {}
    for folder, encoder in of.items():
        key = (encoder.fingerprint, encoder.description.input)
        by_fingerprint.setdefault(key, []).append(folder)
    called = [
        "published weights" if is_published(of[folders[0]].description) else name
        for folders in by_fingerprint.values()
    ]
    return [
        Row(
            kind,
            f"{own} of {_listed([names[f] for f in folders])}" if called.count(own) > 1 else own,
            (of[folders[0]],),
            tuple(folders),
        )
        for own, folders in zip(called, by_fingerprint.values(), strict=True)
    ]


def is_published(about: EncoderDescription) -> bool:
    """Is it published weights, not trained since?"""
    return about.origin is not None and about.training == about.origin.training


def _results(folder: Path) -> dict[str, Any]:
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: not a run folder; give folders that `mixco pretrain` made")
    if not (folder / "results.json").is_file() or not isinstance(
        (results := run_results(folder)).get("pretrain"), dict
    ):
        raise UserError(f"{folder}: the run is not finished; the command that began it finishes it")
    return results


def _saved(path: Path, size: int | None) -> Encoder:
    loaded = load_encoder(path, size=size)
    weights = fingerprint(loaded.backbone)
    return Encoder(loaded.description, weights, path, lambda: load_encoder(path, size=size))


def _random(of_run: Encoder, seed: int) -> Encoder:
    """Random weights of a run's architecture, for the same images."""
    about = dataclasses.replace(of_run.description, training=f"random weights, seed {seed}")

    def load() -> LoadedEncoder:
        stem = cast(Stem, about.stem)
        backbone = build_backbone(about.arch, about.size, stem, seed, about.channels)
        return LoadedEncoder(backbone.eval(), about, of_run.path, len(backbone.state_dict()))

    return Encoder(about, fingerprint(load().backbone), of_run.path, load)


def _names(folders: Iterable[Path]) -> dict[Path, str]:
    """The last name of each folder, or its path where two have the same."""
    last = {folder: shown(folder.resolve().name) for folder in folders}
    taken = list(last.values())
    return {f: name if taken.count(name) == 1 else shown(str(f)) for f, name in last.items()}


def _called(rows: list[list[str]]) -> list[str]:
    """A name for the runs of each row: "a (2 seeds)" for a-s0 and a-s1, or all their names."""
    short = []
    for names in rows:
        stems = {re.sub(r"[-_. ]*(s|seed)?\d+$", "", name) for name in names}
        one = len(names) > 1 and len(stems) == 1 and "" not in stems
        short.append(f"{stems.pop()} ({len(names)} seeds)" if one else _listed(names))
    return short if len(set(short)) == len(short) else [_listed(names) for names in rows]


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 2} more" if len(names) > 3 else ""
    return ", ".join(names[: 2 if more else 3]) + more
