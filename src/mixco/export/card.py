"""The model card: what an exported encoder is, how it was trained, how to use it, and its limits."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mixco.encoders.checkpoint import EncoderDescription
from mixco.evaluation import EVALUATIONS
from mixco.evaluation.kinds import base_kind, in_order, title_of
from mixco.export.formats import Lines, crop_pct
from mixco.methods import papers
from mixco.views.augmentation import OVERRIDES

# Data sets that the Hugging Face hub has, by its names.
HUB_DATA = {
    "cifar10": "uoft-cs/cifar10",
    "cifar100": "uoft-cs/cifar100",
    "imagenet": "ILSVRC/imagenet-1k",
    "tiny-imagenet": "zh-plus/tiny-imagenet",
}


def card(
    about: EncoderDescription,
    lines: Lines,
    *,
    features: int,
    weights: int,
    source: str,
    checked: str,
    config: Mapping[str, Any] | None,
    results: Mapping[str, Any],
    versions: Mapping[str, str],
    licence: str | None,
) -> str:
    """The card in Markdown.

    features, weights: how many the encoder has. source: the name of the file that it came from.
    checked: a sentence about the comparison. config, results, versions: the contents of the run's files,
    as far as there is a run.
    """
    side, channels = about.size, about.channels
    whole = crop_pct(side) == 1
    square = "central square" if whole else "central square of 7/8 of the shorter side"
    how = {
        "size": f"{side} x {side} pixels, {channels} channels"
        + (" in the order red, green, blue" if channels == 3 else ""),
        "part of an image": f"the {square}, resized bilinearly with antialiasing",
        "values": "0 to 1, minus the mean, divided by the standard deviation, of each channel",
        "mean": _numbers(about.mean),
        "standard deviation": _numbers(about.std),
        "output": f"{features} features, float32, not normalised",
    }
    random = " The weights are random, for comparison." if _random(about.training) else ""
    parts = [
        f"# {about.arch}: {about.training}",
        f"An image encoder: it turns an image of {side} x {side} pixels into {features:,} features. It "
        f"has {weights / 1e6:.1f} million weights and no classifier. Use the features for nearest "
        f"neighbours, for a classifier of your own, or fine-tune the encoder.{random}",
        "## Use",
        _code(lines, channels),
        *([lines.note] if lines.note else []),
        _table(("input", ""), how.items()),
        "## Training",
        _training(about.training, source, config, results.get("pretrain", {}), versions),
        "## Results",
        _results(results, source, about.training),
        "## Limits",
        _limits(config),
        "## Licence",
        _licence(about, licence),
        "## Made and checked",
        f"Made by `mixco export` from `{source}`. {checked}",
    ]
    return "\n\n".join(parts) + "\n"


def hub_header(training: str, config: Mapping[str, Any] | None, licence: str | None) -> str:
    """The lines above a card that the Hugging Face hub reads."""
    from huggingface_hub import ModelCardData

    tags = ["timm", "image-feature-extraction"]
    if not _random(training):
        tags += ["self-supervised-learning", "contrastive-learning"]
    if config:
        tags += [name for key in ("method", "mix") if (name := config["method"][key]) != "none"]
    data = HUB_DATA.get(str(config["data"]["data"])) if config else None
    values = ModelCardData(
        license=licence or "unknown",
        library_name="timm",
        pipeline_tag="image-feature-extraction",
        tags=tags,
        datasets=[data] if data else None,
    )
    return f"---\n{values.to_yaml()}\n---\n\n"


def citation(name: str) -> str:
    """ "[MoCo](https://arxiv.org/abs/...)" of "moco"; an unknown name as it is."""
    if name not in papers():
        return name
    title, arxiv = papers()[name]
    return f"[{title}](https://arxiv.org/abs/{arxiv})" if arxiv else title


def _code(lines: Lines, channels: int) -> str:
    mode = {1: '.convert("L")', 3: '.convert("RGB")'}.get(channels, "")
    image = f'image = Image.open("image.jpg"){mode}'
    block = (lines.imports, "", lines.where, lines.build, "", image, lines.prepare, lines.use)
    return "```python\n" + "\n".join(block) + "\n```"


def _licence(about: EncoderDescription, licence: str | None) -> str:
    """licence: as the user gives it."""
    origin, untouched = about.origin, bool(about.origin and about.training == about.origin.training)
    if licence is None and origin and untouched and origin.licence != "unknown":
        licence = origin.licence
    text = (
        f"The weights: {licence}."
        if licence
        else "The licence of the weights is unknown: whoever trained them has not said. Ask before you "
        "use them for more than a look. The images they were trained on have a licence of their own."
    )
    if origin:
        began = "They are" if untouched else "Their training began with"
        text += f" {began} the published weights {origin.name}: {origin.details}."
    return text


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
    method, data, optimisation = config["method"], config["data"], config["optimisation"]
    mixed = method["mix"] != "none"
    temperature = method.get("temperature")
    rows = {
        "method": citation(method["method"])
        + (f" with {citation(method['mix'])}" if mixed else "")
        + ", without labels",
        "teacher": Path(method["teacher"]).name if method.get("teacher") else None,
        "temperature": f"{temperature:g}"
        + (f", for mixed images {method['mix_temperature']:g}" if mixed else "")
        if temperature is not None
        else None,
        "mixing": _mixing(method) if mixed and method.get("mix_alpha") else None,
        "images": f"{done['images']:,} of {done['data']}{_explained(data['data'])}"
        if done
        else None,
        "views": _views(method, data),
        "epochs": f"{optimisation['epochs']} with batches of {optimisation['batch_size']}",
        "optimiser": optimisation["optimizer"]
        + (
            f", rate {optimisation['lr']:g}, weight decay {optimisation['weight_decay']:g}, "
            f"{optimisation['schedule']} schedule"
            if optimisation["lr"] is not None
            else ""
        ),
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
            f"\n\nThe weights are those of the checkpoint `{source}`, which may be older than the last "
            "epoch."
        )
    return text


def _results(results: Mapping[str, Any], source: str, training: str) -> str:
    """The evaluations of these very weights; results.json may also have those of others."""
    kinds = in_order(
        kind
        for kind, result in results.items()
        if base_kind(kind)
        and (result.get("checkpoint"), result.get("training")) == (source, training)
    )
    if not kinds:
        return "None so far: these weights have not been evaluated, and nothing is known of their worth."
    ranked = any(
        "top5" in results[kind] for kind in kinds
    )  # of five classes or fewer there is none
    head = ("evaluation", "data", "labelled", "top-1, %", *(("top-5, %",) if ranked else ()))
    rows = [
        (
            title_of(kind),
            f"{result['data']}, {result['test_images']:,} images",
            f"{result['train_images']:,}",
            f"{result['top1']:.1f} ± {_standard_error(result['top1'], result['test_images']):.1f}",
            *((f"{result['top5']:.1f}" if "top5" in result else "",) if ranked else ()),
        )
        for kind in kinds
        if (result := results[kind])
    ]
    bases = dict.fromkeys(base for kind in kinds if (base := base_kind(kind)))
    meaning = [f"- {EVALUATIONS[b].title}: {EVALUATIONS[b].about}" for b in bases]
    return (
        _table(head, rows) + "\n\n" + "\n".join(meaning) + "\n\n"
        "± is the standard error from the number of test images alone. There was one run with one seed; "
        "another seed gives other numbers. The results tell how well the features separate the classes "
        "of these test images. They promise nothing for other images, and do not compare with numbers "
        "from another protocol."
    )


def _limits(config: Mapping[str, Any] | None) -> str:
    seen = _explained(config["data"]["data"]) if config else ""
    return (
        f"- It knows the images that it was trained on{seen}, and no others: features of images of "
        "another kind or another size may be worth little.\n"
        "- Training made it overlook what its views change: colour casts, brightness, blur, mirroring, "
        "and where in the picture a thing is. Where those matter, it is a poor choice.\n"
        "- Nobody has examined which biases of the images it has learned. Do not use it for decisions "
        "about people."
    )


def _explained(data: Any) -> str:
    """What a data set is, if its name does not tell."""
    return " (satellite photographs, a part of EuroSAT)" if data == "sample" else ""


def _mixing(method: dict[str, Any]) -> str:
    alpha, alone = method["mix_alpha"], method["mix_loss"] == "alone"
    law = f"lambda ~ Beta({alpha:g}, {alpha:g})"
    return f"{law}; the mixed loss replaces the clean one" if alone else law


def _views(method: dict[str, Any], data: dict[str, Any]) -> str:
    """ "simclr, at 32 px; jitter 0.25" """
    told = {"jitter": 1.0, "min_crop": None, **dict.fromkeys(OVERRIDES)}
    changed = [
        f"{name.replace('_', ' ')} {method[name]:g}"
        for name, usual in told.items()
        if method.get(name, usual) != usual
    ]
    made = f"{method['augmentation']}, at {data.get('view_size') or data['size']} px"
    return "; ".join([made, *([", ".join(changed)] if changed else [])])


def _random(training: str) -> bool:
    return training.startswith("random weights")


def _standard_error(percent: float, count: int) -> float:
    return math.sqrt(percent * (100 - percent) / count)


def _numbers(values: Iterable[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _table(head: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
