"""Import strings, "module:name": tables of names need not load what they name."""

from importlib import import_module
from typing import Any


def load(where: str) -> Any:
    """The object behind an import string, such as "mixco.settings.config:KNNConfig".

    Raises ImportError or AttributeError where there is no such module or name.
    """
    module, _, name = where.partition(":")
    return getattr(import_module(module), name)
