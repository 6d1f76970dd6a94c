"""The settings of a run, from its config: checked, and everything unset chosen."""

import dataclasses
import math
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from mixco.data.datasets import set_name
from mixco.methods import METHODS, MIXERS, NO_MIXER, mixer_of
from mixco.runtime.errors import UserError
from mixco.runtime.setting import declared
from mixco.settings import defaults
from mixco.settings.commands import LinearConfig
from mixco.settings.config import PretrainConfig, Settings, of_other_bases
from mixco.settings.parse import check_ranges

Tell = Callable[[str, Any, str], None]


class Choice(NamedTuple):
    """A setting that was chosen, and why."""

    option: str
    value: str
    why: str


class Facts(NamedTuple):
    """What the rules of unset settings ask besides other settings. None means unknown."""

    images: int
    """How many are trained on."""
    processes: int = 1
    device_kind: str = "cpu"
    """cpu, cuda or mps."""
    memory: int | None = None
    """Bytes of the device."""
    image_bytes: float | None = None
    """Bytes that a training step holds for each image of its batch."""
    batch_norm: bool = True
    """Does the encoder normalise by statistics of batches?"""


def check_protocol(config: LinearConfig) -> None:
    """Raises UserError for options of linear evaluation that the fast protocol does not have."""
    plain = LinearConfig(config.evaluation, epochs=config.epochs)
    if config.protocol == "fast" and config != plain:
        raise UserError(
            "the fast probe chooses its settings itself; --optimizer, --lr, --batch-size, "
            "--weight-decay, --milestones, --supervised and --evaluate need --protocol paper"
        )


def teacher_of(config: PretrainConfig) -> str | None:
    """The trained encoder that a run learns from, None for a base that learns from none.

    Raises UserError where one is missing, or given in vain.
    """
    method, teacher = config.method.method, to_values(config)["teacher"]
    if METHODS[method].teacher and teacher is None:
        raise UserError(
            f"--method {method} learns from a trained encoder, and there is none; give --teacher with a "
            "run folder, a file of weights, or published weights"
        )
    if teacher is not None and not METHODS[method].teacher:
        with_teacher = " or ".join(name for name, base in METHODS.items() if base.teacher)
        raise UserError(
            f"--teacher {teacher}: {method} learns from none; give --method {with_teacher}, or leave it "
            "out"
        )
    return typing.cast(str | None, teacher)


def arch_of(config: PretrainConfig) -> str:
    """The architecture of a config that names one, else the usual one."""
    return config.model.arch or defaults.ARCH


def run_folder_of(config: PretrainConfig) -> Path:
    method, run = config.method, config.run
    name = set_name(config.data.data)
    return run.out or Path("runs") / f"{name}-{method.method}-{method.mix}-s{run.seed}"


def resolve(config: PretrainConfig, facts: Facts, tell: Tell = lambda *_: None) -> Settings:
    """Check the settings and choose those that are unset, by the rules in their declarations.

    config: its size, mean, std, channels, bits and loading must be set: they depend on the images
        themselves (training/setup.py).
    tell(name, value, reason) is called for each setting that is chosen.

    Raises UserError for settings that cannot be.
    """
    base = METHODS[config.method.method]
    check_ranges(config)
    values = to_values(config)
    left_out = of_other_bases(config.method.method)
    rules = {
        field.name: rule
        for part in (config.model, config.optimisation, config.method)
        for field in dataclasses.fields(part)
        if (rule := declared(field).rule)
        and values[field.name] is None
        and field.name not in left_out
    }
    usual = {
        "adamw_lr": base.adamw_lr,
        "sgd_lr": base.sgd_lr,
        "usual_head": base.head,
        "usual_dim": base.dim,
    }
    known: dict[str, Any] = {**facts._asdict(), **values, **usual}

    def choose(name: str) -> None:
        """Choose one setting, and before it those that its rule asks for."""
        if name == "steps":
            choose("batch_size")
            choose("epochs")
            known["steps"] = facts.images // known["batch_size"] * known["epochs"]
        if name in rules:
            rule = rules.pop(name)
            for fact in rule.facts:
                choose(fact)
            known[name], why = rule.choose(*(known[fact] for fact in rule.facts))
            tell(name, known[name], why)

    choose("batch_size")
    _refuse(config, facts, known["batch_size"])
    for name in list(rules):
        choose(name)
    for name in ("augmentation", "bn_over"):
        if known[name] == "auto":
            known[name] = getattr(base, name)
    known |= _published_mixing(config)
    known["out"] = run_folder_of(config)
    return _settings(config, known)


def _published_mixing(config: PretrainConfig) -> dict[str, Any]:
    """The law of lambda and what the mixed loss is added to: as given, else as published.

    Raises UserError where a mixer has no such law, or nothing is mixed.
    """
    mix, alpha, loss = config.method.mix, config.method.mix_alpha, config.method.mix_loss
    if mix == NO_MIXER:
        if loss == "alone":
            raise UserError(
                "--mix-loss alone: nothing is mixed with --mix none; leave one of them out"
            )
        return {"mix_alpha": None, "mix_loss": "added"}
    entry = MIXERS[mix]
    if alpha is not None and entry.alpha is None:
        raise UserError(
            f"--mix-alpha {alpha:g}: {mix} draws no lambda from a Beta law; leave it out"
        )
    return {
        "mix_alpha": entry.alpha if alpha is None else alpha,
        "mix_loss": entry.loss if loss == "auto" else loss,
    }


def to_values(config: PretrainConfig) -> dict[str, Any]:
    """All settings by their flat names."""
    parts = (config.data, config.model, config.method, config.optimisation, config.run)
    return {f.name: getattr(part, f.name) for part in parts for f in dataclasses.fields(part)}


def _settings(config: PretrainConfig, known: dict[str, Any]) -> Settings:
    """The settings by their flat names, in their parts. Raises ValueError where one is still unset."""
    parts: dict[str, Any] = {"recipe": config.recipe}
    for name, kind in typing.get_type_hints(Settings).items():
        if dataclasses.is_dataclass(kind):
            fields = {f.name: known[f.name] for f in dataclasses.fields(kind)}
            hints = typing.get_type_hints(kind)
            unset = [n for n, v in fields.items() if v is None and _needed(hints[n])]
            if unset:
                raise ValueError(f"{', '.join(unset)} must be set before the rest is resolved")
            parts[name] = typing.cast(Callable[..., Any], kind)(**fields)
    return Settings(**parts)


def _needed(hint: Any) -> bool:
    return types.NoneType not in typing.get_args(hint)


def _refuse(config: PretrainConfig, facts: Facts, batch: int) -> None:
    """Raises UserError for settings that cannot be together, or not with these images."""
    data = config.data
    _refuse_few(config, facts, batch)
    execution, kind = config.run.execution, facts.device_kind
    if execution in ("captured", "compiled") and kind != "cuda":
        raise UserError(
            f"--execution {execution} needs an NVIDIA GPU, and this run is on {kind}; leave it out"
        )
    channels = data.channels or 3
    if any(values is not None and len(values) != channels for values in (data.mean, data.std)):
        raise UserError(
            f"--mean and --std: expected {channels} values each, one for each channel; give as many"
        )
    if config.model.bn_statistics == "frozen" and config.model.init is None:
        raise UserError(
            "--bn-statistics frozen: random weights have no statistics yet; give --init too, or leave "
            "it out"
        )
    teacher_of(config)
    if reason := METHODS[config.method.method].refuse(config.method, batch):
        raise UserError(reason)
    _refuse_pair(config)
    _refuse_few_mixed(config, facts, batch)


def _refuse_pair(config: PretrainConfig) -> None:
    """Raises UserError for a base with a mixer that makes no sense on it; says the nearest that does."""
    method, mix = config.method.method, config.method.mix
    if mix == NO_MIXER:
        return
    base, entry = METHODS[method], MIXERS[mix]
    if entry.needs_own_views and not base.own_views:
        *some, last = (name for name, other in METHODS.items() if other.own_views)
        raise UserError(
            f"--mix {mix}: it compares each source in its own view, and {method} has clean outputs of "
            f"one view only; give --mix {entry.nearest}, or --method {', '.join(some)} or {last}"
        )
    if base.needs_clean and _published_mixing(config)["mix_loss"] == "alone":
        raise UserError(
            f"--mix {mix} --mix-loss alone: with {method} the mixed loss alone does not tell images "
            "apart; give --mix-loss added"
        )


def _refuse_few_mixed(config: PretrainConfig, facts: Facts, batch: int) -> None:
    """Raises UserError where mixed images are encoded on their own, and a part has less than two."""
    mix, base = config.method.mix, METHODS[config.method.method]
    mixer = mixer_of(mix, loss=_published_mixing(config)["mix_loss"])
    if mixer is None or mixer.per_image == 0:
        return
    if not (base.mixed_apart or (mixer.alone and base.passes == 1)):
        return
    splits = to_values(config)["bn_splits"] or 1
    parts = max(splits, facts.processes * config.optimisation.micro_batches)
    mixed = int(batch * mixer.per_image)
    if mixed < 2 * parts:
        needed = math.ceil(2 * parts / mixer.per_image)
        told = "--mix-loss alone" if mixer.alone else f"--mix {mix}"
        added = mixer.alone and not base.mixed_apart
        enough = f"give --batch-size {needed}"
        if needed > facts.images:
            enough = "give --mix none, or add images"
        each = f" in each of {parts} parts" if parts > 1 else ""
        raise UserError(
            f"{told}: a batch of {batch} gives too few mixed images ({mixed}), and batch norm needs two"
            f"{each}; {enough}{', or --mix-loss added' if added else ''}"
        )


def _refuse_few(config: PretrainConfig, facts: Facts, batch: int) -> None:
    """Raises UserError for a batch that the images, the processes or the micro-batches do not allow."""
    images, processes, micro = facts.images, facts.processes, config.optimisation.micro_batches
    least = 2 * processes * micro
    if images < 2:
        kept = ", or leave out --exclude-holdout" if config.run.exclude_holdout else ""
        raise UserError(
            f"{'there is only 1 image' if images == 1 else 'there are no images'} to train on, and "
            f"training needs at least two; add images{kept}"
        )
    if least > images:
        fewer = images // (2 * processes)
        raise UserError(
            f"there are only {images} images to train on, and each of {processes} processes and of "
            f"{micro} micro-batches needs at least two of them; "
            + (
                f"give --micro-batches {fewer} or more images"
                if fewer
                else f"start at most {images // 2} processes"
            )
        )
    usual = max(least, defaults.batch_size(images, None, None)[0])
    if batch > images:
        raise UserError(
            f"--batch-size {batch}: there are only {images} images to train on; give --batch-size "
            f"{usual} or more images"
        )
    if batch < least:
        raise UserError(
            f"--batch-size {batch}: each of {processes} processes and of {micro} micro-batches needs at "
            f"least two images; give --batch-size {usual}"
        )
