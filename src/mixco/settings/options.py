"""The command line's options, from the declarations of the settings."""

import dataclasses
import re
import types
import typing
from collections.abc import Collection, Iterator
from operator import itemgetter
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import tyro

from mixco.runtime.setting import Setting, declared, option
from mixco.settings.parse import (
    dotted_fields,
    expanded,
    one_or_several,
    several,
    with_choices,
)

T = TypeVar("T")

FIRST = "main"  # the group of the options that matter most
METAVARS = {int: "INT", float: "NUMBER", str: "TEXT", Path: "PATH"}


def parse(
    cls: type[T],
    command: str,
    arguments: list[str],
    default: T | None = None,
    left_out: Collection[str] = (),
) -> T:
    """Read options without prefixes, whichever part of the config they belong to.

    default: gives the values of options that are not on the command line, such as those of a recipe.
    left_out: the names of settings that are no options here.
    A `~` in paths becomes the home folder. A mistake ends the process with exit code 2 and a sentence.
    """
    about = (cls.__doc__ or "").partition(": ")[2]
    parsed: Any = tyro.cli(
        _options(cls, _usual(cls) if default is None else default, left_out),
        prog=f"mixco {command}",
        description=about[:1].upper() + about[1:],
        args=_renamed(cls, arguments),
        config=(tyro.conf.OmitArgPrefixes,),
    )
    values: dict[str, Any] = {}
    for name, value in vars(parsed).items():
        values |= vars(value) if dataclasses.is_dataclass(value) else {name: value}
    for name, unset in _unset_texts(cls).items():
        if name in values:
            values[name] = one_or_several(values[name]) if values[name] else unset
    config: T = _assemble(cls, values)
    return expanded(config)


def _renamed(cls: type, arguments: list[str]) -> list[str]:
    """The arguments with the options of an earlier version as they are called now."""
    settings = [(field.name, declared(field)) for _, field in dotted_fields(cls)]
    new = {option(found.old_name): option(name) for name, found in settings if found.old_name}
    split = [argument.partition("=") for argument in arguments]
    return [new.get(name, name) + equals + value for name, equals, value in split]


def _usual(cls: Any) -> Any:
    """A config with its defaults, and with tyro.MISSING for what must be given."""
    needed = [field.name for field in dataclasses.fields(cls) if is_required(field)]
    return cls(**dict.fromkeys(needed, tyro.MISSING))


def is_required(field: "dataclasses.Field[Any]") -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _assemble(cls: Any, values: dict[str, Any]) -> Any:
    """A config from the values of all its settings, by their flat names."""
    parts: dict[str, Any] = {}
    for name, kind in typing.get_type_hints(cls).items():
        parts[name] = _assemble(kind, values) if dataclasses.is_dataclass(kind) else values[name]
    return cls(**parts)


def _unset_texts(cls: type) -> dict[str, Any]:
    """The settings that take one text or several, and their defaults."""
    hints = {dotted.rpartition(".")[2]: kind for dotted, kind in dotted_hints(cls)}
    fields = {dotted.rpartition(".")[2]: field for dotted, field in dotted_fields(cls)}
    return {name: fields[name].default for name, kind in hints.items() if several(kind)}


def _options(cls: type, default: Any, left_out: Collection[str]) -> type:
    """A dataclass for tyro: a group for the options that matter most, and one for each part."""
    groups: dict[str, list[tuple[str, Any, Any]]] = {"": [], FIRST: []}
    about = {FIRST: "The options that matter most."}
    for dotted, field in dotted_fields(cls):
        owner, value = cls, default
        *parts, name = dotted.split(".")
        if name in left_out:
            continue
        for part in parts:
            owner, value = typing.get_type_hints(owner)[part], getattr(value, part)
        kind, value = typing.get_type_hints(owner)[name], getattr(value, name)
        if many := several(kind):
            kind, value = many, (value,) if isinstance(value, str) and value else value or ()
        setting = declared(field)
        group = FIRST if setting.first else "".join(parts[-1:])
        about.setdefault(group, owner.__doc__ or "")
        entry = (name, _annotated(kind, setting, value), dataclasses.field(default=value))
        groups.setdefault(group, []).append(entry)
    members = groups.pop("")
    for group, fields in filter(itemgetter(1), groups.items()):
        made = dataclasses.make_dataclass(group, fields)
        made.__doc__ = about[group]
        members.append((group, made, dataclasses.field(default_factory=made)))
    return dataclasses.make_dataclass(cls.__name__, members)


def _annotated(kind: Any, setting: Setting, value: Any) -> Any:
    """A type for tyro, with the help and how the default reads."""
    kind = with_choices(kind, setting)
    required = value is tyro.MISSING
    default = "(required)" if required else f"(default: {_default_text(setting, value)})"
    details: dict[str, Any] = {"help": help_of(setting), "help_behavior_hint": default}
    if _inner(kind) is not bool:
        details["metavar"] = setting.metavar or _metavar(_inner(kind))
    if required or setting.positional:
        kind = Annotated[kind, tyro.conf.Positional]
    return Annotated[kind, tyro.conf.arg(**details)]


def _default_text(setting: Setting, value: Any) -> str:
    """How a default reads, for a person."""
    if value is None or (value in ("", ()) and setting.chosen):
        about, _, rest = setting.chosen.partition(": ")
        return rest if about == "nothing" else f"from {setting.chosen}"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return " ".join(map(str, value)) or "none"
    return str(value)


def help_of(setting: Setting) -> str:
    """The help of a setting, with its range."""
    return f"{setting.help} Must be {setting.range}." if setting.range else setting.help


def _inner(kind: Any) -> Any:
    """The type without Optional."""
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


def dotted_hints(cls: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The types of a config's settings, by their dotted names."""
    for name, kind in typing.get_type_hints(cls).items():
        if dataclasses.is_dataclass(kind):
            yield from dotted_hints(typing.cast(type, kind), f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", kind


class Row(NamedTuple):
    """An option, for the documentation's table."""

    option: str
    default: str
    about: str


def rows(cls: type) -> Iterator[Row]:
    """The options of a command, in the order of its config."""
    hints = dict(dotted_hints(cls))
    for dotted, field in dotted_fields(cls):
        name, setting, required = dotted.rpartition(".")[2], declared(field), is_required(field)
        default = "required" if required else _default_text(setting, field.default)
        positional = required or setting.positional
        shown = setting.metavar or name.upper() if positional else option(name)
        kind = several(hints[dotted]) or _inner(hints[dotted])
        names = typing.get_args(kind) if typing.get_origin(kind) is Literal else ()
        names = setting.choices() if setting.choices else names
        choices = f" One of {', '.join(names)}." if names else ""
        yield Row(shown, default, f"{help_of(setting)}{choices}")


def table(cls: type) -> str:
    """The options of a command as a Markdown table."""
    lines = ["| option | default | meaning |", "| --- | --- | --- |"]
    for row in rows(cls):
        cells = [
            re.sub(r"([|<])", r"\\\1", text) for text in (f"`{row.option}`", row.default, row.about)
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
