"""The services that a run's metrics can go to, by name: one line each.

Nothing heavy is imported here, so that the command line can name them without loading them.
"""

LOGGERS: dict[str, str] = {
    "wandb": "mixco.training.loggers:wandb",
    "mlflow": "mixco.training.loggers:mlflow",
    "trackio": "mixco.training.loggers:trackio",
}
"""Name -> "module:function" that starts the service, see training/loggers.py. The package that the
service needs has the name too."""
