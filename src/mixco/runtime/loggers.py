"""The services that a run's metrics can go to, by name: one line each.

Nothing heavy is imported here, so that the command line can name them without loading them.
"""

from typing import NamedTuple


class Logger(NamedTuple):
    """A service for metrics."""

    start: str
    """Import string of the function that starts it, see training/loggers.py."""
    package: str | None = None
    """The package that it needs, which mixco does not; None without one."""


LOGGERS: dict[str, Logger] = {
    "wandb": Logger("mixco.training.loggers:wandb", "wandb"),
    "mlflow": Logger("mixco.training.loggers:mlflow", "mlflow"),
    "trackio": Logger("mixco.training.loggers:trackio", "trackio"),
}
