"""The version of this package; pyproject.toml reads it here."""

from importlib.metadata import PackageNotFoundError, version

VERSION = "0.2.0"


def mixco_version() -> str:
    """The installed version; VERSION where the package is only on the path, not installed."""
    try:
        return version("mixco")
    except PackageNotFoundError:
        return VERSION
