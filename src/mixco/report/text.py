"""What a run's numbers say, in plain words, and what they do not say."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mixco.report.run import Run

SLOW_DATA = 0.2  # share of the time that a run waits for its images


@dataclass(frozen=True)
class Number:
    """One of the results that stand at the top."""

    value: str
    what: str
    about: str
    """What the number is, and is not."""


EVALUATIONS = {
    "knn": "Nearest neighbours, test images",
    "linear": "Linear probe, test images",
    "linear_paper": "Linear classifier as published, test images",
    "finetune": "Fine-tuned, test images",
    "supervised": "Trained with labels, test images",
}
MEANING = {
    "knn": "Each test image takes the class of the training images that the encoder finds most like it.",
    "linear": "A linear classifier on the frozen encoder's features, its settings chosen on held-out "
    "training images.",
    "linear_paper": "A linear classifier on the frozen encoder, trained on augmented images as in the "
    "published protocol.",
    "finetune": "The whole network, trained further with labels. It says what the encoder is worth as a "
    "start, not what it knows by itself.",
    "supervised": "The same network, trained from scratch with all labels: the rival without "
    "pretraining. It is not this encoder.",
}


def what_was_trained(run: Run) -> str:
    """ "A resnet18, trained without labels by SimCLR with MixCo on 1,600 images of ..." """
    config, pretraining = run.config, run.results.get("pretrain", {})
    arch = config.get("model.arch", "network")
    if not run.trained:
        return f"A {arch} with random weights, not trained: what a trained one has to beat."
    images = f"{pretraining['images']:,} images of " if "images" in pretraining else ""
    data = pretraining.get("data", config.get("data.data", "a data set"))
    data = str(data).removesuffix("/pretrain").removesuffix("/train")
    side, seed = config.get("data.size", "?"), config.get("run.seed", "?")
    return (
        f"A {arch}, trained without labels by {run.method} on {images}{data} at {side} × {side} pixels, "
        f"{progress(run)}, seed {seed}."
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
    """Of an accuracy in percent, by the number of images alone."""
    share = min(max(percent / 100, 0), 1)
    return 100 * math.sqrt(share * (1 - share) / max(images, 1))


SUMMARIES = {
    "linear_paper": "With the encoder as it is, a linear classifier on its features tells {} right",
    "linear": "With the encoder as it is, a linear classifier on its features tells {} right",
    "knn": "Going by the images that the encoder finds most alike, {} are told right",
}


def summary(run: Run, classes: int | None) -> str:
    """The most telling result, in a sentence."""
    chance = f"; guessing would reach {100 / classes:.0f} %" if classes else ""
    for kind, words in SUMMARIES.items():
        top1 = run.results.get(kind, {}).get("top1")
        if isinstance(top1, (int, float)):
            return words.format(f"{top1:.0f} of 100 test images") + chance + "."
    check = run.last("knn")
    if check is not None:
        what = f"{check:.0f} of 100 held-out training images"
        return SUMMARIES["knn"].format(what) + chance + "."
    return "No number says yet what the encoder is worth; the pictures below give an idea."


def numbers(run: Run, held_out: int | None, classes: int | None) -> Iterator[Number]:
    """The results of a run; held_out, classes: how many there are, where that is known."""
    check = run.last("knn")
    if check is not None:
        kept_back = (
            "The encoder never saw them."
            if run.config.get("run.exclude_holdout")
            else "The encoder saw them in training, without their labels."
        )
        images = f"{held_out:,} training images" if held_out else "Some training images"
        yield Number(
            f"{check:.1f} %",
            "Nearest neighbours, held-out training images",
            f"{images} are asked about, each takes the class of the 20 most like it among the "
            f"others. {kept_back} It is a check while training, not a test result."
            + _uncertain(check, held_out),
        )
    for kind, result in run.results.items():
        base = kind.split("@")[0].split("-")[0]
        if base not in EVALUATIONS or not isinstance(result.get("top1"), (int, float)):
            continue
        images = result.get("test_images")
        data = f" of {result['data']}" if "data" in result else ""
        few = f", with {result['labels']} of the labels" if _few(result) else ""
        yield Number(
            f"{result['top1']:.1f} %",
            EVALUATIONS[base]
            + (f" ({kind.partition(base)[2].strip('-@')})" if kind != base else ""),
            f"{MEANING[base]} {images or 'Test'} images{data}{few}."
            + _uncertain(result["top1"], images),
        )
    if classes and (check is not None or run.results.keys() & EVALUATIONS):
        yield Number(
            f"{100 / classes:.1f} %",
            "By chance",
            f"What guessing among {classes} equally frequent classes would reach.",
        )


def _few(result: dict[str, Any]) -> bool:
    return bool(result.get("labels", "all") != "all")


def _uncertain(percent: float, images: int | None) -> str:
    if not images:
        return ""
    error = standard_error(percent, images)
    return f" By their number alone uncertain by ± {error:.1f} points (one standard error)."


def caveats(run: Run, labelled: bool | None) -> list[str]:
    """What the numbers are not. labelled: whether the images have labels, None if that is not known."""
    found = []
    if not run.results.keys() & EVALUATIONS:
        advice = f"mixco knn --run {run.folder}"
        found.append(
            "There is no test result yet."
            + (f" With labelled train and test images, {advice} gives one." if run.finished else "")
        )
    if labelled is False:
        found.append(
            "The images have no labels, so no accuracy can be given. Judge by the neighbours and the "
            "map below: are images side by side that belong together for you?"
        )
    found.append(
        "These are of one run. Another seed gives other numbers; a difference to another run counts "
        "only when it is larger than the spread over seeds."
    )
    if run.records:
        found.append(
            "The loss tells whether training moves, not how good the encoder is. Losses of runs with "
            "another temperature, batch size, queue or mixing cannot be compared."
        )
    return found


def warnings(run: Run, images: int | None) -> list[str]:
    """What a person should know of how the run went, each with what helps. images: there are now."""
    found = []
    if not run.finished:
        when = f" Its metrics were last written at {run.touched}." if run.touched else ""
        found.append(
            f"The run is not finished: it goes on, or was stopped.{when} All below is of its last "
            "checkpoint or epoch; the same command goes on with it."
        )
    if run.unreadable:
        files = [line.split("\t")[0] for line in run.unreadable]
        shown = ", ".join(files[:3]) + (", …" if len(files) > 3 else "")
        found.append(
            f"{len(files):,} images could not be read and were left out: {shown} "
            "(unreadable.txt lists all, with reasons)."
        )
    pretraining = run.results.get("pretrain", {})
    trained_on, queue = pretraining.get("images"), run.config.get("method.queue")
    if trained_on and queue and queue > trained_on // 2:
        found.append(
            f"The queue of {queue:,} keys is more than half of the {trained_on:,} images: an image "
            f"meets its own old keys as negatives. --queue {trained_on // 4} is safer."
        )
    left_out = run.config.get("run.exclude_holdout")
    if trained_on and images and images != trained_on and not left_out:
        found.append(
            f"The run was trained on {trained_on:,} images; now there are {images:,}. Sections with "
            "images are of those that are there now."
        )
    waiting = pretraining.get("waiting_share", run.last("waiting_share"))
    if waiting and waiting > SLOW_DATA:
        found.append(
            f"{waiting:.0%} of the time went by waiting for images. A faster disk, more --workers, or "
            "--loading packed help."
        )
    checks = [value for _, value in run.column("knn")]
    if checks and max(checks) - checks[-1] > 3:
        found.append(
            f"The check on held-out images ended at {checks[-1]:.1f} %, after {max(checks):.1f} % at "
            "its best: a lower --lr or fewer --epochs may do better."
        )
    return found
