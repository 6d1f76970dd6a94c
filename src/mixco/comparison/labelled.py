"""Runs, what they began with, and labels alone, measured on labelled images; the table and verdicts."""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor

from mixco.comparison.compare_json import kept, write_found
from mixco.comparison.measure import (
    ALL,
    Labels,
    Measured,
    epochs_for,
    from_scratch,
    labels_of,
    measure,
)
from mixco.comparison.rows import (
    Encoder,
    Row,
    about,
    baseline_of,
    names_of_published,
    pretraining_seconds,
)
from mixco.comparison.verdict import Verdict, judge, judge_labels
from mixco.data.datasets import Where
from mixco.data.image_list import ImageList
from mixco.data.run_images import digest, some_bytes
from mixco.evaluation.task import Task, load_task
from mixco.runtime.errors import UserError
from mixco.runtime.progress import say
from mixco.settings.commands import EvaluationConfig
from mixco.settings.compare import CompareConfig
from mixco.settings.parse import with_settings
from mixco.views.augmentation import Input

# Settings that an evaluation has under the same name.
SHARED = (
    *("train_folder", "test_folder", "max_unreadable", "size", "cache", "loading", "workers"),
    *("device", "precision", "seed"),
)


@dataclass(frozen=True)
class Bench:
    """The labelled images on which everything is measured."""

    config: CompareConfig
    where: Where
    path: Path
    """compare.json"""
    train: ImageList
    test: ImageList
    labels: Labels
    depends_on: list[Any]
    """What every evaluation depends on: images, number format and seed."""
    tasks: dict[tuple[str, str, Input], Task] = field(default_factory=dict)
    """By architecture, stem and input: the images, opened once for all such encoders."""


@dataclass(frozen=True)
class Done:
    """A row, and what each of its encoders came to."""

    row: Row
    measured: tuple[Measured, ...]

    @property
    def answers(self) -> dict[str, dict[str, Tensor]]:
        """By the measure and the share of the labels: which test images are right, bool [S, M]."""
        first = self.measured[0].answers
        return {
            kind: {
                share: torch.stack([each.answers[kind][share] for each in self.measured])
                for share in shares
            }
            for kind, shares in first.items()
        }

    @property
    def with_all(self) -> dict[str, Tensor]:
        """The answers with all labels, by the measure."""
        return {kind: shares[ALL] for kind, shares in self.answers.items()}


def compare_labelled(
    config: CompareConfig,
    rows: list[Row],
    where: Where,
    path: Path,
    device: torch.device,
    train: ImageList,
    test: ImageList,
) -> dict[str, Any]:
    """What compare.json holds, but for its evaluations. It is written before the training from scratch.

    path: compare.json.
    """
    images = [[digest(source), some_bytes(source)] for source in (train, test)]
    depends_on = [*images, config.precision, device.type, config.seed]
    bench = Bench(config, where, path, train, test, labels_of(train), depends_on)
    for sentence in bench.labels.left_out:
        say(sentence)
    done = [Done(row, tuple(_measure(bench, encoder) for encoder in row.encoders)) for row in rows]
    found = summary(bench, done)
    if config.supervised:
        write_found(path, found)
        runs = [row for row in rows if row.kind == "run"]
        for row in rows:
            if row.kind == "random":
                run = next(run for run in runs if run.runs[0] in row.runs)
                done.append(_train_from_scratch(bench, row, run))
        found = summary(bench, done)
    return found


def _evaluation(bench: Bench, encoder: Encoder) -> EvaluationConfig:
    settings = {name: getattr(bench.config, name) for name in SHARED}
    settings |= {"checkpoint": encoder.path, **bench.where.settings()}
    return with_settings(EvaluationConfig(), settings, "compare")


def _task(bench: Bench, encoder: Encoder) -> Task:
    about = encoder.description
    key = (about.arch, about.stem, about.input)
    if key not in bench.tasks:
        bench.tasks[key] = load_task(_evaluation(bench, encoder))
    return bench.tasks[key]


def _measure(bench: Bench, encoder: Encoder) -> Measured:
    config, description = bench.config, encoder.description

    def evaluate() -> Measured:
        task = _task(bench, encoder)
        say(f"measuring: {description.training}")
        return measure(
            task,
            encoder.load(),
            bench.labels,
            k=config.k,
            temperature=config.temperature,
            seed=config.seed,
        )

    own = [encoder.fingerprint, description.input, config.k, config.temperature]
    return kept(bench.path, [*bench.depends_on, *own], evaluate)


def _train_from_scratch(bench: Bench, untrained: Row, run: Row) -> Done:
    """Train the network of a row of random weights with each share of the labels.

    run: with this architecture; the training sees about as many images as its pretraining did.
    """
    encoder, epochs = untrained.encoders[0], _epochs_from_scratch(bench, run)
    seconds = pretraining_seconds(run) if bench.config.supervised_epochs is None else None
    each = (
        f", about {max(1, round(seconds / 2)):,} s each where the run was trained"
        if seconds
        else ""
    )
    say(
        f"now {encoder.description.arch} from scratch, {_planned(epochs)}{each}. What is "
        "done is kept if you stop it; --no-supervised leaves it out"
    )
    description = encoder.description
    parts = []
    for share, number in epochs.items():

        def train(share: str = share, number: int = number) -> Measured:
            task, evaluation = _task(bench, encoder), _evaluation(bench, encoder)
            return from_scratch(task, evaluation, bench.path.parent, share=share, epochs=number)

        own = [description.arch, description.stem, description.input, share, number]
        parts.append(kept(bench.path, [*bench.depends_on, *own], train))
    answers = {share: of for part in parts for share, of in part.answers["supervised"].items()}
    measured = Measured({"supervised": answers}, sum(part.seconds for part in parts))
    name = untrained.name.replace("random weights", "from scratch with labels")
    return Done(dataclasses.replace(untrained, kind="supervised", name=name), (measured,))


def _epochs_from_scratch(bench: Bench, run: Row) -> dict[str, int]:
    """Epochs of the training with each share of the labels."""
    labelled = {share: len(part.files) for share, part in bench.labels.kept.items()}
    pretraining, asked, tested = run.pretraining[0], bench.config, len(bench.test.files)
    if asked.supervised_epochs is None:
        seen = pretraining["images"] * pretraining["epochs"]
    else:
        seen = asked.supervised_epochs * (labelled[ALL] + tested / 3)
    return {share: epochs_for(seen, count, tested) for share, count in labelled.items()}


def _planned(epochs: Mapping[str, int]) -> str:
    parts = ", ".join(f"{number:,} with {share}" for share, number in epochs.items())
    return f"epochs: {parts} of the labels"


def summary(bench: Bench, done: list[Done]) -> dict[str, Any]:
    """What compare.json holds, but for its evaluations.

    Raises UserError where rows do not have the same test images.
    """
    images = {measured.images for each in done for measured in each.measured}
    if len(images) > 1:
        raise UserError(
            f"{bench.test.root}: of its images, {min(images)} could be read for one encoder and "
            f"{max(images)} for another; mend or remove the unreadable ones"
        )
    sizes_differ = len({each.row.description.size for each in done}) > 1
    return {
        "labelled": True,
        "data": bench.test.name,
        "train_images": len(bench.train.files),
        "test_images": images.pop(),
        "classes": len(bench.train.classes),
        "shares": list(bench.labels.kept),
        "k": bench.config.k,
        "temperature": bench.config.temperature,
        "seed": bench.config.seed,
        "rows": [_line(each, sizes_differ) for each in done],
        "verdicts": list(_verdicts(done)),
        "notes": list(_notes(bench, done, sizes_differ)),
    }


def _line(done: Done, sizes_differ: bool) -> dict[str, Any]:
    seconds = round(mean(each.seconds for each in done.measured), 1)
    trained = done.row.kind == "supervised"
    return {
        **about(done.row, sizes_differ),
        "training_seconds": seconds if trained else pretraining_seconds(done.row),
        "evaluation_seconds": None if trained else seconds,
        "results": {
            kind: {share: _accuracy(right) for share, right in shares.items()}
            for kind, shares in done.answers.items()
        },
    }


def _accuracy(right: Tensor) -> dict[str, float]:
    """Top-1, its standard error from the number of images, and its spread over seeds, in percent.

    right: bool [S, M]. The spread is the standard deviation of a sample; there is none of one seed.
    """
    images = 100 * right.double().mean(0)
    seeds = (100 * right.double().mean(1)).tolist()
    error = images.std(correction=0).item() / len(images) ** 0.5
    spread = {"spread": round(stdev(seeds), 2)} if len(seeds) > 1 else {}
    return {"top1": round(mean(seeds), 2), "error": round(error, 2), **spread}


def _verdicts(done: list[Done]) -> Iterable[dict[str, Any]]:
    """Each row of runs against what it began with; against labels alone; and against the first run."""
    by_row = {each.row.name: each for each in done}
    rows = [each.row for each in done]
    runs = [each for each in done if each.row.kind == "run"]
    for own in runs:
        baseline = baseline_of(own.row, rows)
        began = baseline.kind == "start"
        yield _plain(
            own,
            by_row[baseline.name],
            judge(
                own.row.name,
                f"the {baseline.name}" if began else baseline.name,
                own.with_all,
                by_row[baseline.name].with_all,
                remedy=f"the {baseline.name} are the better choice"
                if began
                else "docs/watching.md says what may be wrong",
            ),
        )
    for own in runs:
        for scratch in done:
            if scratch.row.kind == "supervised" and own.row.runs[0] in scratch.row.runs:
                theirs = scratch.answers["supervised"]
                yield _plain(
                    own, scratch, judge_labels(own.row.name, own.answers["linear"], theirs)
                )
    for own in runs[1:]:
        first = runs[0]
        verdict = judge(own.row.name, first.row.name, own.with_all, first.with_all, paid=False)
        yield _plain(own, first, verdict)


def _plain(own: Done, other: Done, verdict: Verdict) -> dict[str, Any]:
    return {
        "row": own.row.name,
        "against": other.row.name,
        "outcome": verdict.outcome,
        "sentence": verdict.sentence,
        "differences": {key: value._asdict() for key, value in verdict.differences.items()},
    }


def _notes(bench: Bench, done: list[Done], sizes_differ: bool) -> Iterable[str]:
    runs = [each.row for each in done if each.row.kind == "run"]
    yield (
        "Top-1 in percent ± its standard error from the number of test images. Seconds: training + "
        "evaluation."
    )
    yield (
        "Nothing was chosen on the test images. Verdicts are paired tests on them, 95 % certain; the "
        "first ones are with all labels."
    )
    yield from bench.labels.left_out
    for each in done:
        if each.row.kind == "supervised":
            run = next(row for row in runs if row.runs[0] in each.row.runs)
            yield (
                f"{each.row.name}, {_planned(_epochs_from_scratch(bench, run))}. Longer training may "
                "reach more (--supervised-epochs)."
            )
    yield from names_of_published(each.row for each in done)
    if any(len(row.encoders) > 1 for row in runs):
        yield "(seeds ...): the standard deviation over seeds of pretraining. The verdicts count it."
    if any(len(row.encoders) == 1 for row in runs):
        yield "A row of a single run says nothing about how other seeds would do."
    if len(runs) > 1:
        yield "To take the best of several rows is a choice on the test images, and no result."
    if sizes_differ:
        yield "Each row is measured at its own size of the images; --size gives all of them one."
