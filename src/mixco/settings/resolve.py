"""Settings from recipes, files and keywords: read, filled in, refused where they cannot be."""

import dataclasses
import difflib
import math
import os
import shlex
import sys
import tomllib
import types
import typing
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar

from mixco.runtime.errors import UserError
from mixco.settings import defaults
from mixco.settings.config import (
    FinetuneConfig,
    KNNConfig,
    LinearConfig,
    PretrainConfig,
)

T = TypeVar("T")

MOST = 2**31 - 1  # of what is counted in the device's memory; that will say where less is too much


def nearest(word: str, known: typing.Iterable[str]) -> str:
    """ "; did you mean X?" for the nearest known word, else the list of them."""
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else f"known are: {', '.join(names)}"


def recipe_names() -> list[str]:
    files = resources.files("mixco").joinpath("recipes").iterdir()
    return sorted(f.name.removesuffix(".toml") for f in files if f.name.endswith(".toml"))


def load_recipe(recipe: str) -> PretrainConfig:
    """The config of a recipe: a name of those shipped, or the path of a TOML file."""
    if recipe in recipe_names():
        text = resources.files("mixco").joinpath("recipes", f"{recipe}.toml").read_text("utf-8")
    elif recipe.endswith(".toml"):
        try:
            text = Path(recipe).read_text("utf-8")
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "it is not text in UTF-8"
            raise UserError(
                f"--recipe {recipe}: cannot be read ({reason}); give a recipe's name or a TOML file"
            ) from None
    else:
        raise UserError(f"--recipe {recipe}: no such recipe; {nearest(recipe, recipe_names())}")
    try:
        values = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"recipe {recipe} is not valid TOML: {error}; the shipped ones are examples"
        ) from None
    return dataclasses.replace(from_dict(PretrainConfig, values, f"recipe {recipe}"), recipe=recipe)


def from_dict(cls: type[T], values: dict[str, Any], where: str) -> T:
    """A dataclass from nested plain values (of TOML or JSON).

    Raises UserError for an unknown key, with the nearest known one, and for a value of a wrong type.
    """
    hints = typing.get_type_hints(cls)
    known = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    arguments: dict[str, Any] = {}
    for key, value in values.items():
        if key not in known:
            raise UserError(f"{where}: unknown key {key}; {nearest(key, known)}")
        arguments[key] = _convert(hints[key], value, f"{where}: {key}")
    return cls(**arguments)


def flat_fields(cls: type) -> dict[str, dataclasses.Field[Any]]:
    """The settings of a config and of its parts, by the names that the command line has for them."""
    found: dict[str, dataclasses.Field[Any]] = {}
    hints = typing.get_type_hints(cls)
    for one in dataclasses.fields(cls):
        part = hints[one.name]
        is_part = isinstance(part, type) and dataclasses.is_dataclass(part)
        found |= flat_fields(part) if is_part else {one.name: one}
    return found


def with_settings(config: T, settings: dict[str, Any], where: str) -> T:
    """The config with some settings changed, each by its flat name, in whichever part it belongs to.

    Raises UserError for an unknown name, with the nearest known one, and for a value of a wrong type.
    """
    known = flat_fields(type(config))
    for name in settings:
        if name not in known:
            raise UserError(f"{where}: unknown keyword {name}; {nearest(name, known)}")

    def changed(part: Any) -> Any:
        hints = typing.get_type_hints(type(part))
        changes = {}
        for name, kind in hints.items():
            if dataclasses.is_dataclass(kind):
                changes[name] = changed(getattr(part, name))
            elif name in settings:
                changes[name] = _convert(kind, settings[name], f"{where}: {name}")
        return dataclasses.replace(part, **changes)

    return typing.cast(T, changed(config))


def _convert(kind: Any, value: Any, where: str) -> Any:
    origin, options = typing.get_origin(kind), typing.get_args(kind)
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if dataclasses.is_dataclass(kind) and isinstance(value, dict):
        return from_dict(typing.cast(type, kind), value, where)
    if origin is Literal and value in options:
        return value
    if origin in (types.UnionType, typing.Union):  # the latter with a Literal in it
        if value is None and types.NoneType in options:
            return None
        return _convert(next(o for o in options if o is not types.NoneType), value, where)
    if origin is tuple and isinstance(value, (list, tuple)):
        return tuple(_convert(options[0], v, where) for v in value)
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind is float and type(value) in (int, float) and abs(value) <= sys.float_info.max:
        return float(value)
    if kind in (int, str, bool) and type(value) is kind:
        return value
    if origin is Literal:
        raise UserError(f"{where} = {value!r}; {nearest(str(value), map(str, options))}")
    raise UserError(f"{where} = {value!r} is not a {getattr(kind, '__name__', kind)}")


def to_dict(config: Any) -> dict[str, Any]:
    """Nested plain values, for JSON; `from_dict` reads them back."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(v) for key, v in value.items()}
        if isinstance(value, (tuple, list)):
            return [plain(v) for v in value]
        return str(value) if isinstance(value, Path) else value

    return typing.cast(dict[str, Any], plain(dataclasses.asdict(config)))


def command_of(config: dict[str, Any]) -> str:
    """The `mixco pretrain` of a run, from its config.json: all that differs from the defaults."""
    words = ["mixco", "pretrain"]
    for part, usual in to_dict(PretrainConfig()).items():
        for key, default in usual.items() if isinstance(usual, dict) else ():
            value = config.get(part, {}).get(key, default)
            option = key.replace("_", "-")
            if value == default or value is None:
                continue
            if isinstance(value, bool):
                words.append(f"--{option}" if value else f"--no-{option}")
            else:
                values = value if isinstance(value, list) else [value]
                words += [f"--{option}", *map(str, values)]
    return shlex.join(words)


def check_classifier(config: LinearConfig | FinetuneConfig) -> None:
    """Raises UserError for settings that make no sense, or that the fast protocol does not have."""
    training = config.classifier
    checks = [
        (config.epochs >= 1, f"--epochs {config.epochs}: at least 1"),
        (training.batch_size >= 1, f"--batch-size {training.batch_size}: at least 1"),
        (
            training.lr is None or 0 < training.lr < math.inf,
            f"--lr {training.lr}: above 0, and finite",
        ),
        (
            0 <= (training.weight_decay or 0) < math.inf,
            f"--weight-decay {training.weight_decay}: at least 0, and finite",
        ),
    ]
    if isinstance(config, FinetuneConfig):
        rate = config.head_lr
        checks += [(rate is None or 0 < rate < math.inf, f"--head-lr {rate}: above 0, and finite")]
    else:
        shares = config.milestones
        plain = LinearConfig(config.evaluation, epochs=config.epochs)
        checks += [
            (
                all(0 < share < 1 for share in shares),
                f"--milestones {' '.join(map(str, shares))}: shares of the run, above 0 and below 1",
            ),
            (
                config.protocol == "paper" or config == plain,
                "the fast probe chooses its settings itself; --optimizer, --lr, --batch-size, "
                "--weight-decay, --milestones, --supervised and --evaluate need --protocol paper",
            ),
        ]
    for right, message in checks:
        if not right:
            raise UserError(message)


def check_knn(config: KNNConfig) -> None:
    """Raises UserError for settings that make no sense."""
    if config.k < 1:
        raise UserError(f"--k {config.k}: at least 1")
    if not 0 < config.temperature < math.inf:
        raise UserError(f"--temperature {config.temperature}: above 0, and finite")


def run_folder_of(config: PretrainConfig) -> Path:
    name, method, run = Path(config.data.data).name, config.method, config.run
    return run.out or Path("runs") / f"{name}-{method.method}-{method.mix}-s{run.seed}"


def resolve(
    config: PretrainConfig,
    images: int,
    processes: int = 1,
    *,
    device: str = "cpu",
    memory: int | None = None,
    image_bytes: float | None = None,
    tell: Callable[[str, Any, str], None] = lambda *_: None,
) -> PretrainConfig:
    """Fill in every None, by the rules of settings/defaults.py; refuse what cannot be.

    images: how many are trained on. processes: that the run is to have. device: cpu, cuda or mps.
    memory, image_bytes: see `defaults.batch_size`.
    tell(option, value, reason) is called for each that is chosen. What depends on the images themselves,
    their size and their normalisation, is filled in beforehand (training/setup.py).

    Raises UserError for combinations that make no sense.
    """
    method, optimisation, run = config.method, config.optimisation, config.run

    def chosen(option: str, given: Any, rule: Callable[..., tuple[Any, str]], *facts: Any) -> Any:
        if given is not None:
            return given
        value, why = rule(*facts)
        tell(option, value, why)
        return value

    batch = chosen(
        *("batch_size", optimisation.batch_size, defaults.batch_size),
        *(images, image_bytes, memory),
    )
    _check(config, images, batch, processes)
    moco = method.method == "moco"
    epochs = chosen("epochs", optimisation.epochs, defaults.epochs, images, batch, device)
    optimisation = dataclasses.replace(
        optimisation,
        batch_size=batch,
        epochs=epochs,
        lr=chosen(
            *("lr", optimisation.lr, defaults.lr),
            *(optimisation.optimizer, method.method, batch),
        ),
        weight_decay=chosen(
            *("weight_decay", optimisation.weight_decay, defaults.weight_decay),
            optimisation.optimizer,
        ),
    )
    temperature = chosen("temperature", method.temperature, defaults.temperature)
    mixed = ("mix_temperature", method.mix_temperature, defaults.mix_temperature)
    of_moco = ("queue", "momentum", "bn_splits") if moco else ()
    facts = {"queue": images, "momentum": images // batch * epochs, "bn_splits": batch}
    method = dataclasses.replace(
        method,
        augmentation=("moco-v2" if moco else "simclr")
        if method.augmentation == "auto"
        else method.augmentation,
        bn_over=("process" if moco else "all") if method.bn_over == "auto" else method.bn_over,
        temperature=temperature,
        mix_temperature=chosen(*mixed, temperature, method.mix),
        **{
            name: chosen(name, getattr(method, name), getattr(defaults, name), facts[name])
            for name in of_moco
        },
    )
    run = dataclasses.replace(run, out=run_folder_of(config))
    return dataclasses.replace(config, method=method, optimisation=optimisation, run=run)


def _check(config: PretrainConfig, images: int, batch: int, processes: int) -> None:
    """Raises UserError for what cannot be."""
    data, method, optimisation, run = config.data, config.method, config.optimisation, config.run

    def one_each(values: tuple[float, ...] | None) -> bool:
        return values is None or len(values) == (data.channels or 3)

    checks = [
        (data.size is None or 32 <= data.size <= 224, f"--size {data.size}: 32 to 224 pixels"),
        (batch >= 2, f"--batch-size {batch}: at least 2"),
        (
            batch <= images,
            f"--batch-size {batch}: there are only {images} images to train on; "
            f"give --batch-size {max(2, images // 8)} or more images",
        ),
        (
            optimisation.epochs is None or 1 <= optimisation.epochs <= MOST,
            f"--epochs {optimisation.epochs}: at least 1, at most {MOST:,}",
        ),
        (-MOST <= run.seed <= MOST, f"--seed {run.seed}: at most {MOST:,}, also below zero"),
        (
            optimisation.lr is None or 0 < optimisation.lr < math.inf,
            f"--lr {optimisation.lr}: above 0, and finite",
        ),
        (
            0 <= (optimisation.weight_decay or 0) < math.inf,
            f"--weight-decay {optimisation.weight_decay}: at least 0, and finite",
        ),
        (
            optimisation.micro_batches >= 1,
            f"--micro-batches {optimisation.micro_batches}: at least 1",
        ),
        (
            batch >= 2 * processes * optimisation.micro_batches,
            f"--batch-size {batch}: at least two images for each of {processes} processes and of "
            f"{optimisation.micro_batches} micro-batches",
        ),
        (
            method.method != "moco" or method.bn_over != "all" or method.bn_splits == 1,
            "--bn-over all: MoCo leaks through statistics that all images share; leave it out "
            "(--bn-splits 1 beside it accepts the leak)",
        ),
        (
            0 < run.timeout_minutes <= MOST,
            f"--timeout-minutes {run.timeout_minutes:g}: above 0, at most {MOST:,}",
        ),
        (0 <= optimisation.warmup < 1, f"--warmup {optimisation.warmup}: from 0 up to below 1"),
        (
            all(0 < share < 1 for share in optimisation.milestones),
            f"--milestones {' '.join(map(str, optimisation.milestones))}: shares of the run, above 0 "
            "and below 1",
        ),
        *(
            (value is None or 0 < value < math.inf, f"--{name} {value}: above 0, and finite")
            for name, value in (
                ("temperature", method.temperature),
                ("mix-temperature", method.mix_temperature),
            )
        ),
        (
            0 <= method.mix_weight < math.inf,
            f"--mix-weight {method.mix_weight}: 0 or more, and finite",
        ),
        (1 <= config.model.dim <= MOST, f"--dim {config.model.dim}: 1 to {MOST:,}"),
        (
            one_each(data.mean) and one_each(data.std),
            f"--mean and --std: {data.channels or 3} values each, one a channel",
        ),
        (all(value > 0 for value in data.std or ()), f"--std {data.std}: above 0"),
        (0 <= method.jitter <= 1.25, f"--jitter {method.jitter}: 0 to 1.25"),
        (
            method.queue is None or 1 <= method.queue <= MOST,
            f"--queue {method.queue}: at least 1, at most {MOST:,}",
        ),
        (
            method.bn_splits is None or 1 <= method.bn_splits <= batch // 2,
            f"--bn-splits {method.bn_splits}: 1 to {batch // 2}, two images a part at least",
        ),
        (
            method.momentum is None or 0 <= method.momentum < 1,
            f"--momentum {method.momentum}: from 0 up to below 1",
        ),
        (0 < run.holdout < 1, f"--holdout {run.holdout}: above 0 and below 1"),
        (
            run.linear_lr is None or 0 < run.linear_lr < math.inf,
            f"--linear-lr {run.linear_lr}: above 0, and finite",
        ),
        *(
            (getattr(run, name) >= 0, f"--{name.replace('_', '-')} {getattr(run, name)}: 0 or more")
            for name in ("checkpoint_minutes", "checkpoint_steps", "keep_every", "knn_every")
        ),
    ]
    for right, message in checks:
        if not right:
            raise UserError(message)
