"""The model card: what an exported encoder is, how it was trained, how it is used, what it is not."""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from mixco.encoders.export.formats import Lines

METHODS = {
    "moco": "[MoCo](https://arxiv.org/abs/2003.04297)",
    "simclr": "[SimCLR](https://arxiv.org/abs/2002.05709)",
}
MIXERS = {"none": "", "mixco": "[MixCo](https://arxiv.org/abs/2010.06300)"}

# What is called how on the hub; folders of one's own have no name there.
HUB_DATA = {
    "cifar10": "uoft-cs/cifar10",
    "cifar100": "uoft-cs/cifar100",
    "imagenet": "ILSVRC/imagenet-1k",
    "tiny-imagenet": "zh-plus/tiny-imagenet",
}

# Of results.json: which entries are about this encoder, and what was asked.
EVALUATIONS = {
    "knn": "kNN: a test image gets the label that its nearest labelled images vote for",
    "linear": "linear probe: a softmax regression on the features",
    "linear_paper": "linear classifier on the frozen encoder, on augmented images, as published",
    "finetune": "all weights trained further with labels, which are not the weights here",
}


def card(
    *,
    arch: str,
    training: str,
    features: int,
    weights: int,
    input_size: tuple[int, int],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    whole: bool,
    source: str,
    lines: Lines,
    checked: str,
    config: Mapping[str, Any] | None,
    results: Mapping[str, Any],
    versions: Mapping[str, str],
    licence: str | None,
) -> str:
    """Markdown.

    input_size: channels and side in pixels. whole: is all of the central square seen, or 7/8 of it?
    source: the name of the file that the weights came from. config, results, versions: the run's, as
    far as there is one.
    """
    channels, side = input_size
    colours = " in the order red, green, blue" if channels == 3 else ""
    square = "central square" if whole else "central square of 7/8 of the shorter side"
    how = {
        "size": f"{side} x {side} pixels, {channels} channels{colours}",
        "what of an image": f"the {square}, resized bilinearly with antialiasing",
        "values": "0 to 1, minus the mean, divided by the standard deviation, of each channel",
        "mean": _numbers(mean),
        "standard deviation": _numbers(std),
        "output": f"{features} features, float32, not normalised",
    }
    parts = [
        f"# {arch}: {training}",
        f"An image encoder: an image of {side} x {side} pixels goes in, {features:,} features come out. "
        f"It has {weights / 1e6:.1f} million weights and no classifier: its features are for nearest "
        "neighbours, a classifier of your own on top, or fine-tuning."
        + (
            " The weights are random, for comparison; nothing was learned."
            if _random(training)
            else ""
        ),
        "## Use",
        _code(lines, channels),
        *([lines.note] if lines.note else []),
        _table(("input", ""), how.items()),
        "## Training",
        _training(training, source, config, results.get("pretrain", {}), versions),
        "## Results",
        _results(results, source, training),
        "## Limits",
        _limits(config),
        "## Licence",
        f"The weights: {licence}."
        if licence
        else "Of the weights: unknown. Whoever trained them has "
        "not said; ask before you use them for more than looking. The images they were trained on have "
        "a licence of their own.",
        "## Made and checked",
        f"Made by `mixco export` from `{source}`. {checked}",
    ]
    return "\n\n".join(parts) + "\n"


def hub_header(*, training: str, config: Mapping[str, Any] | None, licence: str | None) -> str:
    """What stands above the card for the Hugging Face hub's own use."""
    from huggingface_hub import ModelCardData

    method = config["method"]["method"] if config else None
    mix = config["method"]["mix"] if config else "none"
    tags = ["timm", "image-feature-extraction"]
    if not _random(training):
        tags += ["self-supervised-learning", "contrastive-learning"]
    data = HUB_DATA.get(config["data"]["data"]) if config else None
    values = ModelCardData(
        license=licence or "unknown",
        library_name="timm",
        pipeline_tag="image-feature-extraction",
        tags=[*tags, *([method] if method else []), *([mix] if mix != "none" else [])],
        datasets=[data] if data else None,
    )
    return f"---\n{values.to_yaml()}\n---\n\n"


def _code(lines: Lines, channels: int) -> str:
    mode = {1: '.convert("L")', 3: '.convert("RGB")'}.get(channels, "")
    image = f'image = Image.open("image.jpg"){mode}'
    block = (lines.imports, "", lines.where, lines.build, "", image, lines.prepare, lines.use)
    return "```python\n" + "\n".join(block) + "\n```"


def _training(
    training: str,
    source: str,
    config: Mapping[str, Any] | None,
    done: Mapping[str, Any],
    versions: Mapping[str, str],
) -> str:
    if config is None:
        return f"All that the file says: {training}."
    if _random(training):
        return f"None: {training}."
    method, optimisation = config["method"], config["optimisation"]
    mix = MIXERS.get(method["mix"], method["mix"])
    rows = {
        "method": METHODS.get(method["method"], method["method"])
        + (f" with {mix}" if mix else "")
        + ", without labels",
        "temperature": f"{method['temperature']:g}"
        + (f", of mixed images {method['mix_temperature']:g}" if mix else ""),
        "images": f"{done['images']:,} of {done['data']}{_told(config['data']['data'])}"
        if done
        else None,
        "views": f"{method['augmentation']}, at {config['data']['size']} px",
        "epochs": f"{optimisation['epochs']} with batches of {optimisation['batch_size']}",
        "optimiser": f"{optimisation['optimizer']}, rate {optimisation['lr']:g}, "
        f"weight decay {optimisation['weight_decay']:g}, {optimisation['schedule']} schedule"
        if optimisation["lr"] is not None
        else optimisation["optimizer"],
        "seed": config["run"]["seed"],
        "hardware": versions.get("hardware"),
        "time": f"{done['seconds'] / 60:,.0f} minutes" if "seconds" in done else None,
        "versions": ", ".join(
            f"{name} {versions[name]}" for name in ("mixco", "torch", "timm") if name in versions
        ),
    }
    text = _table(("what", "how"), ((k, v) for k, v in rows.items() if v not in (None, "")))
    if source != "encoder.safetensors":
        text += (
            f"\n\nThe weights are those of the checkpoint `{source}`, which may have been taken before "
            "the last epoch."
        )
    return text


def _results(results: Mapping[str, Any], source: str, training: str) -> str:
    about_these = [
        (name, EVALUATIONS[re.split("[-@]", name)[0]], result)
        for name, result in results.items()
        if re.split("[-@]", name)[0] in EVALUATIONS
        and (result.get("checkpoint"), result.get("training")) == (source, training)
    ]
    if not about_these:
        return "None so far: these weights have not been evaluated, so nothing is known of their worth."
    head = ("evaluation", "data", "labelled", "top-1, %", "top-5, %")
    rows = [
        (
            what,
            f"{result['data']}, {result['test_images']:,} images",
            f"{result['train_images']:,}",
            f"{result['top1']:.1f} ± {_standard_error(result['top1'], result['test_images']):.1f}",
            f"{result['top5']:.1f}",
        )
        for _, what, result in about_these
    ]
    return (
        _table(head, rows) + "\n\n"
        "± is the standard error that the number of test images leaves, and no more: it is one run with "
        "one seed, and another seed gives other numbers. They tell how well the features separate the "
        "classes of these test images. They are no promise for other images, and no comparison with "
        "numbers that were got by another protocol."
    )


def _limits(config: Mapping[str, Any] | None) -> str:
    seen = _told(config["data"]["data"]) if config else ""
    return (
        f"- It has seen the images that it was trained on{seen}, and knows no others: features of "
        "images of another kind, or of another size, may be worth little.\n"
        "- Training made it overlook what its views change: colour casts, brightness, blur, mirroring, "
        "and where in the picture a thing is. Where those matter, it is a poor choice.\n"
        "- Nobody has examined which biases of the images it has learned. Do not decide about people by "
        "it."
    )


def _told(data: str) -> str:
    """What a data set is, where its name does not tell everybody."""
    return " (satellite photographs, a part of EuroSAT)" if data == "sample" else ""


def _random(training: str) -> bool:
    return training.startswith("random weights")


def _standard_error(percent: float, count: int) -> float:
    return math.sqrt(percent * (100 - percent) / count)


def _numbers(values: Iterable[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _table(head: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
