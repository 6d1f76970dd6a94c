"""Settings from recipes, files and keywords: read, checked, and everything unset chosen."""

import dataclasses
import difflib
import os
import shlex
import sys
import tomllib
import types
import typing
from collections.abc import Callable, Iterable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from mixco.methods import METHODS
from mixco.runtime.errors import UserError
from mixco.runtime.files import at_home
from mixco.runtime.setting import Affects, Setting, declared, option, refuse_out_of_range
from mixco.settings import defaults
from mixco.settings.commands import LinearConfig
from mixco.settings.config import PretrainConfig, Settings

T = TypeVar("T")

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


def nearest(word: str, known: Iterable[str]) -> str:
    """ "did you mean X?" for the nearest known word, else the list of them."""
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
            text = Path(at_home(recipe, "--recipe")).read_text("utf-8")
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
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    old_names = {
        s.old_name: name for name, f in fields.items() if (s := _setting(f)) and s.old_name
    }
    arguments: dict[str, Any] = {}
    for given, value in values.items():
        key = old_names.get(given, given)
        if key not in fields:
            raise UserError(f"{where}: unknown key {key}; {nearest(key, fields)}")
        arguments[key] = _convert(hints[key], value, f"{where}: {key}", _setting(fields[key]))
    return cls(**arguments)


def _setting(field: "dataclasses.Field[Any]") -> Setting | None:
    """What a field declares; None for a part of a config."""
    return field.metadata.get("setting")


def flat_fields(cls: type) -> dict[str, "dataclasses.Field[Any]"]:
    """The settings of a config and of its parts, by their names on the command line."""
    return {name.rpartition(".")[2]: field for name, field in dotted_fields(cls)}


def dotted_fields(cls: type, prefix: str = "") -> Iterator[tuple[str, "dataclasses.Field[Any]"]]:
    """The settings of a config and of its parts, by names such as "optimisation.lr"."""
    hints = typing.get_type_hints(cls)
    for one in dataclasses.fields(cls):
        kind = hints[one.name]
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            yield from dotted_fields(kind, f"{prefix}{one.name}.")
        else:
            yield f"{prefix}{one.name}", one


def affects() -> dict[str, Affects]:
    """What each setting of a run affects, by its dotted name, or by one of an earlier version."""
    found: dict[str, Affects] = {}
    for name, field in dotted_fields(PretrainConfig):
        setting = declared(field)
        found[name] = setting.affects
        if setting.old_name:
            found[f"{name.rpartition('.')[0]}.{setting.old_name}"] = setting.affects
    return found


def with_settings(config: T, settings: dict[str, Any], where: str) -> T:
    """The config with some settings changed, each by its flat name, in whichever part it belongs to.

    A `~` in its paths becomes the home folder (`expanded`).

    Raises UserError for an unknown name, with the nearest known one, and for a value of a wrong type.
    """
    known = flat_fields(type(config))
    old_names = {s.old_name: name for name, f in known.items() if (s := _setting(f)) and s.old_name}
    settings = {old_names.get(name, name): value for name, value in settings.items()}
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
                value, found = settings[name], _setting(known[name])
                changes[name] = _convert(kind, value, f"{where}: {name}", found)
        return dataclasses.replace(part, **changes)

    return expanded(typing.cast(T, changed(config)))


def expanded(config: T) -> T:
    """The config with the home folder in place of a `~` in all of its paths.

    Raises UserError, which names the option, where there is no such home.
    """
    changes = {}
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        value, found = getattr(config, field.name), _setting(field)
        changes[field.name] = _expanded(value, found, field.name) if found else expanded(value)
    return dataclasses.replace(config, **changes)  # type: ignore[type-var]


def _expanded(value: Any, setting: Setting, name: str) -> Any:
    if isinstance(value, tuple):
        return tuple(_expanded(each, setting, name) for each in value)
    if isinstance(value, Path):
        return Path(at_home(str(value), option(name)))
    return at_home(value, option(name)) if setting.may_be_path and value else value


KINDS = {int: "an integer", float: "a number", str: "a text", bool: "true or false", Path: "a path"}


def with_choices(kind: Any, setting: Setting) -> Any:
    """The type of a setting; where it names entries of a table, only those that the table has."""
    if setting.choices is None:
        return kind
    names: Any = Literal[setting.choices()]
    return types.GenericAlias(tuple, (names, ...)) if typing.get_origin(kind) is tuple else names


def _convert(kind: Any, value: Any, where: str, setting: Setting | None = None) -> Any:
    if setting is not None:
        kind = with_choices(kind, setting)
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
    wanted = "a list" if origin is tuple else KINDS.get(kind, "a section")
    raise UserError(f"{where} must be {wanted}, got {value!r}")


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
            if value == default or value is None:
                continue
            if isinstance(value, bool):
                words.append(option(key) if value else option(f"no_{key}"))
            else:
                values = value if isinstance(value, list) else [value]
                words += [option(key), *map(str, values)]
    return shlex.join(words)


def check_ranges(config: Any) -> None:
    """Raises UserError for a setting outside of its declared range."""
    for field in dataclasses.fields(config):
        value, found = getattr(config, field.name), _setting(field)
        if found is None:
            check_ranges(value)
        elif value is not None:
            refuse_out_of_range(field.name, value, found)


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
    data, method, run = Path(config.data.data), config.method, config.run
    name = data.name
    if name in ("", ".."):  # of ".", which has no name of its own
        name = data.resolve().name
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
    own = [] if base.options is None else dataclasses.fields(base.options)
    shared = [
        field
        for part in (config.model, config.optimisation, config.method)
        for field in dataclasses.fields(part)
    ]
    of_others = {
        field.name
        for other in METHODS.values()
        for field in (dataclasses.fields(other.options) if other.options else ())
    }
    fields = [*(field for field in shared if field.name not in of_others), *own]
    rules = {f.name: rule for f in fields if (rule := declared(f).rule) and values[f.name] is None}
    known: dict[str, Any] = {**facts._asdict(), **values, "sgd_lr": base.sgd_lr}

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
    known["out"] = run_folder_of(config)
    return _settings(config, known)


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
