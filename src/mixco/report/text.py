"""What a run's numbers say, in plain sentences, and what they do not say."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from mixco.evaluation import EVALUATIONS
from mixco.evaluation.kinds import base_kind, in_order, title_of
from mixco.methods import title
from mixco.report.run import Run
from mixco.runtime.files import shown

SLOW_DATA = 0.2  # part of the time that a run waits for its images


def method_of(run: Run) -> str:
    method, mix = (str(run.config.get(f"method.{key}", "")) for key in ("method", "mix"))
    return title(method, mix)


@dataclass(frozen=True)
class Number:
    """One of the results that stand at the top."""

    value: str
    what: str
    about: str
    """What the number is, and is not."""


def what_was_trained(run: Run) -> str:
    """ "A resnet18, trained without labels by SimCLR with MixCo on 1,600 images of ..." """
    config, pretraining = run.config, run.results.get("pretrain", {})
    arch = config.get("model.arch", "network")
    if not run.trained and "init" in pretraining:
        return f"A {arch}, as it is, without training here: {pretraining['init']}."
    if not run.trained:
        return f"A {arch} with random weights, not trained: a baseline for trained ones."
    images = f"{pretraining['images']:,} images of " if "images" in pretraining else ""
    data = pretraining.get("data", config.get("data.data", "a data set"))
    data = str(data).removesuffix("/pretrain").removesuffix("/train")
    side, seed = config.get("data.size", "?"), config.get("run.seed", "?")
    init = pretraining.get("init", config.get("model.init"))
    begun = f" It began with these weights: {init}." if init else ""
    return (
        f"A {arch}, trained without labels by {method_of(run)} on {images}{data} at {side} × {side} "
        f"pixels, {progress(run)}, seed {seed}.{begun}"
    )


def progress(run: Run) -> str:
    """ "20 epochs in 3 min 10 s" or "7 of 20 epochs so far" """
    epochs = run.config.get("optimisation.epochs", "?")
    if run.finished:
        seconds = run.results["pretrain"].get("seconds")
        return f"{epochs} epochs" + (f" in {duration(seconds)}" if seconds else "")
    done = int(run.records[-1]["epoch"]) if run.records else 0
    return f"{done} of {epochs} epochs so far"


def duration(seconds: float) -> str:
    """ "3 min 10 s" """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def standard_error(percent: float, images: int) -> float:
    """The standard error of an accuracy over this number of images, both in percent."""
    p = min(max(percent / 100, 0), 1)
    return 100 * math.sqrt(p * (1 - p) / max(images, 1))


def summary(run: Run, classes: int | None) -> str:
    """The first result on the run's own data, in a sentence. classes: how many; None means unknown."""
    chance = f"; guessing would reach {100 / classes:.0f} %" if classes else ""
    for kind in evaluations_of(run):
        if "@" in kind or run.results[kind].get("checkpoint", "unknown") is None:
            continue  # of other data, or of other weights, for comparison
        top1 = f"{run.results[kind]['top1']:.0f} of 100 test images"
        return f"{top1} get their right class ({title_of(kind)}){chance}."
    check = run.last("knn")
    if check is not None:
        asked = f"{check:.0f} of 100 held-out training images"
        return f"By their nearest neighbours, {asked} get their right class{chance}."
    return (
        "There is no result on the run's own data yet; the pictures below give an idea of the encoder's "
        "quality."
    )


def evaluations_of(run: Run) -> list[str]:
    """The keys of a run's evaluations that have a result, in order."""
    return in_order(
        kind
        for kind, result in run.results.items()
        if base_kind(kind) and isinstance(result.get("top1"), (int, float))
    )


def numbers(run: Run, held_out: int | None, classes: int | None) -> Iterator[Number]:
    """The results of a run. held_out, classes: how many there are; None means unknown."""
    check = run.last("knn")
    if check is not None:
        kept_back = (
            "The encoder was not trained on them."
            if run.config.get("run.exclude_holdout")
            else "The encoder was trained on them, without their labels."
        )
        images = f"Each of {held_out:,} images" if held_out else "Each image"
        yield Number(
            f"{check:.1f} %",
            "kNN, held-out training images",
            f"{images} takes the class of the 20 nearest among the other training images. {kept_back} "
            "This is a check during training, not a test result."
            + (f" {_uncertain(check, held_out)}" if held_out else ""),
        )
    for kind in evaluations_of(run):
        result = run.results[kind]
        images = result.get("test_images")
        about = [EVALUATIONS[base_kind(kind) or kind].about]
        if images:
            data = f" of {result['data']}" if "data" in result else ""
            labels = result.get("labels", "all")
            few = "" if labels == "all" else f", with {labels} of the labels"
            about += [
                f"Tested on {images:,} images{data}{few}.",
                _uncertain(result["top1"], images),
            ]
        yield Number(
            f"{result['top1']:.1f} %",
            f"{title_of(kind)}, test images",
            " ".join(filter(None, about)),
        )
    if classes and (check is not None or any("@" not in kind for kind in evaluations_of(run))):
        yield Number(
            f"{100 / classes:.1f} %",
            "By chance",
            f"What guessing among {classes} equally frequent classes would reach.",
        )


def _uncertain(percent: float, images: int) -> str:
    error = standard_error(percent, images)
    return f"Standard error from the number of images alone: ± {error:.1f} points."


def caveats(run: Run, labelled: bool | None) -> list[str]:
    """What the numbers are not. labelled: whether the images have labels; None means unknown."""
    found = []
    if not evaluations_of(run):
        advice = f"mixco knn --run {run.folder}"
        found.append(
            "There is no test result yet."
            + (f" With labelled train and test images, {advice} gives one." if run.finished else "")
        )
    if labelled is False:
        found.append(
            "The images have no labels, so there is no accuracy. Judge by the neighbours and the map "
            "below: do images that lie side by side belong together?"
        )
    found.append(
        "These are the results of one run. Another seed gives other numbers, and a difference between "
        "runs counts only when it is larger than the spread over seeds."
    )
    if run.records:
        found.append(
            "The loss tells whether training moves, not how good the encoder is. Do not compare losses "
            "of runs with different temperatures, batch sizes, queues or mixing."
        )
    return found


def warnings(run: Run, images: int | None) -> list[str]:
    """What went wrong in the run or may have, each with a remedy. images: how many there are now."""
    found = []
    if not run.finished:
        when = f" Its metrics were last written at {run.touched}." if run.touched else ""
        found.append(
            f"The run is not finished: it is still going on, or was stopped.{when} This page shows its "
            "last checkpoint and epoch; the same command continues it."
        )
    if run.unreadable:
        files = [shown(line.split("\t")[0]) for line in run.unreadable]
        some = ", ".join(files[:3]) + (", …" if len(files) > 3 else "")
        found.append(
            f"{len(files):,} images could not be read and were left out: {some} "
            "(unreadable.txt lists all, with reasons)."
        )
    pretraining = run.results.get("pretrain", {})
    trained_on, queue = pretraining.get("images"), run.config.get("method.queue")
    if trained_on and queue and queue > trained_on // 2:
        found.append(
            f"The queue of {queue:,} keys is longer than half of the {trained_on:,} images: an image "
            f"meets its own old keys as negatives. --queue {max(1, trained_on // 4)} is safer."
        )
    left_out = run.config.get("run.exclude_holdout")
    if trained_on and images and images != trained_on and not left_out:
        found.append(
            f"The run was trained on {trained_on:,} images; now there are {images:,}. Sections with "
            "images show those that are there now."
        )
    waiting = pretraining.get("data_wait", run.last("data_wait"))
    if waiting and waiting > SLOW_DATA:
        found.append(
            f"Training waited for images {waiting:.0%} of the time. A faster disk, more --workers, or "
            "--loading packed help."
        )
    checks = [value for _, value in run.column("knn")]
    if checks and max(checks) - checks[-1] > 3:
        found.append(
            f"The check on held-out images ended at {checks[-1]:.1f} %, below its best of "
            f"{max(checks):.1f} %: a lower --lr or fewer --epochs may do better."
        )
    return found
