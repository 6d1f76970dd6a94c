"""What a table names by a text such as "mixco.methods.moco:build": so a table costs no import."""

from importlib import import_module
from typing import Any


def load(name: str) -> Any:
    """The object that "module:name" stands for; its module is imported now."""
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)
