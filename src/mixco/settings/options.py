"""The command line's options, from the declarations of the settings."""

import dataclasses
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import tyro

from mixco.runtime.setting import Setting, declared, option
from mixco.settings.resolve import dotted_fields, with_choices

T = TypeVar("T")

METAVARS = {int: "INT", float: "NUMBER", str: "TEXT", Path: "PATH"}
FIRST = "main"  # the group of the options that matter most


def parse(cls: type[T], command: str, arguments: list[str], default: T) -> T:
    """Read options without prefixes, whichever part of the config they belong to.

    default: gives the values of options that are not on the command line; a value of tyro.MISSING
    must be given. A mistake ends the process with exit code 2 and a sentence.
    """
    parsed: Any = tyro.cli(
        _options(cls, default),
        prog=f"mixco {command}",
        description=(cls.__doc__ or "").partition(": ")[2],
        args=arguments,
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.PositionalRequiredArgs),
    )
    values: dict[str, Any] = {}
    for name, value in vars(parsed).items():
        values |= vars(value) if dataclasses.is_dataclass(value) else {name: value}
    config: T = _assemble(cls, values)
    return config


def _assemble(cls: Any, values: dict[str, Any]) -> Any:
    """A config from the values of all its settings, by their flat names."""
    parts: dict[str, Any] = {}
    for name, kind in typing.get_type_hints(cls).items():
        parts[name] = _assemble(kind, values) if dataclasses.is_dataclass(kind) else values[name]
    return cls(**parts)


def _options(cls: type, default: Any) -> type:
    """A dataclass for tyro: a group for the options that matter most, and one for each part."""
    groups: dict[str, list[tuple[str, Any, Any]]] = {}
    for dotted, field in dotted_fields(cls):
        value, kind = default, typing.get_type_hints(cls, include_extras=True)
        *parts, name = dotted.split(".")
        for part in parts:
            value, kind = (
                getattr(value, part),
                typing.get_type_hints(kind[part], include_extras=True),
            )
        value, setting = getattr(value, name), declared(field)
        group = FIRST if setting.first else ".".join(parts)
        entry = (name, _annotated(kind[name], setting, value), _field(value))
        groups.setdefault(group, []).append(entry)
    members: list[tuple[str, Any, Any]] = groups.pop("", [])
    for group, fields in sorted(groups.items(), key=lambda item: item[0] != FIRST):
        made = dataclasses.make_dataclass(group.rpartition(".")[2], fields)
        made.__doc__ = _about(cls, group)
        members.append((made.__name__, made, dataclasses.field(default_factory=made)))
    return dataclasses.make_dataclass(cls.__name__, members)


def _field(value: Any) -> Any:
    return dataclasses.field(default=value)


def _about(cls: type, group: str) -> str:
    """The description of a group."""
    if group == FIRST:
        return "The options that matter most."
    for part in group.split("."):
        cls = typing.get_type_hints(cls)[part]
    return cls.__doc__ or ""


def _annotated(kind: Any, setting: Setting, value: Any) -> Any:
    """A type for tyro, with the help and how the default reads."""
    kind = with_choices(kind, setting)
    details: dict[str, Any] = {"help": help_of(setting)}
    if setting.metavar:
        details["metavar"] = setting.metavar
    elif value is None:
        details["metavar"] = _metavar(_inner(kind))
    if value is None and setting.chosen:
        details["help_behavior_hint"] = f"(default: {_from(setting.chosen)})"
    if setting.old_name:
        details["aliases"] = [option(setting.old_name)]
    return Annotated[kind, tyro.conf.arg(**details)]


def _from(chosen: str) -> str:
    """How an unset default reads."""
    about, colon, rest = chosen.partition(": ")
    if about == "nothing":
        return rest
    return f"chosen from {about}{colon}{rest}"


def help_of(setting: Setting) -> str:
    """The help of a setting, with its range."""
    return f"{setting.help} Must be {setting.range}." if setting.range else setting.help


def _inner(kind: Any) -> Any:
    """The type without Annotated and Optional."""
    while typing.get_origin(kind) is Annotated:
        kind = typing.get_args(kind)[0]
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        return next(each for each in typing.get_args(kind) if each is not types.NoneType)
    return kind


def _metavar(kind: Any) -> str:
    origin, inside = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return "{" + ",".join(map(str, inside)) + "}"
    if origin is tuple:
        return f"{_metavar(inside[0])} ..."
    return METAVARS.get(kind, "VALUE")


class Row(NamedTuple):
    """An option, for the documentation's table."""

    option: str
    default: str
    about: str


def rows(cls: type) -> Iterator[Row]:
    """The options of a command, in the order of its config."""
    for dotted, field in dotted_fields(cls):
        name, setting = dotted.rpartition(".")[2], declared(field)
        value = field.default
        if value is None:
            default = _from(setting.chosen)
        elif value is dataclasses.MISSING:
            default = "must be given"
        elif isinstance(value, bool):
            default = "on" if value else "off"
        elif isinstance(value, tuple):
            default = " ".join(map(str, value)) or "none"
        else:
            default = str(value)
        choices = f" One of {', '.join(setting.choices())}." if setting.choices else ""
        yield Row(option(name), default, f"{help_of(setting)}{choices}")


def table(cls: type) -> str:
    """The options of a command as a Markdown table."""
    lines = ["| option | default | meaning |", "| --- | --- | --- |"]
    for row in rows(cls):
        cells = [text.replace("|", "\\|") for text in (f"`{row.option}`", row.default, row.about)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
