"""A setting, declared once: its default, its range, how it is chosen, what it affects, and its help.

From the declaration follow the check and its sentence, `--help`, what may change when a run is resumed,
which settings tell two results apart, and the table of options in the documentation.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from mixco.runtime.errors import UserError

MOST = 2**31 - 1  # no device's memory holds more; it is the practical limit
Affects = Literal["learning", "run", "nothing"]


class Rule(NamedTuple):
    """How an unset setting is chosen."""

    choose: Callable[..., tuple[Any, str]]
    """Facts -> the value, and the reason in a few words."""
    facts: tuple[str, ...]
    """The names of its arguments: settings, or facts such as `images` (see settings/resolve.py)."""


class Setting(NamedTuple):
    """What is declared of a setting beside its name, type and default."""

    help: str
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    unit: str = ""
    choices: Callable[[], tuple[str, ...]] | None = None
    """Names of a table; asked for when they are needed, since a table may grow."""
    rule: Rule | None = None
    chosen: str = ""
    """From what an unset setting is chosen, in words; or "nothing: " and what None means."""
    affects: Affects = "learning"
    """learning: must not change when a run is resumed. run: where files lie, how fast it is, how it is
    watched. nothing: may change without a word."""
    first: bool = False
    """Is it one of the few that `--help` shows first?"""
    metavar: str | None = None
    positional: bool = False
    """Is it given without its name? What must be given always is."""
    old_name: str | None = None
    """A spelling of an earlier version, which is still understood."""
    may_be_path: bool = False
    """Is a text the path of a file or folder, unless it is something else's name?"""

    @property
    def range(self) -> str:
        """The range in words, "between 32 and 224 pixels"; "" where there is none.

        The limit of 32 bits goes without saying.
        """
        unit = f" {self.unit}" if self.unit else ""
        most = None if self.at_most == MOST else self.at_most
        if self.at_least is not None and most is not None:
            return f"between {_number(self.at_least)} and {_number(most)}{unit}"
        bounds = (
            ("at least", None if self.at_least == -MOST else self.at_least),
            ("above", self.above),
            ("at most", most),
            ("below", self.below),
        )
        words = [f"{word} {_number(bound)}" for word, bound in bounds if bound is not None]
        return " and ".join(words) + (unit if words else "")

    def allows(self, value: float) -> bool:
        """Numbers that are not finite are never allowed."""
        return (
            _finite(value)
            and (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
        )


def setting(default: Any, help: str, *, rule: Rule | None = None, **declared: Any) -> Any:
    """A field of a dataclass of settings; `declared`: see `Setting`. A default may be MISSING."""
    metadata = {"setting": Setting(help, rule=rule, **declared)}
    return dataclasses.field(default=default, metadata=metadata)


def declared(field: "dataclasses.Field[Any]") -> Setting:
    """What a field declares. Raises KeyError for a field that is no setting."""
    found: Setting = field.metadata["setting"]
    return found


def option(name: str) -> str:
    """A setting's name on the command line."""
    return "--" + name.replace("_", "-")


def _too_large(value: float) -> bool:
    return _finite(value) and abs(value) > MOST


def refuse_out_of_range(name: str, value: Any, setting: Setting) -> None:
    """Raises UserError when a number, or one of several, is outside of the declared range."""
    if isinstance(value, bool) or (
        not setting.range and not isinstance(value, (int, float, tuple))
    ):
        return
    values = value if isinstance(value, tuple) else (value,)
    numbers = [each for each in values if isinstance(each, (int, float))]
    if all(map(setting.allows, numbers)):
        return
    each = "each " if isinstance(value, tuple) else ""
    got = " ".join(map(_number, numbers))
    wanted = f"be {each}{setting.range}" if setting.range else f"be {each}a finite number"
    more = ""
    if setting.range and not all(map(_finite, numbers)):
        more = " and finite"
    elif any(map(_too_large, numbers)) and MOST in (setting.at_most, -(setting.at_least or 0)):
        more = f" and within {MOST:,}"
    raise UserError(f"{option(name)} must {wanted}{more}, got {got}")


def _finite(value: float) -> bool:
    return isinstance(value, int) or math.isfinite(value)


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"
