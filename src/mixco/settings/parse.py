"""Configs from recipes, TOML, JSON and keywords, checked for names, types and ranges; and back."""

import dataclasses
import difflib
import os
import shlex
import sys
import tomllib
import types
import typing
from collections.abc import Iterable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar

from mixco.runtime.errors import UserError
from mixco.runtime.files import at_home
from mixco.runtime.setting import Affects, Setting, declared, option, refuse_out_of_range
from mixco.settings.config import PretrainConfig

T = TypeVar("T")


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


def several(kind: Any) -> Any:
    """The tuple in a type such as `str | tuple[str, ...]`, one or several; None for another type."""
    options = typing.get_args(kind) if typing.get_origin(kind) in UNIONS else ()
    tuples = [each for each in options if typing.get_origin(each) is tuple]
    return tuples[0] if tuples and str in options else None


def one_or_several(values: tuple[Any, ...]) -> Any:
    """The only value, or all."""
    return values[0] if len(values) == 1 else values


UNIONS = (types.UnionType, typing.Union)
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
    if origin in UNIONS:  # typing.Union has a Literal in it
        if value is None and types.NoneType in options:
            return None
        if isinstance(value, (list, tuple)) and (many := several(kind)):
            return one_or_several(_convert(many, value, where))
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


def check_ranges(config: Any) -> None:
    """Raises UserError for a setting outside of its declared range."""
    for field in dataclasses.fields(config):
        value, found = getattr(config, field.name), _setting(field)
        if found is None:
            check_ranges(value)
        elif value is not None:
            refuse_out_of_range(field.name, value, found)


def to_dict(config: Any) -> dict[str, Any]:
    """Nested plain values, for JSON; `from_dict` reads them back."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(v) for key, v in value.items()}
        if isinstance(value, (tuple, list)):
            return [plain(v) for v in value]
        return str(value) if isinstance(value, Path) else value

    return typing.cast(dict[str, Any], plain(dataclasses.asdict(config)))


def with_unsaid(config: dict[str, Any]) -> dict[str, Any]:
    """A config.json of any version, with what older versions had but did not write down.

    What is no section stays as it is: somebody else says that the file is damaged.
    """
    sections = {part: config.get(part, {}) for part in ("data", "model", "method", "run")}
    sections = {part: values for part, values in sections.items() if isinstance(values, dict)}
    alpha = None if sections.get("method", {}).get("mix") == "none" else 1.0
    unsaid: dict[str, dict[str, Any]] = {
        "data": {"channels": 3, "bits": 8},
        "model": {"bn_statistics": "batch"},
        "method": {"mix_alpha": alpha, "mix_loss": "added"},
        "run": {"memory_format": "channels_last"},
    }
    return config | {part: unsaid[part] | values for part, values in sections.items()}


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
