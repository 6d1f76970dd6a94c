"""Sends a run's metrics, besides to metrics.jsonl, to TensorBoard always and to services when asked.

A service is a function that starts its own run, or resumes it, and returns how to log to it and how to
end it. To add one, write such a function and name it in runtime/loggers.py. In the run folder,
loggers.json holds the name that the service gave the run, and how many epochs it has received.
"""

import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from importlib.util import find_spec
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, NamedTuple

from mixco.runtime.errors import UserError
from mixco.runtime.loggers import LOGGERS
from mixco.runtime.progress import say
from mixco.runtime.run_folder import read_results, write_json

Record = Mapping[str, float]

FINISH = 300.0  # seconds that W&B may take at the end to send its last records
REST = 60.0  # seconds; each try may take long


class Service(NamedTuple):
    """A run with a service that has started."""

    identity: str
    """The service finds the run again by it."""
    log: Callable[[int, dict[str, float]], None]
    """(epoch, its metrics) -> sent."""
    finish: Callable[[bool], None]
    """End the run; True: all went well."""


def wandb(folder: Path, config: dict[str, Any], identity: str | None) -> Service:
    """Weights & Biases: https://docs.wandb.ai/ref/python/. WANDB_PROJECT names another project."""
    import wandb

    identity = identity or uuid.uuid4().hex[:12]
    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", "mixco"),
        name=folder.name,
        id=identity,
        resume="allow",
        dir=str(folder),
        config=config,
        # Its display would redraw over ours. Records that a dead network holds back at the end stay in
        # the folder, for `wandb sync`.
        settings=wandb.Settings(console="off", finish_timeout=FINISH),
    )
    return Service(
        identity,
        log=lambda epoch, values: run.log(values, step=epoch),
        finish=lambda well: run.finish(exit_code=0 if well else 1),
    )


def mlflow(folder: Path, config: dict[str, Any], identity: str | None) -> Service:
    """MLflow: https://mlflow.org/docs/latest/ml/tracking/.

    MLFLOW_TRACKING_URI sets the server or file, MLFLOW_EXPERIMENT_NAME names another experiment.
    """
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param

    client = MlflowClient()
    if identity is None:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "mixco")
        found = client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else client.create_experiment(name)
        identity = client.create_run(experiment, run_name=folder.name).info.run_id
        params = [Param(key, str(value)) for key, value in _flat(config) if value is not None]
        client.log_batch(identity, params=params)
    else:
        client.update_run(identity, status="RUNNING")

    def log(epoch: int, values: dict[str, float]) -> None:
        now = time.time_ns() // 1_000_000
        client.log_batch(identity, [Metric(k, float(v), now, epoch) for k, v in values.items()])

    return Service(
        identity,
        log,
        finish=lambda well: client.set_terminated(identity, "FINISHED" if well else "FAILED"),
    )


def trackio(folder: Path, config: dict[str, Any], identity: str | None) -> Service:
    """Trackio: https://huggingface.co/docs/trackio. `trackio show` shows the run.

    TRACKIO_DIR sets the folder, TRACKIO_PROJECT names another project.
    """
    import trackio

    # Trackio knows a run by its name alone, and many folders have the same name.
    identity = identity or f"{folder.name}-{uuid.uuid4().hex[:6]}"
    run = trackio.init(
        project=os.environ.get("TRACKIO_PROJECT", "mixco"),
        name=identity,
        config=config,
        resume="allow",
        embed=False,
    )
    return Service(
        identity,
        log=lambda epoch, values: run.log(values, step=epoch),
        finish=lambda _: run.finish(),
    )


def require(names: Sequence[str]) -> None:
    """Raises UserError for a service whose package is not installed."""
    for name in names:
        package = LOGGERS[name].package
        if package is None:
            continue
        spec = find_spec(package)
        if spec is None or spec.origin is None:  # a folder without code, such as wandb's runs
            raise UserError(
                f"--log-to {name} needs a package that is not installed; get it by "
                f"pip install 'mixco[{name}]'"
            )


@contextmanager
def followed_by(
    names: Sequence[str] | None,
    folder: Path,
    config: dict[str, Any],
    done: int,
    *,
    rest: float = REST,
) -> Iterator[Callable[[Sequence[Record]], None]]:
    """Inside, TensorBoard and the named services follow a run. Services that know the run resume it.

    names: None on a process that does not write.
    done: finished epochs of the run; TensorBoard drops its records of later ones.
    rest: seconds without a new try after a service has failed.

    Yields a function that takes the records of all epochs so far and sends each service those that it
    lacks. When a service fails, the run continues with one warning, and a later epoch tries again.

    Raises UserError when a service cannot be started for the first time.
    """
    if names is None:
        yield lambda _: None
        return
    from torch.utils.tensorboard import SummaryWriter  # half a second, only needed here

    followers = [follow for name in names if (follow := _follow(name, folder, config, rest))]
    board = SummaryWriter(str(folder / "tensorboard"), purge_step=done + 1)

    def log(records: Sequence[Record]) -> None:
        for key, value in records[-1].items():
            board.add_scalar(key, value, int(records[-1]["epoch"]))
        board.flush()
        for pass_on, _ in followers:
            pass_on(records)

    well = False
    try:
        yield log
        well = True
    finally:
        for _, finish in followers:
            finish(well)
        with (
            nullcontext() if well else suppress(Exception)
        ):  # the error that ended the run matters more
            board.close()


def _follow(
    name: str, folder: Path, config: dict[str, Any], rest: float
) -> tuple[Callable[[Sequence[Record]], None], Callable[[bool], None]] | None:
    """Start or resume a service: how to send it records, and how to end it.

    None when it cannot be resumed, after a warning.
    """
    path = folder / "loggers.json"
    known = (read_results(path) if path.exists() else {}).get(name, {})
    has = known.get("epochs", 0)
    try:
        service: Service = resolve_name(LOGGERS[name].start)(folder, config, known.get("id"))
    except Exception as error:  # services and networks raise anything
        reason = _first_line(error)
        if not known:
            raise UserError(
                f"--log-to {name}: cannot be started ({reason}); log in to it, check the network, or "
                "leave it out"
            ) from None
        say(f"warning: {name} cannot be reached ({reason}); training continues without it")
        return None
    failed_at: float | None = None

    def note() -> None:
        everything = read_results(path) if path.exists() else {}
        write_json(path, {**everything, name: {"id": service.identity, "epochs": has}})

    def pass_on(records: Sequence[Record]) -> None:
        nonlocal has, failed_at
        if failed_at is not None and time.monotonic() - failed_at < rest:
            return
        try:
            for record in records[has:]:
                values = {key: value for key, value in record.items() if key != "epoch"}
                service.log(int(record["epoch"]), values)
                has = int(record["epoch"])
        except Exception as error:
            if failed_at is None:
                say(
                    f"warning: {name} rejected the metrics ({_first_line(error)}); training continues "
                    "and will retry"
                )
            failed_at = time.monotonic()
        note()

    def finish(well: bool) -> None:
        with suppress(Exception):  # the run is over, and metrics.jsonl is complete
            service.finish(well)

    note()
    return pass_on, finish


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """{"data": {"size": 64}} -> ("data.size", 64)."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
